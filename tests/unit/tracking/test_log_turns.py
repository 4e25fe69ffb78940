"""Turns that log events tell of: what is told of one, how it ends, and that spans of the same run are the same task.

The recordings in `data/agents` are of real coding agents; what is expected of them is what each run really was.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_letta.cli.replay import Replay
from otel_letta.otlp.json import read_batches
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings
from otel_letta.tracking import Reading
from otel_letta.tracking.log_events import Happened, LogEvent
from tests.support.recorded import Played
from tests.support.tracked import SECOND, Live, hostile_text

AGENTS = Path(__file__).parents[2] / "data" / "agents"
TRACE, ROOT = 0xA, 0x1
START = 1_800_000_000 * SECOND
SERVICE = {"service.name": "coder"}


def event(name: str, at: float, *, trace: int = 0, span: int = 0, **attributes: Any) -> LogEvent | None:
    """``a__b`` is the attribute ``a.b``."""
    return LogEvent.of(
        name,
        {"session.id": "s-1", **{key.replace("__", "."): value for key, value in attributes.items()}},
        SERVICE,
        time=START + int(at * SECOND),
        trace_id=trace,
        span_id=span,
        scope="coder.events",
    )


def span(
    name: str,
    span_id: int,
    parent: int | None,
    start: float,
    end: float,
    *,
    trace: int = TRACE,
    failed: bool = False,
    **attributes: Any,
) -> ReadableSpan:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return ReadableSpan(
        name=name,
        context=SpanContext(trace, span_id, False, flags),
        parent=None if parent is None else SpanContext(trace, parent, False, flags),
        resource=Resource(SERVICE),
        attributes={"session.id": "s-1", **{key.replace("__", "."): value for key, value in attributes.items()}},
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, "it broke") if failed else Status(),
        start_time=START + int(start * SECOND),
        end_time=START + int(end * SECOND),
        instrumentation_scope=InstrumentationScope("coder"),
    )


class Logged(Played):
    """A tracker that is given log events and spans, in the order of the clock's passing."""

    def log(self, name: str, at: float, **attributes: Any) -> None:
        found = event(name, at, **attributes)
        assert found is not None, name
        self.clock.now = max(self.clock.now, found.time)
        self.tracker.tick()
        self.tracker.event(found)
        self.tracker.tick()

    @property
    def said(self) -> list[str]:
        return [report.content for report in self.reports]

    @property
    def tasks(self) -> set[str]:
        return {report.task_id for report in self.reports}


def prompted(**attributes: Any) -> Logged:
    logged = Logged()
    logged.log("x.user_prompt", 0, **attributes)
    return logged


def one_tool(logged: Logged, **attributes: Any) -> None:
    logged.log("x.tool_decision", 1, tool_name="Bash", call_id="c1", decision="accept", **attributes)
    logged.log("x.tool_result", 2, tool_name="Bash", call_id="c1", success="true", duration_ms="900", **attributes)


# -- the life of a turn ------------------------------------------------------------------------------------------------


def test_a_turn_is_told_from_its_prompt_to_the_idleness_after_its_answer() -> None:
    logged = prompted()
    one_tool(logged)
    logged.log("x.api_request", 4, duration_ms=1500, http__response__status_code=200)
    assert logged.said == ["Started 'coder'", "Using tool Bash", "Used tool Bash (1.0 s); 1 tool used"]
    logged.pass_seconds(59)
    assert not logged.ends
    logged.pass_seconds(2)
    assert [(end.name, str(end.status), end.chat_id, end.content) for end in logged.ends] == [
        ("coder", "completed", "s-1", "Finished 'coder' in 4.0 s, 1 tool")
    ]


def test_the_time_without_news_is_a_setting() -> None:
    logged = Logged(answer_timeout=5.0)
    logged.log("user_prompt", 0)
    logged.log("assistant_response", 1)
    logged.pass_seconds(4)
    assert not logged.ends
    logged.pass_seconds(1.5)
    assert len(logged.ends) == 1


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("x.api_error", {"status_code": 401}),
        ("x.api_error", {"http.status_code": "401"}),
        ("x.api_request", {"http.response.status_code": "401", "duration_ms": "3"}),
        ("x.api_response", {"status_code": 401}),
    ],
)
def test_trouble_with_the_model_and_then_idleness_is_a_failure(name: str, more: dict[str, Any]) -> None:
    logged = prompted()
    logged.log(name, 1, **{key.replace(".", "__"): value for key, value in more.items()})
    assert logged.said[-1] == "Trouble with the model: HTTP 401"
    logged.pass_seconds(61)
    (end,) = logged.ends
    assert (str(end.status), end.content) == ("failed", "'coder' failed: HTTP 401")


