"""The tasks as a page or a terminal shows them: the last report of each. No thread, no clock, no file."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from otel_letta.delivery.board import outcome
from otel_letta.report import ProgressReport
from otel_letta.text import clean_line

WAITING, WORKING, COMPLETED, FAILED = "waiting", "working", "completed", "failed"
_MOST_OPEN = 5_000
_MOST_ENDED = 200
_OPEN_SHOWN = 200
_ENDED_SHOWN = 50
_LINE_CAP = 300
_NAME_CAP = 80
_ID_CAP = 100


class Task(NamedTuple):
    """One task, as its last report has it. Every text is one clean line; escaping it is the reader's."""

    id: str
    """Stays the same from the first report to the last; letters and digits."""
    revision: int
    """Another one after each report."""
    state: str
    """``waiting``, ``working``, ``completed`` or ``failed``."""
    name: str
    agent: str
    """The Letta agent's id."""
    chat: str
    service: str
    progress: float
    """Share that is done, 0.0 to 1.0."""
    line: str
    """The last line; of a task that ended, its result."""
    started: float | None
    """Unix seconds."""
    changed: float | None
    """When the last report was true, Unix seconds."""
    seconds: float | None
    """From the start to that."""


class Tasks(NamedTuple):
    """The tasks at one moment, each list bounded."""

    revision: int
    waiting: list[Task]
    """The one that waits longest first."""
    working: list[Task]
    """In the order in which they were first reported."""
    ended: list[Task]
    """The last one first."""
    more: int
    """Open tasks beyond those in the lists."""

    def to_dict(self) -> dict[str, Any]:
        """Return all by name, the tasks as dictionaries."""
        found: dict[str, Any] = self._asdict()
        for name in ("waiting", "working", "ended"):
            found[name] = [task._asdict() for task in found[name]]
        return found


class TaskList:
    """The last report of each task: all that are open, and those that ended last. Safe to use from several threads.

    Args:
        agent_id: the agent of reports that name none.
        most_open: beyond so many, the one without a report for longest is forgotten, and not one that waits if another
            can be.
        most_ended: so many that ended are kept.
    """

    def __init__(self, agent_id: str, *, most_open: int = _MOST_OPEN, most_ended: int = _MOST_ENDED) -> None:
        self._agent_id = agent_id
        self._most_open = most_open
        self._most_ended = most_ended
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, tuple[Task, _Place]] = OrderedDict()
        self._working: OrderedDict[str, tuple[Task, _Place]] = OrderedDict()
        self._ended: OrderedDict[str, tuple[Task, _Place]] = OrderedDict()
        self.revision = 0
        """Another one after each change."""

    def take(self, report: ProgressReport) -> None:
        """Take a report. One that is older than what is known of its task changes nothing."""
        agent = report.agent_id or self._agent_id
        number = hashlib.blake2b(f"{agent}\0{report.key}".encode("utf-8", "replace"), digest_size=8).hexdigest()
        place = _Place(report.run, report.sequence)
        with self._lock:
            held, known = self._find(number)
            if known is not None and report.sequence and place <= known[1]:
                return
            self.revision += 1
            task = _task_of(report, number, self.revision, agent)
            into = self._held_by(task.state)
            if held is not None and held is not into:
                del held[number]
            into[number] = task, place
            self._forget()

    def show(self, most_open: int = _OPEN_SHOWN, most_ended: int = _ENDED_SHOWN) -> Tasks:
        """Return the tasks now."""
        with self._lock:
            waiting = [task for task, _ in islice(self._waiting.values(), most_open)]
            working = [task for task, _ in islice(self._working.values(), most_open - len(waiting))]
            ended = [task for task, _ in islice(reversed(self._ended.values()), most_ended)]
            more = len(self._waiting) + len(self._working) - len(waiting) - len(working)
            return Tasks(self.revision, waiting, working, ended, more)

    def _find(self, number: str) -> tuple[OrderedDict[str, tuple[Task, _Place]] | None, tuple[Task, _Place] | None]:
        for held in (self._waiting, self._working, self._ended):
            known = held.get(number)
            if known is not None:
                return held, known
        return None, None

    def _held_by(self, state: str) -> OrderedDict[str, tuple[Task, _Place]]:
        return self._waiting if state == WAITING else self._working if state == WORKING else self._ended

    def _forget(self) -> None:
        if len(self._ended) > self._most_ended:
            self._ended.popitem(last=False)
        if len(self._waiting) + len(self._working) > self._most_open:
            held = self._working or self._waiting
            del held[min(held, key=lambda number: held[number][0].revision)]


class _Place(NamedTuple):
    run: int
    sequence: int


def _task_of(report: ProgressReport, number: str, revision: int, agent: str) -> Task:
    if report.status.is_terminal:
        state, line = report.status.value, outcome(report)
    else:
        state, line = WAITING if report.waiting else WORKING, report.content
    return Task(
        id=number,
        revision=revision,
        state=state,
        name=clean_line(report.name, _NAME_CAP) or clean_line(report.task_id, _NAME_CAP) or "task",
        agent=clean_line(agent, _ID_CAP),
        chat=clean_line(report.chat_id or "", _ID_CAP),
        service=clean_line(report.service or "", _ID_CAP),
        progress=min(max(report.progress, 0.0), 1.0),
        line=clean_line(line, _LINE_CAP),
        started=_seconds(report.started),
        changed=_seconds(report.timestamp),
        seconds=report.duration,
    )


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()
