"""Agents without a root: calls of tools and models that only a conversation's id joins."""

from __future__ import annotations

import itertools
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_letta.report import TaskStatus
from otel_letta.tracking.opt_in import services_in
from otel_letta.tracking.order import in_order
from tests.support.tracked import Live
from tests.unit.tracking.test_inferred_tasks import Played, agent, arrived, contents, made

COMPLETED, FAILED = TaskStatus.COMPLETED, TaskStatus.FAILED
SERVICE = {"service.name": "cli"}
SAME = {"gen_ai.conversation.id": "c-1"}


def model(trace: int, start: float, end: float, *, finish: str | None = None, **more: Any) -> ReadableSpan:
    """A call of a model with a trace of its own, as Gemini CLI 0.61 makes them: its operation is nobody's word."""
    said = {"gen_ai.operation.name": "llm_call", "gen_ai.request.model": "m", **SAME}
    if "error" not in more:
        said |= {"gen_ai.usage.output_tokens": 5}
    if finish is not None:
        said |= {"gen_ai.response.finish_reasons": (finish,)}
    return made("llm_call", trace * 10, None, start, end, said, trace_id=trace, resource=SERVICE, **more)


def used(name: str, trace: int, start: float, end: float, attributes: Any = SAME, **more: Any) -> list[ReadableSpan]:
    """A tool's call below a span without a role, in a trace of its own."""
    said = {"gen_ai.operation.name": "tool_call", "gen_ai.tool.name": name, **attributes}
    above = {"gen_ai.operation.name": "schedule_tool_calls", **attributes}
    call = made("tool_call", trace * 10 + 1, trace * 10, start, end, said, trace_id=trace, resource=SERVICE, **more)
    return [call, made("schedule", trace * 10, None, start, end, above, trace_id=trace, resource=SERVICE)]


RUN = [model(1, 0, 1), *used("read", 2, 1, 1.2), model(3, 1.3, 1.6), *used("run", 4, 1.7, 1.8), model(5, 1.9, 2)]


def wait(played: Played, seconds: float) -> None:
    """Let time pass as it does for a pipeline, which sleeps until something is due."""
    until = played.clock.now + int(seconds * 1e9)
    while (due := played.tracker.tick()) is not None and due <= until:
        played.clock.now = max(played.clock.now, due)
    played.clock.now = until
    played.tracker.tick()


def shown(played: Played) -> list[tuple[str, str]]:
    return [(end.status.value, end.content) for end in played.ends]


def test_calls_of_one_conversation_are_one_task_that_ends_when_nothing_follows_its_answer() -> None:
    played = arrived(*RUN)
    wait(played, 5)
    assert played.ends == []
    assert contents(played) == [
        "Started 'cli'",
        "Used tool read (0.2 s); 1 tool used",
        "Used tool run (0.1 s); 2 tools used",
    ]
    wait(played, 1_000)
    assert shown(played) == [("completed", "Finished 'cli' in 2.0 s, 2 tools")]
    assert played.ends[0].chat_id == "c-1"
    assert len({report.task_id for report in played.reports}) == 1
    wait(played, 20_000)
    assert (len(played.ends), played.tracker.tree.size, played.tracker.open_tasks) == (1, 0, 0)


def test_an_answer_that_says_that_it_is_one_is_waited_upon_for_the_shorter_time() -> None:
    for finish, ended in (("stop", True), (None, False)):
        played = arrived(*RUN[:-1], model(5, 1.9, 2, finish=finish))
        wait(played, 100)
        assert bool(played.ends) is ended


def test_a_failure_of_the_model_that_lasts_is_the_runs() -> None:
    played = arrived(*RUN[:4], *(model(trace, trace, trace + 1, error="500: exploded") for trace in (6, 7, 8)))
    wait(played, 100)
    assert shown(played) == [("failed", "'cli' failed: 500: exploded")]


