"""Run as a process of its own: the tasks that it is given as arguments, all at once, each in a thread.

Settings come from the environment. It says ``ready``, waits for a line, runs the tasks, shuts down, and prints the
processor's numbers. With ``--crash`` first it dies while the tasks are open, as soon as they were reported; with
``--in-turn`` first each task starts when the one before it was delivered.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor


def main(arguments: list[str]) -> None:
    names = [argument for argument in arguments if not argument.startswith("--")]
    crash, in_turn = "--crash" in arguments, "--in-turn" in arguments
    processor = LettaSpanProcessor()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("task_program")
    together = threading.Barrier(1 if in_turn else len(names))

    def work(name: str) -> None:
        with tracer.start_as_current_span(name, attributes={"letta.task.progress": 0.3}):
            together.wait()
            if crash:
                threading.Event().wait()

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
        if in_turn:
            thread.join()
            processor.force_flush()
    if crash:
        deadline = time.monotonic() + 20
        while processor.stats()["open_tasks"] < len(names) and time.monotonic() < deadline:
            processor.force_flush()
        os._exit(70 if processor.force_flush() else 1)
    for thread in threads:
        thread.join()
    provider.shutdown()
    print(json.dumps(processor.stats()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
