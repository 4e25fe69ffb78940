"""Counts of what becomes of the reports, and a logger that does not repeat itself."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

_COUNTS = (
    *("reports", "sent", "requests", "board_writes", "conflated", "held", "retries"),
    *("answers", "answers_dropped", "answers_failed"),
)


class Stats:
    """Thread-safe counters."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector can run a traced program's hook in the middle of a count.
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    def drop(self, reason: str, number: int = 1) -> None:
        with self._lock:
            self._dropped[reason] += number

    @property
    def lost_ends(self) -> int:
        """Ends that were dropped so far, for whatever reason."""
        with self._lock:
            return sum(number for reason, number in self._dropped.items() if reason.startswith("end "))

    def snapshot(self) -> dict[str, Any]:
        """Return plain numbers.

        Returns:
            ``reports`` (made by tracking), ``sent`` (to the agent as messages), ``requests`` (POSTs that cost
            the agent a turn), ``board_writes``, ``conflated`` (replaced by a newer report of the same
            task before they were sent), ``held`` (in_progress reports that the delivery mode does not send),
            ``retries``, ``answers`` (of agents, that callbacks were given), ``answers_dropped`` (that were not),
            ``answers_failed`` (calls that raised), and ``dropped``: reason → number.
        """
        with self._lock:
            counts = {name: self._counts[name] for name in _COUNTS}
            return {**counts, "dropped": dict(self._dropped)}


class Throttle:
    """A logger that writes one line a minute for each cause, with the number of lines that it kept back."""

    def __init__(
        self, logger: logging.Logger, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._last: dict[str, tuple[float, int]] = {}

    def log(self, level: int, cause: str, message: str, *arguments: object) -> None:
        now = self._clock()
        with self._lock:
            last, kept_back = self._last.get(cause, (-math.inf, 0))
            if now - last < self._seconds:
                self._last[cause] = (last, kept_back + 1)
                return
            if len(self._last) > 1_000:
                self._last.clear()
            self._last[cause] = (now, 0)
        if kept_back:
            message += f" ({kept_back} more like this since the last line)"
        self._logger.log(level, message, *arguments)
