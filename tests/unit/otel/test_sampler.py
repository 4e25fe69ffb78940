"""`LettaSampler`: tasks are recorded whatever the other sampler says, and nothing more is exported."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.span import TraceState

from otel_letta import LettaSpanProcessor
from otel_letta.otel.sampler import LettaSampler, from_environment
from otel_letta.testing import InMemoryLetta

TASK = {"letta.chat.id": "chat-1"}


@pytest.fixture
def backend() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def provider_with(sampler: Sampler, backend: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(backend))
    return provider


def test_every_task_of_a_sample_of_one_percent_is_reported_and_the_backend_gets_no_more_than_before(
    letta: InMemoryLetta,
) -> None:
    agent = letta.create_agent()
    plain, with_ours = InMemorySpanExporter(), InMemorySpanExporter()
    sampler = ParentBasedTraceIdRatio(0.01)
    ids = _SameIds()
    for exporter, used in ((plain, sampler), (with_ours, LettaSampler(sampler))):
        ids.rewind()
        provider = TracerProvider(sampler=used, id_generator=ids, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        live = LettaSpanProcessor(
            base_url=letta.base_url, agent_id=agent, delivery="messages", wake_budget=1_000, dotenv_path=os.devnull
        )
        if used is not sampler:
            provider.add_span_processor(live)
        for number in range(300):
            tracer = provider.get_tracer("t")
            task = tracer.start_span(f"task {number}", attributes={"letta.task.id": str(number)})
            with trace.use_span(task, end_on_exit=True), tracer.start_as_current_span("inside"):
                pass
        assert provider.force_flush()
        provider.shutdown()
        live.shutdown()
    told = {report["task_id"] for report in letta.reports(agent) if report["status"] == "completed"}
    assert told == {str(number) for number in range(300)}
    assert [span.name for span in with_ours.get_finished_spans()] == [span.name for span in plain.get_finished_spans()]
    assert 0 < len(plain.get_finished_spans()) < 60


class _SameIds(IdGenerator):
    """The same trace ids in each run, so that a sampler by ratio takes the same ones."""

    def __init__(self) -> None:
        self.rewind()

    def rewind(self) -> None:
        self._random = random.Random(7)

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1


@pytest.mark.parametrize(
    "attributes",
    [
        TASK,
        {"letta.task.name": "Import"},
        {"progress": 0.5},
        {"gen_ai.operation.name": "invoke_agent"},
        {"workflow.id": "w", "workflow.name": "pipeline"},
        {"openinference.span.kind": "AGENT"},
        {"traceloop.span.kind": "workflow"},
    ],
)
def test_a_span_that_declares_itself_is_recorded_with_its_attributes(
    attributes: dict[str, object], backend: InMemorySpanExporter
) -> None:
    provider = provider_with(LettaSampler(ParentBased(ALWAYS_OFF)), backend)
    with provider.get_tracer("t").start_as_current_span("x", attributes=attributes) as span:  # type: ignore[arg-type]
        assert span.is_recording()
        assert dict(span.attributes) == attributes  # type: ignore[attr-defined]
        assert not span.get_span_context().trace_flags.sampled
    assert not backend.get_finished_spans()


def test_what_is_no_task_is_dropped_as_before(backend: InMemorySpanExporter) -> None:
    provider = provider_with(LettaSampler(ParentBased(ALWAYS_OFF)), backend)
    with provider.get_tracer("t").start_as_current_span("GET /", attributes={"http.request.method": "GET"}) as span:
        assert not span.is_recording()
        with provider.get_tracer("t").start_as_current_span("inner") as inner:
            assert not inner.is_recording()


def test_descendants_of_a_recorded_task_are_recorded_though_a_parent_based_sampler_would_drop_them(
    backend: InMemorySpanExporter,
) -> None:
    tracer = provider_with(LettaSampler(ParentBased(ALWAYS_OFF)), backend).get_tracer("t")
    task = tracer.start_span("task", attributes=TASK)
    with trace.use_span(task, end_on_exit=True), tracer.start_as_current_span("child"):
        assert tracer.start_span("grandchild").is_recording()
    late = tracer.start_span("late", trace.set_span_in_context(task))
    assert late.is_recording()
    assert not backend.get_finished_spans()


def test_the_child_of_a_span_in_another_process_is_dropped_if_that_one_was(backend: InMemorySpanExporter) -> None:
    tracer = provider_with(LettaSampler(ParentBased(ALWAYS_ON)), backend).get_tracer("t")
    remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))
    context = trace.set_span_in_context(remote)
    assert not tracer.start_span("served", context).is_recording()
    assert tracer.start_span("task", context, attributes=TASK).is_recording()


def test_what_the_other_sampler_takes_is_left_alone() -> None:
    state = TraceState([("vendor", "1")])

    class Chosen(Sampler):
        def should_sample(self, *args: object, **keywords: object) -> SamplingResult:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, {"sampler.rule": "r1"}, state)

        def get_description(self) -> str:
            return "Chosen"

    result = LettaSampler(Chosen()).should_sample(None, 1, "task", attributes=TASK)
    assert result.decision is Decision.RECORD_AND_SAMPLE
    assert dict(result.attributes) == {"sampler.rule": "r1"}
    assert result.trace_state is state
    assert LettaSampler(Chosen()).get_description() == "LettaSampler{Chosen}"


def test_the_trace_state_of_a_dropping_sampler_is_kept() -> None:
    state = TraceState([("vendor", "1")])
    remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0), trace_state=state))
    context = trace.set_span_in_context(remote)
    result = LettaSampler(ParentBased(ALWAYS_ON)).should_sample(context, 1, "task", attributes=TASK)
    assert result.decision is Decision.RECORD_ONLY
    assert result.trace_state == state


def test_further_spans_are_recorded_by_a_rule_of_ones_own_whose_exception_counts_as_no() -> None:
    sampler = LettaSampler(ALWAYS_OFF, record=lambda name, attributes: name.startswith("nightly") or 1 / 0 > 0)
    assert sampler.should_sample(None, 1, "nightly import").decision is Decision.RECORD_ONLY
    assert sampler.should_sample(None, 1, "other").decision is Decision.DROP


@pytest.mark.parametrize(("argument", "share"), [("0.25", 0.25), ("", 1.0), (None, 1.0), ("x", 1.0), ("7", 1.0)])
def test_the_environments_argument_is_the_share_of_traces(argument: str | None, share: float) -> None:
    assert f"{{{share}}}" in from_environment(argument).get_description()


def test_the_environment_can_name_it() -> None:
    program = (
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk._configuration import _import_sampler\n"
        "sampler = _import_sampler('letta')\n"
        "print(sampler.get_description())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OTEL_TRACES_SAMPLER_ARG": "0.01"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("LettaSampler{ParentBased{root:TraceIdRatioBased{0.01}")
