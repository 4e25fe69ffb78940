"""Bounds on connections that uvicorn does not have by itself: their number, their headers, and their patience."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from otel_letta.delivery.stats import Throttle
from otel_letta.serve.answers import RETRY_AFTER

_logger = logging.getLogger(__name__)
_log = Throttle(_logger)

MOST_CONNECTIONS = 1_000
_MOST_HEAD = 65_536
"""Bytes of a request line and its headers."""
_HEAD_PATIENCE = 20.0
"""Seconds for the same to come, from the first byte on, or from the connection on if there is none."""
_MOST_DISCARDED = 128 * 2**20
_DISCARD_PATIENCE = 60.0
"""What may come, and for how long, of a body that was answered before it was read: to close at once would take the
answer away from a sender that is still writing."""


class Parser(httptools.HttpRequestParser):
    """A parser that goes on where a request offers to change the protocol: nobody here wants that, and it may be
    ignored (RFC 9110, 7.8). httptools alone takes the body for the other protocol's, and it is lost (uvicorn #2722).
    Java's own client offers HTTP/2 with every request in the clear, and so does the exporter that uses it.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        if hasattr(self, "set_dangerous_leniencies"):  # as uvicorn does: what is pipelined is answered
            self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: Any) -> None:
        parser = self
        while True:
            try:
                httptools.HttpRequestParser.feed_data(parser, data)
            except httptools.HttpParserUpgrade as offer:
                head = parser.without_offer()
                parser, data = Parser(self._protocol), head + data[offer.args[0] :]
                self._protocol.parser = parser
            else:
                break

    def without_offer(self) -> bytes:
        """Write the head of the last request again, without what offers another protocol."""
        method, protocol = self.get_method(), self._protocol
        if method == b"CONNECT":
            raise httptools.HttpParserInvalidMethodError("this is no proxy")
        headers = [b"%s: %s\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
        first = b"%s %s HTTP/%s\r\n" % (method, protocol.url, self.get_http_version().encode())
        return first + b"".join(headers) + b"\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds. The methods are its own, or the parser's callbacks."""

    _in_head = False
    _head = 0
    _discarded = 0
    _discard_until = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.parser = Parser(self)
        if len(self.connections) > MOST_CONNECTIONS:
            _log.log(logging.WARNING, "many", "more than %d connections at once: refused", MOST_CONNECTIONS)
            self._close_with(b"503 Service Unavailable", b"retry-after: %d\r\n" % RETRY_AFTER)
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._timer is None and not self._in_head and (self.cycle is None or self._is_between()):
            self._arm()
        was_in_head = self._in_head or self.cycle is None
        super().data_received(data)
        if self._in_head:
            self._head = self._head + len(data) if was_in_head else len(data)
            if self._head > _MOST_HEAD and not self.transport.is_closing():
                self._close_with(b"431 Request Header Fields Too Large")

    def _is_between(self) -> bool:
        return bool(self.cycle.response_complete and not self.cycle.more_body)

    def on_message_begin(self) -> None:
        self._in_head, self._head = True, 0
        self._discarded, self._discard_until = 0, 0.0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the head comes again, without the offer
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._discarded += len(body)
            self._discard_until = self._discard_until or time.monotonic() + _DISCARD_PATIENCE
            if self._discarded > _MOST_DISCARDED or time.monotonic() > self._discard_until:
                self.transport.abort()
            return
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(_HEAD_PATIENCE, self._give_up)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _close_with(self, status: bytes, more: bytes = b"") -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + more + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
