"""Connections that ask for nothing: ended after a while, and sooner where there are many.

uvicorn bounds the time of a connection between two requests, but not of one that never finishes its first: a few
hundred of those would use up all connections, and no token is asked for before the headers are complete.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol  # type: ignore[import-not-found, unused-ignore]

PATIENCE = 10.0
"""Seconds that the headers of a request may take."""
MOST_WAITING = 64
"""Connections without a whole request at once; one more, and the oldest of them is ended."""

_waiting: OrderedDict[Any, None] = OrderedDict()


class HalfOpenProtocol(H11Protocol):  # type: ignore[misc, unused-ignore]
    """A connection whose time without a whole request is bounded."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override, unused-ignore]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy() and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._stop_waiting()
        _waiting[self] = None
        self._timer = self.loop.call_later(PATIENCE, self._give_up)
        while len(_waiting) > MOST_WAITING:
            next(iter(_waiting))._give_up()

    def _stop_waiting(self) -> None:
        _waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._stop_waiting()
        self.transport.abort()