def test_trouble_that_passes_is_a_problem_and_told_once() -> None:
    logged = prompted()
    for second in (1, 2, 3):
        logged.log("api_error", second, status_code=500)
    logged.log("api_response", 5, duration_ms=900)
    logged.pass_seconds(61)
    assert logged.said[1:] == ["Trouble with the model: HTTP 500", "Finished 'coder' in 5.0 s, 1 problem"]


def test_a_tool_may_be_denied_or_fail_and_its_error_type_says_why() -> None:
    logged = prompted()
    logged.log("tool_decision", 1, tool_name="Bash", call_id="c1", decision="reject")
    logged.log("tool_result", 1.1, tool_name="Bash", call_id="c1", success=False)
    logged.log("tool_call", 2, function_name="read_file", success=False, error_type="file_not_found", duration_ms=5)
    logged.log("tool_call", 3, function_name="read_file", success=False, duration_ms=5, error="SECRET-ERROR")
    assert "denied" in logged.said[1]
    assert logged.said[2:] == [
        "Tool read_file failed: file_not_found; 2 tools used",
        "Tool read_file failed; 3 tools used",
    ]


@pytest.mark.parametrize(
    "last",
    [
        [],
        [("tool_decision", 1.0, {"tool_name": "Bash", "call_id": "c"})],
        [("tool_call", 1.0, {"function_name": "Bash", "duration_ms": 100})],
        [("api_request", 1.0, {})],
        # The model's stream ended after the tool that it asked for had begun, and even after it had ended.
        [("tool_decision", 1.0, {"tool_name": "Bash"}), ("api_request", 1.1, {"duration_ms": 800})],
        [("tool_call", 1.0, {"function_name": "B", "duration_ms": 3}), ("api_response", 1.1, {"duration_ms": 800})],
        [
            ("sse_event", 1.0, {"event.kind": "response.function_call_arguments.done"}),
            ("sse_event", 1.1, {"event.kind": "response.completed"}),
        ],
    ],
    ids=["asked", "tool runs", "tool is done", "model is asked", "early tool", "quick tool", "wish for a tool"],
)
def test_what_is_at_work_is_not_ended_by_idleness_and_is_stopped_when_nothing_more_can_come(
    last: list[tuple[str, float, dict[str, Any]]],
) -> None:
    logged = prompted()
    for name, at, attributes in last:
        logged.log(f"x.{name}", at, **{key.replace(".", "__"): value for key, value in attributes.items()})
    logged.pass_seconds(300)
    assert not logged.ends
    logged.tracker.finish()
    assert [str(end.status) for end in logged.ends] == ["failed"]
    assert "'coder' stopped: it ended without an answer" in logged.ends[0].content


def test_a_call_that_went_well_is_no_answer_where_the_program_says_when_there_is_one() -> None:
    logged = prompted(prompt_id="1")
    logged.log("api_request", 1, duration_ms=500, prompt_id="1")
    logged.log("assistant_response", 1, prompt_id="1")
    logged.log("user_prompt", 10, prompt_id="2")
    logged.log("api_request", 11, duration_ms=500, prompt_id="2")
    logged.pass_seconds(300)  # it waits for somebody to allow a tool, say
    assert [str(end.status) for end in logged.ends] == ["completed"]
    logged.log("assistant_response", 400, prompt_id="2")
    logged.pass_seconds(61)
    assert [str(end.status) for end in logged.ends] == ["completed"] * 2


def test_the_next_prompt_ends_a_turn_as_it_stands() -> None:
    logged = prompted(prompt_id="1")
    logged.log("assistant_response", 1, prompt_id="1")
    logged.log("user_prompt", 5, prompt_id="2")
    logged.log("tool_decision", 6, tool_name="Bash", prompt_id="2")
    logged.log("user_prompt", 7, prompt_id="3")
    assert [str(end.status) for end in logged.ends] == ["completed", "failed"]
    assert len(logged.tasks) == 3


def test_the_end_of_a_session_needs_no_idleness() -> None:
    logged = prompted()
    logged.log("api_response", 1, duration_ms=500)
    logged.log("coder.session.end", 2)
    assert [str(end.status) for end in logged.ends] == ["completed"]


