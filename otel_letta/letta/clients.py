"""httpx clients for threads: each request has one to itself.

httpx may be shared by threads, and httpcore below it is not quite ready for that: it closes a connection, for its age
or because its socket has something to read, that another thread has just begun to use. On Linux that thread is not even
woken, and waits for all of its time-out, here ten minutes (encode/httpcore#1110, seen with 1.0.9).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from otel_letta.runtime import fork

if TYPE_CHECKING:
    import httpx

_MOST_IDLE = 8
"""Clients that wait for a request. Requests at once are few: a lane has one."""


class Clients:
    """Clients of one server, that survive forks and `use`.

    Args:
        make: makes a client; no two calls of it run at once.
    """

    def __init__(self, make: Callable[[], httpx.Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[httpx.Client] = []
        self._generation = 0
        _instances.add(self)

    @contextlib.contextmanager
    def one(self) -> Iterator[httpx.Client]:
        """Lend a client: the one that was used last, whose connection may still be open, or a new one."""
        fork.check()
        with self._lock:
            generation = self._generation
            client = self._idle.pop() if self._idle else self._make()
        try:
            yield client
        finally:
            with self._lock:
                kept = generation == self._generation and len(self._idle) < _MOST_IDLE
                if kept:
                    self._idle.append(client)
            if not kept:
                client.close()

    def use(self, make: Callable[[], httpx.Client]) -> None:
        """Make clients that way from now on. The old ones are closed, those in use after their requests."""
        with self._lock:
            self._make = make
            self._generation += 1
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def forget(self) -> None:
        """Drop, in a forked child, the parent's clients. Closing them would speak on their connections."""
        self._lock = threading.Lock()
        self._generation += 1
        self._idle = []


_instances: weakref.WeakSet[Clients] = weakref.WeakSet()
# A thread in the middle of making a client is in the middle of OpenSSL, whose locks a child could never take.
fork.hold_for(_instances, lambda clients: clients._lock)
fork.in_child_each(_instances, Clients.forget)
