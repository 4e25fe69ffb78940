"""What tracking keeps about tasks, and for how long it remembers what is over."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timezone
from typing import Generic, TypeVar

from otel_letta.report import TaskStatus
from otel_letta.tracking.roles import SpanKey

__all__ = ["REMEMBERED", "Recent", "Task", "automatic_id", "seconds_between", "utc"]

REMEMBERED = 10_000
"""How many ended spans and tasks are remembered, so that nothing is told twice."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """The newest entries of a mapping."""

    def __init__(self, most: int) -> None:
        self._entries: OrderedDict[_K, _V] = OrderedDict()
        self._most = most

    def __contains__(self, key: _K) -> bool:
        return key in self._entries

    def get(self, key: _K) -> _V | None:
        return self._entries.get(key)

    def put(self, key: _K, value: _V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)


class Task:
    """A task that is under way. Spans hold it; the tracker holds it by its id."""

    __slots__ = (
        "agent_id",
        "chat_id",
        "content",
        "echoes",
        "ended",
        "failed_steps",
        "key",
        "message_id",
        "name",
        "named",
        "own_content",
        "own_result",
        "owners",
        "progress",
        "quiet",
        "result",
        "run",
        "said",
        "sequence",
        "service",
        "started",
        "stated",
        "told_at",
    )

    def __init__(self, task_id: str, agent_id: str | None, key: SpanKey, started: int) -> None:
        self.agent_id = agent_id
        self.named = task_id
        self.key = key
        self.started = started
        self.name = ""
        self.chat_id: str | None = None
        self.message_id: str | None = None
        self.content: str | None = None  # what anybody said last, a step included
        self.own_content: str | None = None  # what the task's own spans said last
        self.result: str | None = None
        self.own_result = False
        self.progress = 0.0
        self.stated = False  # somebody said a number
        self.said: TaskStatus | None = None  # an explicit status
        self.owners = 0
        self.failed_steps = 0
        self.sequence = 0
        self.told_at = 0  # the latest time that a report of it bears
        self.run = 1
        self.service: str | None = None
        self.ended = False
        self.quiet = False  # nobody declared it: short successes of it are not worth waking an agent
        self.echoes = False  # somebody else tells the same, so its end is not worth that either


def automatic_id(key: SpanKey) -> str:
    """The id of a task whose author gave none."""
    return f"{key[0]:032x}-{key[1]:016x}"


def seconds_between(start: int, end: int) -> float:
    """Seconds between two times in Unix nanoseconds; 0 if the first is unknown or the later one."""
    return max(end - start, 0) / 1e9 if start else 0.0


def utc(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
