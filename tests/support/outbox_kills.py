"""A program that is killed again and again, with one outbox, and what its agent has in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from otel_letta.testing import InMemoryLetta

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("OTEL_LETTA_TEST_KILLS", "6"))
_SEED = 13


@dataclass
class Survived:
    """What came of it."""

    durable: set[str]
    """Ids of the tasks whose ends were durable when their program was killed."""
    ends: list[str]
    """Ids of the tasks whose ends the agent got, in its order."""
    flushed: bool

    @property
    def missing(self) -> set[str]:
        return self.durable - set(self.ends)

    @property
    def twice(self) -> dict[str, int]:
        return {task: number for task, number in Counter(self.ends).items() if number > 1}

    @property
    def out_of_order(self) -> set[str]:
        """Programs whose ends did not come in their order."""
        programs = {task.rpartition("-")[0] for task in self.ends}
        numbers = {
            name: [int(t.rpartition("-")[2]) for t in self.ends if t.startswith(f"{name}-")] for name in programs
        }
        return {name for name, found in numbers.items() if found != sorted(found)}


def kill_again_and_again(outbox: str, kills: int = KILLS) -> Survived:
    """Kill so many programs at random moments, each the heir of the last, and have one more deliver what is left."""
    chance = random.Random(_SEED)
    durable: set[str] = set()
    with InMemoryLetta(turn_seconds=0.02) as letta:
        agent = letta.create_agent()
        for kill in range(kills):
            program = _start(letta, agent, outbox, f"run{kill}", 0, 0)
            assert program.stdout is not None
            for _ in range(chance.randint(1, 40)):
                line = program.stdout.readline()
                assert line.startswith("durable "), line
                durable.add(f"run{kill}-{line.split()[1]}")
            time.sleep(chance.random() * 0.05)
            program.send_signal(signal.SIGKILL)
            rest = program.stdout.read()
            durable.update(f"run{kill}-{line.split()[1]}" for line in rest.splitlines() if line.startswith("durable "))
            program.wait()
            program.stdout.close()
        program = _start(letta, agent, outbox, "last", 1, 300)
        said, _ = program.communicate(timeout=600)
        ends = [str(report["task_id"]) for report in letta.reports(agent) if report["status"] != "in_progress"]
    return Survived(durable, ends, "flushed" in said.splitlines())


def _start(
    letta: InMemoryLetta, agent: str, outbox: str, prefix: str, number: int, patience: float
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_AGENT_ID": agent,
        "OTEL_LETTA_OUTBOX": outbox,
        "OTEL_LETTA_DELIVERY": "messages",
        "OTEL_LETTA_SHUTDOWN_TIMEOUT": "120",
        "OTEL_LETTA_WAKE_BUDGET": "100000",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.outbox_program", prefix, str(number), str(patience)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
