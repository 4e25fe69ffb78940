"""What OpenTelemetry's own tests ask of processors and exporters, asked of ours.

The ideas are those of the SDK's suites (opentelemetry-sdk 1.45.2: ``tests/shared_internal/test_batch_processor.py``,
``tests/trace/test_span_processor.py``, ``tests/trace/export/test_export.py`` and ``test_in_memory_span_exporter.py``;
opentelemetry-exporter-otlp-proto-http: ``test_proto_span_exporter.py``). Each test runs for the processor and for the
exporter under the SDK's own processors, where it makes sense for both.
"""

from __future__ import annotations

import gc
import inspect
import os
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    Span,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
    sampling,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.testing import InMemoryLetta

TASK = {"letta.chat.id": "chat-1"}


class Bench:
    """One of our components as a span processor, whatever it is made of."""

    def __init__(self, letta: InMemoryLetta, kind: str) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self.kind = kind
        self.options: dict[str, Any] = {
            "base_url": letta.base_url,
            "agent_id": self.agent,
            "delivery": "messages",
            "shutdown_timeout": 2,
        }
        self.component: LettaSpanExporter | LettaSpanProcessor
        self.processor: SpanProcessor
        if kind == "processor":
            self.component = self.processor = LettaSpanProcessor(**self.options)
        else:
            self.component = LettaSpanExporter(**self.options)
            wrap: Callable[[SpanExporter], SpanProcessor] = (
                BatchSpanProcessor if kind == "batch" else SimpleSpanProcessor
            )
            self.processor = wrap(self.component)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.tracer = self.provider.get_tracer("contract")

    def flush(self) -> bool:
        return self.processor.force_flush(60_000) and self.component.force_flush(60_000)

    def ends(self) -> list[str]:
        return [r["task"] for r in self.letta.reports(self.agent) if r["status"] != "in_progress"]


@pytest.fixture(params=["processor", "batch", "simple"])
def bench(letta: InMemoryLetta, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(letta, request.param)
    yield bench
    bench.processor.shutdown()


@pytest.fixture
def live(letta: InMemoryLetta) -> Iterator[Bench]:
    bench = Bench(letta, "processor")
    yield bench
    bench.processor.shutdown()


# -- the interface --------------------------------------------------------------------------------------------------


def test_the_parts_are_what_the_sdk_expects() -> None:
    assert issubclass(LettaSpanProcessor, SpanProcessor)
    assert issubclass(LettaSpanExporter, SpanExporter)


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (LettaSpanProcessor, SpanProcessor, "on_start"),
        (LettaSpanProcessor, SpanProcessor, "on_end"),
        (LettaSpanProcessor, SpanProcessor, "force_flush"),
        (LettaSpanExporter, SpanExporter, "export"),
        (LettaSpanExporter, SpanExporter, "force_flush"),
    ],
)
def test_arguments_have_the_names_and_defaults_that_the_sdk_uses(ours: type, theirs: type, name: str) -> None:
    def shape(owner: type) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(getattr(owner, name)).parameters.values()]

    assert shape(ours) == shape(theirs)


def test_on_start_takes_parent_context_by_name(live: Bench) -> None:
    live.provider.add_span_processor(live.processor)
    with mock.patch.object(live.processor, "on_start", wraps=live.processor.on_start) as on_start:
        context = trace.set_span_in_context(trace.INVALID_SPAN, Context())
        span = live.tracer.start_span("task", context=context, attributes=TASK)
    on_start.assert_called_once_with(span, parent_context=context)
    span.end()
    assert live.flush()
    assert live.ends() == ["task"]


@pytest.mark.skipif(not hasattr(SpanProcessor, "_on_ending"), reason="this SDK does not have it yet")
def test_on_ending_which_we_do_not_need_is_there(live: Bench) -> None:
    live.provider.add_span_processor(live.processor)
    span = live.tracer.start_span("task")
    assert isinstance(span, Span)
    live.processor._on_ending(span)
    span.end()


