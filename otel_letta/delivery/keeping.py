"""What an outbox has in memory: the ends that are not delivered, and what the database does not know yet.

No I/O and no threads: whoever calls holds the crew's lock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from otel_letta.delivery.records import key_of, write_lane, write_report
from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport
from otel_letta.store.model import Changes, NewEntry, Outcome, Standing
from otel_letta.text import clean_line

_FEW = 64
"""Ends that may be pending though they are over, before they are sorted out."""
WINDOW = 100
"""Ends of one lane that memory holds: a few requests' worth."""


@dataclass(slots=True, eq=False)
class Kept:
    """An end that is not delivered."""

    report: ProgressReport
    lane: Lane
    created: float
    in_memory: bool
    """Its lane has it."""
    claims: bool = False
    """Its task waited in a process that is gone: only one of those who took it over may end it."""
    row: int | None = None
    gone: bool = False
    maybe_landed: bool = False
    """Another process may have sent it, though this one never did."""


@dataclass(slots=True)
class LaneState:
    """What memory has of a lane's entries."""

    in_memory: int = 0
    cursor: int = 0
    """The highest id of an entry that memory has."""
    unwritten: int = 0
    """Ends that memory passed on, and the database has not got yet."""


@dataclass(slots=True)
class Pending:
    """What the database does not know yet. The texts are made only when it is written: most are replaced before."""

    new: list[Kept] = field(default_factory=list)
    standings: dict[str, tuple[ProgressReport, Lane, bool]] = field(default_factory=dict)
    """The last report of each task under way, its lane, and whether its notice is owed."""
    over: set[str] = field(default_factory=set)
    settled: list[int] = field(default_factory=list)
    moved: dict[int, Lane] = field(default_factory=dict)
    notes: dict[int, tuple[str, bool]] = field(default_factory=dict)
    notified: set[str] = field(default_factory=set)

    def changes(self, posting: Collection[Kept]) -> Changes:
        """Return all of it as one transaction, which also says that a request goes out."""
        now = time.time()
        return Changes(
            standings={key: _standing(key, *value) for key, value in self.standings.items()},
            over=self.over,
            entries=[_entry(kept, now if kept in posting or kept.maybe_landed else None) for kept in self.new],
            posted=[kept.row for kept in posting if kept.row is not None],
            settled=self.settled,
            moved={row: (lane.server, write_lane(lane)) for row, lane in self.moved.items()},
            notes=self.notes,
            notified=self.notified,
        )

    def before(self, newer: Pending) -> Pending:
        """Return this with what came since."""
        return Pending(
            new=[*self.new, *newer.new],
            standings={
                **{key: value for key, value in self.standings.items() if key not in newer.over},
                **newer.standings,
            },
            over=(self.over - newer.standings.keys()) | newer.over,
            settled=[*self.settled, *newer.settled],
            moved={**self.moved, **newer.moved},
            notes={**self.notes, **newer.notes},
            notified=self.notified | newer.notified,
        )


