"""Sessions of PostgreSQL: how they are opened, what their errors say, and what becomes of them in a forked child."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from otel_letta.runtime import fork
from otel_letta.store import statements as sql
from otel_letta.store.model import StoreError, StoreFullError

if TYPE_CHECKING:
    import psycopg

_T = TypeVar("_T")

_CONNECT_SECONDS = 5
_STATEMENT_MS = 20_000


class Session:
    """One session, which may be opened again. For one thread at a time: whoever uses it holds ``lock``.

    Args:
        url: ``postgresql://…``, as libpq reads it.
        place: the same without a password.
        name: shown by the server beside it.
        options: further ones of the server, ``-c name=value``.
    """

    def __init__(self, url: str, place: str, name: str, options: str = "") -> None:
        self._url = url
        self._place = place
        self._name = name
        self._options = options
        self.lock = threading.RLock()
        self.connection: psycopg.Connection[Any] | None = None
        _instances.add(self)

    @property
    def is_open(self) -> bool:
        """False also once an error has shown that the server ended it."""
        return self.connection is not None and not self.connection.closed and not self.connection.broken

    def open(self) -> psycopg.Connection[Any]:
        """Open it. Raises StoreError."""
        try:
            import psycopg
        except ImportError:
            raise StoreError("psycopg is not installed: pip install 'otel-letta[postgres]'") from None
        self.close()
        with self.errors():
            self.connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                application_name=self._name,
                # A host that vanished is noticed within a minute and a half, on both sides.
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=6,
                tcp_user_timeout=60_000,
                options=(
                    f"-c statement_timeout={_STATEMENT_MS} -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 "
                    f"-c tcp_keepalives_count=6 -c client_min_messages=warning {self._options}"
                ),
            )
        return self.connection

    def close(self) -> None:
        """End it; quiet if it is not open."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def transact(self, work: Callable[[psycopg.Connection[Any]], _T], *, durable: bool) -> _T:
        """Do some work in one transaction; ``durable``: the disk confirms it. Raises StoreError."""
        with self.lock, self.errors():
            connection = self.connection
            if connection is None or connection.closed:
                raise StoreError(f"{self._place} is not connected")
            with connection.transaction():
                if not durable:
                    connection.execute(sql.ASYNCHRONOUS)
                return work(connection)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Inside, errors of the driver become `StoreError`, without the password."""
        import psycopg

        try:
            yield
        except psycopg.errors.DiskFull as error:
            raise StoreFullError(f"The disk of {self._place} is full") from error
        except psycopg.Error as error:
            first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            secret = urlsplit(self._url).password
            raise StoreError(f"{self._place}: {first.replace(secret, '***') if secret else first}") from None


def first(cursor: psycopg.Cursor[Any]) -> Any:
    """Return the only value of the only row."""
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def number_of(name: str) -> int:
    """Return the 64 bits that the advisory lock of this name is known by."""
    return int.from_bytes(hashlib.sha256(f"otel_letta {name}".encode()).digest()[:8], "big", signed=True)


def halves_of(number: int) -> tuple[int, int]:
    """Return the two numbers by which ``pg_locks`` shows the lock."""
    unsigned = number & (2**64 - 1)
    return unsigned >> 32, unsigned & (2**32 - 1)


def _forget_in_child(session: Session) -> None:
    # It is the parent's: an orderly end of ours would end that one's.
    _abandoned.append(session.connection)
    session.connection = None
    session.lock = threading.RLock()


_abandoned: list[object] = []
_instances: weakref.WeakSet[Session] = weakref.WeakSet()
fork.in_child_each(_instances, _forget_in_child)
