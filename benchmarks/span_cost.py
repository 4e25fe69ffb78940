"""What a span costs the program that makes it.

Compared in one process and interleaved, since absolute times swing by a factor of two on a shared machine: a provider
without a processor, one with `LettaSpanProcessor` (REST, to the stand-in in another process), one with the SDK's
BatchSpanProcessor and OTLP/HTTP (to a sink in another process; its queue is large enough to drop nothing). A round
makes so many spans with each in turn, in changing order; a figure is the median of the rounds' ratios. Everything is
flushed between two measurements, outside the time that counts. The garbage collector stays on.

- *plain span*: start and end of a root span without attributes, which is no task.
- *child span*: the same below an open parent and with two attributes, which is what most spans look like. No target.
- *task span*: ``letta.task.name`` at the start, three ``set_attribute`` of the progress, end. Back to back, thousands a
  second: the pipeline's thread reads the reports meanwhile, and the time that it holds the GIL counts as the
  producer's. *paced* has rests as long as the work, in which that thread can do it, as in any program whose tasks do
  something.
- *CPU* is the producing thread's own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks.figures import Figure, Run, at_most, median
from benchmarks.servers import PASSWORD, otlp_sink, stand_in
from otel_letta import LettaSpanProcessor

_CASES = ("none", "live", "batch")


def plain(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(n):
        tracer.start_span("plain").end()
    return time.perf_counter() - wall, time.thread_time() - cpu


def child(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    with tracer.start_as_current_span("parent"):
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(n):
            tracer.start_span("child", attributes={"http.request.method": "GET", "url.path": "/items"}).end()
        return time.perf_counter() - wall, time.thread_time() - cpu


def _task(tracer: trace.Tracer) -> None:
    span = tracer.start_span("task", attributes={"letta.task.name": "task"})
    span.set_attribute("letta.task.progress", 0.1)
    span.set_attribute("letta.task.progress", 0.5)
    span.set_attribute("letta.task.progress", 0.9)
    span.end()


def task(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(n):
        _task(tracer)
    return time.perf_counter() - wall, time.thread_time() - cpu


def paced_task(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    wall = cpu = 0.0
    for _ in range(n):
        time.sleep(0.001)
        began, began_cpu = time.perf_counter(), time.thread_time()
        _task(tracer)
        wall += time.perf_counter() - began
        cpu += time.thread_time() - began_cpu
    return wall, cpu


@dataclass
class _Ratios:
    """Medians of the rounds' ratios."""

    live: float
    live_cpu: float
    batch: float
    batch_cpu: float
    live_to_batch: float
    none_us: float

    def beside(self) -> str:
        return f" (CPU {self.live_cpu:.2f}×)"

    def note(self) -> str:
        return f"no processor {self.none_us:.1f} µs; Batch+OTLP {self.batch:.2f}× (CPU {self.batch_cpu:.2f}×)"


def _compare(
    providers: dict[str, TracerProvider],
    work: Callable[[trace.Tracer, int], tuple[float, float]],
    rounds: int,
    spans: int,
) -> _Ratios:
    tracers = {case: provider.get_tracer("benchmark") for case, provider in providers.items()}
    seen: dict[str, list[tuple[float, float]]] = {case: [] for case in _CASES}
    for turn in range(rounds + 1):
        for shift in range(3):
            case = _CASES[(turn + shift) % 3]
            gc.collect()
            measured = work(tracers[case], spans)
            providers[case].force_flush(60_000)
            if turn:  # the first round warms up
                seen[case].append(measured)

    def ratio(case: str, to: str, which: int) -> float:
        return median([a[which] / b[which] for a, b in zip(seen[case], seen[to], strict=True)])

    return _Ratios(
        live=ratio("live", "none", 0),
        live_cpu=ratio("live", "none", 1),
        batch=ratio("batch", "none", 0),
        batch_cpu=ratio("batch", "none", 1),
        live_to_batch=ratio("live", "batch", 0),
        none_us=median([wall for wall, _ in seen["none"]]) / spans * 1e6,
    )


def measure(run: Run) -> Iterator[Figure]:
    with stand_in() as letta, otlp_sink() as endpoint:
        providers = {case: TracerProvider(shutdown_on_exit=False) for case in _CASES}
        options: dict[str, Any] = {"base_url": letta.base_url(), "password": PASSWORD, "agent_id": letta.create_agent()}
        # No rest between requests, so that delivery works while the spans are made: the dearest case for them.
        live = LettaSpanProcessor(**options, wake_budget=1_000_000)
        providers["live"].add_span_processor(live)
        batch = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint), max_queue_size=100_000)
        providers["batch"].add_span_processor(batch)
        try:
            yield from _figures(providers, run)
        finally:
            live.shutdown(100)
            batch.shutdown()


def _figures(providers: dict[str, TracerProvider], run: Run) -> Iterator[Figure]:
    run.say("plain spans")
    r = _compare(providers, plain, run.pick(100, 25), 1_000)
    yield at_most("plain span, live processor / none", r.live, 1.10, "×", r.note(), extra=r.beside(), **vars(r))
    yield at_most("plain span, live processor / Batch+OTLP", r.live_to_batch, 1.0, "×")
    run.say("child spans")
    r = _compare(providers, child, run.pick(60, 15), 1_000)
    yield Figure(
        "child span with 2 attributes, live / none", f"{r.live:.2f}×{r.beside()}", note=r.note(), numbers=vars(r)
    )
    run.say("task spans")
    r = _compare(providers, task, run.pick(40, 10), 200)
    what = "task span with 3 set_attribute"
    yield at_most(f"{what}, back to back, live / none", r.live, 1.25, "×", r.note(), extra=r.beside(), **vars(r))
    yield at_most(f"{what}, back to back, live / Batch+OTLP", r.live_to_batch, 1.0, "×")
    r = _compare(providers, paced_task, run.pick(40, 10), 100)
    yield at_most(f"{what}, paced, live / none", r.live, 1.25, "×", r.note(), extra=r.beside(), **vars(r))
    yield at_most(f"{what}, paced, live / Batch+OTLP", r.live_to_batch, 1.0, "×")
