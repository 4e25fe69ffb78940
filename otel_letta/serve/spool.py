"""Where bodies are kept until their tasks have settled: nowhere, in files beside the outbox, or in its PostgreSQL.

Each process has a file of its own, since two that share one could not know whose bodies a crash has left. In the
database, bodies have an owner.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from otel_letta.runtime.locks import try_lock
from otel_letta.serve import over
from otel_letta.store.model import Spool, SpoolItem

if TYPE_CHECKING:
    from otel_letta.store.postgres_spool import PostgresSpool

MOST_SPOOLS = 256


class MemorySpool:
    """A spool that keeps nothing: what was taken in lives in the pipeline, and goes with the process."""

    place = "memory"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._next = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def append(self, kind: str, body: bytes) -> Future[int]:
        future: Future[int] = Future()
        with self._lock:
            self._next += 1
            self._sizes[self._next] = len(body)
            future.set_result(self._next)
        return future

    def unsettled(self, after: int = 0, limit: int = 100) -> list[SpoolItem]:
        return []

    def settle(self, ids: Sequence[int]) -> None:
        with self._lock:
            for each in ids:
                self._sizes.pop(each, None)

    def expire(self, before: float) -> int:
        return 0

    def size(self) -> tuple[int, int]:
        with self._lock:
            return len(self._sizes), sum(self._sizes.values())


class OwnSpool:
    """The first of some numbered files that no other process has, and those that nobody has any more.

    Args:
        path: of the files, without their numbers.
        make: makes the spool of a file.

    Raises:
        OSError: there is none to be had.
    """

    def __init__(self, path: Path, make: Callable[[str], Spool]) -> None:
        self._path = path
        self._make = make
        self._held: dict[int, int] = {}
        """Numbers of the files that are this process's, and the descriptors of their locks."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in itertools.count(1):
            if number > MOST_SPOOLS:
                raise OSError(f"{path} and {MOST_SPOOLS} others like it are in use")
            if self._take(number):
                break
        self.spool = make(str(self._file(number)))
        self.spool.open()

    def orphans(self) -> list[Spool]:
        """Return the spools whose processes are gone; they are this process's from now on."""
        found = []
        for number in range(1, MOST_SPOOLS + 1):
            if number not in self._held and self._file(number).exists() and self._take(number):
                spool = self._make(str(self._file(number)))
                spool.open()
                found.append(spool)
        return found

    def take_over(self) -> list[int]:
        """Take what processes that are gone have left into this one's spool. Return the ids that it has there."""
        found: list[int] = []
        for orphan in self.orphans():
            numbers: dict[int, int] = {}
            while items := orphan.unsettled():
                for item in items:
                    numbers[item.id] = self.spool.append(item.kind, _moved(item, numbers)).result()
                orphan.settle([item.id for item in items])
            orphan.close()
            found += numbers.values()
        return found

    def close(self) -> None:
        """Give the files up."""
        self.spool.close()
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _file(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}-{number}")

    def _take(self, number: int) -> bool:
        file = self._file(number)
        descriptor = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(descriptor):
            os.close(descriptor)
            return False
        self._held[number] = descriptor
        return True


def _moved(item: SpoolItem, numbers: Mapping[int, int]) -> bytes:
    """Return what is to be kept of an item in another spool, where what came before it has other ids."""
    if item.kind == over.KIND:
        with contextlib.suppress(ValueError, TypeError):  # of another version: whoever reads it leaves it out
            return over.moved(item.body, numbers)
    return item.body


class SharedSpool:
    """This process's part of a table that many share.

    Raises:
        StoreError: it cannot be had.
    """

    def __init__(self, spool: PostgresSpool) -> None:
        self.spool = spool
        spool.open()

    def take_over(self) -> list[int]:
        """See `OwnSpool.take_over`."""
        return self.spool.adopt()

    def close(self) -> None:
        """Give it up."""
        self.spool.close()