def test_a_turn_is_known_by_its_trace_where_there_is_no_conversation() -> None:
    logged = Logged()
    for name, at, more in (
        ("user_prompt", 0, {}),
        ("tool_call", 1, {"tool_name": "t", "duration_ms": 1}),
        ("assistant_response", 2, {}),
    ):
        logged.log(name, at, trace=TRACE, span=ROOT, session__id="", **more)
    logged.pass_seconds(61)
    assert (len(logged.tasks), len(logged.ends)) == (1, 1)


def test_turns_of_two_conversations_and_of_two_programs_are_apart() -> None:
    logged = Logged()
    for session in "ab":
        logged.log("user_prompt", 0, session__id=session)
    for session in "ab":
        logged.log("tool_call", 1, session__id=session, tool_name=session, duration_ms=1)
        logged.log("assistant_response", 2, session__id=session)
    logged.pass_seconds(61)
    assert [end.content for end in logged.ends] == ["Finished 'coder' in 2.0 s, 1 tool"] * 2


def test_any_order_within_a_conversation_and_a_resend_tell_the_same() -> None:
    def events() -> list[LogEvent]:
        found = [
            event("user_prompt", 0, prompt_id="1"),
            event("tool_decision", 1, prompt_id="1", tool_name="Bash", call_id="c"),
            event("tool_result", 2, prompt_id="1", tool_name="Bash", call_id="c", duration_ms=900),
            event("api_request", 4, prompt_id="1", duration_ms=1500),
            event("assistant_response", 4, prompt_id="1"),
        ]
        return [one for one in found if one is not None]

    ends = set()
    for order in itertools.permutations(range(5)):
        logged = Logged()
        for number in [*order, *order]:
            logged.tracker.event(events()[number])
        logged.clock.pass_seconds(100)
        logged.tracker.tick()
        for number in order:
            logged.tracker.event(events()[number])
        logged.tracker.finish()
        ends.add(tuple((end.task_id, end.content) for end in logged.ends))
    assert len(ends) == 1
    assert [content for _, content in ends.pop()] == ["Finished 'coder' in 4.0 s, 1 tool"]


def test_at_shutdown_what_was_answered_is_complete_and_what_is_at_work_fails() -> None:
    logged = prompted(prompt_id="1")
    logged.log("assistant_response", 1)
    logged.log("user_prompt", 1, session__id="other")
    logged.tracker.shutdown()
    assert sorted(str(end.status) for end in logged.ends) == ["completed", "failed"]


def test_what_nobody_asked_for_is_no_task() -> None:
    logged = Logged()
    logged.log("api_request", 1, duration_ms=5)
    logged.log("tool_call", 1, tool_name="t")
    logged.log("assistant_response", 1)
    logged.pass_seconds(1_000)
    logged.tracker.finish()
    assert logged.reports == []


def test_the_resource_names_the_asker() -> None:
    logged = Logged()
    found = LogEvent.of("user_prompt", {}, {"letta.chat.id": "chat-9", "service.name": "c"}, time=START, trace_id=1)
    assert found is not None
    logged.tracker.event(found)
    assert logged.reports[0].chat_id == "chat-9"


# -- spans of the same run ---------------------------------------------------------------------------------------------

AGENT: dict[str, Any] = {"gen_ai__operation__name": "invoke_agent", "gen_ai__conversation__id": "s-1"}
TOOL: dict[str, Any] = {"gen_ai__operation__name": "execute_tool", "gen_ai__tool__name": "Bash"}
CHAT: dict[str, Any] = {"gen_ai__operation__name": "chat", "gen_ai__usage__output_tokens": 5}


def run_of_spans(trace: int = TRACE, **tool: Any) -> list[ReadableSpan]:
    """An agent's spans as they come: children first."""
    return [
        span("chat", 3, ROOT, 0.1, 0.9, trace=trace, **CHAT),
        span("Bash", 2, ROOT, 1.0, 2.0, trace=trace, **TOOL, **tool),
        span("chat", 4, ROOT, 2.5, 3.9, trace=trace, **CHAT),
        span("turn", ROOT, None, -0.1, 4.0, trace=trace, **AGENT),
    ]


def run_of_logs(**where: Any) -> list[tuple[str, float, dict[str, Any]]]:
    return [
        ("user_prompt", 0.0, where),
        ("tool_decision", 1.0, {**where, "tool_name": "Bash", "tool_use_id": "c1", "decision": "accept"}),
        ("tool_result", 2.0, {**where, "tool_name": "Bash", "tool_use_id": "c1", "duration_ms": 990}),
        ("assistant_response", 3.9, where),
    ]


