"""The program of the soak: so many tasks a second for so long, and at the end what it knows of them, as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor


def resident() -> float:
    """The megabytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main(seconds: float, rate: int) -> None:
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("otel_letta").setLevel(logging.CRITICAL)
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LettaSpanProcessor()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("soak")
    memory, waiting, made, began = [], [], 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        while made < passed * rate:
            with tracer.start_as_current_span("work", attributes={"letta.task.name": f"t{made}"}):
                made += 1
        if passed >= len(memory):
            memory.append(round(resident(), 1))
            waiting.append(sum(lane["waiting"] for lane in processor.stats()["lanes"].values()))
        time.sleep(0.005)
    print(json.dumps({"made": made}), flush=True)
    sys.stdin.readline()  # the faults are over
    flushed = provider.force_flush(300_000)
    stats = processor.stats()
    provider.shutdown()
    figures = {"made": made, "flushed": flushed, "memory": [*memory, round(resident(), 1)], "waiting": waiting}
    print(json.dumps({**figures, **{name: stats[name] for name in ("sent", "requests", "retries", "dropped")}}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
