"""What a progress report is: the one value that flows from spans to a Letta agent."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any

from otel_letta.task_status import TaskStatus

__all__ = ["ProgressReport", "TaskStatus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """One statement about one task at one moment.

    The first five fields are those of the original integration and keep their names everywhere: span
    attributes, JSON, command line. Two reports of one task are ordered by ``sequence``::

        ProgressReport(chat_id="chat-123", content="halfway", progress=0.5, status=TaskStatus.IN_PROGRESS).to_json()
    """

    chat_id: str | None = None
    """Conversation that asked for the task, as its user named it."""
    message_id: str | None = None
    """Message that asked for the task."""
    content: str = ""
    """One line for a reader."""
    progress: float = 0.0
    """Share that is done, 0.0 to 1.0."""
    status: TaskStatus = TaskStatus.IN_PROGRESS

    task_id: str = ""
    """Stable identifier of the task; two spans with the same one are the same task."""
    name: str = ""
    """What people call the task."""
    agent_id: str | None = None
    """Letta agent that is told; None is the configured one."""
    result: str | None = None
    """What the task produced, if its author said so."""
    error: str | None = None
    """Why the task failed: error type and one cleaned line."""
    sequence: int = 0
    """Counts up from 1 within a task and a process; 0 for a report that no task tracking made."""
    run: int = 1
    """Counts the runs of a task that ends and later starts again under the same explicit id."""
    timestamp: datetime | None = None
    """When this was true, UTC."""
    started: datetime | None = None
    """When the task started, UTC."""
    duration: float | None = None
    """Seconds from the start to ``timestamp``."""
    trace_id: str | None = None
    """32 lower-case hex digits."""
    span_id: str | None = None
    """16 lower-case hex digits; None for an agent of which no span shows where it began."""
    service: str | None = None
    """``service.name`` of the resource that produced the span."""
    host: str | None = None
    wakes: bool = True
    """False where no turn of the agent is worth it: a short task that was only inferred from spans, unless it
    failed. It stands on the board then, and goes into no message."""

    waiting: bool = False
    """The task has not ended and cannot go on without somebody; ``content`` says for whom or what it waits."""
    inferred: bool = False
    """Nobody declared the task: an agent framework's spans made it one."""

    @property
    def key(self) -> str:
        """What stays the same from a task's first report to its last, even if its id was set in between."""
        if self.trace_id and self.span_id and self.task_id != self.trace_id:
            key = f"{self.trace_id}-{self.span_id}"
            return self.task_id if self.task_id == key else key  # one text, however many places remember it
        # An agent whose root nobody had seen goes by its trace. Reports that no tracking made may share one.
        return self.trace_id if self.trace_id and self.sequence else self.task_id

    @property
    def identity(self) -> str:
        """What an end is known again by, from whichever process and in whatever order its spans came."""
        return f"{self.trace_id}-{self.span_id}" if self.task_id == self.trace_id and self.span_id else self.task_id

    def to_dict(self) -> dict[str, Any]:
        """All fields by name; the status as its word, times as ISO 8601 in UTC, unknown fields as None."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, datetime):
                value = value.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            elif isinstance(value, TaskStatus):
                value = value.value
            out[field.name] = value
        return out

    def to_json(self) -> str:
        """``to_dict()`` as one line of strict JSON; lone surrogates are escaped, so any encoding can hold it."""
        return json.dumps(self.to_dict(), allow_nan=False)


class Draft:
    """A report in the making: the same fields, which are set one by one, all of them. Then it is `sealed`.

    Called with all its fields a frozen dataclass sets each by a call, and takes ten times as long as this: it was a
    tenth of what it took to make reports of recorded traces.
    """

    __slots__ = ProgressReport.__slots__  # so that one can become the other

    chat_id: str | None
    message_id: str | None
    content: str
    progress: float
    status: TaskStatus
    task_id: str
    name: str
    agent_id: str | None
    result: str | None
    error: str | None
    sequence: int
    run: int
    timestamp: datetime | None
    started: datetime | None
    duration: float | None
    trace_id: str | None
    span_id: str | None
    service: str | None
    host: str | None
    wakes: bool
    waiting: bool
    inferred: bool

    def sealed(self) -> ProgressReport:
        """Become the report; nothing of it changes from here on."""
        self.__class__ = ProgressReport  # type: ignore[assignment]
        return self  # type: ignore[return-value]
