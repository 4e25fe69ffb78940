"""What is known of an OpenHands conversation, and of the run that is under way in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timezone
from enum import Enum

from otel_letta.integrations.openhands.events import Origin
from otel_letta.tracking.tasks import Task

SERVICE = "openhands"
_MOST_CALLS = 100


class Wait(Enum):
    """What a run cannot go on without."""

    NOTHING = ""
    CONFIRMATION = "confirmation"
    ANSWER = "answer"


class Run(Task):
    """A run that is under way."""

    answer: str | None = None
    """The result, if it ends now."""
    answer_is_message = False
    """The agent gave it as a message, not by the finish tool."""
    halted = False
    """Paused, or waiting for a person."""
    waits_for = Wait.NOTHING
    waits_since = 0
    """Unix nanoseconds."""
    suspicion: tuple[int, str] | None = None
    """When it looked failed, and why; events that are still on their way may explain or refute that."""
    to_read: tuple[int, Callable[[], str]] | None = None
    """When to read the execution status, and how."""

    def __init__(self, task_id: str, started: int) -> None:
        super().__init__(task_id, None, None, started)
        self.service = SERVICE
        self.calls: OrderedDict[str, str] = OrderedDict()
        """The tool calls that have no result yet, and the line that sums each up."""

    def began(self, call: str, line: str) -> None:
        """Keep a tool call as open; only the latest, since not every way knows of results."""
        if call:
            self.calls[call] = line
            if len(self.calls) > _MOST_CALLS:
                self.calls.popitem(last=False)

    def pending(self) -> str:
        """Sum up what has begun and has no result."""
        lines = [line for line in self.calls.values() if line]
        if not lines:
            return self.content or "the next step"
        return lines[0] if len(lines) == 1 else f"{lines[0]}, and {len(lines) - 1} more"


class Conversation:
    """A conversation and the run that is under way in it."""

    def __init__(self, conversation_id: str) -> None:
        self.id = conversation_id
        self.origin = Origin()
        self.last_origin: Origin | None = None
        """The one that came with the last event; origins are merged only when it changes."""
        self.runs: int | None = None
        """Number of runs so far; None if the beginning was not seen."""
        self.end_is_given = False
        """A status or `reporting` ends runs: neither the finish tool nor a message does."""
        self.run: Run | None = None
        self.explained = True
        """False after a failure was reported without its reason, which may still come."""
        self.failed_at: int | None = None
        """When its last run failed, Unix nanoseconds, if nothing has begun since."""

    def next_id(self, at: int) -> str:
        """Make the id of the run that begins at a time, Unix nanoseconds."""
        if self.runs is None:
            # Earlier runs may have been reported, by another process too: numbers from 1 on could be theirs.
            began = datetime.fromtimestamp(at / 1e9, timezone.utc)
            return f"{self.id}/{began:%Y%m%dT%H%M%S.%f}"[:-3] + "Z"
        self.runs += 1
        return f"{self.id}/{self.runs}"
