"""A caller names its chat once, in W3C baggage, and the tasks of the services that it calls carry it; if they want."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.testing import InMemoryLetta

HEADERS = {"baggage": "letta.chat.id=chat-b,letta.message.id=msg-b,other=1"}


class World:
    """A provider with a live processor, and the Letta that it reports to."""

    def __init__(self, letta: InMemoryLetta) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self.provider = TracerProvider(shutdown_on_exit=False)

    def start(self, resource: dict[str, str] | None = None, **more: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False, resource=Resource(resource or {}))
        self.processor = LettaSpanProcessor(**self.options(**more))
        self.provider.add_span_processor(self.processor)

    def options(self, **more: Any) -> dict[str, Any]:
        return {"base_url": self.letta.base_url, "agent_id": self.agent, "delivery": "messages", **more}

    def do(self, within: Context | None, **attributes: str) -> tuple[str | None, str | None]:
        """Run one task in a context; returns its chat and message id."""
        tracer = self.provider.get_tracer("test")
        with tracer.start_as_current_span("task", within, attributes={"letta.task.name": "t"} | attributes):
            pass
        return self.ids()

    def ids(self) -> tuple[str | None, str | None]:
        self.provider.force_flush()
        report = self.letta.reports(self.agent)[-1]
        return report.get("chat_id"), report.get("message_id")


@pytest.fixture
def world(letta: InMemoryLetta) -> Iterator[World]:
    world = World(letta)
    yield world
    world.provider.shutdown()


def test_baggage_names_chat_and_message(world: World) -> None:
    world.start(baggage=True)
    assert world.do(extract(HEADERS)) == ("chat-b", "msg-b")


def test_it_is_read_from_the_current_context_too(world: World) -> None:
    world.start(baggage=True)
    token = context.attach(extract(HEADERS))
    try:
        assert world.do(None) == ("chat-b", "msg-b")
    finally:
        context.detach(token)


def test_the_environment_turns_it_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_BAGGAGE", "TRUE")
    world.start()
    assert world.do(extract(HEADERS)) == ("chat-b", "msg-b")


@pytest.mark.parametrize("options", [{}, {"baggage": False}, {"baggage": "false"}])
def test_it_is_off_unless_asked_for(world: World, options: dict[str, Any]) -> None:
    world.start(**options)
    assert world.do(extract(HEADERS)) == (None, None)


def test_what_the_span_says_comes_first(world: World) -> None:
    world.start(baggage=True)
    said = {"letta.chat.id": "chat-b", "letta.message.id": "msg-s"}
    assert world.do(extract(HEADERS), **said) == ("chat-b", "msg-s")


def test_what_the_resource_says_comes_last(world: World) -> None:
    world.start(resource={"letta.chat.id": "chat-r", "letta.message.id": "msg-r"}, baggage=True)
    assert world.do(extract(HEADERS)) == ("chat-b", "msg-b")
    assert world.do(Context()) == ("chat-r", "msg-r")


def test_a_message_of_another_chat_is_not_the_one_that_asked(world: World) -> None:
    world.start(resource={"letta.chat.id": "chat-r", "letta.message.id": "msg-r"}, baggage=True)
    assert world.do(extract(HEADERS), **{"letta.chat.id": "chat-s"}) == ("chat-s", None)
    assert world.do(extract({"baggage": "letta.chat.id=chat-b"})) == ("chat-b", None)


def test_a_span_that_becomes_a_task_later_has_the_baggage_of_its_start(world: World) -> None:
    world.start(baggage=True)
    span = world.provider.get_tracer("test").start_span("task", extract(HEADERS))
    span.set_attribute("letta.task.progress", 0.5)
    span.end()
    assert world.ids() == ("chat-b", "msg-b")


def test_baggage_alone_makes_no_task(world: World) -> None:
    world.start(baggage=True)
    with world.provider.get_tracer("test").start_as_current_span("GET /", extract(HEADERS)):
        pass
    assert world.processor.force_flush()
    assert world.letta.reports(world.agent) == []


def test_steps_of_a_task_stay_steps(world: World) -> None:
    world.start(baggage=True)
    tracer = world.provider.get_tracer("test")
    with (
        tracer.start_as_current_span("task", extract(HEADERS), attributes={"letta.task.name": "t"}),
        tracer.start_as_current_span("step", attributes={"letta.chat.id": "chat-b"}),
    ):
        pass
    world.provider.force_flush()
    ends = [r["task"] for r in world.letta.reports(world.agent) if r["status"] == "completed"]
    assert ends == ["t"]


@pytest.mark.parametrize("header", ["letta.chat.id=", "letta.chat.id=%00%0a", "letta.chat.id=" + "x" * 4000])
def test_hostile_baggage_is_cleaned_like_any_id(world: World, header: str) -> None:
    world.start(baggage=True)
    chat, _ = world.do(extract({"baggage": header}))
    assert chat is None or (len(chat) <= 200 and chat.isprintable())


def test_a_baggage_value_that_is_no_text_hurts_nothing(world: World) -> None:
    world.start(baggage=True)
    assert world.do(baggage.set_baggage("letta.chat.id", object())) == (None, None)


def test_nothing_is_put_into_outbound_baggage(world: World) -> None:
    world.start(baggage=True)
    tracer = world.provider.get_tracer("test")
    outbound: dict[str, str] = {}
    said = {"letta.chat.id": "chat-1", "letta.message.id": "msg-1", "letta.task.id": "task-1"}
    with tracer.start_as_current_span("task", attributes=said):
        inject(outbound)
    assert set(outbound) == {"traceparent"}


def test_an_exporter_cannot_see_baggage(world: World) -> None:
    world.provider.add_span_processor(SimpleSpanProcessor(LettaSpanExporter(**world.options(baggage=True))))
    with world.provider.get_tracer("test").start_as_current_span(
        "task", extract(HEADERS), attributes={"letta.task.name": "t"}
    ):
        pass
    world.provider.shutdown()
    (report,) = world.letta.reports(world.agent)
    assert "chat_id" not in report