def test_the_exporters_shutdown_takes_the_timeout_by_the_name_that_the_sdk_looks_for() -> None:
    assert "timeout_millis" in inspect.getfullargspec(LettaSpanExporter.shutdown).args


# -- spans ----------------------------------------------------------------------------------------------------------


def test_a_span_is_told_once(bench: Bench) -> None:
    bench.provider.add_span_processor(bench.processor)
    with bench.tracer.start_as_current_span("task", attributes=TASK):
        pass
    for _ in range(3):
        assert bench.flush()
    bench.provider.shutdown()
    assert bench.ends() == ["task"]


def test_a_processor_added_after_a_span_started_sees_its_end(bench: Bench) -> None:
    with bench.tracer.start_as_current_span("task", attributes=TASK):
        bench.provider.add_span_processor(bench.processor)
    assert bench.flush()
    assert bench.ends() == ["task"]


def test_spans_without_a_current_context_are_told(bench: Bench) -> None:
    bench.provider.add_span_processor(bench.processor)
    bench.tracer.start_span("task", context=Context(), attributes=TASK).end()
    assert bench.flush()
    assert bench.ends() == ["task"]


def test_a_span_that_the_sampler_drops_is_never_told(bench: Bench) -> None:
    provider = TracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(bench.processor)
    provider.get_tracer("t").start_span("task", attributes=TASK).end()
    assert bench.flush()
    assert bench.ends() == []


