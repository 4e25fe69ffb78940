"""What one task of 30 minutes with 1,000 updates costs the agent: `benchmarks.turn_costs`, as lines of the table.

Against the stand-in all modes run at once, each in a process with a server of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import children
from benchmarks.figures import Figure, Run
from benchmarks.turn_costs import MODES, Server, costs


def measure(run: Run) -> Iterator[Figure]:
    seconds = run.pick(18, 3)
    run.say(f"a long task, about {seconds} s")
    modes = [mode for mode in MODES if not (run.quick and "," in mode)]
    processes = [
        children.start("turn_costs", "--stand-in", "--json", "--seconds", seconds, "--mode", mode) for mode in modes
    ]
    return _figures((json.loads(process.communicate(timeout=300)[0]) for process in processes), "")


def measure_real(run: Run, server: Server) -> Iterator[Figure]:
    """The same at a real Letta, one after another."""
    run.say("a long task at the real Letta, about two minutes")
    modes = [mode for mode in MODES if not (run.quick and "," in mode)]
    return _figures((vars(cost) for cost in costs(server, run.pick(18, 3), modes)), ", real Letta")


def _figures(found: Iterable[dict[str, Any]], where: str) -> Iterator[Figure]:
    for cost in found:
        yield Figure(
            f"30 min, 1,000 updates, {cost['way']}{where}: LLM turns",
            f"{cost['turns']:,}",
            note=f"{cost['requests']:,} HTTP requests, {cost['board']:,} of them board writes; "
            "one request an update: 1,000 turns",
            numbers=cost,
        )
