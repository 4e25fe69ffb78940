"""Bursts and backlogs: threads, memory and the exit, where far more is reported than a server can take.

Each figure is a process of its own. *ends/s* is what a backlog of ends takes towards a server that answers at once, in
another process; beside it the client's own CPU, which a busy machine does not stretch. *burst* ends tasks as fast as
one thread can while the server is away, *open* leaves them open: memory is the resident set at its peak, minus what the
same spans take without a processor. A span takes as long as its hooks, what else runs on the machine, and Python's
garbage collector, whose full passes stop the program for as long as it has objects: so the slowest span is given
without those, and the longest pass beside it, with and without a processor. *conversations* reports one end to each of
so many conversations at once.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from benchmarks import children
from benchmarks.figures import Figure, Run, at_most, percentile
from benchmarks.servers import PASSWORD, stand_in
from otel_letta import LettaSpanProcessor

_NOWHERE = "http://127.0.0.1:9"
_AGENT = "agent-11111111-1111-4111-8111-111111111111"


def measure(run: Run) -> Iterator[Figure]:
    number = run.pick(100_000, 5_000)
    run.say(f"{number:,} tasks at once, some minutes")
    for kind in ("burst", "open"):
        bare = json.loads(children.run("load", kind, number, "bare"))
        ours = json.loads(children.run("load", kind, number, "ours"))
        note = f"{ours['stats']}"
        yield at_most(f"{number:,} tasks, {kind}: memory", ours["memory"] - bare["memory"], 100, "MB", note)
        yield at_most(f"{number:,} tasks, {kind}: exit", ours["exit"], 6, "s")
        for what in ("slowest", "p99.9"):
            without = f"without a processor {bare[what] * 1e3:.1f} ms"
            yield at_most(f"{number:,} tasks, {kind}: {what} span", ours[what] * 1e3, 100, "ms", without)
        yield Figure(
            f"{number:,} tasks, {kind}: longest pass of the garbage collector",
            f"{ours['collected'] * 1e3:.0f} ms",
            note=f"without a processor {bare['collected'] * 1e3:.0f} ms",
            numbers={"ours": ours, "bare": bare},
        )
    conversations = run.pick(3_000, 200)
    many = json.loads(children.run("load", "conversations", conversations, "ours"))
    yield at_most(
        f"{conversations:,} conversations: threads", many["threads"], 20, "threads", f"{many['lines']} log lines"
    )
    backlog = run.pick(10_000, 500)
    with stand_in(turn_seconds=0.0) as letta:
        told = json.loads(children.run("load", "backlog", backlog, letta.base_url(), letta.create_agent()))
    rate = backlog / told["seconds"]
    note = f"{told['stats']['requests']} requests"
    yield Figure(f"backlog of {backlog:,} ends", f"{rate:,.0f} ends/s", "≥ 1,000 ends/s", rate >= 1_000, note, told)
    yield at_most(f"backlog of {backlog:,} ends: the client's CPU for each", told["cpu"] / backlog * 1e6, 1_000, "µs")


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.number += 1


class _Passes:
    """How long the garbage collector has worked."""

    def __init__(self) -> None:
        self.seconds = self.longest = self._began = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            took = time.perf_counter() - self._began
            self.seconds, self.longest = self.seconds + took, max(self.longest, took)


def _program(kind: str, number: str, *where: str) -> None:
    lines = _Lines()
    logging.getLogger("otel_letta").addHandler(lines)
    logging.lastResort = None
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("benchmark")
    processor = None
    backlog = kind == "backlog"
    if where[0] != "bare":
        processor = LettaSpanProcessor(
            base_url=where[0] if backlog else _NOWHERE,
            agent_id=where[1] if backlog else _AGENT,
            password=PASSWORD,
            server="rest",
            wake_budget=1_000_000,
            max_pending_tasks=int(number) if backlog else 10_000,
            delivery="messages",
        )
        provider.add_span_processor(processor)
    tracer.start_span("warm-up", attributes={"letta.task.name": "warm-up"}).end()
    before = _resident("VmRSS")
    most_threads, kept, took, passes = 0, [], [], _Passes()
    for n in range(int(number)):
        attributes = {"letta.task.name": f"task {n}"}
        if kind == "conversations":
            attributes["letta.chat.id"] = f"conv-11111111-1111-4111-8111-{n:012}"
        collected, began = passes.seconds, time.perf_counter()
        span = tracer.start_span(f"task {n}", attributes=attributes)
        if kind == "open":
            kept.append(span)
        else:
            span.end()
        took.append(time.perf_counter() - began - (passes.seconds - collected))
        most_threads = max(most_threads, threading.active_count())
    began, cpu = time.monotonic(), time.process_time()
    if backlog:
        provider.force_flush(600_000)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    for _ in range(20):
        most_threads = max(most_threads, threading.active_count())
        time.sleep(0.05)
    began = time.monotonic()
    provider.shutdown()
    print(
        json.dumps(
            {
                "memory": _resident("VmHWM") - before,
                "exit": time.monotonic() - began,
                "slowest": max(took),
                "p99.9": percentile(took, 0.999),
                "collected": passes.longest,
                "threads": most_threads,
                "lines": lines.number,
                "seconds": seconds,
                "cpu": cpu,
                "stats": _counts(processor),
            }
        )
    )


def _counts(processor: LettaSpanProcessor | None) -> dict[str, Any]:
    found = processor.stats() if processor is not None else {}
    return {name: found[name] for name in ("reports", "sent", "requests", "dropped") if name in found}


def _resident(name: str) -> float:
    """Return megabytes of the resident set, now or at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1_024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    _program(*sys.argv[1:])
