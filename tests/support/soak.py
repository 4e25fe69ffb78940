"""A soak: a program that reports without a break, behind a proxy whose fault changes every few seconds.

python -m tests.support.soak 600 50    # seconds, and ends a second; prints the figures
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_letta.testing import InMemoryLetta
from tests.support.fault_proxy import FAULTS, REFUSE, Fault, FaultProxy
from tests.support.memory_program import ENDS
from tests.support.program import ends_in

_ROOT = Path(__file__).parents[2]
_SEED = 13
RATE = 200
"""Ends a second."""
_CONTEXT = 1_000
"""Messages in the agent's context before it compacts them, as every agent with a model does."""


@dataclass
class Soak:
    """What came of it."""

    made: int
    arrived: Counter[str]
    """How often the agent was told each task's end."""
    flushed: bool
    memory: list[float]
    """Megabytes of the program, a sample a second."""
    waiting: list[int]
    """Ends that had not been sent, at the same times."""
    stats: dict[str, object]
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        return self.made - len(self.arrived)

    @property
    def twice(self) -> int:
        return sum(1 for times in self.arrived.values() if times > 1)

    @property
    def growth(self) -> float:
        """Megabytes between the first third and the end."""
        return self.memory[-1] - max(self.memory[: len(self.memory) // 3 + 1])

    def __str__(self) -> str:
        return (
            f"{self.made} ends behind {sum(self.faults.values())} faults of {len(self.faults)} kinds: "
            f"{self.missing} missing, {self.twice} twice; flushed: {self.flushed}; {self.stats}; "
            f"after each tenth of the time {_tenths(self.memory[:-1])} MB and {_tenths(self.waiting)} ends waiting; "
            f"{self.memory[-1]} MB at the end"
        )


def _tenths(figures: Sequence[float]) -> list[float]:
    return [figures[(len(figures) - 1) * tenth // 10] for tenth in range(11)]


def soak(seconds: float, rate: int = RATE, seed: int = _SEED) -> Soak:
    """Run one; it takes longer than ``seconds`` by what is left to deliver then."""
    chance, met = random.Random(seed), Counter[str]()
    with InMemoryLetta() as letta, FaultProxy(letta.base_url) as proxy:
        agent = letta.create_agent()
        over, finished = threading.Event(), threading.Event()

        def switch() -> None:
            while not over.is_set():
                # A third of the time all is well: what is parked has to come back, too.
                fault: Fault | None = chance.choice(FAULTS) if chance.random() < 0.67 else None
                proxy.set(fault, method=chance.choice(["POST", None]))
                met.update([fault.name] if fault is not None else [])
                over.wait(chance.uniform(1.0, 4.0))
            proxy.set(None)

        def keep_short() -> None:
            while not finished.wait(0.2):
                if len(letta.context(agent)) > _CONTEXT:
                    letta.compact(agent, in_next_turn=True)

        switching = threading.Thread(target=switch, daemon=True)
        switching.start()
        compacting = threading.Thread(target=keep_short, daemon=True)
        compacting.start()
        process = _start(
            ["tests.support.soak_program", str(seconds), str(rate)],
            proxy,
            agent,
            OTEL_LETTA_MAX_PENDING_TASKS="100000",
            OTEL_LETTA_MESSAGE_INTERVAL="3600",
            OTEL_LETTA_CONNECT_TIMEOUT="1",
            OTEL_LETTA_READ_TIMEOUT="2",
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            over.set()
            switching.join(60)
            out, _ = process.communicate("go on\n", timeout=600)
        finally:
            over.set()
            finished.set()
            process.kill()
            process.wait()
        figures = json.loads(out)
        compacting.join(60)
        arrived = Counter(ends_in("\n".join(message.content for message in letta.messages(agent))))
    stats = {name: figures[name] for name in ("sent", "requests", "retries", "dropped")}
    return Soak(figures["made"], arrived, figures["flushed"], figures["memory"], figures["waiting"], stats, met)


def _start(program: list[str], proxy: FaultProxy, agent: str, **more: str) -> subprocess.Popen[str]:
    """Start a program that reports through the proxy, and waits for a line before it is over."""
    return subprocess.Popen(
        [sys.executable, "-m", *program],
        env={
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "LETTA_BASE_URL": proxy.base_url,
            "LETTA_AGENT_ID": agent,
            "OTEL_LETTA_SERVER": "rest",
            "OTEL_LETTA_DELIVERY": "messages",
            "OTEL_LETTA_WAKE_BUDGET": "1000000",
            "OTEL_LETTA_PROBE_INTERVAL": "0.5",
            **more,
        },
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def growth() -> tuple[float, dict[str, Any]]:
    """Return the bytes that an end costs for good once a program's memories are full, and what the program found."""
    with InMemoryLetta() as letta, FaultProxy(letta.base_url) as proxy:
        # What fills the memories need not be delivered: it is not what is measured.
        proxy.set(REFUSE)
        process = _start(
            ["tests.support.memory_program"], proxy, letta.create_agent(), OTEL_LETTA_MAX_PENDING_TASKS="2000"
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "full\n"
            proxy.set(None)
            out, _ = process.communicate("go on\n", timeout=1_200)
        finally:
            process.kill()
            process.wait()
    figures: dict[str, Any] = json.loads(out)
    memory = figures["memory"]
    # The first round fills what only deliveries fill; two of each end, since a page more or less says nothing.
    first, last = min(memory[1:3]), min(memory[-2:])
    return (last - first) * 2**20 / ((len(memory) - 3) * ENDS), figures


if __name__ == "__main__":
    print(soak(float(sys.argv[1]), *map(int, sys.argv[2:3])))
