"""Agents from npm, most of them coding programs, and what a Letta agent would be told of what they send::

    python -m pytest -m programs                                       # all of them
    python -m pytest -m programs -k "codex and cancelled"
    python -m tests.support.programs.coding run codex cancelled        # look at one

The first run fills a cache from npm (see `tests.support.programs.install`); the programs themselves run without any
network but loopback. `otel-letta setup` makes the coding programs report, a scripted model tells them what to do: read
a file with one tool, use another one, and answer. In the other scenarios the second tool fails (``tool_error``), the
model answers the second question with an error (``model_error``), or Ctrl-C interrupts the program while it waits for
that answer (``cancelled``) or for the second tool (``cancelled_in_tool``).
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.programs.coding import PROGRAMS, TOKEN, Run, run
from tests.support.programs.model import MARKER
from tests.support.programs.sealed import can_be_sealed
from tests.support.recorded_agents import Played, _play_reversed, play

RUNS = [
    pytest.param(name, scenario, id=f"{name}-{scenario}")
    for name, program in PROGRAMS.items()
    for scenario in program.scenarios
]


@dataclass(frozen=True)
class Outcome:
    """A run, what was reported of it, and of the same with the spans of each request in reverse order."""

    ran: Run
    played: Played
    reversed: Played

    @property
    def story(self) -> str:
        return f"\nexit {self.ran.code}\n{self.ran.output[-3000:]}\n{self.played.shown}"


@functools.cache
def outcome_of(name: str, scenario: str) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="otel-letta-") as folder:
        ran = run(PROGRAMS[name], scenario, Path(folder))
        return Outcome(ran, play(ran.files), _play_reversed(ran.files))


@pytest.fixture(autouse=True)
def a_second_try_runs_again(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "execution_count", 1) > 1:
        outcome_of.cache_clear()


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_a_run_is_one_task_that_ends_as_it_did(name: str, scenario: str) -> None:
    outcome, task = outcome_of(name, scenario), PROGRAMS[name].task
    how, words = {
        "success": ("completed", rf"Finished '{task}' in [^,]+, 2 tools"),
        "tool_error": ("completed", rf"Finished '{task}' in [^,]+, 2 tools, 1 problem"),
        "model_error": ("failed", rf"'{task}' failed: (?!stopped|lost|.*cancelled).+"),
        # Copilot CLI 1.0.102 gives an answer that was cut off the reason "error", if it still writes its span.
        "cancelled": (
            "failed",
            rf"'{task}' (stopped: (it ended without an answer|the model's answer ended with an error)|was cancelled.*)",
        ),
        "cancelled_in_tool": ("failed", rf"'{task}' (failed: stopped before it ended|stopped: .+|was cancelled.*)"),
    }[scenario]
    if PROGRAMS[name].may_vanish and scenario == "cancelled":
        words += rf"|'{task}' failed: lost, no news for 15 min"
    assert len(outcome.played.tasks) == 1, outcome.story
    (end,) = outcome.played.ends
    assert end.status.value == how, outcome.story
    assert re.fullmatch(words, end.content), outcome.story
    assert {report.name for report in outcome.played.reports} == {task}, outcome.story
    assert outcome.played.reports[-1] is end, outcome.story


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_its_tools_are_reported_by_name(name: str, scenario: str) -> None:
    outcome, program = outcome_of(name, scenario), PROGRAMS[name]
    first, second = program.reading.tool, program.script(scenario).calls[1].tool
    expected = [f"Used tool {first}"]
    if scenario == "success":
        expected.append(f"Used tool {second}")
    elif scenario in ("tool_error", "cancelled_in_tool"):
        expected.append(f"Tool {second} failed")
    reported = [
        report.content for report in outcome.played.reports if re.match("Used tool|Tool |Denied", report.content)
    ]
    assert len(reported) == len(expected), outcome.story
    assert all(content.startswith(begin) for content, begin in zip(reported, expected, strict=True)), outcome.story


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_the_order_of_spans_changes_nothing(name: str, scenario: str) -> None:
    outcome = outcome_of(name, scenario)
    assert ends_of(outcome.played) == ends_of(outcome.reversed), outcome.story + outcome.reversed.shown


def ends_of(played: Played) -> list[tuple[str, str, str]]:
    return [(end.task_id, end.status.value, end.content) for end in played.ends]


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_no_prompt_argument_output_or_answer_is_reported(name: str, scenario: str) -> None:
    outcome = outcome_of(name, scenario)
    reports = json.dumps([report.to_dict() for report in outcome.played.reports], default=str)
    assert MARKER not in reports.lower() + outcome.played.shown.lower(), outcome.story
    # There was something to leave out.
    asked = "".join(body for _, body in outcome.ran.asked)
    assert f"{MARKER}-prompt" in asked
    assert f"{MARKER}-found" in asked


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_the_program_needs_nothing_but_the_model_and_a_receiver(name: str, scenario: str) -> None:
    outcome = outcome_of(name, scenario)
    assert outcome.ran.sealed == can_be_sealed()
    assert not outcome.ran.refused, "something that is no OTLP"
    assert outcome.ran.authorized == {f"Bearer {TOKEN}" if PROGRAMS[name].setup else ""}
    assert (outcome.ran.code == 0) or scenario not in ("success", "tool_error"), outcome.story


@pytest.mark.parametrize("scenario", PROGRAMS["claude_code"].scenarios)
def test_claude_code_sends_no_content_with_our_settings(scenario: str) -> None:
    assert MARKER not in outcome_of("claude_code", scenario).ran.sent


def test_gemini_sends_no_content_with_our_settings_but_its_command_line() -> None:
    sent = outcome_of("gemini", "success").ran.sent
    found = set(re.findall(rf"{MARKER}-\w+", sent))
    assert found <= {f"{MARKER}-prompt"}, "more than our page says"


def test_opencode_reports_to_where_it_was_told() -> None:
    """What is made of it is in docs/uses/coding-agents.md: not enough."""
    outcome = outcome_of("opencode", "success")
    assert outcome.ran.code == 0, outcome.story
    assert "ai.streamText" in outcome.ran.sent
    assert outcome.ran.authorized == {f"Bearer {TOKEN}"}
    assert MARKER not in outcome.played.shown.lower()


def test_copilot_sends_no_content_with_our_settings() -> None:
    assert MARKER not in outcome_of("copilot", "success").ran.sent


def test_qwen_sends_no_content_with_our_settings_but_arguments() -> None:
    sent = outcome_of("qwen", "success").ran.sent
    assert set(re.findall(rf"{MARKER}-\w+", sent)) == {f"{MARKER}-output"}, "not what our page says"


def test_the_ai_sdk_sends_content_all_the_same() -> None:
    """So that what is asked of its reports above means something."""
    sent = outcome_of("ai_sdk", "success").ran.sent
    assert {f"{MARKER}-{text}" for text in ("prompt", "found", "output", "answer")} <= set(
        re.findall(rf"{MARKER}-\w+", sent)
    )


def test_codex_sends_outputs_of_tools_whatever_it_is_told() -> None:
    """Then the page says so no more."""
    sent = outcome_of("codex", "success").ran.sent
    assert f"{MARKER}-output" in sent
    assert f"{MARKER}-prompt" not in sent