@pytest.mark.parametrize("where", [{"trace": TRACE, "span": ROOT}, {"trace": TRACE, "span": 77}, {}], ids=str)
@pytest.mark.parametrize("call", [{"gen_ai__tool__call__id": "c1"}, {}], ids=["with a call id", "without"])
@pytest.mark.parametrize("order", ["logs first", "spans first", "a mix"])
def test_spans_and_logs_of_a_run_are_one_task_and_tools_are_told_once(
    where: dict[str, int], call: dict[str, Any], order: str
) -> None:
    logged = Logged()
    logs, spans = run_of_logs(**where), run_of_spans(**call)
    steps: list[Any] = {
        "logs first": [*logs, spans],
        "spans first": [spans, *logs],
        "a mix": [logs[0], spans[:1], logs[1], spans[1:3], *logs[2:], spans[3:]],
    }[order]
    for step in steps:
        if isinstance(step, list):
            logged.clock.now = START + 4 * SECOND
            for one in step:
                logged.tracker.ended_alone(Reading.of(one))
        else:
            logged.clock.now = START + 4 * SECOND
            found = event(step[0], step[1], **step[2])
            assert found is not None
            logged.tracker.event(found)
    logged.pass_seconds(3)
    assert len(logged.tasks) == 1
    assert [end.content.partition(" in ")[2] for end in logged.ends] == ["4.1 s, 1 tool"]
    assert sum("Used tool Bash" in text for text in logged.said) == 1
    logged.pass_seconds(2_000)
    logged.tracker.finish()
    assert len(logged.ends) == 1


def test_with_its_agents_span_to_come_a_turn_does_not_end_by_an_answer() -> None:
    logged = Logged()
    for name, at, more in run_of_logs(trace=TRACE, span=ROOT):
        logged.log(name, at, **more)
    logged.arrive(run_of_spans()[:1])
    logged.log("assistant_response", 5, trace=TRACE, span=ROOT)
    logged.pass_seconds(100)
    assert not logged.ends
    logged.arrive([span("turn", ROOT, None, 0, 105, failed=True, **AGENT)])
    logged.pass_seconds(3)
    assert [str(end.status) for end in logged.ends] == ["failed"]


def test_a_root_without_a_role_is_the_turns_own_span() -> None:
    logged = Logged()
    for name, at, more in run_of_logs(trace=TRACE, span=ROOT):
        logged.log(name, at, **more)
    logged.arrive([*run_of_spans()[:3], span("x.interaction", ROOT, None, 0, 4)])
    logged.pass_seconds(3)
    assert [(str(end.status), end.task_id[-16:]) for end in logged.ends] == [("completed", f"{ROOT:016x}")]


def test_a_span_around_the_prompt_that_is_no_root_ends_nothing() -> None:
    logged = Logged()
    for name, at, more in run_of_logs(trace=TRACE, span=ROOT)[:2]:
        logged.log(name, at, **more)
    logged.arrive([span("record_input", ROOT, 99, 0, 0.1)])
    logged.pass_seconds(10)
    assert not logged.ends


def test_a_tool_that_only_logs_saw_begin_is_stopped_when_the_agents_span_has_ended() -> None:
    logged = Logged()
    for name, at, more in run_of_logs(trace=TRACE, span=ROOT)[:2]:
        logged.log(name, at, **more)
    logged.arrive([run_of_spans()[0], span("turn", ROOT, None, -0.1, 4.0, **AGENT)])
    logged.pass_seconds(3)
    assert logged.said[-2].startswith("Tool Bash failed: stopped before it ended")
    (end,) = logged.ends
    assert (str(end.status), "stopped" in end.content) == ("failed", True)


def test_traces_of_one_conversation_join_its_turn_and_a_later_one_does_not() -> None:
    logged = Logged()
    for name, at, more in run_of_logs():
        logged.log(name, at, **more)
    logged.arrive(
        [span("call", 5, None, 0.1, 0.9, trace=0xB, **CHAT), span("Bash", 6, 7, 1.01, 1.99, trace=0xC, **TOOL)]
    )
    logged.arrive([span("schedule", 7, None, 1, 2, trace=0xC)])
    assert sum("Used tool Bash" in text for text in logged.said) == 1
    logged.pass_seconds(61)
    assert (len(logged.ends), len(logged.tasks)) == (1, 1)
    logged.arrive(
        [span("late", 8, None, 3.0, 3.8, trace=0xD, **CHAT), span("Bash", 9, 10, 2.1, 2.2, trace=0xE, **TOOL)]
    )
    logged.arrive(run_of_spans(trace=0xF)[3:])  # the agent's, very late
    logged.tracker.finish()
    assert (len(logged.ends), len(logged.tasks)) == (1, 1)


