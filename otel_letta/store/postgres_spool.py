"""The spool in PostgreSQL: see `Spool`. In the schema that the outbox has there, whether one is used or not.

Many processes, on any number of hosts, share the table: each sees its own bodies, and takes over those of the dead.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from otel_letta.store import statements as sql
from otel_letta.store.model import SpoolItem
from otel_letta.store.postgres import prepare
from otel_letta.store.postgres_lives import GRACE, be_born, is_gone_for_good, take_estate
from otel_letta.store.sessions import Session, first
from otel_letta.store.together import Together, Waiting, fitting

if TYPE_CHECKING:
    import psycopg

_T = TypeVar("_T")


class PostgresSpool:
    """One process's bodies in one table of a database.

    Args:
        url: ``postgresql://…``, as libpq reads it.
        place: the same without a password.
        fsync: whether the disk confirms each body.
        most_bytes: bound of this process's bodies together.
        grace: see `GRACE`.
    """

    def __init__(
        self, url: str, place: str, *, fsync: bool = True, most_bytes: int | None = None, grace: float = GRACE
    ) -> None:
        self.place = place
        self.owner = uuid.uuid4().hex
        self._session = Session(url, place, f"otel_letta spool {self.owner[:8]}")
        self._fsync = fsync
        self._most_bytes = most_bytes
        self._grace = grace
        self._held: tuple[int, int] | None = None
        self._together = Together(self._write)
        self._wanted = False

    def open(self) -> None:
        with self._session.lock:
            self._wanted = True
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
            self._held = None  # somebody may have taken it for dead meanwhile

    def close(self) -> None:
        self._together.close()
        with self._session.lock:
            self._wanted = False
            if self._session.connection is not None:
                with contextlib.suppress(Exception):
                    self._session.connection.execute(sql.BURY, (self.owner,))
            self._session.close()
            self._held = None

    def adopt(self) -> list[int]:
        """Take over what processes that are gone have left; return the ids of those bodies."""
        found: list[int] = []
        for (name,) in self._do(lambda c: c.execute(sql.SPOOL_OWNERS, (self.owner,)).fetchall()):
            if not name or is_gone_for_good(self._session, name, self._grace):
                found += self._do(lambda c, name=name: self._adopt_from(c, name), durable=True)  # type: ignore[misc]
        self._held = None
        return sorted(found)

    def _adopt_from(self, connection: psycopg.Connection[Any], name: str) -> list[int]:
        if not take_estate(connection, name):
            return []
        found = [row[0] for row in connection.execute(sql.SPOOL_ADOPT, (self.owner, name)).fetchall()]
        connection.execute(sql.BURY, (name,))
        return found

    def append(self, kind: str, body: bytes) -> Future[int]:
        return self._together.append(kind, body)

    def _write(self, waiting: Sequence[Waiting]) -> None:
        with self._session.lock:
            number, held = self.size()
            found, now = fitting(held, self._most_bytes, self.place, waiting), time.time()
            rows = [(self.owner, each.kind, each.body, now) for each in found]
            ids = self._do(lambda c: [int(first(c.execute(sql.SPOOL_ADD, row))) for row in rows], durable=True)
            for each, new in zip(found, ids, strict=True):
                each.id = new
            self._held = number + len(found), held + sum(len(each.body) for each in found)

    def unsettled(self, after: int = 0, limit: int = 100) -> list[SpoolItem]:
        rows = self._do(lambda c: c.execute(sql.SPOOL_REST, (self.owner, after, limit)).fetchall())
        return [SpoolItem(number, kind, bytes(body), created) for number, kind, body, created in rows]

    def settle(self, ids: Sequence[int]) -> None:
        with self._session.lock:
            self._do(lambda c: c.execute(sql.SPOOL_SETTLE, (self.owner, list(ids))))
            self._held = None

    def expire(self, before: float) -> int:
        with self._session.lock:
            self._held = None
            return int(self._do(lambda c: c.execute(sql.SPOOL_EXPIRE, (self.owner, before)).rowcount))

    def size(self) -> tuple[int, int]:
        with self._session.lock:
            if self._held is None:
                number, held = self._do(lambda c: c.execute(sql.SPOOL_SIZE, (self.owner,)).fetchall())[0]
                self._held = int(number), int(held)
            return self._held

    def _do(self, work: Callable[[psycopg.Connection[Any]], _T], *, durable: bool = False) -> _T:
        with self._session.lock:
            if self._wanted and not self._session.is_open:
                self.open()  # the server was started again, or the network failed
            return self._session.transact(work, durable=durable and self._fsync)
