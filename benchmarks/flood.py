"""1,000 tasks at once with 1,000 updates each, as fast as one thread can, against a server that takes 1 s a turn.

Each delivery mode is a process of its own, at an agent of its own, side by side; the server is another process. Default
settings, but for a shutdown that may take as long as delivery does: 1,000 ends at 20 a request and a second each are
more than the usual 5 s. In board mode the ends go to the board, which shows the newest ten: what counts there is that
it ends with nothing in progress.

*memory* is the peak of the resident set from the first span to the end of delivery, minus what it was before, when one
task had been told already. The same spans without a processor are measured too. *turns* are requests that cost the
agent an LLM call; *looks* all others: the agent's state before and after a turn, and the board. One request an update
(the original's way and letta-opencode-plugin's) is not run: it is 1,000,000 turns, 11½ days at 1 s each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from benchmarks import children
from benchmarks.figures import Figure, Run, at_most
from benchmarks.servers import PASSWORD, stand_in
from otel_letta import LettaSpanProcessor

_MODES = ("auto", "messages", "board")


def measure(run: Run) -> Iterator[Figure]:
    tasks, updates = run.pick(1_000, 60), run.pick(1_000, 100)
    run.say(f"{tasks:,} tasks × {updates:,} updates, about {tasks // 20 * 2} s")
    with stand_in(turn_seconds=1.0 if not run.quick else 0.2) as letta:
        bare = json.loads(children.run("flood", "none", tasks, updates, "-", "-"))
        agents = {mode: letta.create_agent() for mode in _MODES}
        processes = {
            mode: children.start("flood", mode, tasks, updates, letta.base_url(), agents[mode]) for mode in _MODES
        }
        results = {mode: json.loads(process.communicate(timeout=600)[0]) for mode, process in processes.items()}
        for mode in _MODES:
            yield from _figures(mode, tasks, updates, results[mode], bare, letta, agents[mode])


def _figures(
    mode: str, tasks: int, updates: int, result: dict[str, Any], bare: dict[str, Any], letta: Any, agent: str
) -> Iterator[Figure]:
    what = f"{tasks:,} × {updates:,}, {mode}"
    note = (
        f"updates took {result['updating']:.0f} s (no processor {bare['updating']:.0f} s), delivery "
        f"{result['delivering']:.0f} s more"
    )
    if mode == "board":
        clear = "In progress: none" in letta.board(agent)
        yield Figure(f"{what}: nothing left open", "yes" if clear else "no", "yes", clear, note)
    else:
        ends = letta.ends(agent).get("completed", 0) - 1  # the one that warmed up
        yield Figure(f"{what}: ends delivered", f"{ends:,}", f"{tasks:,}", ends == tasks, note, {"ends": ends})
    memory = f"the same spans without a processor: {bare['memory']:.1f} MB"
    yield at_most(f"{what}: memory growth", result["memory"], 30, "MB", memory)
    counts = letta.counts(agent)
    turns = counts["turns"] - result["before"]["requests"]
    looks = counts["looks"] + result["stats"]["board_writes"]
    asked = tasks * updates
    yield Figure(
        f"{what}: LLM turns",
        f"{turns:,}",
        note=f"{turns + looks:,} HTTP requests in all, {result['stats']['board_writes']:,} of them board writes; "
        f"one request an update: {asked:,} turns and requests",
        numbers={"turns": turns, "requests": turns + looks, "each_update": asked, "stats": result["stats"]},
    )


def _program(mode: str, tasks: str, updates: str, base_url: str, agent: str) -> None:
    logging.disable(logging.CRITICAL)
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("benchmark")
    processor = None
    if mode != "none":
        processor = LettaSpanProcessor(
            base_url=base_url, agent_id=agent, password=PASSWORD, delivery=mode, shutdown_timeout=500
        )
        provider.add_span_processor(processor)
    tracer.start_span("warm-up", attributes={"letta.task.name": "warm-up"}).end()
    provider.force_flush()
    before = processor.stats() if processor else {}

    memory = resident_megabytes()
    _forget_peak()
    began = time.monotonic()
    n = int(updates)
    spans = [
        tracer.start_span(f"task {t}", attributes={"letta.task.name": f"task {t}", "letta.task.id": f"task-{t}"})
        for t in range(int(tasks))
    ]
    for update in range(n):
        content = f"{update} of {n} files"
        for span in spans:
            span.set_attribute("letta.task.progress", update / n)
            span.set_attribute("letta.task.content", content)
    for span in spans:
        span.end()
    updated = time.monotonic()
    provider.shutdown()
    delivered = time.monotonic()
    print(
        json.dumps(
            {
                "updating": updated - began,
                "delivering": delivered - updated,
                "memory": _peak() - memory,
                "before": before,
                "stats": processor.stats() if processor else {},
            }
        )
    )


# Megabytes of resident memory, from Linux's /proc. Elsewhere only the peak is known, which makes growth look smaller if
# start-up needed more than the run.


def _status(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)


def _highest() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def resident_megabytes() -> float:
    """Resident memory of this process; its peak, where the system does not tell."""
    return _status("VmRSS:") or _highest()


def _peak() -> float:
    return _status("VmHWM:") or _highest()


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    _program(*sys.argv[1:])
