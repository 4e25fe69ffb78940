"""The store in a SQLite file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from otel_letta.store.lives import Life, dead, forget, is_alive
from otel_letta.store.model import (
    Adopted,
    Changes,
    Entry,
    Lose,
    NewEntry,
    Outcome,
    SpoolItem,
    Standing,
    StoreError,
    StoreLock,
)
from otel_letta.store.sqlite import Database
from otel_letta.store.together import Together, Waiting, fitting

_ENTRY = "id, scope, lane, body, created, posted, note, owner"
_STANDING = "key, scope, lane, body, waiting, owed, owner"


class SqliteStore:
    """Entries and standings in one file, shared by the processes of a host. See `Store`."""

    def __init__(self, path: Path, *, fsync: bool = True, most_bytes: int | None = None) -> None:
        self._database = Database(path, fsync=fsync, most_bytes=most_bytes)
        self.place = self._database.place
        self._life: Life | None = None

    @property
    def owner(self) -> str:
        """This process's name."""
        if self._life is None:
            raise StoreError(f"{self.place} is not open")
        return self._life.name

    def open(self) -> None:
        self._database.open()
        if self._life is None or not self._life.goes_on:
            self._be_born()

    def _be_born(self) -> None:
        try:
            life = Life(self._database.locks)
        except OSError as error:
            self._database.close()
            raise StoreError(f"no lock can be had in {self._database.locks}: {error.strerror or error}") from error
        stale, self._life = self._life, life
        if stale is not None:
            # Somebody removed the lock's file; others take what was kept under that name for a dead process's.
            self._give(stale.name, life.name)
            stale.end()

    def _give(self, before: str, after: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for table in ("entries", "standings"):
                connection.execute(f"UPDATE {table} SET owner=? WHERE owner=?", (after, before))  # noqa: S608

        self._database.write(work, durable=False, grows=False)

    def close(self) -> None:
        self._database.close()
        if self._life is not None:
            self._life.end()
            self._life = None

    @property
    def identity(self) -> str:
        return self._database.identity

    # -- this owner's -----------------------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> Outcome:
        owner = self.owner

        def work(connection: sqlite3.Connection) -> Outcome:
            return _apply(connection, owner, changes)

        grows = bool(changes.entries or changes.standings)
        return self._database.write(work, durable=changes.durable, grows=grows)

    def known(self, ids: Sequence[int]) -> set[int]:
        sql, owner = "SELECT 1 FROM entries WHERE id=? AND owner=?", self.owner
        return self._database.read(lambda c: {each for each in ids if c.execute(sql, (each, owner)).fetchone()})

    def waiting(self, lane: str, after: int, limit: int) -> list[Entry]:
        sql = f"SELECT {_ENTRY} FROM entries WHERE owner=? AND lane=? AND id>? ORDER BY id LIMIT ?"  # noqa: S608
        return self._entries(sql, (self.owner, lane, after, limit))

    def lanes(self) -> dict[str, int]:
        sql = "SELECT lane, count(*) FROM entries WHERE owner=? GROUP BY lane ORDER BY min(id)"
        return dict(self._database.read(lambda c: c.execute(sql, (self.owner,)).fetchall()))

    def take_notice(self, key: str) -> bool:
        sql = "UPDATE standings SET owed=0 WHERE key=? AND owed"
        return self._database.write(lambda c: c.execute(sql, (key,)).rowcount > 0, durable=False, grows=False)

    def expire(self, before: float) -> list[Entry]:
        owner = self.owner
        sql = f"SELECT {_ENTRY} FROM entries WHERE owner=? AND created<? ORDER BY id"  # noqa: S608

        def work(connection: sqlite3.Connection) -> list[Entry]:
            found = [Entry(*row) for row in connection.execute(sql, (owner, before)).fetchall()]
            connection.execute("DELETE FROM entries WHERE owner=? AND created<?", (owner, before))
            connection.execute("DELETE FROM standings WHERE owner IS NULL AND updated<?", (before,))
            return found

        return self._database.write(work, durable=False, grows=False)

    def size(self) -> int:
        return self._database.size()

    def beat(self) -> None:
        """The operating system knows by itself."""

    def lane_lock(self, lane: str) -> StoreLock | None:
        return None  # all who share a file are on one host, which has locks of its own

    # -- those of the dead ------------------------------------------------------------------------------------------

    def adopt(self, scopes: Iterable[str], lose: Lose) -> Adopted:
        places = tuple(scopes)
        where, values = _in_scopes(places)
        sql = (
            f"SELECT DISTINCT owner FROM entries WHERE owner<>?{where} UNION "  # noqa: S608
            f"SELECT DISTINCT owner FROM standings WHERE owner IS NOT NULL AND owner<>?{where}"
        )
        arguments = (self.owner, *values, self.owner, *values)
        others = [name for (name,) in self._database.read(lambda c: c.execute(sql, arguments).fetchall())]
        entries = lost = 0
        for name in others:
            with dead(self._database.locks, name) as gone:
                if gone:
                    more = self._adopt_from(name, places, lose)
                    entries, lost = entries + more.entries, lost + more.lost
        self._sweep()
        return Adopted(entries, lost)

    def _adopt_from(self, name: str, scopes: tuple[str, ...], lose: Lose) -> Adopted:
        owner = self.owner
        where, values = _in_scopes(scopes)

        def work(connection: sqlite3.Connection) -> Adopted:
            columns = "scope, lane, body, created, posted, note"
            entries = connection.execute(
                f"INSERT INTO entries (owner, {columns}) SELECT ?, {columns} FROM entries "  # noqa: S608
                f"WHERE owner=?{where} ORDER BY id",
                (owner, name, *values),
            ).rowcount
            connection.execute(f"DELETE FROM entries WHERE owner=?{where}", (name, *values))  # noqa: S608
            connection.execute(
                f"UPDATE standings SET owner=NULL WHERE owner=? AND waiting{where}",  # noqa: S608
                (name, *values),
            )
            rows = connection.execute(
                f"SELECT {_STANDING} FROM standings WHERE owner=?{where} ORDER BY updated",  # noqa: S608
                (name, *values),
            ).fetchall()
            for row in rows:
                lost = Standing(*row)
                new = NewEntry(lost.scope, lost.lane, lose(lost), time.time(), lost.key)
                _add(connection, owner, new)
            return Adopted(entries, len(rows))

        return self._database.write(work, durable=True, grows=False)

    def _sweep(self) -> None:
        """Remove the lock files of the dead of whom nothing is left."""
        sql = "SELECT owner FROM entries UNION SELECT owner FROM standings"
        known = {name for (name,) in self._database.read(lambda c: c.execute(sql).fetchall())}
        for path in self._database.locks.glob("*.lock"):
            if path.stem not in known and time.time() - path.stat().st_mtime > 60.0:
                with dead(self._database.locks, path.stem) as gone:
                    if gone:
                        forget(self._database.locks, path.stem)

    def standings(self, scopes: Iterable[str]) -> list[Standing]:
        where, values = _in_scopes(tuple(scopes))
        sql = f"SELECT {_STANDING} FROM standings WHERE owner IS NULL{where} ORDER BY updated"  # noqa: S608
        return self._standings(sql, values)

    # -- for people -------------------------------------------------------------------------------------------------

    def all_entries(self, after: int = 0, limit: int = 1_000) -> list[tuple[Entry, bool]]:
        sql = f"SELECT {_ENTRY} FROM entries WHERE id>? ORDER BY id LIMIT ?"  # noqa: S608
        return [(entry, self._lives(entry.owner)) for entry in self._entries(sql, (after, limit))]

    def all_standings(self) -> list[tuple[Standing, bool]]:
        found = self._standings(f"SELECT {_STANDING} FROM standings ORDER BY updated", ())  # noqa: S608
        return [(standing, standing.owner is not None and self._lives(standing.owner)) for standing in found]

    def remove(self, ids: Sequence[int]) -> int:
        def work(connection: sqlite3.Connection) -> int:
            number = 0
            for each in ids:
                row = connection.execute("SELECT owner FROM entries WHERE id=?", (each,)).fetchone()
                if row is not None and (self._is_mine(row[0]) or not self._lives(row[0])):
                    number += connection.execute("DELETE FROM entries WHERE id=?", (each,)).rowcount
            return number

        return self._database.write(work, durable=True, grows=False)

    def _is_mine(self, owner: str) -> bool:
        return self._life is not None and owner == self._life.name

    def _lives(self, owner: str) -> bool:
        return is_alive(self._database.locks, owner)

    def _entries(self, sql: str, arguments: tuple[Any, ...]) -> list[Entry]:
        return [Entry(*row) for row in self._database.read(lambda c: c.execute(sql, arguments).fetchall())]

    def _standings(self, sql: str, arguments: tuple[Any, ...]) -> list[Standing]:
        rows = self._database.read(lambda c: c.execute(sql, arguments).fetchall())
        return [
            Standing(key, scope, lane, body, bool(w), bool(o), owner) for key, scope, lane, body, w, o, owner in rows
        ]


# -- one transaction ---------------------------------------------------------------------------------------------------


def _apply(connection: sqlite3.Connection, owner: str, changes: Changes) -> Outcome:
    now = time.time()
    connection.executemany(
        "INSERT INTO standings (key, owner, scope, lane, body, waiting, owed, updated) VALUES (?,?,?,?,?,?,?,?) "
        "ON CONFLICT (key) DO UPDATE SET owner=excluded.owner, scope=excluded.scope, lane=excluded.lane, "
        "body=excluded.body, waiting=excluded.waiting, owed=excluded.owed, updated=excluded.updated",
        [
            (key, owner, each.scope, each.lane, each.body, each.waiting, each.owed, now)
            for key, each in changes.standings.items()
        ],
    )
    connection.executemany("UPDATE standings SET owed=0 WHERE key=?", [(key,) for key in changes.notified])
    ids = [_add(connection, owner, new) for new in changes.entries]
    connection.executemany("DELETE FROM standings WHERE key=?", [(key,) for key in changes.over])
    connection.executemany("DELETE FROM entries WHERE id=? AND owner=?", [(each, owner) for each in changes.settled])
    connection.executemany(
        "UPDATE entries SET scope=?, lane=? WHERE id=? AND owner=?",
        [(scope, lane, each, owner) for each, (scope, lane) in changes.moved.items()],
    )
    connection.executemany(
        "UPDATE entries SET note=?, posted=CASE WHEN ? THEN posted END WHERE id=? AND owner=?",
        [(note, maybe, each, owner) for each, (note, maybe) in changes.notes.items()],
    )
    ours = {
        each
        for each in changes.posted
        if connection.execute("UPDATE entries SET posted=? WHERE id=? AND owner=?", (now, each, owner)).rowcount
    }
    return Outcome(ids, frozenset(ours))


def _add(connection: sqlite3.Connection, owner: str, new: NewEntry) -> int | None:
    if new.ends:
        nobodys = " AND owner IS NULL" if new.claims else ""
        gone = connection.execute(f"DELETE FROM standings WHERE key=?{nobodys}", (new.ends,)).rowcount  # noqa: S608
        if new.claims and not gone:
            return None
    return connection.execute(
        "INSERT INTO entries (owner, scope, lane, body, created, posted) VALUES (?,?,?,?,?,?)",
        (owner, new.scope, new.lane, new.body, new.created, new.posted),
    ).lastrowid


def _in_scopes(scopes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    return (f" AND scope IN ({','.join('?' * len(scopes))})" if scopes else ""), scopes


# -- the spool ---------------------------------------------------------------------------------------------------------


class SqliteSpool:
    """Bodies in a SQLite file. See `Spool`."""

    def __init__(self, path: Path, *, fsync: bool = True, most_bytes: int | None = None) -> None:
        self._database = Database(path, fsync=fsync)
        self._most_bytes = most_bytes
        self._held: tuple[int, int] | None = None
        self._together = Together(self._write)
        self.place = self._database.place

    def open(self) -> None:
        self._database.open()

    def close(self) -> None:
        self._together.close()
        self._database.close()
        self._held = None

    def append(self, kind: str, body: bytes) -> Future[int]:
        return self._together.append(kind, body)

    def _write(self, waiting: Sequence[Waiting]) -> None:
        with self._database.lock:
            number, held = self.size()
            found = fitting(held, self._most_bytes, self.place, waiting)
            sql, now = "INSERT INTO spool (kind, body, created) VALUES (?,?,?)", time.time()

            def insert(connection: sqlite3.Connection) -> list[int | None]:
                return [connection.execute(sql, (each.kind, each.body, now)).lastrowid for each in found]

            ids = self._database.write(insert, durable=True) if found else []
            for each, new in zip(found, ids, strict=True):
                assert new is not None
                each.id = new
            self._held = number + len(found), held + sum(len(each.body) for each in found)

    def unsettled(self, after: int = 0, limit: int = 100) -> list[SpoolItem]:
        sql = "SELECT id, kind, body, created FROM spool WHERE id>? ORDER BY id LIMIT ?"
        return [SpoolItem(*row) for row in self._database.read(lambda c: c.execute(sql, (after, limit)).fetchall())]

    def settle(self, ids: Sequence[int]) -> None:
        with self._database.lock:
            rows = [(each,) for each in ids]
            self._database.write(
                lambda c: c.executemany("DELETE FROM spool WHERE id=?", rows), durable=False, grows=False
            )
            self._held = None

    def expire(self, before: float) -> int:
        with self._database.lock:
            self._held = None
            sql = "DELETE FROM spool WHERE created<?"
            return self._database.write(lambda c: c.execute(sql, (before,)).rowcount, durable=False, grows=False)

    def size(self) -> tuple[int, int]:
        with self._database.lock:
            if self._held is None:
                sql = "SELECT count(*), coalesce(sum(length(body)), 0) FROM spool"
                self._held = self._database.read(lambda c: c.execute(sql).fetchone())
            return self._held