def test_an_agent_of_the_conversation_that_began_later_is_a_sub_agent() -> None:
    logged = Logged()
    for name, at, more in run_of_logs()[:3]:
        logged.log(name, at, **more)
    logged.arrive([span("helper", 5, None, 2.5, 3, trace=0xB, **AGENT, gen_ai__agent__name="helper")])
    assert "Sub-agent helper finished" in logged.said[-1]
    assert len(logged.tasks) == 1


def test_a_live_agent_below_a_span_that_logged_a_prompt_is_part_of_the_turn() -> None:
    live = Live()
    with live.tracer.start_as_current_span("POST /chat") as outer:
        context = outer.get_span_context()
        found = event("user_prompt", 0, trace=context.trace_id, span=context.span_id)
        assert found is not None
        live.tracker.event(found)
        with live.tracer.start_as_current_span("agent", attributes={"gen_ai.operation.name": "invoke_agent"}):
            pass
    assert len({report.task_id for report in live.reports}) == 1


@pytest.mark.parametrize("order", ["logs", "logs first", "spans first", "a mix"])
@pytest.mark.parametrize("ids", [True, False])
def test_calls_of_one_tool_side_by_side_are_two_and_a_wrapper_is_none(order: str, ids: bool) -> None:
    logged = Logged()

    def log(number: int) -> None:
        call = {"call_id": f"c{number}"} if ids else {}
        logged.log("tool_call", 2.0, trace=TRACE, span=ROOT, function_name="read", duration_ms=900 + number, **call)

    def spans(number: int) -> None:
        more: dict[str, Any] = {"gen_ai__operation__name": "execute_tool", "gen_ai__tool__name": "read"}
        more |= {"gen_ai__tool__call__id": f"c{number}"} if ids else {}
        at = 1.0 + number / 100
        logged.arrive(
            [
                span("read.execution", 10 * number + 1, 10 * number, at, 2.0, **more),
                span("read", 10 * number, ROOT, at, 2.0, **more),
            ]
        )

    logged.log("user_prompt", 0, trace=TRACE, span=ROOT)
    for step in {
        "logs": [log],
        "logs first": [log, spans],
        "spans first": [spans, log],
        "a mix": [lambda number: (spans if number == 1 else log)(number), lambda n: (log if n == 1 else spans)(n)],
    }[order]:
        step(1)
        step(2)
    logged.log("assistant_response", 3, trace=TRACE, span=ROOT)
    logged.tracker.finish()
    assert sum("Used tool read" in text for text in logged.said) == 2
    assert logged.ends[0].content == "Finished 'coder' in 3.0 s, 2 tools"


def test_where_the_agents_own_spans_are_live_its_logs_say_nothing_more() -> None:
    live = Live()
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"}
    with live.tracer.start_as_current_span("agent", attributes=agent) as root:
        for around in (root, live.tracer.start_span("plain")):
            context = around.get_span_context()
            for name in ("user_prompt", "tool_decision", "assistant_response"):
                found = event(name, 0, trace=context.trace_id, span=context.span_id, tool_name="Bash")
                assert found is not None
                live.tracker.event(found)
    live.tracker.finish()
    assert [report.content.partition(" in ")[0] for report in live.reports] == ["Started 'helper'", "Finished 'helper'"]


def test_a_prompt_that_was_logged_inside_a_models_span_belongs_to_the_agent_around_it() -> None:
    for spans_first in (True, False):
        logged = Logged()
        steps: list[Any] = [run_of_spans(), *run_of_logs(trace=TRACE, span=3)]
        for step in steps if spans_first else [*steps[1:], steps[0]]:
            if isinstance(step, list):
                logged.arrive(step)
            else:
                logged.log(step[0], step[1], **step[2])
        logged.pass_seconds(100)
        assert (len(logged.tasks), len(logged.ends)) == (1, 1)
        assert logged.ends[0].content.endswith("4.1 s, 1 tool")


