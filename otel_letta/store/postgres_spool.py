"""The spool in PostgreSQL: see `Spool`. In the schema that the outbox has there, whether one is used or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from otel_letta.store import statements as sql
from otel_letta.store.model import SpoolItem
from otel_letta.store.postgres import prepare
from otel_letta.store.sessions import Session, first
from otel_letta.store.together import Together, Waiting, fitting

if TYPE_CHECKING:
    import psycopg

_T = TypeVar("_T")


class PostgresSpool:
    """Bodies in one table of a database.

    Args:
        url: ``postgresql://…``, as libpq reads it.
        place: the same without a password.
        fsync: whether the disk confirms each body.
        most_bytes: bound of the bodies together.
    """

    def __init__(self, url: str, place: str, *, fsync: bool = True, most_bytes: int | None = None) -> None:
        self.place = place
        self._session = Session(url, place, "otel_letta spool")
        self._fsync = fsync
        self._most_bytes = most_bytes
        self._held: tuple[int, int] | None = None
        self._together = Together(self._write)

    def open(self) -> None:
        with self._session.lock:
            if not self._session.is_open:
                connection = self._session.open()
                with self._session.errors():
                    prepare(connection, self.place)

    def close(self) -> None:
        with self._session.lock:
            self._session.close()
            self._held = None

    def append(self, kind: str, body: bytes) -> int:
        return self._together.append(self._session.lock, kind, body)

    def _write(self, waiting: Sequence[Waiting]) -> None:
        number, held = self.size()
        found, now = fitting(held, self._most_bytes, self.place, waiting), time.time()
        rows = [(each.kind, each.body, now) for each in found]
        ids = self._do(lambda c: [int(first(c.execute(sql.SPOOL_ADD, row))) for row in rows], durable=True)
        for each, new in zip(found, ids, strict=True):
            each.id = new
        self._held = number + len(found), held + sum(len(each.body) for each in found)

    def unsettled(self, after: int = 0, limit: int = 100) -> list[SpoolItem]:
        rows = self._do(lambda c: c.execute(sql.SPOOL_REST, (after, limit)).fetchall())
        return [SpoolItem(number, kind, bytes(body), created) for number, kind, body, created in rows]

    def settle(self, ids: Sequence[int]) -> None:
        with self._session.lock:
            self._do(lambda c: c.execute(sql.SPOOL_SETTLE, (list(ids),)))
            self._held = None

    def expire(self, before: float) -> int:
        with self._session.lock:
            self._held = None
            return int(self._do(lambda c: c.execute(sql.SPOOL_EXPIRE, (before,)).rowcount))

    def size(self) -> tuple[int, int]:
        with self._session.lock:
            if self._held is None:
                number, held = self._do(lambda c: c.execute(sql.SPOOL_SIZE).fetchall())[0]
                self._held = int(number), int(held)
            return self._held

    def _do(self, work: Callable[[psycopg.Connection[Any]], _T], *, durable: bool = False) -> _T:
        return self._session.transact(work, durable=durable and self._fsync)
