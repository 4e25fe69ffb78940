"""The store in PostgreSQL, shared by the hosts that report to the same agents. Needs psycopg 3, the extra ``postgres``.

What a process left is taken over by the others; see `postgres_lives`.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from otel_letta.store import statements as sql
from otel_letta.store.lane_locks import IDLE_SECONDS, LaneLock, LaneLocks
from otel_letta.store.model import (
    Adopted,
    Changes,
    Entry,
    Lose,
    NewEntry,
    Outcome,
    Standing,
    StoreFullError,
    StoreLock,
    StoreNewerError,
)
from otel_letta.store.postgres_lives import GRACE, be_born, is_gone_for_good, lives, take_estate
from otel_letta.store.sessions import Session, first, number_of

if TYPE_CHECKING:
    import psycopg

_VERSION = 2
"""Of the schema: 1 had a spool without owners."""
_USED_FOR = 5.0
"""Seconds that the measured size counts: measuring reads all bodies."""

_T = TypeVar("_T")


class PostgresStore:
    """Entries and standings in one schema of a database. See `Store`.

    Args:
        url: ``postgresql://…``, as libpq reads it.
        place: the same without a password.
        fsync: whether the disk confirms what must not be lost (``synchronous_commit``).
        most_bytes: bound of the bodies' bytes.
        grace: see `GRACE`.
        idle: see `IDLE_SECONDS`.
    """

    def __init__(
        self,
        url: str,
        place: str,
        *,
        fsync: bool = True,
        most_bytes: int | None = None,
        grace: float = GRACE,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self.place = place
        self.owner = uuid.uuid4().hex
        self._session = Session(url, place, f"otel_letta {self.owner[:8]}")
        self._lanes = LaneLocks(url, place, f"otel_letta lanes {self.owner[:8]}", idle)
        self._fsync = fsync
        self._most_bytes = most_bytes
        self._grace = grace
        self._used: tuple[float, int] | None = None

    @property
    def identity(self) -> str:
        return "postgresql"  # always the same database, as far as anybody can tell

    # -- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        with self._session.lock:
            if self._session.is_open:
                return
            connection = self._session.open()
            try:
                with self._session.errors():
                    prepare(connection, self.place)
                    be_born(connection, self.place, self.owner)
            except BaseException:
                self._session.close()
                raise

    def close(self) -> None:
        self._lanes.close()
        with self._session.lock:
            if self._session.connection is not None:
                with contextlib.suppress(Exception):
                    self._session.connection.execute(sql.BURY, (self.owner,))
            self._session.close()
            self.owner = uuid.uuid4().hex  # what is left belongs to a dead one from now on

    def _do(self, work: Callable[[psycopg.Connection[Any]], _T], *, durable: bool = False) -> _T:
        return self._session.transact(work, durable=durable and self._fsync)

    # -- this owner's --------------------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> Outcome:
        def work(connection: psycopg.Connection[Any]) -> Outcome:
            if (changes.entries or changes.standings) and self._is_full(connection):
                raise StoreFullError(f"{self.place} holds as much as it may (OTEL_LETTA_OUTBOX_MAX_SIZE)")
            return self._apply(connection, changes)

        return self._do(work, durable=changes.durable)

    def _is_full(self, connection: psycopg.Connection[Any]) -> bool:
        if self._most_bytes is None:
            return False
        now = time.monotonic()
        if self._used is None or now - self._used[0] > _USED_FOR:
            self._used = now, int(first(connection.execute(sql.USED)))
        return self._used[1] > self._most_bytes

    def _apply(self, connection: psycopg.Connection[Any], changes: Changes) -> Outcome:
        cursor, owner = connection.cursor(), self.owner
        many: tuple[tuple[str, list[tuple[Any, ...]]], ...] = (
            (
                sql.PUT_STANDING,
                [(k, owner, s.scope, s.lane, s.body, s.waiting, s.owed) for k, s in sorted(changes.standings.items())],
            ),
            (sql.NOTIFIED, [(key,) for key in sorted(changes.notified)]),
        )
        for statement, rows in many:
            if rows:
                cursor.executemany(statement, rows)
        ids = self._add(connection, changes.entries)
        if changes.over:
            cursor.execute(sql.OVER, (sorted(changes.over),))
        if changes.settled:
            cursor.execute(sql.SETTLED, (changes.settled, owner))
        if changes.moved:
            cursor.executemany(sql.MOVED, [(*place, each, owner) for each, place in changes.moved.items()])
        if changes.notes:
            rows = [(note, maybe, each, owner) for each, (note, maybe) in changes.notes.items()]
            cursor.executemany(sql.NOTES, rows)
        ours: set[int] = set()
        if changes.posted:
            ours = {row[0] for row in cursor.execute(sql.POSTED, (time.time(), list(changes.posted), owner)).fetchall()}
        return Outcome(ids, frozenset(ours))

    def _add(self, connection: psycopg.Connection[Any], entries: Sequence[NewEntry]) -> list[int | None]:
        wanted: list[bool] = []
        ends = sorted({new.ends for new in entries if new.ends and not new.claims})
        if ends:
            connection.execute(sql.OVER, (ends,))
        for new in entries:
            wanted.append(not new.claims or connection.execute(sql.CLAIM, (new.ends,)).rowcount > 0)
        rows = [
            (self.owner, new.scope, new.lane, new.body, new.created, new.posted)
            for new, yes in zip(entries, wanted, strict=True)
            if yes
        ]
        ids: list[int] = []
        if rows:
            cursor = connection.cursor()
            cursor.executemany(sql.ADD, rows, returning=True)
            while True:
                ids += [row[0] for row in cursor.fetchall()]
                if not cursor.nextset():
                    break
        given = iter(ids)
        return [next(given) if yes else None for yes in wanted]

    def known(self, ids: Sequence[int]) -> set[int]:
        return {row[0] for row in self._rows(sql.KNOWN, (list(ids), self.owner))}

    def waiting(self, lane: str, after: int, limit: int) -> list[Entry]:
        return [Entry(*row) for row in self._rows(sql.WAITING, (self.owner, lane, after, max(limit, 0)))]

    def lanes(self) -> dict[str, int]:
        return {row[0]: row[1] for row in self._rows(sql.LANES, (self.owner,))}

    def take_notice(self, key: str) -> bool:
        return bool(self._do(lambda c: c.execute(sql.TAKE_NOTICE, (key,)).rowcount))

    def expire(self, before: float) -> list[Entry]:
        def work(connection: psycopg.Connection[Any]) -> list[Entry]:
            connection.execute(sql.EXPIRE_STANDINGS, (before,))
            return sorted(Entry(*row) for row in connection.execute(sql.EXPIRE, (self.owner, before)).fetchall())

        return self._do(work)

    def size(self) -> int:
        return int(self._rows(sql.USED, ())[0][0])

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        return self._do(lambda c: c.execute(statement, values).fetchall())

    # -- those of the dead ---------------------------------------------------------------------------------------

    def adopt(self, scopes: Iterable[str], lose: Lose) -> Adopted:
        places = list(scopes)
        entries = lost = 0
        names = [row[0] for row in self._rows(sql.OWNERS, (places,) * 4)]
        for name in names:
            if name != self.owner and is_gone_for_good(self._session, name, self._grace):
                more = self._do(lambda c, name=name: self._adopt_from(c, name, places, lose), durable=True)  # type: ignore[misc]
                entries, lost = entries + more.entries, lost + more.lost
        return Adopted(entries, lost)

    def _adopt_from(self, connection: psycopg.Connection[Any], name: str, scopes: list[str], lose: Lose) -> Adopted:
        if not take_estate(connection, name):
            return Adopted(0, 0)
        entries = connection.execute(sql.ADOPT, (self.owner, name, scopes, scopes)).rowcount
        connection.execute(sql.ADOPTED, (name, scopes, scopes))
        connection.execute(sql.LEAVE_WAITING, (name, scopes, scopes))
        lost = [Standing(*row) for row in connection.execute(sql.LOST, (name, scopes, scopes)).fetchall()]
        self._add(connection, [NewEntry(s.scope, s.lane, lose(s), time.time(), s.key) for s in lost])
        connection.execute(sql.BURY, (name,))
        return Adopted(entries, len(lost))

    def _lives(self, name: str) -> bool:
        return name == self.owner or lives(self._session, name)

    def standings(self, scopes: Iterable[str]) -> list[Standing]:
        places = list(scopes)
        return [Standing(*row) for row in self._rows(sql.NOBODYS, (places, places))]

    def beat(self) -> None:
        self._do(lambda c: c.execute("SELECT 1"))  # a session that ended is noticed now, not at the next end

    # -- for people ----------------------------------------------------------------------------------------------

    def all_entries(self, after: int = 0, limit: int = 1_000) -> list[tuple[Entry, bool]]:
        found = [Entry(*row) for row in self._rows(sql.ALL_ENTRIES, (after, limit))]
        lives = {name: self._lives(name) for name in {entry.owner for entry in found}}
        return [(entry, lives[entry.owner]) for entry in found]

    def all_standings(self) -> list[tuple[Standing, bool]]:
        found = [Standing(*row) for row in self._rows(sql.ALL_STANDINGS, ())]
        return [(standing, standing.owner is not None and self._lives(standing.owner)) for standing in found]

    def remove(self, ids: Sequence[int]) -> int:
        rows = self._rows(sql.OWNERS_OF, (list(ids),))
        free = [row[0] for row in rows if row[1] == self.owner or not self._lives(row[1])]
        return int(self._do(lambda c: c.execute(sql.REMOVE, (free,)).rowcount, durable=True))

    def lane_lock(self, lane: str) -> StoreLock:
        return LaneLock(self._lanes, f"lane {lane}")


def prepare(connection: psycopg.Connection[Any], place: str) -> None:
    """Make the tables if they are missing, or bring them up to date. Raises StoreNewerError."""
    with connection.transaction():
        # Two processes that start at once must not make the tables twice.
        connection.execute(sql.ONE_AT_A_TIME, (number_of("schema"),))
        if not first(connection.execute(sql.IS_MADE)):
            for statement in (sql.SCHEMA, *sql.TABLES):
                connection.execute(statement)
            connection.execute(sql.SET_VERSION, (_VERSION,))
        version = first(connection.execute(sql.GET_VERSION))
        if version < _VERSION:
            for statement in sql.TO_VERSION_2:
                connection.execute(statement)
        if version > _VERSION:
            raise StoreNewerError(
                f"{place} has the outbox of a newer otel-letta (schema {version}, this one knows {_VERSION}): "
                "update, or name another database"
            )