def test_a_run_that_stopped_in_a_tool_is_quiet_first_and_no_success() -> None:
    played = arrived(*RUN[:3])
    wait(played, 1_000)
    assert played.ends == []
    assert played.reports[-1].content == "No news from 'cli' for 15 min"
    wait(played, 7_000)
    assert shown(played) == [("failed", "'cli' failed: lost, no news for 2 h")]
    finished = arrived(*RUN[:3])
    finished.tracker.finish()
    assert shown(finished) == [("failed", "'cli' stopped: it ended without an answer")]


def test_the_order_of_requests_within_the_grace_changes_nothing() -> None:
    requests = [RUN[:1], RUN[1:3], RUN[3:4], RUN[4:6], RUN[6:]]
    outcomes = set()
    for order in itertools.permutations(requests):
        played = Played()
        for request in order:
            played.arrive(request)
        wait(played, 3)
        wait(played, 1_000)
        outcomes.add(tuple((end.task_id, end.content) for end in played.ends))
    (outcome,) = outcomes
    assert [content for _, content in outcome] == ["Finished 'cli' in 2.0 s, 2 tools"]


def test_the_next_run_of_a_conversation_is_a_task_of_its_own() -> None:
    played = arrived(*RUN)
    wait(played, 1_000)
    played.arrive([model(6, 2_000, 2_001), *used("read", 7, 2_001, 2_002), model(8, 2_002, 2_003, finish="stop")])
    wait(played, 3)
    wait(played, 100)
    assert [end.content.partition(" in ")[2] for end in played.ends] == ["2.0 s, 2 tools", "3.0 s, 1 tool"]
    assert len({end.task_id for end in played.ends}) == 2


def test_a_tool_alone_and_models_alone_are_no_task() -> None:
    for spans in ([model(1, 0, 1), model(2, 1, 2, error="500")], used("read", 1, 0, 1), RUN[:1]):
        played = arrived(*spans)
        wait(played, 20_000)
        played.tracker.finish()
        assert played.reports == []


def test_a_conversation_of_models_alone_is_kept_in_bounds_and_an_old_call_is_no_part_of_a_run() -> None:
    played = arrived(*(model(trace, trace, trace + 0.5) for trace in range(1, 50)))
    kept = played.tracker._turns._rootless._lone
    assert [len(lone.nodes) for lone in kept.values()] == [8]
    played.arrive(used("read", 90, 5_000, 5_001))
    wait(played, 5)
    assert played.reports == []


def test_calls_without_a_conversation_or_of_two_are_not_joined() -> None:
    other = used("read", 2, 1, 2, {"gen_ai.conversation.id": "c-2"})
    for spans in ([model(1, 0, 1), *other], [model(1, 0, 1), *used("read", 2, 1, 2, {})]):
        played = arrived(*spans)
        played.tracker.finish()
        assert played.reports == []


def test_calls_beside_an_agent_of_the_same_conversation_are_no_second_task() -> None:
    own = agent("A", 90, None, 0, 4, trace_id=9, attributes=SAME, resource=SERVICE)
    for spans in ([own, *RUN], [*RUN, own]):
        played = arrived(*spans)
        wait(played, 1_000)
        assert [end.name for end in played.ends] == ["A"]
        assert len({report.task_id for report in played.reports}) == 1


def test_live_calls_are_joined_as_exported_ones_are() -> None:
    live = Live(SERVICE)
    call = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.output_tokens": 1, **SAME}
    for name, attributes in (
        ("chat m", {**call, "gen_ai.response.finish_reasons": ("tool_calls",)}),
        ("execute_tool", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "read", **SAME}),
        ("chat m", {**call, "gen_ai.response.finish_reasons": ("stop",)}),
    ):
        span = live.tracer.start_span(name, attributes=attributes, start_time=live.clock.now)
        live.clock.pass_seconds(1)
        span.end(live.clock.now)
    for seconds in (3, 100):
        live.clock.pass_seconds(seconds)
        live.tracker.tick()
    assert [(end.status, end.content) for end in live.ends] == [(COMPLETED, "Finished 'cli' in 3.0 s, 1 tool")]


