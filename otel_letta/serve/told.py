"""Which ends have been reported, so that a body that is taken in again after a crash reports none twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime

from otel_letta.report import ProgressReport
from otel_letta.tracking.recent import Recent

KIND = "end"
"""Of the spool's items that are such ends, one a line, not bodies."""
KEPT_FOR = 3_600.0
"""Seconds. A sender that got no answer sends again for minutes, not for hours."""
_MOST = 100_000

_Key = tuple[str, str, str]


class Told:
    """Ends of tasks that were reported, each by agent, task and trace. Safe to use from several threads.

    Args:
        on_end: called after an end was passed on, to come for it with `take_fresh`; None if nobody keeps them.
    """

    def __init__(self, on_end: Callable[[], None] | None = None) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._ends: Recent[int, float] = Recent(_MOST)
        """The tasks' own times, Unix seconds, by the keys' hashes: a fifth of the memory that the keys would take."""
        self._fresh: list[tuple[_Key, float]] = []

    def pass_on(self, report: ProgressReport, put: Callable[[ProgressReport], None]) -> None:
        """Pass a report on that says something which was not said before."""
        key, at = _key_of(report), _seconds(report.timestamp)
        with self._lock:
            known = self._ends.get(hash(key))
            if known is not None and at <= known:
                return
        put(report)
        if not report.status.is_terminal:
            return
        with self._lock:  # not before it was put: what is noted as reported must not be lost
            self._ends.put(hash(key), at)
            if self._on_end is not None:
                self._fresh.append((key, at))
        if self._on_end is not None:
            self._on_end()

    def take_fresh(self) -> bytes:
        """Take out the ends that were noted since the last time, to be kept; empty for none."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return "\n".join(json.dumps([*key, at]) for key, at in fresh).encode()

    def expect(self, report: ProgressReport, default_agent: str) -> None:
        """Note an end that is on its way to its agent already, though nothing of it was kept here."""
        agent, task, trace = _key_of(report)
        at = _seconds(report.timestamp)
        with self._lock:
            self._ends.setdefault(hash((agent, task, trace)), at)
            if agent == default_agent:
                self._ends.setdefault(hash(("", task, trace)), at)

    def restore(self, kept: bytes) -> None:
        """Note ends that were kept. ValueError for anything else."""
        for line in kept.splitlines():
            agent, task, trace, at = json.loads(line)
            with self._lock:
                self._ends.put(hash((str(agent), str(task), str(trace))), float(at))


def _key_of(report: ProgressReport) -> _Key:
    return report.agent_id or "", report.task_id, report.trace_id or ""


def _seconds(at: datetime | None) -> float:
    return 0.0 if at is None else at.timestamp()