def test_prompts_in_one_trace_are_one_turn_while_it_is_at_work_and_two_behind_an_answer() -> None:
    logged = Logged()
    for name, at, span_id in (
        ("user_prompt", 0, 1),
        ("user_prompt", 1, 2),
        ("assistant_response", 2, 2),
        ("user_prompt", 10, 3),
        ("assistant_response", 12, 3),
    ):
        logged.log(name, at, trace=TRACE, span=span_id)
    logged.pass_seconds(61)
    assert [end.content for end in logged.ends] == ["Finished 'coder' in 2.0 s"] * 2


def test_a_turn_whose_model_is_called_again_and_again_is_not_lost() -> None:
    logged = Logged(idle_timeout=100.0)
    logged.log("user_prompt", 0)
    for second in range(50, 500, 50):
        logged.log("api_request", second)
    assert not logged.ends


def test_a_prompt_inside_a_declared_task_is_a_step_of_it() -> None:
    live = Live()
    with live.tracer.start_as_current_span("job", attributes={"letta.chat.id": "c"}) as outer:
        context = outer.get_span_context()
        found = event("user_prompt", 0, trace=context.trace_id, span=context.span_id)
        assert found is not None
        live.tracker.event(found)
    live.tracker.finish()
    assert [(report.chat_id, str(report.status)) for report in live.reports] == [
        ("c", "in_progress"),
        ("c", "completed"),
    ]


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attributes", "happened"),
    [
        ("codex.user_prompt", {}, Happened.PROMPTED),
        ("user_prompt", {}, Happened.PROMPTED),
        ("event src/x.rs:1", {"event.name": "a.b.tool_decision", "decision": "Approved"}, Happened.DECIDED),
        ("tool_decision", {"decision": "denied"}, Happened.DENIED),
        ("tool_call", {"decision": "reject", "success": False}, Happened.DENIED),
        ("api_request", {}, Happened.ASKED),
        ("api_request", {"duration_ms": "12"}, Happened.REPLIED),
        ("api_request", {"http.response.status_code": 200}, Happened.REPLIED),
        ("api_request", {"http.response.status_code": 503}, Happened.TROUBLED),
        ("api_request", {"success": "false", "duration_ms": 1}, Happened.TROUBLED),
        ("api_retries_exhausted", {}, Happened.TROUBLED),
        ("websocket_event", {"event.kind": "response.failed"}, Happened.TROUBLED),
        ("sse_event", {"event.kind": "response.output_text.delta"}, None),
        ("tool_result_size", {}, None),
        ("not_a_user_prompt", {}, None),
        ("", {}, None),
    ],
)
def test_the_last_part_of_an_events_name_says_what_happened(
    name: str, attributes: dict[str, Any], happened: Happened | None
) -> None:
    found = event(name, 0, **{key.replace(".", "__"): value for key, value in attributes.items()})
    assert (found.happened if found is not None else None) is happened


SECRETS = ("prompt", "arguments", "output", "function_args", "error", "error.message", "response", "tool_parameters")


def test_prompts_arguments_outputs_and_error_texts_are_not_read() -> None:
    logged = Logged(content=("prompt", "arguments", "results", "answer", "errors"))
    secrets = {name.replace(".", "__"): f"SECRET-{name}" for name in SECRETS}
    for name, more in (
        ("user_prompt", {}),
        ("tool_decision", {"tool_name": "Bash", "call_id": "c"}),
        ("tool_result", {"tool_name": "Bash", "call_id": "c", "success": "false"}),
        ("api_error", {"status_code": 500, "error_type": "SECRET type: with a text"}),
        ("assistant_response", {}),
    ):
        logged.log(f"x.{name}", 1, **secrets, **more)
    logged.tracker.finish()
    assert logged.ends
    assert "SECRET" not in json.dumps([report.to_dict() for report in logged.reports], default=str)


NAMES = ["user_prompt", "tool_decision", "tool_result", "api_request", "api_error", "assistant_response", "session.end"]
KEYS = ["session.id", "prompt_id", "tool_name", "call_id", "decision", "success", "duration_ms", "status_code"]
VALUES = st.one_of(
    st.text(max_size=9), st.just(hostile_text("x")), st.integers(), st.floats(), st.none(), st.booleans()
)
RECORD = st.tuples(
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from([*KEYS, "event.kind", "event.name", "error_type"]), VALUES, max_size=6),
    st.integers(-(2**64), 2**64),
    st.integers(0, 3),
)


