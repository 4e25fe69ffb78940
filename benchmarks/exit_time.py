"""How long a program takes to exit when its Letta server is dead, and when it is well.

From the last line of a program that has just ended a task to the end of its process. *refused*: nothing listens at the
port. *hanging*: connections are accepted and never answered; the report of the task's start is under way when the
program ends. The longest of several is the figure. Beside it, without a target: a server that answers, and
BatchSpanProcessor + OTLP/HTTP with the same dead servers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from benchmarks import children
from benchmarks.figures import Figure, Run, at_most
from benchmarks.servers import PASSWORD, silent_server, stand_in

_REFUSED = "http://127.0.0.1:9"
_APART = 1.0
"""Seconds between two starts: the programs run side by side, but neither start nor exit at the same moment."""


def _exit_seconds(way: str, base_url: str, agent: str) -> float:
    child = children.start("exit_time", way, base_url, agent)
    assert child.stdout is not None
    last_line = float(child.stdout.read())  # returns when the child's descriptor closes: at its end
    child.wait()
    return time.monotonic() - last_line


def measure(run: Run) -> Iterator[Figure]:
    run.say("exit with a dead server")
    with contextlib.ExitStack() as stack:
        letta = stack.enter_context(stand_in())
        hanging = stack.enter_context(silent_server())
        pool = stack.enter_context(ThreadPoolExecutor(12))
        _exit_seconds("letta", letta.base_url(), letta.create_agent())  # compiles

        def several(way: str, base_url: str, times: int) -> list[Future[float]]:
            programs = []
            for _ in range(times):
                programs.append(pool.submit(_exit_seconds, way, base_url, letta.create_agent()))
                time.sleep(_APART)
            return programs

        alive = max(program.result() for program in several("letta", letta.base_url(), 2))
        dead = {"refused": _REFUSED, "hanging": hanging}
        ours = {name: several("letta", base_url, run.pick(3, 1)) for name, base_url in dead.items()}
        theirs = {name: several("otlp", base_url, run.pick(1, 0)) for name, base_url in dead.items()}
        for name in dead:
            took = [program.result() for program in ours[name]]
            notes = [f"with a server that answers: {alive:.2f} s"]
            notes += [f"Batch+OTLP: {program.result():.1f} s" for program in theirs[name]]
            note = "; ".join(notes)
            yield at_most(f"exit, dead server ({name})", max(took), 5, "s", note, extra=f" ({max(took):.3f})", all=took)


def _program(way: str, base_url: str, agent: str) -> None:
    logging.disable(logging.CRITICAL)
    processor: SpanProcessor
    if way == "letta":
        from otel_letta import LettaSpanProcessor

        processor = LettaSpanProcessor(base_url=base_url, agent_id=agent, password=PASSWORD, delivery="messages")
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=base_url + "/v1/traces"))
    provider = TracerProvider()  # shuts down at exit, as by default
    provider.add_span_processor(processor)
    with provider.get_tracer("benchmark").start_as_current_span("Import", attributes={"letta.task.name": "Import"}):
        time.sleep(0.5)
    os.write(1, str(time.monotonic()).encode())


if __name__ == "__main__":
    _program(*sys.argv[1:])
