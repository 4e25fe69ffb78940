"""CPU that a program uses while nothing happens in it, as a share of one core.

`time.process_time` of a process that sleeps, over the wall time: without a processor, with a live one and no open span
(after it has told a task), and with a live one and 1,000 open spans that are no tasks, at which it has to look, since
any of them may become one. All at the same time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from opentelemetry.sdk.trace import TracerProvider

from benchmarks import children
from benchmarks.figures import Figure, Run
from benchmarks.servers import PASSWORD, stand_in
from otel_letta import LettaSpanProcessor

_CASES = (("none", 0), ("live", 0), ("live", 1_000))


def measure(run: Run) -> Iterator[Figure]:
    run.say("idle CPU")
    with stand_in() as letta:
        processes = [
            children.start("idle_cpu", way, spans, run.pick(12, 3), letta.base_url(), letta.create_agent())
            for way, spans in _CASES
        ]
        none, idle, watching = (float(process.communicate(timeout=120)[0]) for process in processes)
    yield Figure(
        "idle CPU, no open span", f"{idle:.3f} %", note=f"no processor: {none:.3f} %", numbers={"percent": idle}
    )
    yield Figure("idle CPU, 1,000 open spans that are no tasks", f"{watching:.2f} %", numbers={"percent": watching})


def _program(way: str, spans: str, seconds: str, base_url: str, agent: str) -> None:
    provider = TracerProvider()
    if way == "live":
        provider.add_span_processor(LettaSpanProcessor(base_url=base_url, agent_id=agent, password=PASSWORD))
    tracer = provider.get_tracer("benchmark")
    tracer.start_span("Import", attributes={"letta.task.name": "Import"}).end()
    provider.force_flush()
    kept = [tracer.start_span("open", attributes={"n": n, "url.path": "/items"}) for n in range(int(spans))]
    time.sleep(1.0)
    cpu, wall = time.process_time(), time.monotonic()
    time.sleep(float(seconds))
    print((time.process_time() - cpu) / (time.monotonic() - wall) * 100)
    for span in kept:
        span.end()


if __name__ == "__main__":
    _program(*sys.argv[1:])
