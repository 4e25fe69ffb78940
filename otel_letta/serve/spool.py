"""The spool: bodies that were taken in and whose tasks have not settled yet."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class SpoolFullError(Exception):
    """There is no room for more."""


class Item(NamedTuple):
    """A body that was taken in."""

    id: int
    kind: str
    body: bytes
    created: float
    """Unix seconds."""


class Spool(Protocol):
    """Bodies in the order of their arrival, each kept until it is settled. Safe to use from several threads."""

    durable: bool
    """They outlive the process."""
    place: str
    """For people."""

    def append(self, kind: str, body: bytes) -> int:
        """Keep a body and return its id; where it is durable, on the disk before this returns.

        Raises:
            SpoolFullError: there is no room.
            OSError: it cannot be kept now.
        """

    def unsettled(self, after: int = 0, limit: int = 100) -> list[Item]:
        """Return what is not settled, from the oldest with a higher id on."""

    def settle(self, ids: Sequence[int]) -> None:
        """Forget bodies."""

    def size(self) -> tuple[int, int]:
        """Return how many bodies wait, and their bytes together."""

    def close(self) -> None:
        """Let go of what it is kept in."""


class MemorySpool:
    """A spool that keeps nothing: what was taken in lives in the pipeline, and goes with the process."""

    durable = False
    place = "memory"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}
        self._next = 0
        self.started = time.time()

    def append(self, kind: str, body: bytes) -> int:
        with self._lock:
            self._next += 1
            self._sizes[self._next] = len(body)
            return self._next

    def unsettled(self, after: int = 0, limit: int = 100) -> list[Item]:
        return []

    def settle(self, ids: Sequence[int]) -> None:
        with self._lock:
            for each in ids:
                self._sizes.pop(each, None)

    def size(self) -> tuple[int, int]:
        with self._lock:
            return len(self._sizes), sum(self._sizes.values())

    def close(self) -> None:
        pass
