"""What processes that are gone have left in an outbox, and who of those alive goes on with it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from otel_letta.delivery.journal import Accept
from otel_letta.delivery.keeping import Keeping
from otel_letta.delivery.records import addressed, lose, read_lane, read_report
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew
from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport
from otel_letta.store.model import Standing, Store

_logger = logging.getLogger(__name__)


class Estate:
    """Takes over, for one outbox: ends to deliver, tasks that are lost, and tasks that wait. Arguments as `Outbox`."""

    def __init__(
        self,
        crew: Crew,
        stats: Stats,
        keeping: Keeping,
        *,
        lane_of: Callable[[ProgressReport | None], Lane],
        put_back: Accept,
        max_age: float,
    ) -> None:
        self._lock = crew.lock
        self._stats = stats
        self._keeping = keeping
        self._lane_of = lane_of
        self._put_back = put_back
        self._max_age = max_age
        self.owed: set[str] = set()
        """Keys of this process's tasks that wait, and whose notice is not delivered yet."""
        self.restored: set[str] = set()
        """Keys of tasks that wait and are nobody's: every process of the outbox knows them, one goes on."""
        self.on_restored: Callable[[], None] = lambda: None
        """Called when `take_restored` has something."""
        self._waiting: deque[ProgressReport] = deque()

    def take_restored(self) -> list[ProgressReport]:
        """Take out the last reports of tasks that wait, from processes that are gone."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def take_over(self, store: Store) -> None:
        home = self._lane_of(None)
        old = store.expire(time.time() - self._max_age)
        if old:
            self._stats.drop("end older than OTEL_LETTA_OUTBOX_MAX_AGE", len(old))
            _logger.error("%d task end(s) given up: they could not be delivered for too long", len(old))
        found = store.adopt([home.server], lose)
        if found.entries or found.lost:
            _logger.warning(
                "%s: took over %d end(s) that an earlier process left, and %d task(s) that died with it",
                store.place,
                found.entries,
                found.lost,
            )
            lanes = store.lanes()
            with self._lock:
                for text in lanes:
                    with contextlib.suppress(ValueError):
                        self._keeping.backlogs[read_lane(text)] = None
        for standing in store.standings([home.server]):
            self._bring_back(store, standing, home)

    def _bring_back(self, store: Store, standing: Standing, home: Lane) -> None:
        """Let a task that waits go on in this process, if its span comes here."""
        try:
            report, lane = read_report(standing.body), read_lane(standing.lane)
        except ValueError:
            return
        with self._lock:
            if standing.key in self.restored or standing.key in self._keeping.pending.standings:
                return
            self.restored.add(standing.key)
        # As this process would report it, whichever agent was the other's default one.
        self._waiting.append(replace(report, agent_id=None if lane.agent_id == home.agent_id else lane.agent_id))
        self.on_restored()
        if standing.owed and store.take_notice(standing.key):
            with self._lock:
                self._put_back(addressed(report, lane), lane, False)
