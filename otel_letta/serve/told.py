"""Which ends have been reported, so that a body that is taken in again after a crash reports none twice."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime

from otel_letta.recent import Recent
from otel_letta.report import ProgressReport

KIND = "end"
"""Of the spool's items that are such ends, one a line, not bodies."""
KEPT_FOR = 3_600.0
"""Seconds. A sender that got no answer sends again for minutes, not for hours."""
_MOST = 100_000
_EXACT = 0.001
"""Seconds by which two accounts of one time may differ: they were rounded."""

_Key = tuple[str, str, str]


class Told:
    """Ends of tasks that were reported, each by agent, task and trace. Safe to use from several threads.

    A report bears the time at which it was made, and what is taken in again is reported at another one. So an end is
    known again by the time that it speaks of, and what comes before an end by the start of its task.

    Args:
        on_end: called after an end was passed on, to come for it with `fresh`; None if nobody keeps them.
    """

    def __init__(self, on_end: Callable[[], None] | None = None) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._ends: Recent[int, float] = Recent(_MOST)
        """When each was reported, Unix seconds, by the keys' hashes: a fifth of the memory that the keys would take."""
        self._earlier: Recent[int, float] = Recent(_MOST)
        """Of those that a process before this one reported, and this one did not, the times that they speak of."""
        self._fresh: list[tuple[_Key, float]] = []

    def pass_on(self, report: ProgressReport, put: Callable[[ProgressReport], None]) -> None:
        """Pass a report on that says something which was not said before."""
        key, at = _key_of(report), _own_time(report)
        number = hash(key)
        with self._lock:
            known = self._ends.get(number)
            if known is not None and _seconds(report.timestamp) <= known:
                return
            if _is_said(report, at, self._earlier.get(number)):
                return
        put(report)
        if not report.status.is_terminal:
            return
        with self._lock:  # not before it was put: what is noted as reported must not be lost
            self._ends.put(number, _seconds(report.timestamp))
            self._earlier.pop(number, None)
            if self._on_end is not None:
                self._fresh.append((key, at))
        if self._on_end is not None:
            self._on_end()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[bytes]:
        """Take out the ends that were noted since the last time, to be kept; empty for none. If that fails, they are
        there the next time."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        try:
            yield "\n".join(json.dumps([*key, at]) for key, at in fresh).encode()
        except BaseException:
            with self._lock:
                self._fresh = fresh + self._fresh
            raise

    def expect(self, report: ProgressReport, default_agent: str) -> None:
        """Note an end that is on its way to its agent already, though nothing of it was kept here."""
        agent, task, trace = _key_of(report)
        at = _own_time(report)
        with self._lock:
            self._earlier.setdefault(hash((agent, task, trace)), at)
            if agent == default_agent:
                self._earlier.setdefault(hash(("", task, trace)), at)

    def restore(self, kept: bytes) -> None:
        """Note ends that were kept. ValueError for anything else."""
        for line in kept.splitlines():
            agent, task, trace, at = json.loads(line)
            with self._lock:
                self._earlier.put(hash((str(agent), str(task), str(trace))), float(at))


def _key_of(report: ProgressReport) -> _Key:
    return report.agent_id or "", report.identity, report.trace_id or ""


def _is_said(report: ProgressReport, at: float, known: float | None) -> bool:
    """Return True for what was said before a task had ended as is known from an earlier process."""
    if known is None:
        return False
    if _seconds(report.timestamp) <= known + _EXACT:
        return True
    if report.status.is_terminal:
        return abs(at - known) <= _EXACT
    return report.started is not None and _seconds(report.started) < known  # else it is another run


def _own_time(report: ProgressReport) -> float:
    """Return the time that a report speaks of, Unix seconds."""
    if report.started is None or report.duration is None:
        return _seconds(report.timestamp)
    return _seconds(report.started) + report.duration


def _seconds(at: datetime | None) -> float:
    return 0.0 if at is None else at.timestamp()
