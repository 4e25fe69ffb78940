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
        within: another deadline that holds as well.
    """

    __slots__ = ("_at", "_cancelled", "_changed", "_set_at", "_within")

    def __init__(
        self, at: float = math.inf, cancelled: Callable[[], bool] | None = None, *, within: Deadline | None = None
    ) -> None:
        self._at = at
        self._set_at = time.monotonic()
        self._cancelled = cancelled
        self._within = within
        self._changed: threading.Condition = threading.Condition() if within is None else within._changed

    @classmethod
    def after(
        cls, seconds: float, cancelled: Callable[[], bool] | None = None, *, within: Deadline | None = None
    ) -> Deadline:
        """Make one that passes in so many seconds, or with the one that it is within."""
        return cls(time.monotonic() + seconds, cancelled, within=within)

    @property
    def at(self) -> float:
        """Seconds of `time.monotonic`; infinity for no limit."""
        return self._at if self._within is None else min(self._at, self._within.at)

    @property
    def cancelled(self) -> bool:
        """True if the caller has no more use for the outcome, whatever time is left."""
        if self._cancelled is not None and self._cancelled():
            return True
        return self._within is not None and self._within.cancelled

    @property
    def passed(self) -> bool:
        """True if it is time to give up: the time has come, or the caller has cancelled."""
        return time.monotonic() >= self.at or self.cancelled

    def left(self, most: float = math.inf) -> float:
        """Return the seconds left, from 0 to ``most``."""
        return min(max(self.at - time.monotonic(), 0.0), most)

    def is_near(self, seconds: float) -> bool:
        """Return True once no more than so many seconds are left for winding up.

        If it was set at short notice, seven tenths of the time that was left then are kept for that instead.
        """
        if self._within is not None and self._within.is_near(seconds):
            return True
        return time.monotonic() >= self._at - min(seconds, 0.7 * max(self._at - self._set_at, 0.0))

    def bring_forward(self, at: float) -> None:
        """Make it pass earlier, also for those who wait on it now. A later time changes nothing."""
        with self._changed:
            if at < self._at:
                self._at, self._set_at = at, time.monotonic()
            self._changed.notify_all()

    def wake(self) -> None:
        """End the `wait` of all who wait, for instance because they were cancelled."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Sleep so many seconds at most, until it passes, is brought forward or woken. Return whether to give up."""
        with self._changed:
            pause = self.left(seconds)
            if pause > 0 and not self.cancelled:
                self._changed.wait(min(pause, threading.TIMEOUT_MAX))
        return self.passed

    def renew(self) -> None:
        """Make it one without a limit again: in a forked child, which is not what it was set for."""
        self._changed = threading.Condition()  # a thread that does not exist here may have held it
        self._at = math.inf


def bounded(seconds: float, until: Deadline | None) -> float:
    """Return so many seconds, or those that are left. Never 0, which some libraries take for no limit."""
    return seconds if until is None else max(until.left(seconds), 0.01)
