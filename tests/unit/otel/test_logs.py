"""Progress as log events: our helpers emit them if asked, and anyone's are heard."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor
from otel_letta.otel.helpers import task
from otel_letta.otel.logs import LettaLogRecordProcessor
from otel_letta.testing import InMemoryLetta

pytestmark = pytest.mark.skipif(
    "event_name" not in inspect.signature(_logs.LogRecord.__init__).parameters,
    reason="log records of this OpenTelemetry have no event name",
)


class World:
    """A program with a live processor and a log processor of the same settings."""

    def __init__(self, letta: InMemoryLetta, **options: Any) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        settings: dict[str, Any] = {
            "base_url": letta.base_url,
            "agent_id": self.agent,
            "delivery": "messages",
            "message_interval": 0.0,
            "poll_interval": 60.0,  # only an event can make itself heard in a test's time
            **options,
        }
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.processor = LettaSpanProcessor(**settings)
        self.traces.add_span_processor(self.processor)
        self.logs = LoggerProvider(shutdown_on_exit=False)
        self.events = LettaLogRecordProcessor(**settings)
        self.logs.add_log_record_processor(self.events)
        self.tracer = self.traces.get_tracer("test")

    def emit(self, span: trace.Span, name: str = "letta.task.progress", **attributes: Any) -> None:
        self.logs.get_logger("anyone").emit(
            _logs.LogRecord(
                timestamp=1,
                context=trace.set_span_in_context(span),
                attributes={key.replace("__", "."): value for key, value in attributes.items()},
                event_name=name,
            )
        )

    def reports(self) -> list[tuple[str, str, str]]:
        return [(r["status"], r["progress"], r["content"]) for r in self.letta.reports(self.agent)]


@pytest.fixture
def world(letta: InMemoryLetta) -> Iterator[World]:
    world = World(letta)
    yield world
    world.logs.shutdown()
    world.traces.shutdown()


def test_an_event_makes_its_plain_span_a_task_and_is_told_at_once(world: World) -> None:
    with world.tracer.start_as_current_span("plain") as span:
        world.emit(span, letta__task__progress=0.5, letta__task__content="halfway")
        world.letta.wait_for_messages(world.agent, 1)
        assert world.reports() == [("in_progress", "50%", "halfway")]
    assert world.processor.force_flush(60_000)
    assert world.reports()[1:] == [("completed", "100%", "halfway")]


def test_an_event_right_before_the_end_does_not_leave_the_task_open(world: World) -> None:
    for _ in range(20):
        with world.tracer.start_as_current_span("plain") as span:
            world.emit(span, letta__task__progress=0.5)
    assert world.processor.force_flush(60_000)
    assert world.processor.stats()["open_tasks"] == 0
    assert [status for status, *_ in world.reports()].count("completed") == 20


def test_an_event_of_a_step_speaks_for_its_task(world: World) -> None:
    with (
        world.tracer.start_as_current_span("task", attributes={"letta.chat.id": "c"}),
        world.tracer.start_as_current_span("step") as step,
    ):
        world.letta.wait_for_messages(world.agent, 1)
        world.emit(step, letta__task__progress=0.25)
        world.letta.wait_for_messages(world.agent, 2)
    assert world.reports()[1][1] == "25%"


def test_other_events_and_events_of_unknown_spans_are_ignored(world: World) -> None:
    with world.tracer.start_as_current_span("plain") as span:
        world.emit(span, name="something.else", letta__task__progress=0.5)
        world.emit(span, unrelated=1)
        world.emit(trace.INVALID_SPAN, letta__task__progress=0.5)
    ended = world.tracer.start_span("ended")
    ended.end()
    world.emit(ended, letta__task__progress=0.5)
    assert world.processor.force_flush(60_000)
    assert world.reports() == []


def test_events_of_a_coding_agent_are_a_task_without_any_span(letta: InMemoryLetta) -> None:
    world = World(letta, answer_timeout=0.05, wake_after=0.0)
    for name, attributes in (
        ("coder.user_prompt", {"prompt": "SECRET"}),
        ("coder.tool_decision", {"tool_name": "Bash", "call_id": "1", "decision": "accept"}),
        ("coder.tool_result", {"tool_name": "Bash", "call_id": "1", "success": "true", "output": "SECRET"}),
        ("coder.session.end", {}),
    ):
        attributes = {**attributes, "event__name": name, "session__id": "s-1"}
        world.emit(trace.INVALID_SPAN, name="an event", **attributes)
    assert world.processor.force_flush(60_000)
    assert world.reports()[-1][0] == "failed"  # the model was not asked again after the tool
    assert "SECRET" not in str(world.reports())
    world.logs.shutdown()
    world.traces.shutdown()


def test_a_turn_that_was_answered_ends_by_itself(letta: InMemoryLetta) -> None:
    world = World(letta, answer_timeout=0.05, wake_after=0.0)
    for name in ("user_prompt", "assistant_response"):
        world.emit(trace.INVALID_SPAN, name=name, session__id="s-1")
    world.letta.wait_for_messages(world.agent, 2)
    assert [status for status, *_ in world.reports()] == ["in_progress", "completed"]
    world.logs.shutdown()
    world.traces.shutdown()


def test_a_hostile_record_does_not_reach_the_program(world: World) -> None:
    world.events.on_emit(object())
    world.events.on_emit(None)
    with world.tracer.start_as_current_span("plain") as span:
        world.emit(span, letta__task__progress=0.5)
    assert world.processor.force_flush(60_000)
    assert world.reports()[-1][0] == "completed"


def test_helpers_emit_events_only_if_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str | None, dict[str, Any]]] = []

    class Collector(LettaLogRecordProcessor):
        def on_emit(self, log_record: Any) -> None:
            record = log_record.log_record
            seen.append((record.event_name, dict(record.attributes)))

    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(Collector(base_url=world.letta.base_url, agent_id=world.agent))
    monkeypatch.setattr(_logs, "get_logger", lambda name: logs.get_logger(name))
    with task("Job", tracer=world.tracer) as t:
        t.progress(0.5)
        assert seen == []
        monkeypatch.setenv("OTEL_LETTA_LOG_EVENTS", "true")
        t.progress(0.75, "nearly")
    assert seen == [("letta.task.progress", {"letta.task.progress": 0.75, "letta.task.content": "nearly"})]
    logs.shutdown()


def test_attribute_and_event_of_one_update_are_told_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_LOG_EVENTS", "true")
    monkeypatch.setattr(_logs, "get_logger", lambda name: world.logs.get_logger(name))
    with task("Job", tracer=world.tracer) as t:
        world.letta.wait_for_messages(world.agent, 1)
        t.progress(0.5, "halfway")
        world.letta.wait_for_messages(world.agent, 2)
    assert world.processor.force_flush(60_000)
    assert [content for _, _, content in world.reports()].count("halfway") == 2  # in progress, and the end
    assert len(world.reports()) == 3
