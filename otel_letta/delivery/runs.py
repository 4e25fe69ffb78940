"""What is remembered of turns: runs that nobody waits for, since Letta leaves some behind, and who else sends."""

from __future__ import annotations

import time
from collections.abc import Iterable

from otel_letta.errors import LettaError
from otel_letta.letta.transport import Lane, Run

_TURN_AT_MOST = 900.0
"""Seconds. An older active run is taken for one that Letta left behind: it marks non-streaming conversation messages
``created`` and never updates them (measured)."""


class RecentRuns:
    """The newest thousand ids of runs that outlasted somebody's patience: nobody waits for them again."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._ids

    def update(self, run_ids: Iterable[str]) -> None:
        self._ids.update(dict.fromkeys(run_ids))
        for stale in list(self._ids)[:-1_000]:
            self._ids.pop(stale, None)


class Outages:
    """The times when servers went away. A turn dies with its server, but its run stays ``created`` for ever
    (measured)."""

    _CLOCKS = 1.0
    """Seconds by which a run may seem younger than it is: the server's ``Date`` has no fractions."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._going_on: set[str] = set()

    def note(self, server: str, error: LettaError | None) -> None:
        """Note that the server answered (None), or that a short request to it failed."""
        if error is None:
            self._going_on.discard(server)
        elif server not in self._going_on and _shows_that_nobody_listens(error):
            self._going_on.add(server)
            self._began[server] = time.monotonic()

    def ended(self, server: str, run: Run) -> bool:
        """Return True if the run is from before the server's last outage."""
        began = self._began.get(server)
        return began is not None and run.age is not None and time.monotonic() - run.age <= began + self._CLOCKS


def _shows_that_nobody_listens(error: LettaError) -> bool:
    """Return False for a name that is not found, or a network that is down: behind those the server may go on."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None or error.status == 502  # a proxy's answer for the same


class Contention:
    """The lanes that somebody else was seen to send to: another host, a person, a program that does not check."""

    _LASTS = 120.0
    """Seconds for which that is remembered."""

    def __init__(self) -> None:
        self._seen: dict[Lane, float] = {}

    def note(self, lane: Lane) -> None:
        """Note that a turn was seen that is not ours."""
        self._seen.pop(lane, None)
        self._seen[lane] = time.monotonic()
        for stale in list(self._seen)[:-1_000]:
            self._seen.pop(stale, None)

    def is_likely(self, lane: Lane) -> bool:
        """Return True if somebody else sent to the lane a moment ago, and may do so again."""
        seen = self._seen.get(lane)
        return seen is not None and time.monotonic() - seen < self._LASTS


waited_out = RecentRuns()
outages = Outages()
contention = Contention()


def is_worth_waiting_for(lane: Lane, run: Run) -> bool:
    """Return False for a run that is too old, from before an outage, or waited for in vain already."""
    if run.id in waited_out or outages.ended(lane.server, run):
        return False
    return run.age is None or run.age < _TURN_AT_MOST
