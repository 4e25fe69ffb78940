"""A program whose memories are full, and which reports ten thousand ends more: its memory after each two thousand.

It prints "full" when it has filled them and waits for a line, since nobody has to take the ends until then.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import sys
import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from otel_letta import LettaSpanProcessor
from otel_letta.tracking.tree import REMEMBERED
from tests.support.soak_program import resident

FULL = 4 * REMEMBERED + 2_000
"""Ends after which the largest memory is full."""
ROUNDS, ENDS = 6, 2_000
_AT_ONCE = 500
_PATIENCE = 300.0


def main() -> None:
    logging.getLogger("otel_letta").setLevel(logging.CRITICAL)
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LettaSpanProcessor()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("memory")
    for begin in range(0, FULL, _AT_ONCE):
        _make(tracer, begin, _AT_ONCE)
        _wait_until_read(processor, begin + _AT_ONCE)
    print("full", flush=True)
    sys.stdin.readline()
    flushed = provider.force_flush(int(_PATIENCE * 1e3))
    # Only now: an end is counted as read before the one that it pushes out is counted as dropped.
    stats = processor.stats()
    dropped, before = stats["dropped"], stats["sent"]
    memory = []
    for number in range(ROUNDS):
        for begin in range(0, ENDS, _AT_ONCE):
            _make(tracer, FULL + number * ENDS + begin, _AT_ONCE)
            flushed &= provider.force_flush(int(_PATIENCE * 1e3))
        memory.append(_at_rest())
    stats = processor.stats()
    delivered = stats["dropped"] == dropped and stats["sent"] - before >= ROUNDS * ENDS
    print(json.dumps({"memory": memory, "flushed": flushed, "delivered": delivered, "stats": str(stats)}), flush=True)
    provider.shutdown()


def _make(tracer: Tracer, begin: int, number: int) -> None:
    for n in range(begin, begin + number):
        with tracer.start_as_current_span("work", attributes={"letta.task.name": f"t{n}"}):
            pass
        with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
            pass  # of no task, as most model calls are


def _wait_until_read(processor: LettaSpanProcessor, ends: int) -> None:
    """Wait until all ends have been reported: what is made faster than it is read is only counted."""
    until = time.monotonic() + _PATIENCE
    while processor.stats()["reports"] < ends and time.monotonic() < until:
        time.sleep(0.005)


def _at_rest() -> float:
    """Return megabytes in memory, without what the allocator only keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return round(resident(), 2)


if __name__ == "__main__":
    main()
