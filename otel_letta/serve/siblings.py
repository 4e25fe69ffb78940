"""The tasks of all processes that receive behind one address, whichever of them is asked.

Each writes what it would show into a folder of theirs when that has changed, and reads what the others wrote. A task
that two of them know is shown as the newer report has it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from otel_letta.serve.tasks import Task, TaskList, Tasks

_logger = logging.getLogger(__name__)

EVERY = 0.5
"""Seconds between two looks at whether something is to be written."""
_MOST_OPEN = 200
_MOST_ENDED = 50
_LISTS = ("waiting", "working", "ended")


class _Read(NamedTuple):
    stamp: tuple[int, int]
    tasks: Tasks
    troubles: tuple[str, ...]


class Siblings:
    """This process's tasks, and those of the others. For one thread at a time.

    Args:
        folder: theirs; nobody else may write there.
        tasks: this process's own.
        troubles: returns what is wrong with its deliveries, for people.
    """

    def __init__(self, folder: Path, tasks: TaskList, troubles: Callable[[], Iterable[str]]) -> None:
        self._folder = folder
        self._tasks = tasks
        self._troubles = troubles
        self._own = file_of(folder, os.getpid())
        self._written: object = None
        self._read: dict[Path, _Read] = {}

    @property
    def revision(self) -> object:
        """Another one after each change, wherever it was."""
        self._look()
        return self._tasks.revision, tuple(sorted((path.name, read.stamp) for path, read in self._read.items()))

    def show(self) -> Tasks:
        """Return the tasks of all now."""
        self._look()
        return merged([self._tasks.show(), *(read.tasks for read in self._read.values())])

    def troubles(self) -> list[str]:
        """Return what is wrong with the deliveries of any."""
        self._look()
        return list(
            dict.fromkeys([*self._troubles(), *(each for read in self._read.values() for each in read.troubles)])
        )

    def publish(self) -> None:
        """Write what the others are to show, if it has changed."""
        troubles = list(self._troubles())
        state = self._tasks.revision, troubles
        if state == self._written:
            return
        draft = self._own.with_suffix(".new")
        try:
            draft.write_text(json.dumps({**self._tasks.show().to_dict(), "troubles": troubles}), "utf-8")
            draft.replace(self._own)
        except OSError as error:
            _logger.debug("the tasks cannot be written for the others: %s", error)
            return
        self._written = state

    def leave(self) -> None:
        """Show nothing to the others any more."""
        with contextlib.suppress(OSError):
            self._own.unlink()

    def _look(self) -> None:
        found = {path for path in self._folder.glob("tasks-*.json") if path != self._own}
        for gone in self._read.keys() - found:
            del self._read[gone]
        for path in found:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # it is gone just now
                about = path.stat()
                stamp = about.st_mtime_ns, about.st_ino
                if path not in self._read or self._read[path].stamp != stamp:
                    self._read[path] = _Read(stamp, *_parsed(json.loads(path.read_text("utf-8"))))


def file_of(folder: Path, process: int) -> Path:
    """Return the file in which a process, by its id, writes its tasks."""
    return folder / f"tasks-{process}.json"


def _parsed(document: dict[str, Any]) -> tuple[Tasks, tuple[str, ...]]:
    return tasks_in(document), tuple(document["troubles"])


def tasks_in(document: dict[str, Any]) -> Tasks:
    """Return what `Tasks.to_dict` has written."""
    waiting, working, ended = ([Task(**each) for each in document[name]] for name in _LISTS)
    return Tasks(document["revision"], waiting, working, ended, document["more"])


def merged(views: Sequence[Tasks]) -> Tasks:
    """Return several processes' tasks as one's."""
    newest: dict[str, tuple[str, Task]] = {}
    for view in views:
        for name in _LISTS:
            for task in getattr(view, name):
                known = newest.get(task.id)
                if known is None or _age(task, name) > _age(known[1], known[0]):
                    newest[task.id] = name, task
    waiting, working, ended = ([task for name, task in newest.values() if name == wanted] for wanted in _LISTS)
    waiting.sort(key=lambda task: task.changed or 0.0)
    working.sort(key=lambda task: task.started or 0.0)
    ended.sort(key=lambda task: task.changed or 0.0, reverse=True)
    shown = working[: max(_MOST_OPEN - len(waiting), 0)]
    more = sum(view.more for view in views) + max(len(waiting) - _MOST_OPEN, 0) + len(working) - len(shown)
    revision = sum(view.revision for view in views)
    return Tasks(revision, waiting[:_MOST_OPEN], shown, ended[:_MOST_ENDED], more)


def _age(task: Task, where: str) -> tuple[float, bool]:
    return task.changed or 0.0, where == "ended"