def test_an_agent_without_tools_is_a_task_where_the_settings_name_its_service() -> None:
    spans = [model(1, 0, 1), model(2, 1, 2, finish="stop")]
    for patterns, told in (
        ([("service", "c?i*")], [("completed", "Finished 'cli' in 2.0 s")]),
        ([("service", "client")], []),
        ([("name", "cli"), ("scope", "cli")], []),
    ):
        played = arrived(*spans, opted=services_in(patterns))
        wait(played, 100)
        played.tracker.finish()
        assert shown(played) == told


def test_a_tool_alone_is_no_task_even_of_a_service_that_the_settings_name() -> None:
    played = arrived(*used("read", 1, 0, 1), opted=lambda service: True)
    wait(played, 20_000)
    played.tracker.finish()
    assert played.reports == []


def test_what_the_agent_of_a_named_service_does_after_its_first_answer_is_the_same_task() -> None:
    played = arrived(*RUN, opted=lambda service: True)
    wait(played, 1_000)
    assert shown(played) == [("completed", "Finished 'cli' in 2.0 s, 2 tools")]


TURNS = {"ai.operationId": "ai.streamText", "ai.telemetry.metadata.sessionId": "s-1"}


def turn(span: int, start: float, end: float, finish: str) -> list[ReadableSpan]:
    """A turn of an agent that makes an agent's span of each, below a span of its own without a role."""
    said = {"ai.operationId": "ai.streamText.doStream", "ai.response.finishReason": finish}
    spans = [made("ai.streamText.doStream", span + 1, span, start, end, said, resource=SERVICE)]
    if finish == "tool-calls":
        tool = {"ai.operationId": "ai.toolCall", "ai.toolCall.name": "read"}
        spans.append(made("ai.toolCall", span + 2, span, end, end + 0.5, tool, resource=SERVICE))
    of_turn = {**TURNS, "ai.response.finishReason": finish}
    spans.append(made("ai.streamText", span, span + 5, start, end + 0.5, of_turn, resource=SERVICE))
    return [*spans, made("process", span + 5, 1, start, end + 0.6, resource=SERVICE)]


def test_agents_of_one_conversation_that_ask_for_tools_are_turns_of_the_run_around_them() -> None:
    title, first, last = turn(10, 0, 1, "stop"), turn(20, 1, 2, "tool-calls"), turn(30, 3, 4, "stop")
    around = [made("run", 1, None, 0, 5, resource=SERVICE)]
    spans = [*title, *first, *last, *around]
    for order in (spans, spans[::-1], [*around, *title, *first, *last], [*last, *around, *first, *title]):
        assert shown(arrived(*in_order(order))) == [("completed", "Finished 'cli' in 5.0 s, 1 tool")]


def test_agents_that_answered_are_tasks_of_their_own_whatever_is_around_them() -> None:
    spans = [*turn(10, 0, 1, "stop"), *turn(20, 1, 2, "stop"), made("batch", 1, None, 0, 5, resource=SERVICE)]
    assert [end.status for end in arrived(*spans).ends] == [COMPLETED, COMPLETED]


def test_a_live_call_below_a_span_that_nobody_here_saw_is_a_run_of_its_conversation() -> None:
    live = Live(SERVICE, opted=services_in([("service", "cli")]))
    unseen = SpanContext(7, 7, False, TraceFlags(1))  # it started before the processor was there
    above = set_span_in_context(NonRecordingSpan(unseen))
    said = {"gen_ai.operation.name": "chat", "gen_ai.response.finish_reasons": ("stop",), **SAME}
    live.tracer.start_span("chat m", above, attributes=said).end()
    for seconds in (3, 100):
        live.clock.pass_seconds(seconds)
        live.tracker.tick()
    assert [(end.status, end.chat_id) for end in live.ends] == [(COMPLETED, "c-1")]
    assert live.tracker.tree.size == 0
