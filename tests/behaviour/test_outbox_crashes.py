"""A program that is killed again and again, with one outbox: what was on the disk reaches the agent, and once.

``OTEL_LETTA_TEST_KILLS`` sets how often; the default is for a CI machine that has other things to do.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from otel_letta.testing import InMemoryLetta

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("OTEL_LETTA_TEST_KILLS", "6"))


def start(
    letta: InMemoryLetta, agent: str, outbox: Path, prefix: str, number: int, patience: float
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_AGENT_ID": agent,
        "OTEL_LETTA_OUTBOX": str(outbox),
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


def test_every_end_that_was_durable_reaches_the_agent_once_however_often_its_program_is_killed(tmp_path: Path) -> None:
    # Each kill starts a Python with an SDK, which takes a second or more on a busy machine.
    chance = random.Random(13)
    durable: set[str] = set()
    with InMemoryLetta(turn_seconds=0.02) as letta:
        agent = letta.create_agent()
        for kill in range(KILLS):
            program = start(letta, agent, tmp_path / "outbox.db", f"run{kill}", 0, 0)
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
        program = start(letta, agent, tmp_path / "outbox.db", "last", 1, 300)
        said, _ = program.communicate(timeout=600)
        assert "flushed" in said.splitlines()
        ends = [report["task_id"] for report in letta.reports(agent) if report["status"] != "in_progress"]
        order = {f"run{kill}": [each for each in ends if each.startswith(f"run{kill}-")] for kill in range(KILLS)}
    twice = {task: number for task, number in Counter(ends).items() if number > 1}
    assert not twice
    assert durable <= set(ends)
    for kill, found in order.items():
        lost_last = sorted(found, key=lambda task: int(task.rpartition("-")[2]))
        assert found == lost_last, kill
