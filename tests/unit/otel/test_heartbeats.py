"""`LettaHeartbeatProcessor`: a program's open tasks reach a receiver, and through it Letta."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaHeartbeatProcessor, task
from otel_letta.otlp.json import read_request
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import serving
from tests.support.waiting import until

SECRET = "the prompt that nobody else may read"


class Wire:
    """A receiver of which the test decides what it answers, and what came to it."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[bytes] = []
        self.headers: list[httpx.Headers] = []
        self.urls: list[str] = []
        self.client = httpx.Client(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        self.urls.append(str(request.url))
        if self.status == 200:
            self.bodies.append(request.content)
        return httpx.Response(self.status)

    @property
    def events(self) -> list[tuple[str, str]]:
        """Kind of the event, and name of the span, in the order of arrival."""
        found = []
        for body in self.bodies:
            for record in read_request(body, "resourceLogs").records:
                assert isinstance(record.span, str)
                (group,) = json.loads(record.span)["resourceSpans"]
                found.append((str(record.attributes["partial.event"]), group["scopeSpans"][0]["spans"][0]["name"]))
        return found


@pytest.fixture
def wire() -> Wire:
    return Wire()


def provider_with(processor: LettaHeartbeatProcessor) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": "importer"}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


@pytest.fixture
def receiver(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent, settings={"delivery": "messages"}) as service:
        yield service


def test_a_task_is_live_through_a_receiver_and_needs_nothing_of_letta(
    receiver: Service, letta: InMemoryLetta, agent: str
) -> None:
    processor = LettaHeartbeatProcessor(f"http://127.0.0.1:{receiver.options.port}", {})
    provider = provider_with(processor)
    with task("Import", chat_id="chat-1", tracer=provider.get_tracer("t")) as running:
        assert until(lambda: [report["task"] for report in letta.reports(agent)] == ["Import"])
        running.progress(0.5, "half way")
        assert until(lambda: letta.reports(agent)[-1]["content"] == "half way")
        running.result("all rows")
    assert processor.force_flush()
    assert until(lambda: letta.reports(agent)[-1]["status"] == "completed")
    assert letta.reports(agent)[-1]["result"] == "all rows"
    processor.shutdown()


def test_the_start_an_attribute_and_the_end_are_sent_and_nothing_of_other_spans(wire: Wire) -> None:
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client)
    tracer = provider_with(processor).get_tracer("t")
    with tracer.start_as_current_span("GET /") as other:
        span = tracer.start_span("nightly", attributes={"letta.chat.id": "c"})
        processor.force_flush()
        span.set_attribute("letta.task.progress", 0.5)
        processor.force_flush()
        processor.force_flush()
        span.end()
        other.set_attribute("http.route", "/")
    processor.shutdown()
    processor.shutdown()
    assert wire.events == [("heartbeat", "nightly"), ("heartbeat", "nightly"), ("stop", "nightly")]
    assert set(wire.urls) == {"http://wire/v1/logs"}


def test_heartbeats_come_again_while_nothing_changes(wire: Wire) -> None:
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client, interval=0.01)
    span = provider_with(processor).get_tracer("t").start_span("nightly", attributes={"letta.chat.id": "c"})
    assert until(lambda: len(wire.events) >= 3)
    span.end()
    processor.shutdown()


def test_what_is_set_while_a_heartbeat_is_on_its_way_follows_at_once() -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        running.span.set_attribute("letta.task.content", "asks")  # no bell: as any code may do it
        return httpx.Response(200)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    processor = LettaHeartbeatProcessor("http://wire", interval=3_600.0, client=client)
    with task("Import", tracer=provider_with(processor).get_tracer("t")) as running:
        assert until(lambda: any(b"asks" in body for body in bodies))
    processor.shutdown()


def test_a_short_task_is_told_by_its_end_alone(wire: Wire) -> None:
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client)
    processor._busy.acquire()  # the thread gets no turn before the end
    provider_with(processor).get_tracer("t").start_span("quick", attributes={"letta.chat.id": "c"}).end()
    processor._busy.release()
    processor.shutdown()
    assert ("stop", "quick") in wire.events


def test_no_prompt_leaves_the_program(wire: Wire) -> None:
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client)
    tracer = provider_with(processor).get_tracer("t")
    span = tracer.start_span("agent", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.prompt": SECRET})
    span.set_attribute("input.value", SECRET)
    span.add_event("gen_ai.user.message", {"content": SECRET})
    span.add_event("progress", {"content": "reading"})
    processor.force_flush()
    span.record_exception(ValueError("no rows"), {"gen_ai.input.messages": SECRET})
    span.end()
    processor.shutdown()
    assert [event for event, _ in wire.events] == ["heartbeat", "stop"]
    everything = b"".join(wire.bodies)
    assert SECRET.encode() not in everything
    assert b"Traceback" not in everything
    assert b"no rows" in everything
    assert b"reading" in everything


def test_an_end_waits_for_a_receiver_that_is_away(wire: Wire) -> None:
    wire.status = 503
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client)
    provider_with(processor).get_tracer("t").start_span("nightly", attributes={"letta.chat.id": "c"}).end()
    assert not processor.force_flush()
    wire.status = 200
    assert processor.force_flush()
    assert wire.events == [("stop", "nightly")]
    processor.shutdown()


def test_a_receiver_that_refuses_is_not_asked_for_ever(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.status = 401
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client)
    provider_with(processor).get_tracer("t").start_span("nightly", attributes={"letta.chat.id": "c"}).end()
    assert processor.force_flush()
    assert "status 401" in caplog.text
    processor.shutdown()


def test_a_span_that_nobody_can_end_any_more_gets_no_heartbeats(wire: Wire) -> None:
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client, interval=0.01)
    span = provider_with(processor).get_tracer("t").start_span("lost", attributes={"letta.chat.id": "c"})
    assert until(lambda: wire.events)
    del span
    gc.collect()
    assert until(lambda: processor.force_flush() and not processor._open)
    processor.shutdown()


def test_address_and_headers_are_those_of_every_exporter(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20abc, x-team=a")
    processor = LettaHeartbeatProcessor(client=wire.client)
    provider_with(processor).get_tracer("t").start_span("nightly", attributes={"letta.chat.id": "c"}).end()
    processor.shutdown()
    assert wire.urls[0] == "http://collector:4318/v1/logs"
    assert wire.headers[0]["authorization"] == "Bearer abc"
    assert wire.headers[0]["x-team"] == "a"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4318/own")
    assert LettaHeartbeatProcessor(client=wire.client)._url == "http://logs:4318/own"


def test_hooks_never_raise(wire: Wire) -> None:
    processor = LettaHeartbeatProcessor("http://wire", client=wire.client)
    processor.on_start(object())  # type: ignore[arg-type]
    processor.on_end(object())  # type: ignore[arg-type]
    processor.shutdown()
