"""How soon the server hears of what happens in the program, idle otherwise.

From the call that says it to the arrival of the request that carries it, at the stand-in in another process, by the
one monotonic clock of the machine.

- *span start, delivery=messages*: to the POST with the report; one short look at the agent's runs goes before it.
- *span start, delivery=auto*: to the PATCH of the board, with ``board_interval=0``. By default the board is written at
  most every 15 s, so only the first change after a quiet time is that soon: pacing on purpose, not cost.
- *set_attribute*: to the PATCH of the board (``board_interval=0`` again), with the default poll of 4 a second, hit at
  random moments; and through ``task().progress()``, which says at once that there is news.
- *cold*: the first report of a fresh process, of which the connection is a part. Median of several processes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from benchmarks import children
from benchmarks.figures import Figure, Run, at_most, median, percentile
from benchmarks.servers import PASSWORD, stand_in
from otel_letta import LettaSpanProcessor
from otel_letta.otel.helpers import TaskSpan

_ENOUGH = 1_000_000


def _provider(letta: Any, **options: Any) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    options = {"base_url": letta.base_url(), "password": PASSWORD, "agent_id": letta.create_agent(), **options}
    provider.add_span_processor(LettaSpanProcessor(**options, wake_budget=_ENOUGH))
    return provider


def _starts(letta: Any, delivery: str, method: str, samples: int) -> list[float]:
    """Milliseconds."""
    provider = _provider(letta, delivery=delivery, board_interval=0)
    tracer = provider.get_tracer("benchmark")
    seen = []
    for n in range(-5, samples):  # the first ones warm up
        time.sleep(0.02)  # the server's side of the last flush is over
        name = f"{delivery} task {n} begins"
        began = time.monotonic()
        span = tracer.start_span(name, attributes={"letta.task.name": name})
        arrived = letta.wait_for_request(method, name)
        if n >= 0:
            seen.append((arrived - began) * 1e3)
        span.end()
        provider.force_flush()
    provider.shutdown()
    return seen


def _attributes(letta: Any, samples: int, *, helper: bool) -> list[float]:
    """Milliseconds."""
    provider = _provider(letta, delivery="auto", board_interval=0)
    kind = "helper" if helper else "plain"
    seen = []
    with provider.get_tracer("benchmark").start_as_current_span("Import", attributes={"letta.task.name": "x"}) as span:
        for n in range(samples):
            time.sleep(0.02 if helper else random.uniform(0.05, 0.3))
            content = f"{kind} step {n} done"
            began = time.monotonic()
            if helper:
                TaskSpan(span).progress(n / samples, content)
            else:
                span.set_attribute("letta.task.content", content)
            seen.append((letta.wait_for_request("PATCH", content) - began) * 1e3)
    provider.shutdown()
    return seen


def measure(run: Run) -> Iterator[Figure]:
    with stand_in() as letta:
        for delivery, method, to in (("messages", "POST", "message"), ("auto", "PATCH", "board")):
            run.say(f"span start → {to}")
            seen = _starts(letta, delivery, method, run.pick(250, 40))
            what = f"span start → request, warm, {to}"
            yield at_most(f"{what}, p50", median(seen), 10, "ms", f"{len(seen)} starts, delivery={delivery}")
            yield at_most(f"{what}, p99", percentile(seen, 0.99), 50, "ms")
        run.say("set_attribute → board")
        yield _unjudged("set_attribute → request, p50", _attributes(letta, run.pick(60, 8), helper=False))
        yield _unjudged("task().progress() → request, p50", _attributes(letta, run.pick(200, 40), helper=True))
        run.say("first report of a process")
        cold, made = [], []
        for n in range(run.pick(9, 2) + 1):
            name = f"cold task {n} begins"
            told = json.loads(children.run("latency", letta.base_url(), letta.create_agent(), name))
            if n:  # the first one compiles
                cold.append((letta.wait_for_request("POST", name) - told["began"]) * 1e3)
                made.append(told["made"] * 1e3)
        yield Figure(
            "span start → request, cold (first report of a process)",
            f"{median(cold):.1f} ms",
            note=f"{min(cold):.1f} to {max(cold):.1f} ms in {len(cold)} processes. Before it, once: "
            f"LettaSpanProcessor() takes {median(made):.0f} ms, with the import of httpx",
            numbers={"median": median(cold), "all": cold},
        )


def _unjudged(what: str, seen: list[float]) -> Figure:
    note = f"p99 {percentile(seen, 0.99):.1f} ms, {len(seen)} times"
    return Figure(what, f"{median(seen):.1f} ms", note=note, numbers={"p50": median(seen), "all": seen})


def _cold(base_url: str, agent: str, name: str) -> None:
    began = time.perf_counter()
    processor = LettaSpanProcessor(base_url=base_url, password=PASSWORD, agent_id=agent, delivery="messages")
    made = time.perf_counter() - began
    provider = TracerProvider()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("benchmark")
    began = time.monotonic()
    span = tracer.start_span(name, attributes={"letta.task.name": name})
    time.sleep(0.5)
    span.end()
    print(json.dumps({"began": began, "made": made}))


if __name__ == "__main__":
    _cold(*sys.argv[1:])