class _RecordOnly(sampling.Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> sampling.SamplingResult:
        return sampling.SamplingResult(sampling.Decision.RECORD_ONLY, kwargs.get("attributes") or args[4])

    def get_description(self) -> str:
        return "record only"


def test_a_span_that_is_only_recorded_reaches_a_processor_and_no_exporter(bench: Bench) -> None:
    provider = TracerProvider(sampler=_RecordOnly(), shutdown_on_exit=False)
    provider.add_span_processor(bench.processor)
    provider.get_tracer("t").start_span("task", attributes=TASK).end()
    assert bench.flush()
    assert bench.ends() == (["task"] if bench.kind == "processor" else [])


def test_ending_a_span_twice_tells_it_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.provider.add_span_processor(bench.processor)
    span = bench.tracer.start_span("task", attributes=TASK)
    span.end()
    span.end()
    assert bench.flush()
    assert bench.ends() == ["task"]


def test_explicit_times_are_told_as_they_are(bench: Bench) -> None:
    bench.provider.add_span_processor(bench.processor)
    span = bench.tracer.start_span("task", attributes=TASK, start_time=1_000_000_000)
    span.end(end_time=63_000_000_000)
    assert bench.flush()
    (report,) = (r for r in bench.letta.reports(bench.agent) if r["status"] == "completed")
    assert report["content"] == "Task completed in 1 min 2 s"


def test_exporting_nothing_is_a_success(letta: InMemoryLetta) -> None:
    bench = Bench(letta, "simple")
    assert isinstance(bench.component, LettaSpanExporter)
    assert bench.component.export([]) is SpanExportResult.SUCCESS
    assert bench.component.export(()) is SpanExportResult.SUCCESS
    bench.component.shutdown()
    assert bench.component.export([]) is SpanExportResult.FAILURE


def test_the_same_span_exported_twice_is_told_once(letta: InMemoryLetta) -> None:
    bench = Bench(letta, "simple")
    assert isinstance(bench.component, LettaSpanExporter)
    span = bench.tracer.start_span("task", attributes=TASK)
    span.end()
    assert isinstance(span, Span)
    bench.component.export([span, span])
    bench.component.export([span])
    assert bench.flush()
    assert bench.ends() == ["task"]
    bench.component.shutdown()


# -- flush and shutdown ---------------------------------------------------------------------------------------------


def test_force_flush_returns_a_bool(bench: Bench) -> None:
    assert bench.component.force_flush() is True
    assert bench.component.force_flush(0) is True
    assert bench.component.force_flush(timeout_millis=10) is True


def test_what_ended_is_delivered_before_shutdown_returns_and_nothing_after_it(bench: Bench) -> None:
    bench.provider.add_span_processor(bench.processor)
    for number in range(10):
        bench.tracer.start_span(f"task {number}", attributes=TASK).end()
    bench.provider.shutdown()
    before = bench.ends()
    assert sorted(before) == [f"task {number}" for number in range(10)]
    late = bench.tracer.start_span("late", attributes=TASK)
    late.set_attribute("letta.task.progress", 0.5)
    late.end()
    bench.component.force_flush(1_000)
    assert bench.ends() == before


def test_shutdown_is_idempotent(bench: Bench) -> None:
    bench.provider.add_span_processor(bench.processor)
    bench.tracer.start_span("task", attributes=TASK).end()
    for _ in range(3):
        bench.processor.shutdown()
        bench.component.shutdown()
    assert bench.ends() == ["task"]


def test_shutdown_lets_the_one_request_in_flight_finish(letta: InMemoryLetta) -> None:
    bench = Bench(letta, "simple")
    bench.provider.add_span_processor(bench.processor)
    letta.turn_seconds = 0.3
    try:
        bench.tracer.start_span("task", attributes=TASK).end()
        assert letta.wait_for(lambda: letta.in_flight(bench.agent) == 1)
        bench.component.shutdown()
    finally:
        letta.turn_seconds = 0.0
    assert bench.ends() == ["task"]


def test_shutdown_closes_the_connections(bench: Bench) -> None:
    bench.provider.add_span_processor(bench.processor)
    bench.tracer.start_span("task", attributes=TASK).end()
    handle = bench.component._handle
    assert handle is not None
    with mock.patch.object(handle.pipeline._transport, "close", wraps=handle.pipeline._transport.close) as close:
        bench.provider.shutdown()
    close.assert_called()


@pytest.mark.parametrize("multi", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_it_works_inside_a_multi_span_processor(live: Bench, multi: Callable[[], Any]) -> None:
    around = multi()
    around.add_span_processor(live.processor)
    provider = TracerProvider(active_span_processor=around, shutdown_on_exit=False)
    provider.get_tracer("t").start_span("task", attributes=TASK).end()
    assert provider.force_flush(60_000)
    assert live.ends() == ["task"]
    provider.shutdown()


def test_a_flush_that_comes_too_late_fails_the_providers(live: Bench) -> None:
    live.provider.add_span_processor(live.processor)
    with live.letta.hold():
        live.tracer.start_span("task", attributes=TASK).end()
        began = time.monotonic()
        assert live.provider.force_flush(100) is False
        assert time.monotonic() - began < 2


# -- memory and fork ------------------------------------------------------------------------------------------------


_FORGETFUL_BATCH = pytest.param(
    "batch",
    marks=pytest.mark.skipif(
        not hasattr(SpanProcessor, "_on_ending"), reason="this SDK's batch processor holds itself for the next fork"
    ),
)


@pytest.mark.parametrize("kind", ["processor", _FORGETFUL_BATCH, "simple"])
def test_a_component_is_garbage_collected_after_shutdown(letta: InMemoryLetta, kind: str) -> None:
    bench = Bench(letta, kind)
    bench.provider.add_span_processor(bench.processor)
    bench.tracer.start_span("task", attributes=TASK).end()
    assert bench.flush()
    bench.provider.shutdown()
    assert bench.component._handle is not None
    dead = [weakref.ref(bench.component), weakref.ref(bench.processor), weakref.ref(bench.component._handle.pipeline)]
    threads = [bench.component._handle.pipeline._inbox._thread]
    del bench
    for thread in threads:
        if thread is not None:
            thread.join(5)
    deadline = time.monotonic() + 5
    while any(reference() is not None for reference in dead) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)  # the courier's thread holds on until it has ended
    assert [reference() for reference in dead] == [None] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_garbage_collected_component_does_no_harm_at_fork(letta: InMemoryLetta) -> None:
    bench = Bench(letta, "processor")
    bench.provider.shutdown()
    bench.processor.shutdown()
    del bench
    gc.collect()
    child = os.fork()
    if child == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
