"""Hosts that share nothing but a database and an agent: every end reaches the agent's context.

Each program has a temporary folder of its own, as containers have, so that none sees another's lock files.
``OTEL_LETTA_TEST_RUNS`` sets how often.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.postgres import Cluster

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[3]
HOSTS, TASKS = 4, 2
RUNS = int(os.environ.get("OTEL_LETTA_TEST_RUNS", "2"))


def run_hosts(letta_url: str, agent: str, outbox: str, folder: Path, **environment: str) -> list[str]:
    """Run the programs side by side; return what each said last."""
    started = []
    for host in range(HOSTS):
        own = folder / f"host{host}"
        own.mkdir()
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.outbox_program", f"host{host}", str(TASKS), "300"],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TMPDIR": str(own),
                    "LETTA_BASE_URL": letta_url,
                    "LETTA_AGENT_ID": agent,
                    "OTEL_LETTA_OUTBOX": outbox,
                    "OTEL_LETTA_DELIVERY": "messages",
                    "OTEL_LETTA_SHUTDOWN_TIMEOUT": "120",
                    **environment,
                },
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return [process.communicate(timeout=600)[0].splitlines()[-1] for process in started]


@pytest.mark.parametrize("run", range(RUNS))
def test_all_ends_of_four_hosts_are_in_the_context_of_their_one_agent(
    cluster: Cluster, tmp_path: Path, run: int
) -> None:
    name = f"hosts_{uuid.uuid4().hex}"
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    with InMemoryLetta(turn_seconds=0.3) as letta:
        agent = letta.create_agent()
        assert run_hosts(letta.base_url, agent, cluster.url(name), tmp_path) == ["flushed"] * HOSTS
        seen = Counter(report["task_id"] for report in letta.reports(agent) if report["status"] != "in_progress")
        context = "\n".join(letta.context(agent))
        assert letta.in_flight_max(agent) == 1
    expected = {f"host{host}-{task}" for host in range(HOSTS) for task in range(TASKS)}
    assert seen == dict.fromkeys(expected, 1)
    assert all(f'task_id="{task}"' in context for task in expected)
