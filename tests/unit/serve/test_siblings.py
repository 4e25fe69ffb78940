"""Whichever of several processes is asked, it shows the tasks of all."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from otel_letta.serve.siblings import Siblings, file_of, merged
from otel_letta.serve.tasks import TaskList, Tasks
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import Connection, request_of
from tests.support.waiting import until
from tests.unit.serve.test_durable import program
from tests.unit.serve.test_program import _children
from tests.unit.serve.test_tasks import report


def siblings(folder: Path, number: int, troubles: list[str] | None = None) -> tuple[TaskList, Siblings]:
    tasks = TaskList("agent-1")
    made = Siblings(folder, tasks, lambda: troubles or [])
    made._own = file_of(folder, number)  # as if it were a process of its own
    return tasks, made


def names(view: Tasks) -> list[str]:
    return sorted(task.name for task in (*view.waiting, *view.working, *view.ended))


def test_each_shows_what_the_others_have_written(tmp_path: Path) -> None:
    (one_tasks, one), (other_tasks, other) = siblings(tmp_path, 1), siblings(tmp_path, 2, ["it waits"])
    one_tasks.take(report("one"))
    other_tasks.take(report("other"))
    before = one.revision
    other.publish()
    assert one.revision != before
    assert names(one.show()) == ["one", "other"]
    assert one.troubles() == ["it waits"]
    other.leave()
    assert names(one.show()) == ["one"]
    assert one.troubles() == []


def test_nothing_is_written_that_has_not_changed(tmp_path: Path) -> None:
    tasks, one = siblings(tmp_path, 1)
    tasks.take(report("one"))
    one.publish()
    written = one._own.stat().st_mtime_ns
    one.publish()
    assert one._own.stat().st_mtime_ns == written
    tasks.take(report("two"))
    one.publish()
    assert names(siblings(tmp_path, 2)[1].show()) == ["one", "two"]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    _, one = siblings(tmp_path, 1)
    for text in ("", "{}", "[1]", '{"waiting": [{"no": 1}]}'):
        file_of(tmp_path, 2).write_text(text)
        assert names(one.show()) == []


def test_a_task_that_two_know_is_shown_once_as_the_newer_report_has_it(tmp_path: Path) -> None:
    tasks, _ = siblings(tmp_path, 1)
    tasks.take(report("one"))
    (task,) = tasks.show().working
    older = task._replace(changed=1.0, line="older")
    newer = task._replace(changed=2.0, line="newer", state="completed")
    view = merged([Tasks(1, [], [older], [], 0), Tasks(1, [], [], [newer], 0)])
    assert (view.working, view.ended) == ([], [newer])


def test_the_lists_stay_bounded(tmp_path: Path) -> None:
    tasks, _ = siblings(tmp_path, 1)
    tasks.take(report("one"))
    (task,) = tasks.show().working
    many = [task._replace(id=f"{number}") for number in range(150)]
    view = merged([Tasks(1, [], many, [], 5), Tasks(1, [each._replace(id="w" + each.id) for each in many], [], [], 0)])
    assert (len(view.waiting), len(view.working), view.more) == (150, 50, 105)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_the_page_of_any_process_has_the_tasks_of_all(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with program(letta, agent, "--workers", "2", TMPDIR=str(tmp_path)) as running:
        assert until(lambda: len(_children(running.process.pid)) == 2, 60)
        wanted = set()
        # Connections are taken by either; so many never by one alone.
        connections = [Connection(running.port) for _ in range(16)]
        for number, connection in enumerate(connections, 1):
            event = {
                "timeUnixNano": "1795946400500000000",
                "eventName": "letta.task.progress",
                "traceId": f"{number:032x}",
                "spanId": f"{number:016x}",
                "attributes": [{"key": "letta.task.name", "value": {"stringValue": f"task {number}"}}],
            }
            body = request_of(event, logs=True)
            head = f"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            assert connection.send(f"{head}\r\n\r\n".encode() + body)
            assert connection.answer().status == 200
            wanted.add(f"task {number}")

        def shown() -> set[str]:
            found = httpx.get(f"http://127.0.0.1:{running.port}/tasks.json", timeout=60).json()
            return {task["name"] for task in found["working"]}

        for _ in range(8):  # whoever answers
            assert until(lambda: shown() == wanted, 60)
        first, _ = _children(running.process.pid)
        # The other one may have taken all, while this one was still starting.
        assert until(lambda: list(tmp_path.glob(f"*/tasks-{first}.json")) != [], 60)
        (written,) = tmp_path.glob(f"*/tasks-{first}.json")
        os.kill(first, signal.SIGKILL)
        assert until(lambda: not written.exists(), 60)  # what it knew is gone with it: nothing was kept
        for connection in connections:
            connection.__exit__()
        assert running.stop() == 0
