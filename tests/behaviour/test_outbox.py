"""What a user of an outbox sees: nothing is lost with a process, and the command shows and delivers what waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.program import until

ROOT = Path(__file__).parents[2]

PROLOGUE = """
import os, sys, time
from opentelemetry.sdk.trace import TracerProvider
from otel_letta import LettaSpanProcessor
provider = TracerProvider()
processor = LettaSpanProcessor()
provider.add_span_processor(processor)
tracer = provider.get_tracer("program")
outbox = processor._pipeline.desk.outbox

def saved():
    while not processor._pipeline._work_off(5.0) or outbox.place is None:
        time.sleep(0.01)
    outbox.save()

def task(task_id, **attributes):
    return tracer.start_as_current_span(task_id, attributes={"letta.task.id": task_id, "letta.task.progress": 0.5,
        **{"letta.task." + name: value for name, value in attributes.items()}})
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(letta: InMemoryLetta, agent: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_AGENT_ID": agent,
        "OTEL_LETTA_OUTBOX": str(tmp_path / "outbox.db"),
        "OTEL_LETTA_SHUTDOWN_TIMEOUT": "60",
        "OTEL_LETTA_DELIVERY": "messages",
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    def run_program(code: str, **others: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROLOGUE + code],
            env={**environment, **others},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run_program


@pytest.fixture
def command(environment: dict[str, str], tmp_path: Path) -> Run:
    def run_command(*arguments: str, **others: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "otel_letta", "outbox", *arguments],
            env={**environment, **others},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run_command


def ends(letta: InMemoryLetta, agent: str) -> list[tuple[str, str, str | None]]:
    return [
        (report["task_id"], report["status"], report.get("error"))
        for report in letta.reports(agent)
        if report["status"] != "in_progress"
    ]


@pytest.mark.parametrize(
    "death",
    [
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15)",
        "os.kill(os.getpid(), 1)",
        "os._exit(3)",
        "os.execv('/bin/true', ['true'])",
    ],
)
def test_the_next_process_delivers_ends_and_says_which_tasks_died(
    letta: InMemoryLetta, agent: str, run: Run, death: str
) -> None:
    letta.stop_listening()
    run(
        f"with task('done'): pass\nrunning = task('running', content='half way')\nrunning.__enter__()\nsaved()\n{death}"
    )
    letta.resume_listening()
    done = run("assert provider.force_flush(60_000)\nprovider.shutdown()")
    assert done.returncode == 0, done.stderr
    assert ends(letta, agent) == [
        ("done", "completed", None),
        ("running", "failed", "lost: its process ended"),
    ]
    assert "half way" in letta.reports(agent)[-1]["content"]


