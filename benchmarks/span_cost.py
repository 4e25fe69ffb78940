"""What a span costs the program that makes it.

Compared in one process and interleaved, since absolute times swing by a factor of two on a shared machine: a provider
without a processor, one with `LettaSpanProcessor` (REST, to the stand-in in another process), one with the SDK's
BatchSpanProcessor and OTLP/HTTP (to a sink in another process; its queue is large enough to drop nothing). A round
makes so many spans with each in turn, in changing order; a figure is the median of the rounds' ratios. While a round
lasts, so does the turn that the agent takes on its first report: a round is over in 0.1 s, an LLM needs longer. Between
the rounds everything that waits is worked off and delivered, outside the time that counts, and the processors' threads
go to rest. The garbage collector stays on.

- *plain span*: start and end of a root span that is no task, with 0, 1 and 10 attributes at its start.
- *nested span*: the same below an open parent and with two attributes, which is what most spans look like.
- *chat span*: a GenAI model call below an open parent, with six attributes at its start and two before its end.
- *task span*: ``letta.task.name`` at the start, three ``set_attribute`` of the progress, end. *paced*: a millisecond
  of rest before each, in which the processors' threads can do their part, as in a program whose tasks do something.
  *back to back*: ten thousand tasks a second, which is no use of tasks.

*CPU* is the producing thread's own (`time.thread_time`), and the target's measure. *wall* is what passes for it, in
which the processors' threads may have held the interpreter, and other processes the machine.

Not measured: what the producing thread pays because another thread has emptied its caches; what the collector of
memory costs other threads; the worker's own CPU, which a program with an idle core does not notice (``idle_cpu`` and
``flood`` have processes as a whole). Where the machine is busy, wall says more about its other processes.
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
_Work = Callable[[trace.Tracer, int], tuple[float, float]]

_CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5",
    "gen_ai.request.temperature": 0.2,
    "server.address": "api.openai.com",
    "server.port": 443,
}


def _timed(make: Callable[[trace.Tracer], None], tracer: trace.Tracer, n: int) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(n):
        make(tracer)
    return time.perf_counter() - wall, time.thread_time() - cpu


def plain(attributes: int) -> _Work:
    carried = {f"app.attribute.{number}": number for number in range(attributes)}

    def make(tracer: trace.Tracer) -> None:
        tracer.start_span("plain", attributes=carried).end()

    return lambda tracer, n: _timed(make, tracer, n)


def nested(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    def make(tracer: trace.Tracer) -> None:
        tracer.start_span("child", attributes={"http.request.method": "GET", "url.path": "/items"}).end()

    with tracer.start_as_current_span("parent"):
        return _timed(make, tracer, n)


def chat(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    def make(tracer: trace.Tracer) -> None:
        span = tracer.start_span("chat gpt-5", attributes=_CHAT)
        span.set_attribute("gen_ai.usage.input_tokens", 1200)
        span.set_attribute("gen_ai.usage.output_tokens", 80)
        span.end()

    with tracer.start_as_current_span("parent"):
        return _timed(make, tracer, n)


def _task(tracer: trace.Tracer) -> None:
    span = tracer.start_span("task", attributes={"letta.task.name": "task"})
    span.set_attribute("letta.task.progress", 0.1)
    span.set_attribute("letta.task.progress", 0.5)
    span.set_attribute("letta.task.progress", 0.9)
    span.end()


def task(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    return _timed(_task, tracer, n)


def paced_task(tracer: trace.Tracer, n: int) -> tuple[float, float]:
    wall = cpu = 0.0
    for _ in range(n):
        time.sleep(0.001)
        once = _timed(_task, tracer, 1)
        wall, cpu = wall + once[0], cpu + once[1]
    return wall, cpu


@dataclass
class _Ratios:
    """Medians of the rounds' ratios."""

    live: float
    live_cpu: float
    batch: float
    batch_cpu: float
    live_to_batch: float
    live_to_batch_cpu: float
    none_us: float

    def beside(self) -> str:
        return f" (wall {self.live:.2f}×)"

    def note(self) -> str:
        return f"no processor {self.none_us:.1f} µs of CPU; Batch+OTLP {self.batch_cpu:.2f}× (wall {self.batch:.2f}×)"


def _compare(
    providers: dict[str, TracerProvider], letta: Any, work: _Work, rounds: int, spans: int, settle: float
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
            time.sleep(settle)
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
        live_to_batch_cpu=ratio("live", "batch", 1),
        none_us=median([cpu for _, cpu in seen["none"]]) / spans * 1e6,
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
    for what, work, limit, rounds, spans in (
        ("plain span, no attribute", plain(0), 1.10, run.pick(40, 10), 1_000),
        ("plain span, 1 attribute", plain(1), 1.10, run.pick(40, 10), 1_000),
        ("plain span, 10 attributes", plain(10), 1.10, run.pick(40, 10), 1_000),
        ("nested span, 2 attributes", nested, 1.10, run.pick(40, 10), 1_000),
        ("GenAI chat span", chat, 1.30, run.pick(20, 6), 300),
        ("task span, 3 set_attribute, paced", paced_task, 1.25, run.pick(20, 5), 100),
        ("task span, 3 set_attribute, back to back", task, 1.25, run.pick(12, 4), 300),
    ):
        run.say(what)
        r = _compare(providers, letta, work, rounds, spans, settle=0.02)
        yield at_most(f"{what}: live / none", r.live_cpu, limit, "×", r.note(), extra=r.beside(), **vars(r))
        wall = f" (wall {r.live_to_batch:.2f}×)"
        yield at_most(f"{what}: live / Batch+OTLP", r.live_to_batch_cpu, 1.0, "×", extra=wall)
