"""Real uWSGI from PyPI, whose master forks its workers in C: Python runs no hook of a fork then (its default)::

python -m pytest -m agents -k uwsgi
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.agent_frameworks import install
from tests.support.waiting import until

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[3]
LIMIT = 60.0
"""Seconds after which something counts as hanging."""


@dataclass
class Server:
    """uWSGI with a master and two workers, behind a socket in a file."""

    process: subprocess.Popen[bytes]
    address: Path
    log: Path

    def get(self, name: str) -> int:
        """Have a job done, and return the process that did it."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(LIMIT)
        connection.sock.connect(str(self.address))
        connection.request("GET", f"/{name}")
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, self.story
        return int(text)

    @property
    def is_up(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.address)) == 0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)

    @property
    def story(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def uwsgi(letta: InMemoryLetta, agent: str, folder: Path, *options: str) -> Iterator[Server]:
    venv = install("uwsgi").parent.parent
    # Relative to the folder that both work in: an address of a socket holds no long path.
    address, log = Path("app.sock"), folder / "uwsgi.log"
    assert Path.cwd() == folder
    command = [
        str(venv / "bin" / "uwsgi"),
        "--http-socket",
        str(address),
        "--master",
        "--processes",
        "2",
        "--die-on-term",
    ]
    command += ["--virtualenv", str(venv), "--wsgi-file", str(PROGRAMS / "uwsgi_app.py"), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(folder),
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "LETTA_BASE_URL": letta.base_url,
                "LETTA_AGENT_ID": agent,
                "OTEL_LETTA_DELIVERY": "messages",
                "OTEL_LETTA_POLL_INTERVAL": "0.02",
                "OTEL_LETTA_MESSAGE_INTERVAL": "0",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = Server(process, address, log)
    try:
        assert until(lambda: server.is_up or process.poll() is not None, LIMIT), server.story
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def ended(letta: InMemoryLetta, agent: str) -> dict[str, int]:
    return dict(Counter(report["task"] for report in letta.reports(agent) if report["status"] == "completed"))


@pytest.mark.parametrize("options", [["--enable-threads"], []], ids=["enable-threads", "default"])
def test_workers_that_uwsgi_forked_report_their_tasks_and_stop(
    letta: InMemoryLetta, agent: str, tmp_path: Path, options: list[str]
) -> None:
    expected = {"Warm up": 1}
    with uwsgi(letta, agent, tmp_path, *options) as server:
        by_worker: Counter[int] = Counter()
        deadline = time.monotonic() + LIMIT
        while len(by_worker) < 2 or min(by_worker.values()) < 2:  # the kernel chooses who takes a request
            assert time.monotonic() < deadline, server.story
            name = str(by_worker.total())
            by_worker[server.get(name)] += 1
            expected[f"Job {name}"] = 1
        assert until(lambda: ended(letta, agent) == expected, LIMIT), (ended(letta, agent), server.story)

        # What has ended by the time uWSGI is told to stop is reported at the workers' exit.
        server.get("last")
        assert server.stop() == 0, server.story
        assert ended(letta, agent) == expected | {"Job last": 1}, server.story
    results = {r["task"]: r["result"] for r in letta.reports(agent) if r.get("result")}
    assert {int(re.sub(r"\D", "", text)) for text in results.values()} >= set(by_worker)
    assert "Traceback" not in server.story
    assert not re.search(r"no, really|respawn|DAMN|killed by signal", server.story), server.story