@settings(max_examples=150)
@given(st.lists(RECORD, max_size=12))
def test_no_record_raises_and_no_task_is_told_twice(
    records: list[tuple[str, dict[str, Any], int, int]],
) -> None:
    logged = Logged()
    for name, attributes, time, ids in records:
        found = LogEvent.of(name, attributes, SERVICE, time=time, trace_id=ids, span_id=ids)
        if found is not None:
            logged.tracker.event(found)
            logged.tracker.tick()
    logged.tracker.finish()
    ended = [end.task_id for end in logged.ends]
    assert len(ended) == len(set(ended))
    for report in logged.reports:
        assert report.content.replace("\u200c", "").replace("\u200d", "").isprintable()  # scripts need the joiners


# -- recordings --------------------------------------------------------------------------------------------------------

CONTENT = re.compile(r"Used tool|Tool .*(failed|denied)")
RUNS = {
    "codex.success": ("completed", 2, "Finished 'codex_exec'"),
    "codex.env_success": ("completed", 2, "Finished 'codex_exec'"),
    "codex.long_slow": ("completed", 7, "Finished 'codex_exec'"),
    "codex.llm_error": ("failed", 1, "failed: HTTP 500"),
    "codex.cancel_tool": ("failed", 2, "stopped"),
    "gemini_cli.success": ("completed", 2, "Finished 'gemini-cli'"),
    "gemini_cli.prompt_success": ("completed", 2, "Finished 'gemini-cli'"),
    "gemini_cli.plan": ("completed", 7, "Finished 'gemini-cli'"),
    "gemini_cli.llm_error": ("failed", 1, "failed: HTTP 500"),
    "gemini_cli.cancel": ("failed", 1, "stopped"),
    "claude_code.success": ("completed", 2, "Finished"),
    "claude_code.content_success": ("completed", 2, "Finished"),
    "claude_code.long_slow": ("completed", 7, "Finished"),
    "claude_code.tool_error": ("completed", 3, "2 problems"),
    "claude_code.llm_401": ("failed", 0, "failed: HTTP 401"),
    "claude_code.llm_error": ("failed", 1, "failed: HTTP 500"),
    "claude_code.cancel": ("failed", 1, "stopped"),
    "claude_code_2_1_197.success": ("completed", 2, "Finished"),
    "claude_code_2_1_197.content_success": ("completed", 2, "Finished"),
    "claude_code_2_1_197.json_success": ("completed", 2, "Finished"),
    "claude_code_2_1_197.long_slow": ("completed", 7, "Finished"),
    "claude_code_2_1_197.llm_error": ("failed", 1, "failed: HTTP 500"),
    "claude_code_2_1_197.cancel_tool": ("failed", 2, "stopped"),
}
"""Status, tools, and a part of the last content, as the logs alone tell them."""


def replayed(files: Iterable[Path]) -> list[ProgressReport]:
    reports: list[ProgressReport] = []
    player = Replay(Settings.resolve(require_agent=False, environ={}, dotenv_path=os.devnull), [reports.append])
    player.read(*map(str, files))
    player.finish()
    assert not player.broken
    return reports


def check(reports: list[ProgressReport], status: str, tools: int) -> ProgressReport:
    (end,) = (report for report in reports if report.status.is_terminal)
    assert end is reports[-1]
    assert len({report.task_id for report in reports}) == 1
    assert str(end.status) == status
    assert sum(CONTENT.match(report.content) is not None for report in reports) == tools
    assert "SECRET-" not in json.dumps([report.to_dict() for report in reports], default=str)
    return end


@pytest.mark.parametrize("name", RUNS)
def test_logs_alone_tell_what_a_run_was(name: str) -> None:
    status, tools, text = RUNS[name]
    path = AGENTS / f"{name}.logs.jsonl.gz"
    assert text in check(replayed([path]), status, tools).content


WITH_SPANS = [name for name in RUNS if (AGENTS / f"{name}.otlp.jsonl.gz").exists() and name != "claude_code.cancel"]


@pytest.mark.parametrize("name", WITH_SPANS)
@pytest.mark.parametrize("spans_last", [False, True])
def test_spans_beside_the_logs_change_neither_the_number_of_tasks_nor_tools_nor_the_end(
    name: str, spans_last: bool
) -> None:
    status, tools, _ = RUNS[name]
    files = [AGENTS / f"{name}.otlp.jsonl.gz", AGENTS / f"{name}.logs.jsonl.gz"]
    check(replayed(files[::-1] if spans_last else files), status, tools)


