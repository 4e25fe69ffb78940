"""The tasks that a page or a terminal shows: which, in what order, and how many."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.serve.tasks import Task, TaskList

BEGAN = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)


def report(task: str, sequence: int = 1, **more: Any) -> ProgressReport:
    at = BEGAN + timedelta(seconds=sequence)
    return ProgressReport(**{"task_id": task, "name": task, "sequence": sequence, "timestamp": at, **more})


def ended(task: str, sequence: int = 9, status: TaskStatus = TaskStatus.COMPLETED, **more: Any) -> ProgressReport:
    return report(task, sequence, status=status, **more)


def names(tasks: list[Task]) -> list[str]:
    return [task.name for task in tasks]


def test_the_last_report_of_each_task_is_shown() -> None:
    tasks = TaskList("agent-1")
    tasks.take(report("a", 1, content="begins", started=BEGAN, chat_id="c", service="s"))
    tasks.take(report("a", 2, content="goes on", progress=0.5, started=BEGAN, chat_id="c", service="s", duration=2.0))
    (task,) = tasks.show().working
    assert task._replace(id="") == Task(
        "", 2, "working", "a", "agent-1", "c", "s", 0.5, "goes on", BEGAN.timestamp(), BEGAN.timestamp() + 2, 2.0, "a"
    )


def test_a_task_goes_from_working_to_waiting_to_its_end_and_keeps_its_id() -> None:
    tasks = TaskList("agent-1")
    ids = set()
    for step, each in enumerate(
        [report("a", 1), report("a", 2, waiting=True, content="for you"), report("a", 3), ended("a", 4, result="42")]
    ):
        tasks.take(each)
        shown = tasks.show()
        lists = [shown.waiting, shown.working, shown.ended]
        assert [len(each) for each in lists] == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]][step]
        ids |= {task.id for tasks_of in lists for task in tasks_of}
    assert len(ids) == 1
    assert tasks.show().ended[0].line == "42"


def test_an_end_shows_what_came_of_it() -> None:
    tasks = TaskList("agent-1")
    tasks.take(ended("a", result="42 rows", content="Import completed"))
    tasks.take(ended("b", content="b completed"))
    tasks.take(ended("c", status=TaskStatus.FAILED, error="ValueError: no", content="c failed"))
    tasks.take(ended("d", status=TaskStatus.FAILED, error="ValueError: no", content="d failed: ValueError: no"))
    lines = {task.name: (task.state, task.line) for task in tasks.show().ended}
    assert lines == {
        "a": ("completed", "42 rows"),
        "b": ("completed", "b completed"),
        "c": ("failed", "ValueError: no. c failed"),
        "d": ("failed", "d failed: ValueError: no"),
    }


def test_open_tasks_stand_in_the_order_of_their_starts_and_ended_ones_the_last_first() -> None:
    tasks = TaskList("agent-1")
    for task in "abc":
        tasks.take(report(task))
    tasks.take(report("a", 2, progress=0.5))
    assert names(tasks.show().working) == ["a", "b", "c"]
    for task in "cab":
        tasks.take(ended(task))
    assert names(tasks.show().ended) == ["b", "a", "c"]


def test_a_late_report_changes_nothing_and_a_new_run_does() -> None:
    tasks = TaskList("agent-1")
    tasks.take(ended("a", 5))
    before = tasks.show()
    tasks.take(report("a", 4))
    tasks.take(ended("a", 5))
    assert tasks.show() == before
    tasks.take(report("a", 1, run=2))
    assert (names(tasks.show().working), names(tasks.show().ended)) == (["a"], [])


def test_reports_that_no_tracking_made_have_no_order_but_that_in_which_they_come() -> None:
    tasks = TaskList("agent-1")
    tasks.take(report("a", 0, content="one"))
    tasks.take(report("a", 0, content="two"))
    assert tasks.show().working[0].line == "two"


def test_one_task_of_two_agents_is_two() -> None:
    tasks = TaskList("agent-1")
    tasks.take(report("a"))
    tasks.take(report("a", agent_id="agent-2"))
    assert [task.agent for task in tasks.show().working] == ["agent-1", "agent-2"]


def test_what_is_kept_is_bounded_and_what_waits_goes_last() -> None:
    tasks = TaskList("agent-1", most_open=3, most_ended=2)
    tasks.take(report("waits", waiting=True))
    for number in range(10):
        tasks.take(report(f"w{number}"))
        tasks.take(report("w0", number + 2))  # it says something all the time
    assert names(tasks.show().waiting) == ["waits"]
    assert names(tasks.show().working) == ["w0", "w9"]
    for number in range(5):
        tasks.take(ended(f"e{number}"))
    assert names(tasks.show().ended) == ["e4", "e3"]
    for number in range(5):
        tasks.take(report(f"p{number}", waiting=True))
    assert len(tasks.show().waiting) + len(tasks.show().working) == 3


def test_what_is_shown_is_bounded_and_the_rest_is_counted() -> None:
    tasks = TaskList("agent-1")
    for number in range(5):
        tasks.take(report(f"p{number}", waiting=True))
        tasks.take(report(f"w{number}"))
        tasks.take(ended(f"e{number}"))
    shown = tasks.show(most_open=6, most_ended=2)
    assert (len(shown.waiting), len(shown.working), len(shown.ended), shown.more) == (5, 1, 2, 4)


def test_every_text_is_one_clean_line() -> None:
    hostile = "one\ntwo\x1b[31m\u202e\u200b" + "x" * 1_000
    tasks = TaskList(hostile)
    tasks.take(report(hostile, name=hostile, content=hostile, chat_id=hostile, service=hostile))
    tasks.take(ended("e", name="", result=hostile))
    shown = tasks.show()
    for task in (*shown.working, *shown.ended):
        for text in (task.name, task.agent, task.chat, task.service, task.line):
            assert len(text) <= 300
            assert not set("\n\x1b\u202e\u200b") & set(text)
    assert shown.ended[0].name == "e"


def test_it_can_be_sent_as_json() -> None:
    tasks = TaskList("agent-1")
    tasks.take(report("a\ud800", progress=1.5))
    found = json.loads(json.dumps(tasks.show().to_dict(), allow_nan=False))
    assert found["working"][0]["progress"] == 1.0
    assert (found["revision"], found["more"]) == (1, 0)
