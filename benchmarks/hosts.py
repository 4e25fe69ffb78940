"""Four containers that report to one agent at the same moment: how many of their ends the agent has afterwards.

    python -m benchmarks.hosts --rounds 20 --turn 0.3 --run-delay 0.05

Each process has a temporary folder of its own, so that no lock is shared, and reports two ends. Printed for each round:
ends in the agent's context (more than one each would be doubled), what the processes say of themselves, and turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, Protocol

from otel_letta.testing import InMemoryLetta

_PROCESS = """
import json, sys
from opentelemetry.sdk.trace import TracerProvider
from otel_letta import LettaSpanExporter, LettaSpanProcessor
processor = LettaSpanProcessor(shutdown_timeout=float(sys.argv[2]))
provider = TracerProvider()
provider.add_span_processor(processor)
tracer = provider.get_tracer("hosts")
print("ready", flush=True)
sys.stdin.readline()
for number in range(2):
    with tracer.start_as_current_span(f"host {sys.argv[1]} task {number}", attributes={"letta.task.progress": 1.0}):
        pass
flushed = provider.force_flush(int(sys.argv[3]) * 1_000)
stats = processor.stats()
provider.shutdown()
print(json.dumps({"flushed": flushed, "dropped": stats["dropped"], "requests": stats["requests"]}))
"""


class Server(Protocol):
    """A Letta server, in memory or real."""

    @property
    def base_url(self) -> str: ...
    @property
    def password(self) -> str | None: ...
    @property
    def turns(self) -> int: ...
    def create_agent(self) -> str: ...
    def context(self, agent_id: str) -> list[str]: ...


def round_of(server: Server, processes: int, timeout: float, flush: int = 60) -> dict[str, Any]:
    """Run the processes once against a new agent, and count.

    Args:
        server: whose agent it is.
        processes: how many.
        timeout: seconds that their shutdown may take.
        flush: seconds that the flush before it may take.
    """
    agent = server.create_agent()
    began = server.turns
    started = []
    for number in range(processes):
        folder = tempfile.mkdtemp(prefix="otel-letta-host-")
        environ = {
            **os.environ,
            "TMPDIR": folder,
            "LETTA_BASE_URL": server.base_url,
            "LETTA_AGENT_ID": agent,
            **({"LETTA_PASSWORD": server.password} if server.password else {}),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", _PROCESS, str(number), str(timeout), str(flush)],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    at = time.monotonic()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [json.loads(process.communicate(timeout=flush + timeout + 180)[0]) for process in started]
    ends = [text for text in server.context(agent)[1:] if 'status="completed"' in text]
    names = [f"host {p} task {n}" for p in range(processes) for n in range(2)]
    seen = [sum(f'task="{name}"' in end for end in ends) for name in names]
    return {
        "in_context": sum(count > 0 for count in seen),
        "of": len(names),
        "twice": sum(count > 1 for count in seen),
        "flushed": sum(each["flushed"] for each in said),
        "dropped": sum(sum(each["dropped"].values()) for each in said),
        "turns": server.turns - began,
        "seconds": round(time.monotonic() - at, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--turn", type=float, default=0.3, help="seconds of an LLM turn")
    parser.add_argument("--run-delay", type=float, default=0.05, help="seconds until a run is visible")
    parser.add_argument("--shutdown-timeout", type=float, default=5.0)
    options = parser.parse_args()
    with InMemoryLetta(turn_seconds=options.turn, run_delay=options.run_delay) as server:
        results = [round_of(server, options.processes, options.shutdown_timeout) for _ in range(options.rounds)]
    for result in results:
        print(json.dumps(result))
    full = sum(result["in_context"] == result["of"] for result in results)
    honest = sum((result["in_context"] == result["of"]) or result["dropped"] > 0 for result in results)
    print(f"complete in {full} of {len(results)} rounds; complete or said so in {honest}")


if __name__ == "__main__":
    main()
