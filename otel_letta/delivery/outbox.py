"""The outbox: what is not delivered yet, kept beyond the process.

Reports pass through memory as ever; beside that, ends and the standing of each task under way are written down, in
groups, by a thread of its own. An end is on the disk within milliseconds, and in any case before a request with it goes
out; it leaves after it is known to be in the agent's context. Of each lane, memory holds a window of ends. What does
not fit waits in the database, and so does what another process left: the window is filled up from there, in order.

Every process takes over what those who died have left, when it starts and now and then. Where the database cannot be
used, everything stays in memory as if there were no outbox, and is written down once it can.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from otel_letta.delivery.estate import Estate
from otel_letta.delivery.journal import Accept, LaneLock
from otel_letta.delivery.keeping import Keeping, Kept
from otel_letta.delivery.parcel import Parcel
from otel_letta.delivery.records import addressed, key_of, read_report, write_lane
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew, Job, Worker
from otel_letta.errors import LettaError
from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.store.model import Entry, Outcome, Store, StoreError

_logger = logging.getLogger(__name__)

_SCAN = 30.0
"""Seconds between two checks whether another process died."""
_LAZY = 0.5
"""Seconds that what only saves work after a crash may wait for company."""
_SOON = 0.05
"""The same for a task that is new: nobody would learn that it died."""
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 60.0
"""Seconds between two tries to use a database that could not be used."""


class Outbox(Worker):
    """The journal of one desk, in a database.

    Args:
        store: makes the database's doorway, on the thread that uses it.
        crew: lock and clock.
        stats: counts what is given up.
        lane_of: the lane of a report now; of None, the configured agent's.
        put_back: takes an end that was kept, with its lane; called with the lock held.
        most: ends that memory may hold.
        max_age: seconds after which an end is given up.
        scan: seconds between two checks whether another process died.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        crew: Crew,
        stats: Stats,
        *,
        lane_of: Callable[[ProgressReport | None], Lane],
        put_back: Accept,
        most: int,
        max_age: float,
        scan: float = _SCAN,
    ) -> None:
        super().__init__("otel_letta outbox", crew, crew.disk)
        self._make_store = store
        self._store: Store | None = None
        self._stats = stats
        self._lane_of = lane_of
        self._put_back = put_back
        self._scan_every = scan
        self.usable: bool | None = None
        """None before the first try."""
        self.error: StoreError | None = None
        self._tries = 0
        self._open_at = -math.inf
        self._scan_at = math.inf
        self._commit_at = math.inf
        """When what waits for company is written."""
        self._writing = False
        """A transaction with ends is under way: they are not pending any more, and not durable yet."""
        self._closed = False
        self.left = 0
        """Ends that are left for the next process, after `close`."""
        self._identity = ""
        self._database = threading.RLock()
        """Held by who uses the store; taken before the crew's lock, never after it."""
        self._keeping = Keeping(most)
        self._standing: set[str] = set()
        """Keys of tasks under way."""
        self.estate = Estate(crew, stats, self._keeping, lane_of=lane_of, put_back=put_back, max_age=max_age)

    # -- the journal: no I/O ----------------------------------------------------------------------------------------

    def note(self, report: ProgressReport) -> None:
        """See `Journal.note`."""
        with self._lock:
            lane, keeping = self._lane_of(report), self._keeping
            key = key_of(report, lane)
            if report.status.is_terminal:
                self.estate.owed.discard(key)
                keeping.stand_no_more(key, claimed=key in self.estate.restored)
            else:
                if key in self.estate.restored:
                    keeping.stored.add(key)
                keeping.stand(key, report, lane, owed=report.waiting and key in self.estate.owed)
            self._touch(_LAZY if key in self._standing or report.status.is_terminal else _SOON)
            (self._standing.discard if report.status.is_terminal else self._standing.add)(key)
            self.estate.restored.discard(key)

    def put(self, report: ProgressReport, lane: Lane, maybe_landed: bool = False) -> bool:
        """See `Journal.put`."""
        key = key_of(report, lane)
        if not report.status.is_terminal:
            if report.waiting:
                self.estate.owed.add(key)
            return True
        keeping, claims = self._keeping, key in self.estate.restored
        passed_on = self.usable is None or (
            self.usable and (claims or lane in keeping.backlogs or keeping.is_full(lane))
        )
        keeping.add(Kept(report, lane, time.time(), not passed_on, claims, maybe_landed=maybe_landed))
        if not self.usable:
            keeping.forget_oldest()
        self.wake()
        return not passed_on

    def moved(self, reports: Sequence[ProgressReport], lane: Lane) -> None:
        """See `Journal.moved`."""
        self._keeping.move(reports, lane)
        self._touch()

    def settled(self, reports: Sequence[ProgressReport], note: str | None = None) -> None:
        """See `Journal.settled`."""
        self._keeping.settle(reports)
        for report in reports:
            if report.waiting:
                key = key_of(report, self._lane_of(report))
                self.estate.owed.discard(key)
                self._keeping.give_notice(key)
        self._touch()

    def failed(self, parcels: Sequence[Parcel], error: LettaError) -> None:
        """See `Journal.failed`."""
        for parcel in parcels:
            landed = parcel.maybe_landed or error.may_have_landed
            self._keeping.note(parcel.report, str(error), maybe_landed=landed)
        self._touch()

    def lock_of(self, lane: Lane) -> LaneLock | None:
        """See `Journal.lock_of`."""
        store = self._store
        return None if store is None or not self.usable else store.lane_lock(write_lane(lane))

    @property
    def place(self) -> str | None:
        """See `Journal.place`."""
        store = self._store
        written = not self._keeping.pending.new and not self._writing
        return store.place if store is not None and self.usable and written else None

    def _touch(self, within: float = _LAZY) -> None:
        at = self._clock() + within
        if at < self._commit_at:
            self._commit_at = at
            self.wake()

    # -- the journal: right before a request ------------------------------------------------------------------------

    def posting(self, parcels: Sequence[Parcel]) -> list[Parcel]:
        """See `Journal.posting`."""
        with self._lock:
            kept = self._keeping.kept
            known = [kept[id(parcel.report)] for parcel in parcels if id(parcel.report) in kept]
        outcome = self._commit(known) if known and self.usable else None
        if outcome is None:
            return list(parcels)
        with self._lock:
            # Another process took this one for dead, or they grew too old.
            strange = [each for each in known if each.row is not None and each.row not in outcome.ours]
            for each in strange:
                self._keeping.remove(each)
        gone = {id(each.report) for each in strange}
        return [parcel for parcel in parcels if id(parcel.report) not in gone]

    # -- the thread -------------------------------------------------------------------------------------------------

    def has_pending(self, now: float) -> bool:
        if self.usable is False or self._closed:
            return False
        return bool(self._keeping.pending.new) or self._writing or self._keeping.lane_to_fill() is not None

    def next_try(self, now: float) -> float:
        return -math.inf if self.usable else self._open_at

    def _next_job(self, now: float) -> tuple[Job | None, float | None]:
        if self._closed:
            return None, None
        if not self.usable:
            return (self._open, None) if now >= self._open_at else (None, self._open_at - now)
        if self._keeping.pending.new or now >= self._commit_at:
            return self._commit_all, None
        lane = self._keeping.lane_to_fill()
        if lane is not None:
            return (lambda until: self._fill(lane)), None
        return (self._scan, None) if now >= self._scan_at else (None, min(self._commit_at, self._scan_at) - now)

    def _commit_all(self, until: Deadline) -> None:
        self._commit()

    def _commit(self, posting: Sequence[Kept] = ()) -> Outcome | None:
        """Write what is pending. Return None if it could not be written, and is pending still."""
        with self._database:
            with self._lock:
                pending = self._keeping.take_pending()
                self._writing = bool(pending.new)
                self._commit_at = math.inf
            changes = pending.changes(posting)
            if not changes:
                return Outcome([], frozenset())
            try:
                outcome = self._opened().apply(changes)
            except StoreError as error:
                with self._lock:
                    self._writing = False
                    self._keeping.pending = pending.before(self._keeping.pending)
                    self._touch()
                    self._give_up(error)
                return None
            with self._lock:
                self._writing = False
                self._keeping.wrote(pending, outcome)
                self._works()
            return Outcome(outcome.ids, outcome.ours | {each for each in outcome.ids if each is not None})

    def _opened(self) -> Store:
        if self._store is None:
            self._store = self._make_store()
        return self._store

    # -- opening, and what to do if that fails ----------------------------------------------------------------------

    def _open(self, until: Deadline) -> None:
        with self._database:
            try:
                store = self._opened()
                store.open()
                replaced = self._identity not in ("", store.identity)
                with self._lock:
                    rows = [kept.row for kept in self._keeping.kept.values() if kept.row is not None]
                ours = set() if replaced else store.known(rows)
                self.estate.take_over(store)
                with self._lock:
                    self._start(store, ours, replaced=replaced)
            except StoreError as error:
                self._give_up(error)
            except Exception as error:  # a bug in a driver must not lose ends
                _logger.exception("unexpected error in the outbox")
                self._give_up(StoreError(type(error).__name__))

    def _start(self, store: Store, ours: set[int], *, replaced: bool) -> None:
        """Go on with a database that was opened. Lock held."""
        keeping = self._keeping
        strange = [each for each in keeping.kept.values() if each.row is not None and each.row not in ours]
        if replaced:
            keeping.write_again(strange)
        else:  # another process took this one for dead, and delivers them
            for kept in strange:
                keeping.remove(kept)
        self.usable, self.error, self._identity = True, None, store.identity
        if not keeping.pending.new:
            self._works()
        self._scan_at = self._clock() + self._scan_every

    def _works(self) -> None:
        """Note that it can be used, which that it opens does not show: its disk may be full. Lock held."""
        if self._tries:
            _logger.warning("the outbox %s can be used again", self._opened().place)
        self._tries = 0

    def _give_up(self, error: StoreError) -> None:
        """Go on in memory, and try again later."""
        with self._lock:
            self._tries += 1
            self._open_at = self._clock() + min(_FIRST_RETRY * 2 ** min(self._tries - 1, 10), _LONGEST_RETRY)
            if self._tries == 1:
                _logger.error(
                    "the outbox cannot be used: %s. Reports are kept in memory alone until it can, and a crash would "
                    "lose them",
                    error,
                )
            self.usable, self.error = False, error
            for kept in [each for each in self._keeping.pending.new if not each.in_memory and not each.gone]:
                self._keeping.take_in(kept)
                self._put_back(kept.report, kept.lane, kept.maybe_landed)
            self._keeping.forget_oldest()

    # -- what others left -------------------------------------------------------------------------------------------

    def _scan(self, until: Deadline) -> None:
        with self._database:
            try:
                store = self._opened()
                store.beat()
                self.estate.take_over(store)
            except StoreError as error:
                self._give_up(error)
            finally:
                with self._lock:
                    self._scan_at = self._clock() + self._scan_every

    def _fill(self, lane: Lane) -> None:
        """Bring entries of a lane into memory, in order."""
        # First what is pending: what was settled must not come again.
        if self._commit() is None:
            return
        keeping = self._keeping
        with self._database:
            with self._lock:
                room, after = keeping.room(lane), keeping.state(lane).cursor
            try:
                entries = self._opened().waiting(write_lane(lane), after, room)
            except StoreError as error:
                self._give_up(error)
                return
            with self._lock:
                state = keeping.state(lane)
                for entry in entries:
                    state.cursor = max(state.cursor, entry.id)
                    self._bring_in(entry, lane)
                if len(entries) < room and not state.unwritten:
                    keeping.filled(lane)

    def _bring_in(self, entry: Entry, lane: Lane) -> None:
        try:
            report = addressed(read_report(entry.body), lane)
        except ValueError:
            _logger.error("an entry of the outbox cannot be read and is dropped")
            self._stats.drop("end unreadable in the outbox")
            self._keeping.pending.settled.append(entry.id)
            self._touch()
            return
        self._keeping.bring_in(Kept(report, lane, entry.created, True, row=entry.id))
        self._put_back(report, lane, entry.posted is not None)

    # -- life -------------------------------------------------------------------------------------------------------

    def wait_ready(self, until: Deadline) -> bool:
        """Wait until the database was opened, or could not be. Return False if that took too long."""
        with self._lock:
            while self.usable is None and not until.passed:
                self._crew.settled.wait(until.left(0.5))
            return self.usable is not None

    def waiting(self) -> Iterator[ProgressReport]:
        """Yield what is in the database, anybody's. Raises StoreError."""
        after = 0
        while page := self._opened().all_entries(after):
            after = page[-1][0].id
            for entry, _ in page:
                with contextlib.suppress(ValueError):
                    yield read_report(entry.body)

    def start(self) -> None:
        """Open the database soon, though nothing is to be written yet."""
        with self._lock:
            self.wake()

    def save(self) -> None:
        """Write what is pending."""
        if self.usable and not self._closed:
            self._commit()

    def close(self) -> None:
        """Write what is pending, and leave the rest to the next process."""
        self.save()
        with self._lock:
            self._closed = True
            self.stop()
        with self._database:
            if self._store is not None:
                with contextlib.suppress(StoreError):
                    self.left = sum(self._store.lanes().values())
                self._store.close()

    def state(self) -> dict[str, Any]:
        """Return where it is and what is wrong with it, for statistics. Lock held."""
        place = None if self._store is None else self._store.place
        error = None if self.error is None else str(self.error)
        return {"place": place, "usable": bool(self.usable), "in_memory": len(self._keeping.kept), "error": error}
