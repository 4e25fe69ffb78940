"""One SQLite file for the processes of a host: connection, schema, bounds, and what to do with a broken file.

The file is in WAL mode, so that writers do not block readers, and is readable for its user alone. Of each transaction
that holds an end or says that a request goes out, the disk has to confirm the receipt (``synchronous=FULL``: one fsync
of the log) unless ``fsync`` is off; any other may be lost in a power failure, in which case something is looked up or
conflated again, and none is lost when a process dies. Without fsync a power failure may lose the last seconds, and
never the file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from otel_letta.runtime import fork
from otel_letta.store.model import VERSION, StoreError, StoreFullError, StoreNewerError

_APPLICATION = 0x4F544C31
"""``application_id``: a file of another program is not touched."""
_BUSY = 5.0
"""Seconds that a transaction waits for another process's."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, scope TEXT NOT NULL, lane TEXT NOT NULL,
    body TEXT NOT NULL, created REAL NOT NULL, posted REAL, note TEXT
);
CREATE INDEX entries_of_lane ON entries (owner, lane, id);
CREATE TABLE standings (
    key TEXT PRIMARY KEY, owner TEXT, scope TEXT NOT NULL, lane TEXT NOT NULL, body TEXT NOT NULL,
    waiting INTEGER NOT NULL, owed INTEGER NOT NULL, updated REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX standings_of_owner ON standings (owner);
CREATE TABLE spool (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, body BLOB NOT NULL, created REAL NOT NULL
);
"""

_T = TypeVar("_T")

_abandoned: list[sqlite3.Connection] = []
"""Kept, so that nobody closes them."""
_unusable: set[Path] = set()
"""Files that this process must not touch; see below, under forks."""


class Database:
    """One connection to the file, for one thread at a time.

    Args:
        path: of the file; made if it is missing.
        fsync: whether the disk confirms what must not be lost.
        most_bytes: bound of the file's used pages; None for no bound.
    """

    def __init__(self, path: Path, *, fsync: bool = True, most_bytes: int | None = None) -> None:
        self.path = path
        self.place = str(path)
        self._fsync = fsync
        self._most_bytes = most_bytes
        self._connection: sqlite3.Connection | None = None
        self._suspended = False
        self._inode: tuple[int, int] | None = None
        self._identity = ""
        self._full_sync: bool | None = None
        self.lock = threading.RLock()
        _instances.add(self)

    @property
    def locks(self) -> Path:
        """The folder of the locks of those who use the file."""
        return self.path.with_name(self.path.name + ".locks")

    @property
    def identity(self) -> str:
        """The name of the database that was opened last. A new file may get the place of an old one on the disk."""
        return self._identity

    # -- life ----------------------------------------------------------------------------------------------------

    def open(self) -> bool:
        """Connect. Return False if it was open already.

        Raises:
            StoreError: and nothing is open.
        """
        with self.lock:
            if self._connection is not None:
                return False
            with self._errors():
                # A file that was never used as an outbox is left as it is, whatever is in it.
                ours = self.locks.is_dir()
                try:
                    self._connect_anyhow(ours)
                except BaseException:
                    self.close()
                    raise
            return True

    def _connect_anyhow(self, ours: bool) -> None:
        """Connect, to a new file if the one that is there is broken and was an outbox."""
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            self.close()
            if not _is_corrupt(error):
                raise
            if not ours:
                raise StoreError(f"{self.path} is no outbox: name another file") from error
            self._move_aside()
            self._connect()

    def close(self) -> None:
        """Disconnect; quiet if it is not open."""
        with self.lock:
            connection, self._connection, self._inode = self._connection, None, None
            self._suspended = False
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    def suspend(self) -> None:
        """Disconnect until the next use."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._suspended = True
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    def _connect(self) -> None:
        if self.path in _unusable:
            raise StoreError(f"{self.path} was open in the process that this one was forked from: not used here")
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path}: its folder does not exist")
        # SQLite gives its log and index files the mode of this one.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        if sys.platform != "win32" and self.path.stat().st_mode & 0o077:
            self.path.chmod(0o600)
        connection = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        self._connection, self._full_sync = connection, None
        connection.execute("BEGIN")  # all three as of one moment: another process may be creating it
        application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        connection.execute("COMMIT")
        if (application and application != _APPLICATION) or (not application and tables):
            raise StoreNewerError(f"{self.path} is a database of another program: name another file")
        if version > VERSION:
            raise StoreNewerError(
                f"{self.path} was made by a newer otel-letta (schema {version}, this one knows {VERSION}): update, "
                "or name another file"
            )
        connection.execute("PRAGMA journal_mode=WAL")
        if not version:
            self._create(connection)
        self.locks.mkdir(mode=0o700, exist_ok=True)
        found = self.path.stat()
        self._inode = found.st_dev, found.st_ino
        (self._identity,) = connection.execute("SELECT value FROM meta WHERE name='identity'").fetchone()

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not _pragma(connection, "user_version"):  # nobody was faster
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex,))
                connection.execute(f"PRAGMA application_id={_APPLICATION}")
                connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _move_aside(self) -> None:
        """Keep a file that is no database, or a broken one, under another name: a person may want to read it."""
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        _logger_of_moves(self.path, aside)

    # -- use -----------------------------------------------------------------------------------------------------

    def write(self, work: Callable[[sqlite3.Connection], _T], *, durable: bool, grows: bool = True) -> _T:
        """Do the work in one transaction, which fails as a whole.

        Args:
            work: executes statements.
            durable: the disk has to have it on return.
            grows: refuse it if the bound is reached.

        Raises:
            StoreError: nothing of it was written.
        """
        with self.lock, self._errors():
            connection = self._ready()
            self._sync(connection, full=durable and self._fsync)
            connection.execute("BEGIN IMMEDIATE")
            try:
                if grows and self._most_bytes is not None and self._used(connection) > self._most_bytes:
                    raise StoreFullError(
                        f"{self.path} holds {self._most_bytes / 1e6:.0f} MB, which is as much as it may"
                    )
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            return result

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do work that only reads."""
        with self.lock, self._errors():
            return work(self._ready())

    def _ready(self) -> sqlite3.Connection:
        if self._connection is None and self._suspended:
            inode, self._suspended = self._inode, False
            self._connect()
            if inode != self._inode:
                self.close()
                raise StoreError(f"{self.path} was replaced by another file")
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self.path} is not open")
        try:
            found = self.path.stat()
        except OSError as error:
            self.close()
            raise StoreError(f"{self.path} is gone: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != self._inode:
            self.close()  # what was written from here on, nobody would find
            raise StoreError(f"{self.path} was replaced by another file")
        return connection

    def _sync(self, connection: sqlite3.Connection, *, full: bool) -> None:
        if full is not self._full_sync:
            connection.execute("PRAGMA synchronous=" + ("FULL" if full else "NORMAL"))
            self._full_sync = full

    def _used(self, connection: sqlite3.Connection) -> int:
        pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        return pages * _pragma(connection, "page_size")

    def size(self) -> int:
        """Return the bytes that are in use."""
        return self.read(self._used)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _is_corrupt(error):
                self.close()
            text = str(error)
            if "full" in text:
                raise StoreFullError(f"The disk of {self.path} is full") from error
            raise StoreError(f"{self.path}: {text}") from error
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or type(error).__name__}") from error


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _is_corrupt(error: sqlite3.Error) -> bool:
    """Return True for SQLITE_CORRUPT and SQLITE_NOTADB. Python 3.10 knows no codes."""
    text = str(error)
    return "malformed" in text or "not a database" in text


def _logger_of_moves(path: Path, aside: Path) -> None:
    import logging

    logging.getLogger(__name__).error("%s is no readable database: moved to %s, and a new one is used", path, aside)


# -- forks -------------------------------------------------------------------------------------------------------------

# SQLite forbids the use of a connection in a forked child, its closing included. Worse, a child that inherited an open
# one believes to hold locks on the file that only its parent holds, also through a connection of its own. So the file
# is closed before a fork, and opened again at its next use. A child of which this was not noticed, as a program in C
# forked it, or as a transaction took too long, leaves the file alone.


def _close_before() -> None:
    for database in list(_instances):
        if database.lock.acquire(timeout=0.2):
            try:
                database.suspend()
            finally:
                database.lock.release()


def _forget_in_child(database: Database) -> None:
    database.lock = threading.RLock()
    if database._connection is not None:
        _abandoned.append(database._connection)
        database._connection = None
        _unusable.add(database.path)


_instances: weakref.WeakSet[Database] = weakref.WeakSet()
fork.before(_close_before)
fork.in_child_each(_instances, _forget_in_child)
