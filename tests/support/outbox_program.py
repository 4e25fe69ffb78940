"""A program with an outbox, for tests that kill it: it starts and ends tasks until it is killed, or as many as wanted.

Prints ``durable N`` once the N-th task's end is on the disk. Arguments: a prefix of its tasks' ids, how many there are
(0: endless), and seconds to flush for at the end.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor


def main() -> None:
    prefix, number, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    provider = TracerProvider()
    processor = LettaSpanProcessor()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("outbox program")
    pipeline: Any = processor._pipeline
    outbox = pipeline.desk.outbox
    for each in itertools.count() if not number else range(number):
        with tracer.start_as_current_span(
            f"task {each}", attributes={"letta.task.id": f"{prefix}-{each}", "letta.task.progress": 0.1}
        ):
            pass
        while not pipeline._work_off(1.0) or outbox.place is None:
            time.sleep(0.001)
        print(f"durable {each}", flush=True)
    if patience:
        print("flushed" if provider.force_flush(int(patience * 1000)) else "not flushed", flush=True)
    provider.shutdown()


if __name__ == "__main__":
    main()