@pytest.mark.parametrize("name", [name for name in WITH_SPANS if name.startswith(("claude_code.", "codex."))])
@pytest.mark.parametrize("seed", range(3))
def test_requests_of_spans_and_logs_may_come_in_any_order_within_the_grace(name: str, seed: int) -> None:
    batches = []
    for kind in ("otlp", "logs"):
        with gzip.open(AGENTS / f"{name}.{kind}.jsonl.gz") as lines:
            batches += list(read_batches(lines))
    last = max(batch.newest for batch in batches)
    random.Random(seed).shuffle(batches)
    logged = Logged()
    logged.clock.now = last
    for batch in batches:
        for record in batch.records:
            found = LogEvent.of(
                record.event_name,
                record.attributes,
                record.resource.attributes,
                time=record.time,
                trace_id=record.trace_id,
                span_id=record.span_id,
                scope=record.scope.name,
            )
            if found is not None:
                logged.tracker.event(found)
        for one in batch.spans:
            logged.tracker.ended_alone(Reading.of(one))
        logged.tracker.tick()
    logged.pass_seconds(100)
    logged.tracker.finish()
    check(logged.reports, *RUNS[name][:2])


def test_the_recordings_hold_what_must_not_be_told() -> None:
    assert any(b"SECRET-" in gzip.decompress(path.read_bytes()) for path in AGENTS.glob("codex.*.logs*"))


# --- Two accounts of one thing, in any order ------------------------------------------------------------------------

_DENIED = ("x.tool_decision", 2.0, {"decision": "reject"})
_FAILED = ("x.tool_result", 2.0, {"success": "false", "duration_ms": "900"})
_WENT_WELL = ("x.tool_result", 2.0, {"success": "true", "duration_ms": "900"})


@pytest.mark.parametrize("span_first", [True, False])
@pytest.mark.parametrize(
    ("log", "failed"),
    [(_DENIED, False), (_FAILED, False), (_WENT_WELL, True), (_FAILED, True)],
    ids=["denied, as logs say", "failed, as logs say", "failed, as its span says", "failed, as both say"],
)
def test_a_tool_that_failed_by_either_account_is_a_problem_whichever_comes_first(
    log: tuple[str, float, dict[str, str]], failed: bool, span_first: bool
) -> None:
    logged = prompted(trace=TRACE, span=ROOT)
    name, at, attributes = log
    tool = {"gen_ai__operation__name": "execute_tool", "gen_ai__tool__name": "Bash", "gen_ai__tool__call__id": "c1"}
    accounts = [
        lambda: logged.arrive([span("tool", 0x2, ROOT, 1.1, 2, failed=failed, **tool)]),
        lambda: logged.log(name, at, trace=TRACE, tool_name="Bash", call_id="c1", **attributes),
    ]
    for tell in accounts if span_first else reversed(accounts):
        tell()
    answer = {"gen_ai__operation__name": "chat", "gen_ai__response__finish_reasons": ("stop",)}
    logged.arrive([span("chat", 0x3, ROOT, 2.1, 3, **answer)])
    logged.arrive([span("agent", ROOT, None, 0, 3, gen_ai__operation__name="invoke_agent")])
    logged.pass_seconds(3)

    (end,) = logged.ends
    assert end.content.endswith("1 tool, 1 problem")


def test_what_was_said_of_the_model_counts_by_its_time_not_by_its_arrival() -> None:
    words = [
        ("x.api_request", 1, {"duration_ms": "500", "http.response.status_code": "200"}),
        ("x.sse_event", 1.1, {"event.kind": "response.function_call_arguments.done"}),
        ("x.api_request", 3, {"duration_ms": "500", "http.response.status_code": "200"}),
        ("x.sse_event", 3.5, {"event.kind": "response.completed"}),
    ]
    for order in itertools.permutations(words):
        logged = prompted()
        one_tool(logged)
        for name, at, attributes in order:
            logged.log(name, at, **attributes)
        logged.pass_seconds(61)

        assert [end.status.value for end in logged.ends] == ["completed"], order


@pytest.mark.parametrize("span_first", [True, False])
def test_why_a_model_failed_is_said_in_its_spans_words_whichever_comes_first(span_first: bool) -> None:
    logged = prompted()
    ask = {"gen_ai__operation__name": "chat", "gen_ai__conversation__id": "s-1"}
    accounts = [
        lambda: logged.arrive([span("chat", 0x7, None, 0.1, 1, trace=0xB, failed=True, **ask)]),
        lambda: logged.log("x.api_error", 1, status_code="500"),
    ]
    for tell in accounts if span_first else reversed(accounts):
        tell()
    logged.pass_seconds(61)

    assert [end.content for end in logged.ends] == ["'coder' failed: it broke"]
