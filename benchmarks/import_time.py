"""What importing otel_letta adds to a program that has imported the SDK, and what it leaves for later.

Fresh processes, bytecode compiled before, in turns; each imports the SDK's tracing, which is timed too, and then times
one statement alone. The figures are ratios to what the SDK's own import took in the same process, CPU and wall, since
milliseconds are the machine's. ``import otel_letta`` by itself loads next to nothing, so what a program really writes
is measured beside it: the name that it uses.

The constructor loads httpx, and makes what it can before a fork could cut it in two (OpenSSL's context, the package's
transports); it does not use the network. It is compared with ``import httpx`` in a process like its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import children
from benchmarks.figures import Figure, Run, at_most, median

_PROCESSOR = "from otel_letta import LettaSpanProcessor"
_STATEMENTS = {
    "import otel_letta": 0.25,
    _PROCESSOR: 0.25,
    "from otel_letta import LettaReporter": 0.25,
    "from otel_letta import *": 0.5,
}
_MADE = "LettaSpanProcessor(base_url='http://127.0.0.1:9', agent_id='agent-1', password='x', dotenv_path=os.devnull)"
_HTTPX = "import httpx"
_HEAVY = ("httpx", "rich", "click", "websockets")


def _program(statement: str, before: str = "") -> str:
    # Not a module of this package, so that nothing else is imported first.
    return f"""
import json, os, sys, time
started = time.perf_counter(), time.process_time()
import opentelemetry.sdk.trace, opentelemetry.sdk.trace.export
sdk = time.perf_counter() - started[0], time.process_time() - started[1]
{before}
before = time.perf_counter(), time.process_time()
{statement}
after = time.perf_counter(), time.process_time()
loaded = [name for name in {_HEAVY!r} if name in sys.modules]
print(json.dumps([(after[0] - before[0]) * 1e3, (after[1] - before[1]) * 1e3, sdk[0] * 1e3, sdk[1] * 1e3, loaded]))
"""


def measure(run: Run) -> Iterator[Figure]:
    run.say("import")
    programs = {statement: _program(statement) for statement in _STATEMENTS}
    programs |= {_MADE: _program(_MADE, _PROCESSOR), _HTTPX: _program(_HTTPX, _PROCESSOR)}
    seen: dict[str, list[list[float]]] = {statement: [] for statement in programs}
    loaded: set[str] = set()
    for turn in range(run.pick(20, 4) + 1):
        for statement, program in programs.items():
            done = subprocess.run(
                [sys.executable, "-c", program],
                env=children.environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            *times, names = json.loads(done.stdout)
            if turn:  # the first one compiles
                seen[statement].append(times)
                if statement in _STATEMENTS:
                    loaded.update(names)
    for statement, limit in _STATEMENTS.items():
        ratio = median([cpu / sdk for _, cpu, _, sdk in seen[statement]])
        wall = median([wall / sdk for wall, _, sdk, _ in seen[statement]])
        milliseconds = median([cpu for _, cpu, _, _ in seen[statement]])
        sdk = median([sdk for _, _, _, sdk in seen[statement]])
        note = f"CPU {milliseconds:.1f} ms beside the SDK's {sdk:.1f} ms"
        what = f"{statement} / import of the SDK"
        yield at_most(what, ratio, limit, "×", note, extra=f" (wall {wall:.2f}×)", all=seen[statement])
    made, httpx = (median([cpu for _, cpu, _, _ in seen[which]]) for which in (_MADE, _HTTPX))
    walls = median([wall for wall, *_ in seen[_MADE]]) / median([wall for wall, *_ in seen[_HTTPX]])
    note = f"CPU {made:.1f} ms beside {httpx:.1f} ms"
    what = "LettaSpanProcessor(…) without a network / import httpx"
    yield at_most(what, made / httpx, 1.5, "×", note, extra=f" (wall {walls:.2f}×)", all=seen[_MADE])
    what = f"of {', '.join(_HEAVY)} the imports load"
    yield Figure(what, ", ".join(sorted(loaded)) or "none", "none", not loaded, numbers={"loaded": sorted(loaded)})
