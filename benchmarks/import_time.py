"""What importing otel_letta adds to a program that has imported the SDK, and what it leaves for later.

Fresh processes, bytecode compiled before, in turns; each imports the SDK's tracing and then times one statement alone.
``import otel_letta`` by itself loads next to nothing, so what a program really writes is measured beside it, against
the same target: the name that it uses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import children
from benchmarks.figures import Figure, Run, at_most, median

_STATEMENTS = (
    "import otel_letta",
    "from otel_letta import LettaSpanProcessor",
    "from otel_letta import LettaReporter",
    "from otel_letta import *",
)
_HEAVY = ("httpx", "rich", "click", "websockets")


def _program(statement: str) -> str:
    # Not a module of this package, so that nothing else is imported first.
    return f"""
import json, sys, time
import opentelemetry.sdk.trace, opentelemetry.sdk.trace.export
before = time.perf_counter(), time.process_time()
{statement}
after = time.perf_counter(), time.process_time()
loaded = [name for name in {_HEAVY!r} if name in sys.modules]
print(json.dumps([(after[0] - before[0]) * 1e3, (after[1] - before[1]) * 1e3, loaded]))
"""


def measure(run: Run) -> Iterator[Figure]:
    run.say("import")
    walls: dict[str, list[float]] = {statement: [] for statement in _STATEMENTS}
    cpus: dict[str, list[float]] = {statement: [] for statement in _STATEMENTS}
    loaded: set[str] = set()
    for turn in range(run.pick(20, 4) + 1):
        for statement in _STATEMENTS:
            done = subprocess.run(
                [sys.executable, "-c", _program(statement)],
                env=children.environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            wall, cpu, names = json.loads(done.stdout)
            if turn:  # the first one compiles
                walls[statement].append(wall)
                cpus[statement].append(cpu)
                loaded.update(names)
    for statement in _STATEMENTS:
        seen = walls[statement]
        note = f"{min(seen):.1f} to {max(seen):.1f} ms, CPU {median(cpus[statement]):.1f} ms"
        yield at_most(f"{statement}, beside the SDK", median(seen), 60, "ms", note, all=seen)
    what = f"of {', '.join(_HEAVY)} they import"
    yield Figure(what, ", ".join(sorted(loaded)) or "none", "none", not loaded, numbers={"loaded": sorted(loaded)})
