"""The doorway of the store: what is kept, what can be asked for, and what can go wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from otel_letta.runtime.deadline import Deadline

VERSION = 1
"""Of the schema. A database with a higher one is left alone."""


class StoreError(Exception):
    """The database cannot be used now. Its text says why and names the remedy, and holds no secret."""

    full = False
    """True if something in it has to go first: the disk or the bound is full."""


class StoreNewerError(StoreError):
    """The database was made by a newer version of this package, or by another program."""


class StoreFullError(StoreError):
    """There is no room: the disk is full, or the bound that was set is reached."""

    full = True


class Entry(NamedTuple):
    """A report that waits for its delivery; ``body`` is whatever its owner understands."""

    id: int
    """Counts up: the order of delivery."""
    scope: str
    """Where it may be delivered; one who adopts names the scopes that are his."""
    lane: str
    """Entries of one lane are delivered in order."""
    body: str
    created: float
    """Unix seconds."""
    posted: float | None = None
    """When a request with it went out for the last time; None for never."""
    note: str | None = None
    """Why it could not be delivered, for people."""
    owner: str = ""


class Standing(NamedTuple):
    """Where a task under way stands; one for each."""

    key: str
    scope: str
    lane: str
    body: str
    waiting: bool = False
    """It goes on in another process: nobody's death ends it."""
    owed: bool = False
    """It waits, and the notice of that is not delivered yet."""
    owner: str | None = None
    """None for one that waits and whose process is gone."""


class NewEntry(NamedTuple):
    """An entry to be written."""

    scope: str
    lane: str
    body: str
    created: float
    ends: str = ""
    """Key of the task that it ends: its standing goes in the same transaction."""
    posted: float | None = None
    claims: bool = False
    """Write it only if that task waits and is nobody's: whoever is first may end it."""


@dataclass(slots=True)
class Changes:
    """What one transaction writes."""

    standings: dict[str, Standing] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    """Keys of tasks whose standing goes without an entry."""
    entries: list[NewEntry] = field(default_factory=list)
    posted: Sequence[int] = ()
    settled: list[int] = field(default_factory=list)
    moved: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Entry → scope and lane."""
    notes: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """Entry → why it could not be delivered, and whether it may have been: if not, it counts as never posted."""
    notified: set[str] = field(default_factory=set)
    """Keys of tasks that wait, and whose notice is delivered."""

    @property
    def durable(self) -> bool:
        """True if the disk has to hold it before anything else happens."""
        return bool(self.entries or self.posted)

    def __bool__(self) -> bool:
        return bool(
            self.standings
            or self.over
            or self.entries
            or self.posted
            or self.settled
            or self.moved
            or self.notes
            or self.notified
        )


class Outcome(NamedTuple):
    """What became of `Changes`."""

    ids: list[int | None]
    """Of the new entries, in order; None for one whose claim failed."""
    ours: frozenset[int]
    """Those of ``posted`` that still belong to this owner."""


class Adopted(NamedTuple):
    """What a dead owner left."""

    entries: int
    lost: int
    """Tasks that were under way, and are entries now."""


Lose = Callable[[Standing], str]
"""Makes of a task whose process died the body of the entry that says so."""


class Store(Protocol):
    """Entries and standings of many owners: processes that are alive, and such as were.

    Safe to use from several threads. Every method may block, and raises nothing but `StoreError`. An owner is alive
    as long as its lock is held, which the operating system, or the database, frees with the process.
    """

    place: str
    """The database for people, without secrets."""

    @property
    def identity(self) -> str:
        """Another text once this is another database: the file was replaced."""

    def open(self) -> None:
        """Connect, make what is missing, and take this owner's lock. Quiet if it is open already."""

    def close(self) -> None:
        """Disconnect and give up the owner's lock: what is left is for the next one."""

    def apply(self, changes: Changes) -> Outcome:
        """Write everything in one transaction. On the disk before it returns, where `Changes.durable`."""

    def known(self, ids: Sequence[int]) -> set[int]:
        """Return those of the entries that are there and still belong to this owner."""

    def waiting(self, lane: str, after: int, limit: int) -> list[Entry]:
        """Return this owner's entries of a lane, from the oldest with a higher id on."""

    def lanes(self) -> dict[str, int]:
        """Return the lanes of this owner's entries, and how many each has."""

    def adopt(self, scopes: Iterable[str], lose: Lose) -> Adopted:
        """Take over what owners who died left in these scopes (none named: in all).

        Their entries go behind this owner's own, in order. Their tasks that wait become nobody's; their other tasks
        are lost, and an entry says so.
        """

    def standings(self, scopes: Iterable[str]) -> list[Standing]:
        """Return the tasks that wait and are nobody's in these scopes (none named: in all)."""

    def take_notice(self, key: str) -> bool:
        """Return True to the one who asks first for the owed notice of a task that waits: he delivers it."""

    def expire(self, before: float) -> list[Entry]:
        """Remove this owner's entries from before that time (Unix seconds) and return them."""

    def size(self) -> int:
        """Return the bytes that the database uses."""

    def beat(self) -> None:
        """Show that this process lives, where the database wants to know; called every few seconds."""

    def all_entries(self, after: int = 0, limit: int = 1_000) -> list[tuple[Entry, bool]]:
        """Return anybody's entries with a higher id, each with whether its owner is alive. For people."""

    def all_standings(self) -> list[tuple[Standing, bool]]:
        """Return anybody's tasks, each with whether its owner is alive. For people."""

    def remove(self, ids: Sequence[int]) -> int:
        """Remove entries whose owner is not alive; return how many went. For people."""

    def lane_lock(self, lane: str) -> StoreLock | None:
        """Return the lane's lock between hosts; None where the database is of one host."""


class StoreLock(Protocol):
    """An exclusive lock by name. Not reentrant."""

    def acquire(self, until: Deadline) -> bool: ...

    def release(self) -> None: ...


class SpoolItem(NamedTuple):
    """A body that was taken in."""

    id: int
    kind: str
    body: bytes
    created: float
    """Unix seconds."""


class Spool(Protocol):
    """Bodies in the order of their arrival, each durable until it is settled. For one process at a time.

    Safe to use from several threads. Every method may block, and raises nothing but `StoreError`.
    """

    place: str

    def open(self) -> None:
        """Connect and make what is missing. Quiet if it is open already."""

    def close(self) -> None:
        """Disconnect."""

    def append(self, kind: str, body: bytes) -> Future[int]:
        """Keep a body. The future has its id as soon as it is durable, or a StoreError: StoreFullError where the bound
        of size is reached, or the disk is full. Does not block."""

    def unsettled(self, after: int = 0, limit: int = 100) -> list[SpoolItem]:
        """Return what is not settled, from the oldest with a higher id on."""

    def settle(self, ids: Sequence[int]) -> None:
        """Forget bodies. After a power failure one may come again."""

    def expire(self, before: float) -> int:
        """Remove what is from before that time (Unix seconds), and return how many went."""

    def size(self) -> tuple[int, int]:
        """Return how many bodies wait, and their bytes together."""
