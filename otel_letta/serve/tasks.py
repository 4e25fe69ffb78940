"""The tasks as people and agents are shown them: the last report of each, and its steps. No thread, clock or file."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
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
_TASK_ID_CAP = 200
"""As a report shows it."""
_MOST_IDS = 8
"""That one task may have had: it gets its own after its first report, and hardly ever another."""
_STEPS_KEPT = 50
_MOST_STEPS = 50_000
"""Of all tasks together; some 20 MB."""


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
    task_id: str
    """What its last report calls it; what an agent knows it by."""


class Step(NamedTuple):
    """What one report said that the one before did not."""

    at: float | None
    """Unix seconds."""
    state: str
    progress: float
    line: str


class Known(NamedTuple):
    """One task, as far as it is known."""

    task: Task
    report: ProgressReport
    """The last one."""
    question: int
    """Another one for each thing that the task has waited for; 0 while it does not wait."""
    place: _Place
    ids: frozenset[str]
    """All that reports have called it."""


class _Place(NamedTuple):
    run: int
    sequence: int


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
        most_steps: of all tasks together; beyond that, a task without a report for longest loses its own.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        most_open: int = _MOST_OPEN,
        most_ended: int = _MOST_ENDED,
        most_steps: int = _MOST_STEPS,
    ) -> None:
        self._agent_id = agent_id
        self._most_open = most_open
        self._most_ended = most_ended
        self._most_steps = most_steps
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Known] = OrderedDict()
        self._working: OrderedDict[str, Known] = OrderedDict()
        self._ended: OrderedDict[str, Known] = OrderedDict()
        self._steps: OrderedDict[str, deque[Step]] = OrderedDict()
        self._steps_kept = 0
        self._numbers: dict[str, dict[str, str]] = {}
        """What reports call a task, then the agent, to the task's own id."""
        self.revision = 0
        """Another one after each change."""

    def take(self, report: ProgressReport) -> None:
        """Take a report. One that is older than what is known of its task changes nothing."""
        agent = report.agent_id or self._agent_id
        number = hashlib.blake2b(f"{agent}\0{report.key}".encode("utf-8", "replace"), digest_size=8).hexdigest()
        place = _Place(report.run, report.sequence)
        with self._lock:
            held, before = self._find(number)
            if before is not None and report.sequence and place <= before.place:
                return
            self.revision += 1
            task = _task_of(report, number, self.revision, agent)
            called = id_in_reports(report.task_id)
            ids: frozenset[str] = frozenset() if before is None else before.ids
            if len(ids) < _MOST_IDS:
                ids |= {called}
            into = self._held_by(task.state)
            if held is not None and held is not into:
                del held[number]
            into[number] = Known(task, report, self._question(before, task), place, ids)
            self._note_step(number, Step(task.changed, task.state, task.progress, task.line))
            if called in ids:
                numbers = self._numbers.setdefault(called, {})
                if before is None or not self._is_open(numbers.get(task.agent)):
                    numbers[task.agent] = number  # of two with one id, the newer that is open is meant
            self._forget()

    def show(
        self,
        most_open: int = _OPEN_SHOWN,
        most_ended: int = _ENDED_SHOWN,
        agents: Collection[str] | None = None,
    ) -> Tasks:
        """Return the tasks now.

        Args:
            agents: theirs alone; None for all.
        """
        with self._lock:
            waiting = list(_tasks_in(self._waiting.values(), agents))
            working = list(_tasks_in(self._working.values(), agents))
            ended = list(islice(_tasks_in(reversed(self._ended.values()), agents), most_ended))
            opened = len(waiting) + len(working)
            del waiting[most_open:]
            del working[most_open - len(waiting) :]
            return Tasks(self.revision, waiting, working, ended, opened - len(waiting) - len(working))

    def find(self, task_id: str, agents: Collection[str] | None = None) -> Known | None:
        """Return what is known of a task.

        Args:
            task_id: what reports call it, or `Task.id`.
            agents: theirs alone; None for all.
        """
        with self._lock:
            numbers = {task_id, *self._numbers.get(id_in_reports(task_id), {}).values()}
            found = [known for number in numbers if (known := self._find(number)[1]) is not None]
            allowed = [known for known in found if agents is None or known.task.agent in agents]
            return max(allowed, key=lambda known: known.task.revision, default=None)

    def steps(self, number: str) -> list[Step]:
        """Return a task's steps, the oldest first; the first may be long after its start."""
        with self._lock:
            return list(self._steps.get(number, ()))

    def _question(self, before: Known | None, task: Task) -> int:
        if task.state != WAITING:
            return 0
        same = before is not None and before.question and before.task.line == task.line
        return before.question if before is not None and same else self.revision

    def _note_step(self, number: str, step: Step) -> None:
        steps = self._steps.setdefault(number, deque(maxlen=_STEPS_KEPT))
        self._steps.move_to_end(number)
        if steps and steps[-1][1:] == step[1:]:
            return
        self._steps_kept += len(steps) < _STEPS_KEPT
        steps.append(step)
        if self._steps_kept > self._most_steps:
            self._drop_steps(next(iter(self._steps)))

    def _drop_steps(self, number: str) -> None:
        self._steps_kept -= len(self._steps.pop(number, ()))

    def _find(self, number: str) -> tuple[OrderedDict[str, Known] | None, Known | None]:
        for held in (self._waiting, self._working, self._ended):
            known = held.get(number)
            if known is not None:
                return held, known
        return None, None

    def _is_open(self, number: str | None) -> bool:
        return number in self._waiting or number in self._working

    def _held_by(self, state: str) -> OrderedDict[str, Known]:
        return self._waiting if state == WAITING else self._working if state == WORKING else self._ended

    def _forget(self) -> None:
        if len(self._ended) > self._most_ended:
            self._drop(self._ended, next(iter(self._ended)))
        if len(self._waiting) + len(self._working) > self._most_open:
            held = self._working or self._waiting
            self._drop(held, min(held, key=lambda number: held[number].task.revision))

    def _drop(self, held: OrderedDict[str, Known], number: str) -> None:
        known = held.pop(number)
        self._drop_steps(number)
        for called in known.ids:
            numbers = self._numbers.get(called, {})
            if numbers.get(known.task.agent) == number:
                del numbers[known.task.agent]
            if not numbers:
                self._numbers.pop(called, None)


def id_in_reports(task_id: str) -> str:
    """Return a task's id as a report shows it to an agent."""
    return clean_line(task_id, _TASK_ID_CAP)


def _tasks_in(known: Iterable[Known], agents: Collection[str] | None) -> Iterator[Task]:
    return (each.task for each in known if agents is None or each.task.agent in agents)


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
        task_id=id_in_reports(report.task_id) or number,
    )


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()
