"""Work that goes on when the turn that began it is over: sub-agents and tools in the background.

An agent that has answered has not finished as long as spans show work of it under way: what began below its root, or
an agent of the same conversation, or one that links to a tool of it, that began in its time. Its task stays open until
that is done, but no longer than a task may be quiet before it counts as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from otel_letta.tracking.nodes import Node
from otel_letta.tracking.tasks import InferredTask

_Key = tuple["str | None", "str | None", str]


class Background:
    """Knows which tasks are under way in which conversation.

    Args:
        wake: has a task judged that waited for another one.
    """

    def __init__(self, wake: Callable[[InferredTask], object]) -> None:
        self._wake = wake
        self._under_way: dict[_Key, dict[InferredTask, None]] = {}
        self._waiting: dict[InferredTask, dict[InferredTask, None]] = {}
        """Tasks that wait, by the one that each waits for."""

    def note(self, task: InferredTask) -> None:
        """Take in that a task is under way, in a conversation that may have become known now."""
        key = None if task.chat is None else (task.service, task.agent_id, task.chat[2])
        if key != task.place:
            self._leave(task)
            task.place = key
            if key is not None:
                self._under_way.setdefault(key, {})[task] = None

    def forget(self, task: InferredTask) -> None:
        """Take in that a task is over."""
        self._leave(task)
        task.place = None
        for other in self._waiting.pop(task, ()):
            if not other.ended:
                self._wake(other)

    def work_of(self, task: InferredTask, below: Sequence[Node]) -> str | None:
        """Return the name of work that goes on though a task's root has ended, perhaps empty; None for none."""
        root = task.root
        if root is None or root.end is None:
            return None
        found = next((node.name for node in below if node.live and node.end is None), None)
        if found is not None:
            return found
        others = list(self._under_way.get(task.place, ())) if task.place is not None else []
        for other in (*others, *task.linked):
            if other is not task and not other.ended and root.start < other.started <= root.end and _is_open(other):
                self._waiting.setdefault(other, {})[task] = None
                return other.name
        return None

    def _leave(self, task: InferredTask) -> None:
        beside = self._under_way.get(task.place) if task.place is not None else None
        if beside is not None and task.place is not None:
            beside.pop(task, None)
            if not beside:
                del self._under_way[task.place]


def _is_open(task: InferredTask) -> bool:
    return task.root is None or task.root.end is None
