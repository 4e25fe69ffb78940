"""What a span costs the program that makes it.

Compared in one process and interleaved, since absolute times swing by a factor of two on a shared machine: a provider
without a processor, one with `LettaSpanProcessor` (REST, to the stand-in in another process), one with the SDK's
BatchSpanProcessor and OTLP/HTTP (to a sink in another process; its queue is large enough to drop nothing). A round
makes so many spans with each in turn, in changing order; a figure is the median of the rounds' ratios. While a round
lasts, so does the turn that the agent takes on its first report: a round is over in 0.1 s, an LLM needs longer. What
waits then is delivered between the rounds, outside the time that counts. The garbage collector stays on.

- *plain span*: start and end of a root span without attributes, which is no task.
- *child span*: the same below an open parent and with two attributes, which is what most spans look like. No target.
- *task span*: ``letta.task.name`` at the start, three ``set_attribute`` of the progress, end. *paced*: a millisecond
  of rest before each, in which the processors' threads can do their part, as in a program whose tasks do something.
  *back to back*: ten thousand tasks a second, which is no use of tasks; then the time for which those threads hold the
  GIL counts as the producer's.
- *CPU* is the producing thread's own, whatever other threads do.
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
    letta: Any,
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
            letta.begin_long_turns()
            measured = work(tracers[case], spans)
            letta.end_long_turns()
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
        # More than the usual turns an hour, so that what waits is gone after each round.
        live = LettaSpanProcessor(**options, wake_budget=1_000_000)
        providers["live"].add_span_processor(live)
        batch = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint), max_queue_size=100_000)
        providers["batch"].add_span_processor(batch)
        try:
            yield from _figures(providers, letta, run)
        finally:
            live.shutdown(100)
            batch.shutdown()


def _figures(providers: dict[str, TracerProvider], letta: Any, run: Run) -> Iterator[Figure]:
    def compare(work: Callable[[trace.Tracer, int], tuple[float, float]], rounds: int, spans: int) -> _Ratios:
        return _compare(providers, letta, work, rounds, spans)

    run.say("plain spans")
    r = compare(plain, run.pick(60, 12), 1_000)
    yield at_most("plain span, live processor / none", r.live, 1.10, "×", r.note(), extra=r.beside(), **vars(r))
    yield at_most("plain span, live processor / Batch+OTLP", r.live_to_batch, 1.0, "×")
    run.say("child spans")
    r = compare(child, run.pick(40, 8), 1_000)
    what = "child span with 2 attributes, live / none"
    yield Figure(what, f"{r.live:.2f}×{r.beside()}", note=r.note(), numbers=vars(r))
    run.say("task spans")
    for pace, work, rounds, spans in (
        ("paced", paced_task, run.pick(20, 5), 100),
        ("back to back", task, run.pick(8, 3), 300 if run.quick else 600),
    ):
        r = compare(work, rounds, spans)
        what = f"task span with 3 set_attribute, {pace}, live"
        yield at_most(f"{what} / none", r.live, 1.25, "×", r.note(), extra=r.beside(), **vars(r))
        yield at_most(f"{what} / Batch+OTLP", r.live_to_batch, 1.0, "×")
