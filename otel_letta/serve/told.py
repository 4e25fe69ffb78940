"""Which ends have been reported, so that a body that is taken in again after a crash reports none twice."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from otel_letta.report import ProgressReport

KIND = "end"
"""Of the spool's items that are such ends, not bodies."""
KEPT_FOR = 3_600.0
"""Seconds. A sender that got no answer sends again for minutes, not for hours."""
_MOST = 100_000

_Key = tuple[str, str, str]


class _End(NamedTuple):
    at: float
    """The task's own time, Unix seconds."""
    noted: float


class Told:
    """Ends of tasks that were reported, each by agent, task and trace. Safe to use from several threads.

    Args:
        on_end: called after an end was passed on, to come for it with `take_fresh`; None if nobody keeps them.
    """

    def __init__(self, on_end: Callable[[], None] | None = None) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._ends: OrderedDict[_Key, _End] = OrderedDict()
        self._fresh: list[_Key] = []

    def pass_on(self, report: ProgressReport, put: Callable[[ProgressReport], None]) -> None:
        """Pass a report on that says something which was not said before."""
        key, at = _key_of(report), _seconds(report.timestamp)
        with self._lock:
            known = self._ends.get(key)
            if known is not None and at <= known.at:
                return
        put(report)
        if not report.status.is_terminal:
            return
        with self._lock:  # not before it was put: what is noted as reported must not be lost
            self._ends[key] = _End(at, time.time())
            if len(self._ends) > _MOST:
                self._ends.popitem(last=False)
            if self._on_end is not None:
                self._fresh.append(key)
        if self._on_end is not None:
            self._on_end()

    def take_fresh(self) -> list[bytes]:
        """Take out the ends that were noted since the last time, to be kept."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
            return [json.dumps([*key, self._ends[key].at]).encode() for key in fresh if key in self._ends]

    def expect(self, report: ProgressReport, default_agent: str) -> None:
        """Note an end that is on its way to its agent already, though nothing of it was kept here."""
        agent, task, trace = _key_of(report)
        end = _End(_seconds(report.timestamp), time.time())
        with self._lock:
            self._ends.setdefault((agent, task, trace), end)
            if agent == default_agent:
                self._ends.setdefault(("", task, trace), end)

    def restore(self, kept: bytes, noted: float) -> None:
        """Note an end that was kept. ValueError for anything else."""
        agent, task, trace, at = json.loads(kept)
        with self._lock:
            self._ends[str(agent), str(task), str(trace)] = _End(float(at), noted)


def _key_of(report: ProgressReport) -> _Key:
    return report.agent_id or "", report.task_id, report.trace_id or ""


def _seconds(at: datetime | None) -> float:
    return 0.0 if at is None else at.timestamp()
