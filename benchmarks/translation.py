"""What it costs to translate other people's spans into reports: speed, noise, and memory over a long time.

*translating* plays recorded traces of real agents (tests/data/traces) to a `Tracker`, request by request, again and
again with new ids. Parsing the OTLP JSON that they are kept in is timed beside it, both as the thread's own CPU.
*noise* is a web server's spans that end while an agent is at work, seen by the live processor, against a processor
that does nothing; rounds alternate and the figure is the median of their ratios. *memory* is the resident set after a
tenth of 10,000 traces of 100 spans each (an agent, two tools, a model, and web requests) and after all of them, with
the clock running as the spans say.
"""

from __future__ import annotations

import copy
import gc
import gzip
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from benchmarks.figures import Figure, Run, at_most, median
from benchmarks.flood import resident_megabytes
from otel_letta import LettaSpanProcessor
from otel_letta.otlp.json import read_batches
from otel_letta.tracking import Reading, Tracker

_TRACES = Path(__file__).parent.parent / "tests" / "data" / "traces"
_SPANS_OF_A_TRACE = 100
_SECONDS_OF_A_TRACE = 2.0
_ids = itertools.count(1)


def measure(run: Run) -> Iterator[Figure]:
    run.say("translating recorded traces")
    yield _translating(run.pick(40, 3))
    run.say("noise")
    yield _noise(run.pick(40, 9))
    traces = run.pick(10_000, 500)
    run.say(f"memory over {traces * _SPANS_OF_A_TRACE:,} spans")
    yield _memory(traces)


def _translating(rounds: int) -> Figure:
    texts = []
    for path in sorted(_TRACES.glob("*.gz")):
        with gzip.open(path) as lines:
            texts.append(list(lines))
    began = time.thread_time()
    traces = [[list(batch.spans) for batch in read_batches(lines)] for lines in texts]
    parsing = time.thread_time() - began
    spans = sum(len(batch) for trace in traces for batch in trace)

    reports = 0

    def count(report: object) -> None:
        nonlocal reports
        reports += 1

    clock = _Clock()
    tracker = Tracker(emit=count, now=clock)
    took = 0.0
    for _ in range(rounds):
        fresh = [_another(trace) for trace in traces]
        began = time.thread_time()
        for trace in fresh:
            for batch in trace:
                clock.now = max([clock.now, *(span.end_time or 0 for span in batch)])
                for span in batch:
                    tracker.ended_alone(Reading.of(span))
                tracker.tick()
        clock.now += int(2_000e9)
        tracker.tick()
        took += time.thread_time() - began
    rate = spans * rounds / took
    note = f"{len(traces)} traces, {reports:,} reports; parsing their JSON: {spans / parsing:,.0f} spans/s"
    return Figure(
        "translating recorded agents' traces",
        f"{rate:,.0f} spans/s ({rate * parsing / spans:.2f}× of parsing)",
        note=note,
        numbers={"spans_per_second": rate},
    )


class _Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def _another(trace: list[list[ReadableSpan]]) -> list[list[ReadableSpan]]:
    offset = next(_ids)
    return [[_again(span, offset) for span in batch] for batch in trace]


def _again(span: ReadableSpan, offset: int) -> ReadableSpan:
    """The same span in another trace."""
    twin = copy.copy(span)
    twin._context = _moved(span.context, offset)
    twin._parent = None if span.parent is None else _moved(span.parent, offset)
    return twin


def _moved(context: SpanContext, offset: int) -> SpanContext:
    return SpanContext(context.trace_id ^ (offset << 64), context.span_id, context.is_remote, context.trace_flags)


class _Nothing(SpanProcessor):
    pass


def _noise(rounds: int) -> Figure:
    nothing = TracerProvider(shutdown_on_exit=False)
    nothing.add_span_processor(_Nothing())
    watched = TracerProvider(shutdown_on_exit=False)
    # Nothing listens there; on the board an agent's start is one write that fails.
    processor = LettaSpanProcessor(
        base_url="http://127.0.0.1:9", agent_id="agent-benchmark", delivery="board", shutdown_timeout=0.1
    )
    watched.add_span_processor(processor)
    tracers = [provider.get_tracer("web") for provider in (nothing, watched)]
    for tracer in tracers:
        tracer.start_span("invoke_agent A", attributes={"gen_ai.operation.name": "invoke_agent"})
    ratios = []
    for turn in range(rounds + 1):
        took = []
        for tracer in tracers if turn % 2 else tracers[::-1]:
            began = time.perf_counter()
            for n in range(500):
                attributes = {"http.request.method": "GET", "url.path": f"/items/{n}", "http.response.status_code": 200}
                tracer.start_span("GET /items", kind=SpanKind.SERVER, attributes=attributes).end()
            took.append(time.perf_counter() - began)
        if turn:
            bare, ours = took if turn % 2 else took[::-1]
            ratios.append(ours / bare)
    watched.shutdown()
    what = "a web server's span while an agent works / a processor that does nothing"
    return Figure(what, f"{median(ratios):.2f}×", numbers={"ratio": median(ratios)})


def _memory(traces: int) -> Figure:
    clock = _Clock()
    clock.now = time.time_ns()
    tracker = Tracker(emit=lambda report: None, now=clock)
    after_a_tenth = 0.0
    for number in range(traces):
        if number == traces // 10:
            gc.collect()
            after_a_tenth = resident_megabytes()
        for span in _trace(clock):
            tracker.ended_alone(Reading.of(span))
        tracker.tick()
    gc.collect()
    growth = resident_megabytes() - after_a_tenth
    what = f"memory growth from {traces // 10:,} to {traces:,} traces of {_SPANS_OF_A_TRACE} spans"
    return at_most(what, growth, 10, "MB", f"{traces * _SPANS_OF_A_TRACE:,} spans, {after_a_tenth:.0f} MB at first")


_RESOURCE = Resource({"service.name": "shop"})
_KINDS = (
    ("execute_tool search", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}),
    ("execute_tool send", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "send"}),
    ("chat m", {"gen_ai.operation.name": "chat", "gen_ai.usage.output_tokens": 7}),
)


def _trace(clock: _Clock) -> Iterator[ReadableSpan]:
    """Children first, as they end; every eleventh trace never gets its root."""
    number = next(_ids)
    trace_id = number << 32 | 1
    root = SpanContext(trace_id, 1, False, TraceFlags(1))
    start = clock.now
    for n in range(2, _SPANS_OF_A_TRACE + 1):
        clock.now += int(_SECONDS_OF_A_TRACE * 1e9 / _SPANS_OF_A_TRACE)
        name, attributes = _KINDS[n % 3] if n % 10 == 0 else ("GET /", {"http.request.method": "GET"})
        yield _span(
            name, attributes, SpanContext(trace_id, n, False, TraceFlags(1)), root, clock.now - 1_000, clock.now
        )
    if number % 11:
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent {number % 7}"}
        yield _span("invoke_agent", attributes, root, None, start, clock.now)


def _span(
    name: str, attributes: dict[str, object], context: SpanContext, parent: SpanContext | None, start: int, end: int
) -> ReadableSpan:
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=_RESOURCE,
        attributes=attributes,  # type: ignore[arg-type]
        start_time=start,
        end_time=end,
    )
