"""The outbox with a real Letta 0.16.8: what its agent has in its next prompt decides.

``OTEL_LETTA_TEST_RUNS`` sets how often the hosts run.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.letta_harness import LettaHarness
from tests.support.postgres import Cluster
from tests.support.program import told_in

ROOT = Path(__file__).parents[3]
RUNS = int(os.environ.get("OTEL_LETTA_TEST_RUNS", "1"))
HOSTS, TASKS = 4, 2


def start(
    letta: LettaHarness, agent: str, outbox: str, folder: Path, prefix: str, number: int, patience: float
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.outbox_program", prefix, str(number), str(patience)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_PASSWORD": letta.password,
            "LETTA_AGENT_ID": agent,
            "OTEL_LETTA_OUTBOX": outbox,
            "OTEL_LETTA_DELIVERY": "messages",
            "OTEL_LETTA_SHUTDOWN_TIMEOUT": "120",
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def ends_in_prompt(letta: LettaHarness, agent: str) -> Counter[str]:
    return Counter(told["task_id"] for told in told_in(letta.next_prompt(agent)) if told["status"] != "in_progress")


@pytest.mark.parametrize("run", range(RUNS))
def test_all_ends_of_four_hosts_with_one_database_are_in_the_next_prompt(
    letta: LettaHarness, tmp_path: Path, run: int
) -> None:
    assert importlib.util.find_spec("psycopg"), "the extra postgres has to be installed"
    agent = letta.create_agent()
    with Cluster() as cluster:
        hosts = [
            start(letta, agent, cluster.url(), tmp_path / f"host{host}", f"host{host}", TASKS, 300)
            for host in range(HOSTS)
        ]
        said = [host.communicate(timeout=600)[0].splitlines()[-1] for host in hosts]
    assert said == ["flushed"] * HOSTS
    expected = [f"host{host}-{task}" for host in range(HOSTS) for task in range(TASKS)]
    assert ends_in_prompt(letta, agent) == dict.fromkeys(expected, 1)


def test_ends_of_programs_that_were_killed_are_in_the_next_prompt_once(letta: LettaHarness, tmp_path: Path) -> None:
    chance, outbox = random.Random(5), str(tmp_path / "outbox.db")
    agent, durable = letta.create_agent(), set()
    for kill in range(5):
        program = start(letta, agent, outbox, tmp_path / "tmp", f"run{kill}", 0, 0)
        assert program.stdout is not None
        for _ in range(chance.randint(1, 10)):
            line = program.stdout.readline()
            assert line.startswith("durable "), line
            durable.add(f"run{kill}-{line.split()[1]}")
        program.send_signal(signal.SIGKILL)
        rest = program.stdout.read().splitlines()
        durable |= {f"run{kill}-{line.split()[1]}" for line in rest if line.startswith("durable ")}
        program.wait()
        program.stdout.close()
    last = start(letta, agent, outbox, tmp_path / "tmp", "last", 1, 300)
    assert last.communicate(timeout=600)[0].splitlines()[-1] == "flushed"
    found = ends_in_prompt(letta, agent)
    assert durable <= set(found)
    assert set(found.values()) == {1}
