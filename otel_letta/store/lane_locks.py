"""The locks of lanes between hosts: advisory ones of PostgreSQL, in a session of their own.

The server ends that session when nothing came from it for a while (``idle_session_timeout``, PostgreSQL 14 or newer).
A process that lives says so more often, while it waits for an agent's answer as well; one that was stopped does not,
and so blocks nobody for ever.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from typing import TYPE_CHECKING, Any

from otel_letta.runtime.deadline import Deadline
from otel_letta.store import statements as sql
from otel_letta.store.model import StoreError
from otel_letta.store.sessions import Session, first, number_of

if TYPE_CHECKING:
    import psycopg

_logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""Seconds after which the server ends a session of lane locks from which nothing came."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two tries to get a lane's lock."""


class LaneLocks:
    """The locks of lanes that this process holds. Safe to use from several threads.

    Args:
        url: ``postgresql://…``, as libpq reads it.
        place: the same without a password.
        name: shown by the server beside the session.
        idle: see `IDLE_SECONDS`.
    """

    def __init__(self, url: str, place: str, name: str, idle: float = IDLE_SECONDS) -> None:
        self._session = Session(url, place, name, f"-c idle_session_timeout={int(idle * 1000)}")
        self._idle = idle
        self._held: set[str] = set()
        self._heart: threading.Thread | None = None
        self._stopped = threading.Event()

    def close(self) -> None:
        """Give all locks back."""
        self._stopped.set()
        with self._session.lock:
            self._session.close()
            self._held.clear()

    def take(self, name: str) -> bool:
        """Take a lock if it is free. Raises StoreError."""
        with self._session.lock:
            if name in self._held and self._session.is_open:
                return False  # a session would get its own lock twice
            try:
                taken = self._take_in(self._opened(), name)
            except StoreError:  # the server ended the session meanwhile
                taken = self._take_in(self._opened(), name)
            if taken:
                self._held.add(name)
            return taken

    def give(self, name: str) -> None:
        """Give a lock back; quiet if it is lost."""
        with self._session.lock:
            self._held.discard(name)
            if self._session.connection is not None:
                with contextlib.suppress(Exception):
                    self._session.connection.execute(sql.GIVE, (number_of(name),))

    def _take_in(self, connection: psycopg.Connection[Any], name: str) -> bool:
        with self._session.errors():
            return bool(first(connection.execute(sql.TAKE, (number_of(name),))))

    def _opened(self) -> psycopg.Connection[Any]:
        if self._session.is_open and self._session.connection is not None:
            return self._session.connection
        self._held.clear()
        connection = self._session.open()
        if self._heart is None or not self._heart.is_alive():
            self._stopped.clear()
            self._heart = threading.Thread(target=self._beat, name="otel_letta outbox locks", daemon=True)
            self._heart.start()
        return connection

    def _beat(self) -> None:
        """Show the server that this process lives."""
        while not self._stopped.wait(self._idle / 4):
            with self._session.lock:
                if not self._session.is_open or self._session.connection is None:
                    return
                with contextlib.suppress(Exception):
                    self._session.connection.execute("SELECT 1")


class LaneLock:
    """One lane's lock. Where the database is away, everybody gets it: there is only the host's then."""

    def __init__(self, locks: LaneLocks, name: str) -> None:
        self._locks = locks
        self._name = name
        self._held = False

    def acquire(self, until: Deadline) -> bool:
        """See `StoreLock`."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if self._locks.take(self._name):
                    self._held = True
                    return True
            except StoreError as error:
                _logger.warning("other hosts cannot be kept out of a lane: %s", error)
                return True
            if until.wait(random.uniform(pause / 2, pause)):  # noqa: S311 - keeps hosts from marching in step
                return False
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def release(self) -> None:
        """See `StoreLock`."""
        if self._held:
            self._held = False
            self._locks.give(self._name)
