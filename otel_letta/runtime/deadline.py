"""One value for "until when, unless cancelled"."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Deadline:
    """A time on `time.monotonic` until which something may take, which may still be brought forward, or cancelled.

    Handed down from whoever waits to whatever may block. Safe to use from several threads.

    Args:
        at: seconds of `time.monotonic`; infinity for no limit.
        cancelled: True once the caller has no more use for the outcome.
    """

    __slots__ = ("_at", "_cancelled", "_changed")

    def __init__(self, at: float = math.inf, cancelled: Callable[[], bool] | None = None) -> None:
        self._at = at
        self._cancelled = cancelled
        self._changed = threading.Condition()

    @classmethod
    def after(cls, seconds: float, cancelled: Callable[[], bool] | None = None) -> Deadline:
        """Make one that passes in so many seconds."""
        return cls(time.monotonic() + seconds, cancelled)

    @property
    def at(self) -> float:
        """Seconds of `time.monotonic`."""
        return self._at

    @property
    def cancelled(self) -> bool:
        """True if the caller has no more use for the outcome, whatever time is left."""
        return self._cancelled is not None and self._cancelled()

    @property
    def passed(self) -> bool:
        """True if it is time to give up: the time has come, or the caller has cancelled."""
        return time.monotonic() >= self._at or self.cancelled

    def left(self, most: float = math.inf) -> float:
        """Return the seconds left, from 0 to ``most``."""
        return min(max(self._at - time.monotonic(), 0.0), most)

    def bring_forward(self, at: float) -> None:
        """Make it pass earlier, also for who waits on it now. A later time changes nothing."""
        with self._changed:
            self._at = min(self._at, at)
            self._changed.notify_all()

    def wake(self) -> None:
        """End the `wait` of all who wait, for instance because they were cancelled."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Sleep so many seconds at most, and no longer than until the deadline. Return whether to give up."""
        with self._changed:
            if not self.passed and seconds > 0:
                until = time.monotonic() + seconds
                while (pause := min(until, self._at) - time.monotonic()) > 0 and not self.cancelled:
                    self._changed.wait(min(pause, threading.TIMEOUT_MAX))
        return self.passed
