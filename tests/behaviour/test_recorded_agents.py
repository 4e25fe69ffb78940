"""What `otel-letta replay` makes of real agent programs: coding CLIs, and agents in JavaScript, Go, Rust and Java.

`tests/support/recorded_agents.py` says how a recording is compared with what its run really was. What is still wrong
stands in ``tests/data/agents/not_yet.json``, and has to be taken out when it has become right.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from otel_letta.report import ProgressReport
from tests.support.agent_tables import FAMILIES, page_with_table
from tests.support.recorded_agents import CASES, EXPECTED, REPROS, Played, faults, not_yet, play_repro

_NOT_YET = not_yet()


class Right(NamedTuple):
    """What a small input's reports have to be; ``tests/data/agents/repro/README.md`` says why."""

    ends: tuple[str, ...] = ("completed",)
    words: str = ""
    """One of these, separated by ``|``, is in each end."""
    no_words: str = ""
    tools: int | None = None
    used: str = ""
    """A tool's name that one of the reports holds."""
    waiting: int = 0
    chats: tuple[str, ...] | None = None
    """The chat of every report; one of no chat of its own has the trace's id."""


_STOPPED = "stopped|cancelled"
_MODEL_FAILED = Right(("failed",), no_words="stopped|lost|cancelled")
_RIGHT = {
    "g1_ambient_failed": Right(("failed",), no_words="lost"),  # its spans show no error: only that no answer came
    "r1_guessed_failed": _MODEL_FAILED,
    "r1b_same_spans_root_first": _MODEL_FAILED,
    "r3_exception_events_only": _MODEL_FAILED,
    "r3b_agent_root_exception_event_only": _MODEL_FAILED,
    "g2_tool_last": Right(("failed",), "stopped"),
    "r2_cancelled_in_tool": Right(("failed",), _STOPPED),
    "r2b_cancelled_in_llm": Right(("failed",), _STOPPED),
    "g3_cut_call_without_attributes": Right(("failed",), _STOPPED),
    "g4_empty_finish_reason": Right(("failed",), "stopped"),
    "g5_stream_without_outputs": Right(),
    "g6_tool_outcome_error": Right(words="1 problem", tools=1, used="Tool read failed"),
    "g7_waits_for_approval": Right((), waiting=1),
    "g7b_interrupt_type": Right((), waiting=1),
    "g8_merged_tools": Right(tools=2),
    "r5_merged_tools": Right(tools=2),
    "g9_gen_ai_span_kind": Right(tools=1),
    "g10_genkit_go": Right(tools=1),
    "g11_blocked": Right(("failed",), "filter|blocked|SAFETY"),
    "g12_llm_dot_convention": Right(("failed",), "stopped"),
    "g13_subagents_conversation": Right(chats=("sess-1",)),
    "g14_empty_response_id": Right(("failed",), "stopped"),
    "g19_outer_span_never_ends": Right(("completed", "completed")),
    "g20_next_run_in_one_trace": Right(("completed", "completed")),
    "r4_parallel_agents": Right(),
    "r6_resource_chat": Right(chats=("chat-9",)),
    "r7_spring_ai_1x_tool": Right(tools=1),
    "r8_response_model_none": Right(("failed",), "stopped"),
}


def repro_faults(name: str) -> list[str]:
    """Compare a small input with its right value, in both orders of its spans."""
    found = _faults(name, play_repro(name))
    return found or [f"reversed: {fault}" for fault in _faults(name, play_repro(name, reverse=True))]


def _faults(name: str, played: Played) -> list[str]:
    right, found = _RIGHT[name], []
    statuses = tuple(sorted(report.status.value for report in played.ends))
    if statuses != right.ends:
        found.append(f"ends: {'+'.join(statuses) or 'none'}, not {'+'.join(right.ends) or 'none'}")
    if len(played.tasks) != (tasks := len(right.ends) + right.waiting):
        found.append(f"tasks: {len(played.tasks)}, not {tasks}")
    if played.waiting != right.waiting:
        found.append(f"waiting: {played.waiting}, not {right.waiting}")
    if right.tools is not None and played.tools != right.tools:
        found.append(f"tools: {played.tools}, not {right.tools}")
    if right.used and not any(right.used in report.content for report in played.reports):
        found.append(f"no report of: {right.used}")
    for end in played.ends:
        if right.words and not any(word in end.content for word in right.words.split("|")):
            found.append(f"words: {end.content}")
        if right.no_words and any(word in end.content for word in right.no_words.split("|")):
            found.append(f"words: {end.content}")
    if right.chats is not None and (others := {report.chat_id for report in played.reports} - _chats(right, played)):
        found.append(f"chats: {', '.join(map(str, others))}")
    return found + (_next_run_faults(played.reports) if name == "g20_next_run_in_one_trace" else [])


def _chats(right: Right, played: Played) -> set[str | None]:
    """The chats that are right; before its root came, a run's own may be unknown."""
    before = {report.trace_id for report in played.reports} if "sess-1" in (right.chats or ()) else set()
    return {*(right.chats or ()), *before, None}


def _next_run_faults(reports: list[ProgressReport]) -> list[str]:
    """The tool was used by the second run."""
    chats = {report.chat_id for report in reports if report.content.startswith("Used tool")}
    return [] if chats == {"chat-2"} else [f"used a tool: {', '.join(map(str, chats)) or 'nobody'}, not chat-2"]


def _check(name: str, found: list[str]) -> None:
    if name in _NOT_YET:
        assert found, f"{name} has become right: take it out of not_yet.json (python -m tests.support.recorded_agents)"
    else:
        assert found == []


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_run_is_reported_as_it_was(name: str) -> None:
    _check(name, faults(name))


@pytest.mark.parametrize("name", REPROS)
def test_a_small_input_of_each_kind_is_reported_right(name: str) -> None:
    _check(f"repro/{name}", repro_faults(name))


def test_every_small_input_has_a_right_value() -> None:
    assert sorted(_RIGHT) == REPROS


def test_what_is_listed_as_wrong_exists_and_has_a_reason() -> None:
    known = {*CASES, *(f"repro/{name}" for name in REPROS)}

    assert set(_NOT_YET) <= known
    assert all(reason.strip() for reason in _NOT_YET.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_pages_show_what_is_right(kind: str) -> None:
    page, anew = page_with_table(kind)

    assert f"<!-- recorded: {kind} -->" in page
    assert page == anew, "write it anew: python -m tests.support.recorded_agents"


def test_every_recorded_program_stands_in_a_table() -> None:
    shown = [family for families in FAMILIES.values() for family in families]

    assert sorted(shown) == sorted({name.rpartition(".")[0] for name in EXPECTED})
