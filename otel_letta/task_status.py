"""The status of a task, apart from the report that carries it: spans are read by it, long before there is a report."""

from __future__ import annotations

from enum import Enum

__all__ = ["TaskStatus"]


class TaskStatus(str, Enum):
    """The three statuses of the original OpenHands–Letta integration.

    A cancelled, lost or stopped task is ``failed``; its report's content says which of them it was.
    """

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value

    @property
    def is_terminal(self) -> bool:
        """True when nothing more is expected of the task."""
        return self is not TaskStatus.IN_PROGRESS