class Keeping:
    """The ends that are kept, by their report's identity, and how many of each lane memory has.

    Args:
        most: ends that memory may have.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.pending = Pending()
        self.kept: dict[int, Kept] = {}
        self.lanes: dict[Lane, LaneState] = {}
        self.backlogs: dict[Lane, None] = {}
        """Lanes of which the database has entries that memory has not, or is about to."""
        self.in_memory = 0
        self.stored: set[str] = set()
        """Keys of tasks whose standing the database has, or may have."""

    def stand(self, key: str, report: ProgressReport, lane: Lane, *, owed: bool) -> None:
        """Note where a task under way stands. ``owed``: its agent is still to be told that it waits."""
        self.pending.over.discard(key)
        self.pending.standings[key] = report, lane, owed

    def stand_no_more(self, key: str, *, claimed: bool) -> None:
        """Note that a task is over. ``claimed``: the entry of its end says so to the database."""
        self.pending.standings.pop(key, None)
        # What the database never had needs no removal: it may be away for long.
        if key in self.stored and not claimed:
            self.pending.over.add(key)

    def give_notice(self, key: str) -> None:
        """Note that the agent of a task that waits has been told so."""
        if key in self.pending.standings:
            self.pending.standings[key] = (*self.pending.standings[key][:2], False)
        if key in self.stored:
            self.pending.notified.add(key)

    def state(self, lane: Lane) -> LaneState:
        return self.lanes.setdefault(lane, LaneState())

    def is_full(self, lane: Lane) -> bool:
        return self.in_memory >= self.most or self.state(lane).in_memory >= WINDOW

    def room(self, lane: Lane) -> int:
        """Return how many of a lane's ends memory can take."""
        return max(min(WINDOW - self.state(lane).in_memory, self.most - self.in_memory), 0)

    def lane_to_fill(self) -> Lane | None:
        """Return a lane that has room for what the database has of it."""
        if self.in_memory >= self.most:
            return None
        return next((lane for lane in self.backlogs if self.state(lane).in_memory <= WINDOW // 2), None)

    def add(self, kept: Kept) -> None:
        """Keep a new end."""
        self.kept[id(kept.report)] = kept
        self.pending.new.append(kept)
        if len(self.pending.new) > 2 * len(self.kept) + _FEW:
            self.pending.new = [each for each in self.pending.new if not each.gone]
        if kept.in_memory:
            self._count(kept.lane, 1)
        else:
            self.state(kept.lane).unwritten += 1
            self.backlogs[kept.lane] = None

    def bring_in(self, kept: Kept) -> None:
        """Keep an end that comes from the database."""
        self.kept[id(kept.report)] = kept
        self._count(kept.lane, 1)

    def take_in(self, kept: Kept) -> None:
        """Have memory take an end after all."""
        kept.in_memory = True
        self.state(kept.lane).unwritten -= 1
        self._count(kept.lane, 1)

    def remove(self, kept: Kept) -> None:
        """Forget an end, delivered or not."""
        kept.gone = True
        self.kept.pop(id(kept.report), None)
        if kept.in_memory:
            self._count(kept.lane, -1)
            self._forget_idle(kept.lane)

    def write_again(self, kept: Sequence[Kept]) -> None:
        """Note that the database is another one, which does not have these yet."""
        for each in kept:
            each.row = None
        self.pending.new[:0] = kept
        for state in self.lanes.values():
            state.cursor = 0

    def move(self, reports: Sequence[ProgressReport], lane: Lane) -> None:
        for report in reports:
            kept = self.kept.get(id(report))
            if kept is not None and kept.in_memory:
                self._count(kept.lane, -1)
                self._forget_idle(kept.lane)
                kept.lane = lane
                self._count(lane, 1)
                if kept.row is not None:
                    self.pending.moved[kept.row] = lane

    def settle(self, reports: Sequence[ProgressReport]) -> None:
        for report in reports:
            kept = self.kept.get(id(report))
            if kept is not None:
                self.remove(kept)
                if kept.row is not None:
                    self.pending.settled.append(kept.row)

    def note(self, report: ProgressReport, why: str, *, maybe_landed: bool) -> None:
        kept = self.kept.get(id(report))
        if kept is not None and kept.row is not None:
            self.pending.notes[kept.row] = clean_line(why, 300), maybe_landed

    def take_pending(self) -> Pending:
        """Take out what is to be written."""
        pending, self.pending = self.pending, Pending()
        pending.new = [kept for kept in pending.new if not kept.gone]
        self.stored.update(pending.standings)
        return pending

    def wrote(self, pending: Pending, outcome: Outcome) -> None:
        """Note that it was written."""
        self.stored -= pending.over
        for kept, row in zip(pending.new, outcome.ids, strict=True):
            kept.row = row
            if kept.in_memory:
                state = self.lanes.get(kept.lane)
                if state is not None:
                    state.cursor = max(state.cursor, row or 0)
                if kept.gone and row is not None:
                    self.pending.settled.append(row)
            else:
                # From here on it waits in the database alone. Without a row, somebody else ended its task.
                self.state(kept.lane).unwritten -= 1
                self.kept.pop(id(kept.report), None)

    def forget_oldest(self) -> list[ProgressReport]:
        """Forget what is over the bound. Without a database the mailboxes turn the oldest ends into a count."""
        gone = []
        while len(self.kept) > self.most:
            oldest = next(iter(self.kept.values()))
            self.remove(oldest)
            gone.append(oldest.report)
        return gone

    def filled(self, lane: Lane) -> None:
        """Note that memory has all entries of a lane."""
        self.backlogs.pop(lane, None)
        self._forget_idle(lane)

    def _count(self, lane: Lane, number: int) -> None:
        self.state(lane).in_memory += number
        self.in_memory += number

    def _forget_idle(self, lane: Lane) -> None:
        # A program may talk in ever new conversations.
        state = self.lanes.get(lane)
        if state is not None and not state.in_memory and not state.unwritten and lane not in self.backlogs:
            del self.lanes[lane]


def _standing(key: str, report: ProgressReport, lane: Lane, owed: bool) -> Standing:
    return Standing(key, lane.server, write_lane(lane), write_report(report), report.waiting, owed)


def _entry(kept: Kept, posted: float | None) -> NewEntry:
    key = key_of(kept.report, kept.lane)
    lane = write_lane(kept.lane)
    return NewEntry(kept.lane.server, lane, write_report(kept.report), kept.created, key, posted, kept.claims)
