"""Each example runs as its docstring says, and the agent hears what it promises.

The server is ours, named by the environment, so that what arrived can be looked at. Examples that need more packages
than the tests do are marked `examples`: `pip install -e '.[test,examples]'`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sink import OtlpSink
from tests.support.waiting import until

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT = 60.0

with_packages = pytest.mark.examples


class Agent:
    """The agent that an example reports to, and the environment that names it."""

    def __init__(self, letta: InMemoryLetta, home: Path) -> None:
        self._letta = letta
        self.id = letta.create_agent()
        self._home = home
        self.environment = {
            "PATH": "",
            "HOME": str(home),  # gunicorn keeps a socket there
            "PYTHONDONTWRITEBYTECODE": "1",
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_AGENT_ID": self.id,
            "LETTA_PASSWORD": letta.password or "",
            "OTEL_LETTA_BOARD_INTERVAL": "0.1",
        }

    def answer(self, text: str) -> None:
        """Let the agent say this in its next turn."""
        self._letta.answer_next(text)

    def run(self, example: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command of the docstring."""
        done = subprocess.run(
            [sys.executable, EXAMPLES / example],
            cwd=self._home,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stderr
        return done

    def reports(self) -> list[dict[str, Any]]:
        return self._letta.reports(self.id)

    def ends(self) -> dict[str, dict[str, Any]]:
        """The ends of tasks by task id; each was told once."""
        ends = [report for report in self.reports() if "task_id" in report and report["status"] != "in_progress"]
        assert set(Counter(end["task_id"] for end in ends).values()) <= {1}
        return {end["task_id"]: end for end in ends}

    def told(self) -> list[tuple[str | None, ...]]:
        """What matters of the ends, in order of the chats."""
        words = ("chat_id", "message_id", "status", "result")
        return sorted((tuple(end.get(word) for word in words) for end in self.ends().values()), key=str)

    def boards(self) -> list[str]:
        """Everything that was ever written to a board."""
        bodies = (request.body for request in self._letta.requests if "/blocks/" in request.path)
        return [body["value"] for body in bodies if isinstance(body, dict) and body.get("value")]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with InMemoryLetta(password="secret") as letta:
        yield Agent(letta, tmp_path)


def test_the_table_names_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text("utf-8")
    named = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", table, flags=re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in EXAMPLES.glob("[a-z]*.py"))


def test_without_settings_an_example_starts_a_stand_in_and_shows_what_it_heard(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"],
        cwd=tmp_path,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "No LETTA_AGENT_ID is set" in done.stdout
    assert "In progress: none\nEnded:\nfailed" in done.stdout
    assert 'chat_id="chat-123" message_id="msg-456" status="completed"' in done.stdout


def test_quickstart(agent: Agent) -> None:
    done = agent.run("quickstart.py")
    assert done.stderr == ""
    assert "Delivered: True. Agent turns: 2" in done.stdout
    assert agent.told() == [
        ("chat-123", "msg-456", "completed", "10 files rewritten, all tests pass"),
        (None, None, "failed", None),
    ]
    assert any("of 10 files" in board for board in agent.boards())


def test_asyncio_worker(agent: Agent) -> None:
    assert agent.run("asyncio_worker.py").stderr == ""
    assert agent.told() == [
        ("chat-1", "msg-1", "completed", "8 pages indexed"),
        ("chat-2", "msg-2", "completed", "12 pages indexed"),
        ("chat-3", "msg-3", "failed", None),
    ]
    (cancelled,) = (end for end in agent.ends().values() if end["status"] == "failed")
    assert cancelled["error"] == "cancelled or timed out"
    assert any("In progress: 3" in board for board in agent.boards())


def test_two_backends(agent: Agent) -> None:
    with OtlpSink() as backend:
        done = agent.run("two_backends.py", OTEL_EXPORTER_OTLP_ENDPOINT=backend.url)
    assert done.stderr == ""
    assert agent.told() == [("chat-7", None, "completed", "1.2 GB uploaded")]
    (end,) = agent.ends().values()
    assert sorted(name for name, _ in backend.spans) == ["Nightly backup", "dump database", "upload"]
    assert {trace_id for _, trace_id in backend.spans} == {end["trace_id"]}


@with_packages
def test_notebook_in_a_real_kernel(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    for name, value in agent.environment.items():
        monkeypatch.setenv(name, os.environ["PATH"] if name == "PATH" else value)
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3").execute()
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    bars = [outputs[-1]["data"]["text/html"] for outputs in shown[1:3]]
    assert all('<progress max=1 value="1.000"></progress> 100% completed' in bar for bar in bars), bars
    assert "10 files cleaned, 3 rows dropped" in bars[0]
    assert f"reports to {agent.id}" in shown[0][-1]["data"]["text/plain"]
    assert shown[-1][0]["text"] == "Delivered: True\n"
    assert [end["task"] for end in agent.ends().values()] == ["Clean the sales data", "Train the model"]


def test_notebook(agent: Agent) -> None:
    done = agent.run("notebook.py")
    assert done.stderr == ""
    assert "end_turn" in done.stdout
    assert "Delivered: True" in done.stdout
    by_hand = agent.reports()[0]
    assert (by_hand["status"], by_hand["message_id"], by_hand["content"]) == (
        "in_progress",
        "msg-1",
        "Exploring the sales data",
    )
    assert agent.told() == [
        ("chat-5", "msg-2", "completed", "10 files cleaned, 3 rows dropped"),
        ("chat-5", "msg-3", "completed", None),
    ]
    assert any("Clean the sales data" in board and "In progress: 1" in board for board in agent.boards())


@pytest.mark.parametrize(("says", "month"), [("Book it in March.", "March"), ("April!", "April")])
def test_asking_worker(agent: Agent, says: str, month: str) -> None:
    block = f'<task-instruction task_id="invoices-april" action="continue">{says}</task-instruction>'
    agent.answer(block)
    done = agent.run("asking_worker.py")
    assert done.stderr == ""
    assert f"The agent says: {says}" in done.stdout
    assert agent.told() == [("chat-6", "msg-1", "completed", f"20 invoices booked, the doubtful one in {month}")]
    (asked,) = (report for report in agent.reports() if "waiting" in report)
    assert asked["content"].startswith("waits for an instruction: invoice 11")


def test_asking_worker_with_the_stand_in(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "asking_worker.py"],
        cwd=tmp_path,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "The agent says: Book it in April." in done.stdout
    assert "in 2 turn(s) of its LLM" in done.stdout


def test_lambda_handler(agent: Agent) -> None:
    done = agent.run("lambda_handler.py")
    assert done.stderr == ""
    assert done.stdout.count("Delivered before the freeze: True") == 2
    assert agent.told() == [
        ("chat-8", "msg-1", "completed", "3 thumbnails"),
        ("chat-8", "msg-2", "failed", None),
    ]


@with_packages
def test_real_agent(agent: Agent) -> None:
    assert agent.run("real_agent.py").stderr == ""
    assert agent.told() == [
        ("chat-9", "msg-1", "completed", "The report on electric bicycles is ready: 3 sources, 5 pages.")
    ]
    boards = "\n".join(agent.boards())
    assert "sources found" in boards, "an async tool's progress"
    assert "of 5 pages written" in boards, "the progress of a tool on a thread"
    assert "Write a report" not in boards + str(agent.reports()), "the prompt stays in the program"


@with_packages
def test_celery_worker(agent: Agent) -> None:
    agent.run("celery_worker.py")
    assert agent.told() == [
        ("chat-0", "msg-0", "failed", None),
        ("chat-3", "msg-3", "completed", "sales of 3 days summed up"),
        ("chat-7", "msg-7", "completed", "sales of 7 days summed up"),
    ]


_PREFORK = """
import sys
sys.path.insert(0, {examples!r})
from celery_worker import app, sum_up

app.conf.broker_transport_options = {{
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control", "polling_interval": 0.1
}}
if __name__ == "__main__":
    for days in (1, 2, 3, 0, 15):
        headers = {{"chat_id": f"chat-{{days}}", "message_id": f"msg-{{days}}"}}
        print(sum_up.apply_async((days,), headers=headers).id)
"""


@with_packages
def test_celery_worker_in_a_prefork_pool_with_a_broker(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "prefork.py").write_text(_PREFORK.format(examples=str(EXAMPLES)))
    environment = {**agent.environment, "BROKER_URL": "filesystem://", "C_FORCE_ROOT": "1"}
    sent = subprocess.run(
        [sys.executable, "prefork.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert sent.returncode == 0, sent.stderr
    command = [sys.executable, "-m", "celery", "-A", "prefork", "worker", "--concurrency", "2"]
    with background(command, cwd=tmp_path, env=environment) as worker:
        assert until(lambda: len(agent.ends()) >= 4 and any("chat-15" in board for board in agent.boards()), TIMEOUT)
        assert stop(worker) == 0  # the long one is still at work, and comes to its end
    ends = agent.ends()
    assert sorted(ends) == sorted(sent.stdout.split())
    assert {end["chat_id"]: end["status"] for end in ends.values()} == {
        "chat-0": "failed",
        "chat-1": "completed",
        "chat-2": "completed",
        "chat-3": "completed",
        "chat-15": "completed",
    }


@with_packages
def test_fastapi_jobs(agent: Agent) -> None:
    agent.run("fastapi_jobs.py")
    assert agent.told() == [
        (f"chat-{number}", None, "completed", f"{number} files converted") for number in range(1, 7)
    ]


@with_packages
def test_fastapi_jobs_of_two_gunicorn_workers_are_told_once_each(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn_conf.py", "--bind", f"fd://{fd}"]
        with background([*command, "fastapi_jobs:app"], cwd=EXAMPLES, env=agent.environment, pass_fds=[fd]) as gunicorn:
            jobs: dict[str, tuple[str, int]] = {}

            def submit(files: int) -> None:
                chat = f"chat-{len(jobs)}"
                url = f"http://127.0.0.1:{port}/jobs?files={files}&chat_id={chat}"
                with urllib.request.urlopen(url, data=b"", timeout=TIMEOUT) as answer:
                    said = json.load(answer)
                jobs[said["job_id"]] = (chat, said["worker"])

            while len(jobs) < 8 or (len({worker for _, worker in jobs.values()}) < 2 and len(jobs) < 50):
                submit(files=2)
                time.sleep(0.05 if len(jobs) < 8 else 0.3)  # one worker may be up much later than the other
            submit(files=8)  # is at work when the server is told to stop
            assert stop(gunicorn) == 0
    assert len({worker for _, worker in jobs.values()}) == 2, "both workers had jobs"
    ends = agent.ends()
    assert {task_id: end["chat_id"] for task_id, end in ends.items()} == {job: chat for job, (chat, _) in jobs.items()}
    assert {end["status"] for end in ends.values()} == {"completed"}
    assert agent.boards()[-1].count("In progress: none") == 1


# ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def background(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the block; whatever happens in it, nothing is left behind."""
    # A group of its own, since servers like these have children.
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(TIMEOUT)