def test_the_process_that_delivers_gets_the_answer(letta: InMemoryLetta, agent: str, run: Run) -> None:
    letta.answer_next("well done", times=None)
    letta.stop_listening()
    run("with task('done'): pass\nsaved()\nos._exit(3)")
    letta.resume_listening()
    done = run(
        "processor.answer_to(lambda report, answer: print(report.task_id, report.status, answer.text))\n"
        "assert provider.force_flush(60_000)\nprovider.shutdown()"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["done completed well done"]


def test_a_task_that_waits_goes_on_in_the_next_process_as_the_same_task(
    letta: InMemoryLetta, agent: str, run: Run
) -> None:
    first = run("with task('refund', waiting=True, content='needs an approval'): pass\nprovider.shutdown()")
    assert first.returncode == 0, first.stderr
    second = run("with task('other'): pass\nprovider.shutdown()")
    assert second.returncode == 0, second.stderr
    assert [report for report in ends(letta, agent) if report[0] == "refund"] == []
    third = run("with task('refund', status='completed'): pass\nprovider.shutdown()")
    assert third.returncode == 0, third.stderr
    reports = [report for report in letta.reports(agent) if report["task_id"] == "refund"]
    assert [report["status"] for report in reports if report["status"] != "in_progress"] == ["completed"]
    # The same task: known by the span that it began with, and since then.
    assert len({report["trace_id"] for report in reports}) == 1
    assert len({report["started"] for report in reports}) == 1


def test_the_command_lists_delivers_and_drops_what_waits(
    letta: InMemoryLetta, agent: str, run: Run, command: Run
) -> None:
    letta.stop_listening()
    left = run("for n in range(3):\n    with task(f't{n}'): pass\nsaved()\nos._exit(0)")
    assert left.returncode == 0, left.stderr
    listed = json.loads(command("list", "--json").stdout)
    assert [(end["task_id"], end["process_alive"]) for end in listed["ends"]] == [(f"t{n}", False) for n in range(3)]
    assert "t1" in command().stdout
    assert command("retry", "--timeout", "1").returncode == 1
    dropped = command("drop", str(json.loads(command("list", "--json").stdout)["ends"][1]["id"]))
    assert "1 end dropped" in dropped.stdout
    exported = [json.loads(line) for line in command("export").stdout.splitlines()]
    assert [line["report"]["task_id"] for line in exported] == ["t0", "t2"]
    letta.resume_listening()
    retried = command("retry", "--json")
    assert retried.returncode == 0, retried.stderr
    assert json.loads(retried.stdout)["sent"] == 2
    assert [task for task, _, _ in ends(letta, agent)] == ["t0", "t2"]
    assert json.loads(command("list", "--json").stdout)["ends"] == []


def test_the_command_leaves_what_a_living_process_delivers(letta: InMemoryLetta, run: Run, environment: Any) -> None:
    letta.stop_listening()
    code = (
        "with task('mine'): pass\nsaved()\nimport subprocess\n"
        "def outbox(*words): return subprocess.run([sys.executable, '-m', 'otel_letta', 'outbox', *words],"
        " capture_output=True, text=True).stdout\n"
        "print(outbox('list'), outbox('drop', '--all'), flush=True)\nos._exit(0)"
    )
    said = run(code).stdout
    assert "its process delivers it" in said
    assert "0 ends dropped" in said


def test_the_command_says_that_there_is_no_outbox(command: Run) -> None:
    said = command(OTEL_LETTA_OUTBOX="")
    assert (said.returncode, said.stderr) == (1, "There is no outbox: OTEL_LETTA_OUTBOX is not set\n")


def test_a_tool_that_the_agent_itself_runs_leaves_its_end_to_a_process_that_goes_on(
    letta: InMemoryLetta, agent: str, run: Run
) -> None:
    # The agent's turn lasts until the tool has exited: it can only be delivered after that.
    with letta.hold(agent) as release:
        import threading

        import httpx

        turn = threading.Thread(
            target=lambda: httpx.post(
                f"{letta.base_url}/v1/agents/{agent}/messages",
                json={"messages": [{"role": "user", "content": "run the tool"}]},
                timeout=300,
            )
        )
        turn.start()
        until(lambda: letta.in_flight(agent) == 1, "the agent is in its turn")
        tool = run("with task('tool'): pass\nprovider.shutdown()", OTEL_LETTA_OUTBOX_EXIT="detach")
        assert tool.returncode == 0, tool.stderr
        assert ends(letta, agent) == []
        release()
        turn.join()
    assert letta.wait_for(lambda: bool(ends(letta, agent)), 120.0)
    assert [(task, status) for task, status, _ in ends(letta, agent)] == [("tool", "completed")]


def test_a_forked_child_has_an_outbox_of_its_own(letta: InMemoryLetta, agent: str, run: Run) -> None:
    letta.stop_listening()
    code = (
        "with task('parent'): pass\nsaved()\n"
        "if os.fork() == 0:\n    outbox = processor._pipeline.desk.outbox\n    with task('child'): pass\n"
        "    saved()\n    os._exit(0)\n"
        "os.wait()\nos._exit(0)"
    )
    left = run(code)
    assert left.returncode == 0, left.stderr
    letta.resume_listening()
    assert run("assert provider.force_flush(60_000)").returncode == 0
    assert sorted(task for task, _, _ in ends(letta, agent)) == ["child", "parent"]


def test_without_an_outbox_nothing_is_written_anywhere(letta: InMemoryLetta, run: Run, tmp_path: Path) -> None:
    code = "assert 'sqlite3' not in sys.modules\nwith tracer.start_as_current_span('x'): pass\nprovider.shutdown()\n"
    done = run(code.replace("outbox", "_"), OTEL_LETTA_OUTBOX="")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
