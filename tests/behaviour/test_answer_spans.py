"""The agent's turns as spans of the program: what stands in them, and that nobody ever reports them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import otel_letta
from otel_letta import LettaReporter, LettaSpanExporter, LettaSpanProcessor, semconv
from otel_letta.testing import InMemoryLetta
from tests.support.program import until

MESSAGES: dict[str, Any] = {"delivery": "messages", "message_interval": 0.0, "answer_spans": True}


@pytest.fixture
def backend() -> InMemorySpanExporter:
    """What the program's tracing backend gets."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(backend: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def _options(letta: InMemoryLetta, agent: str, **more: Any) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, **MESSAGES, **more}


def _turns(backend: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in backend.get_finished_spans() if span.name == "invoke_agent"]


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_each_request_is_a_client_span_linked_to_the_tasks_and_nobody_reports_it(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    other = letta.create_agent()
    filters: Any = {"task_filter": lambda span: True}  # it makes a task of any span, but not of these
    processor = LettaSpanProcessor(tracer_provider=provider, **filters, **_options(letta, agent))
    exporter = LettaSpanExporter(tracer_provider=provider, **filters, **_options(letta, agent))
    another = LettaSpanExporter(**_options(letta, other, answer_spans=False))
    for component in (processor, SimpleSpanProcessor(exporter), SimpleSpanProcessor(another)):
        provider.add_span_processor(component)
    provider.add_span_processor(SimpleSpanProcessor(backend))

    before = time.time_ns()
    with provider.get_tracer("program").start_as_current_span("Import", attributes={"letta.task.id": "t"}) as task:
        pass
    assert processor.force_flush()
    assert another.force_flush()
    until(lambda: any(len(span.links) and span.end_time for span in _turns(backend)), "the turn is a span")
    after = time.time_ns()
    for _ in range(3):  # if one were reported, its turn would be another one
        assert processor.force_flush()
        assert another.force_flush()
    provider.shutdown()
    assert another.stats()["reports"] == 1

    # With both components on it, and two that ask for it, one span for each request.
    ours = [call for call in letta.requests if call.method == "POST" and f"/{agent}/messages" in call.path]
    assert len(_turns(backend)) == len(ours) == letta.turns - 1
    assert {report["task"] for report in letta.reports(agent) + letta.reports(other)} == {"Import"}
    span = _turns(backend)[-1]
    assert span.kind is SpanKind.CLIENT
    assert span.parent is None
    context = task.get_span_context()
    assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [
        (context.trace_id, context.span_id)
    ]
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time < span.end_time <= after
    attributes = _attributes(span)
    assert attributes.pop("letta.run.id").startswith("run-")
    host, port = letta.base_url.removeprefix("http://").split(":")
    assert attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "letta",
        "gen_ai.agent.id": agent,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("end_turn",),
        "server.address": host,
        "server.port": int(port),
    }
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == semconv.ANSWER_SCOPE


def test_its_times_are_the_requests_own(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    letta.turn_seconds = 0.3
    exporter = LettaSpanExporter(tracer_provider=provider, **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(backend))
    with provider.get_tracer("program").start_as_current_span("Import", attributes={"letta.task.id": "t"}):
        pass
    until(lambda: _turns(backend), "the turn is a span")
    [span] = _turns(backend)
    assert (span.end_time or 0) - (span.start_time or 0) >= 300_000_000


def test_a_conversation_and_a_failure_stand_in_it(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    conversation = letta.create_conversation(agent)
    letta.fail_next(503, {"detail": "overloaded"}, method="POST", path="/messages")
    exporter = LettaSpanExporter(tracer_provider=provider, **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(backend))
    attributes = {"letta.task.id": "t", "letta.chat.id": conversation}
    with provider.get_tracer("program").start_as_current_span("Import", attributes=attributes):
        pass
    until(lambda: len(_turns(backend)) == 2, "a failure, and the next try")

    failed, went_well = _turns(backend)
    assert _attributes(failed)["gen_ai.conversation.id"] == conversation
    assert _attributes(failed)["error.type"] == "LettaServerError"
    assert failed.status.status_code is StatusCode.ERROR
    assert "gen_ai.usage.input_tokens" not in _attributes(failed)
    assert "error.type" not in _attributes(went_well)
    assert went_well.status.status_code is StatusCode.UNSET
    assert failed.links[0].context == went_well.links[0].context


def test_they_are_off_by_default(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    options = {name: value for name, value in _options(letta, agent).items() if name != "answer_spans"}
    exporter = LettaSpanExporter(tracer_provider=provider, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(backend))
    with provider.get_tracer("program").start_as_current_span("Import", attributes={"letta.task.id": "t"}):
        pass
    assert exporter.force_flush()
    provider.shutdown()
    assert letta.turns == 1
    assert not _turns(backend)


def test_configure_makes_them_with_its_own_provider(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    reporting = otel_letta.configure(tracer_provider=provider, **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(backend))
    with provider.get_tracer("program").start_as_current_span("Import", attributes={"letta.task.id": "t"}):
        pass
    reporting.shutdown()
    assert _turns(backend), "the shutdown waits for them too"


def test_a_reporters_turn_is_linked_to_the_span_that_its_caller_is_in(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    provider.add_span_processor(SimpleSpanProcessor(backend))
    with LettaReporter(tracer_provider=provider, **_options(letta, agent)) as reporter:
        with provider.get_tracer("program").start_as_current_span("work") as work:
            reporter.send_progress_report_sync("chat-1", "msg-1", "half", 0.5)
        assert trace.get_current_span() is trace.INVALID_SPAN
        reporter.send_progress_report_sync("chat-1", "msg-1", "more", 0.6)
    first, second = _turns(backend)
    assert [link.context.span_id for link in first.links] == [work.get_span_context().span_id]
    assert not second.links
    assert "trace_id" not in letta.reports(agent)[0], "the report itself is as before"


def test_a_provider_that_fails_hurts_no_delivery(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(trace.TracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
            raise RuntimeError("no tracer today")

    exporter = LettaSpanExporter(tracer_provider=Broken(), **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("program").start_as_current_span("Import", attributes={"letta.task.id": "t"}):
        pass
    assert exporter.force_flush()
    provider.shutdown()
    assert letta.reports(agent)[-1]["status"] == "completed"
    assert "unexpected RuntimeError" in caplog.text


def test_nothing_that_was_said_stands_in_them(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, backend: InMemorySpanExporter
) -> None:
    letta.answer_next(
        "open sesame", calls=[("open_sesame", {"word": "open sesame"})], reasoning="open sesame", times=None
    )
    exporter = LettaSpanExporter(tracer_provider=provider, **_options(letta, agent, answer_reasoning=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(backend))
    with provider.get_tracer("program").start_as_current_span("Import", attributes={"letta.task.id": "t"}):
        pass
    until(lambda: _turns(backend), "the turn is a span")
    [span] = _turns(backend)
    assert "sesame" not in span.to_json()
