"""A proxy on loopback that makes go wrong what can go wrong between a client and a server.

It stands before any server of HTTP or WebSockets, and passes on what no fault is set for::

    with FaultProxy(letta.base_url) as proxy:
        with proxy.fault(RESET_IN_RESPONSE, method="POST"):
            ...  # requests to proxy.base_url

A fault acts on a request that was read to its end, unless it says otherwise. One that `reaches` lets the server do the
work first and keeps its answer from the client.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

__all__ = ["FAULTS", "Fault", "FaultProxy", "Wire"]

_PIECE = 65_536
_MOST_HEAD = 65_536


class Wire:
    """The client's end of a connection, as faults see it."""

    def __init__(self, client: socket.socket, answer: bytes, stop: threading.Event) -> None:
        self._client = client
        self.answer = answer
        """The server's whole answer; empty unless the fault reaches it."""
        self._stop = stop

    def send(self, data: bytes) -> None:
        """Send all of it; OSError once the client is gone or the proxy closes."""
        self._client.sendall(data)

    def reset(self) -> None:
        """End the connection with a RST."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.close()

    def end_answers(self) -> None:
        """Close the server's half of the connection."""
        self._client.shutdown(socket.SHUT_WR)

    def wait_for_client(self) -> None:
        """Wait until the client goes away, or the proxy closes."""
        with contextlib.suppress(OSError):
            while self._client.recv(_PIECE):
                pass

    def pause(self, seconds: float) -> None:
        """Sleep, unless the proxy closes."""
        self._stop.wait(seconds)

    @property
    def over(self) -> bool:
        return self._stop.is_set()


@dataclass(frozen=True)
class Fault:
    """One way of going wrong. `act` may raise OSError: the client is gone."""

    name: str
    act: Callable[[Wire], None]
    reaches: bool = False
    """Whether the server gets the request, and does its work, before."""
    reads_body: bool = True

    def reaching(self) -> Fault:
        """Return the same with a server that has got the request."""
        return replace(self, name=f"{self.name}, after the turn", reaches=True)

    def __str__(self) -> str:
        return self.name


def _head(status: str, *headers: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "Connection: close", "", "")).encode()


def page(status: int) -> Fault:
    """Make the HTML page of some gateway, in front of the server."""
    html = b"<!DOCTYPE html><html><head><title>Gateway</title></head><body><h1>Sorry</h1></body></html>"

    def act(wire: Wire) -> None:
        wire.send(_head(f"{status} Gateway", "Content-Type: text/html", f"Content-Length: {len(html)}") + html)

    return Fault(f"an HTML page with status {status}", act)


def _drip(text: bytes, again: bytes) -> Callable[[Wire], None]:
    def act(wire: Wire) -> None:
        wire.send(text)
        while not wire.over:
            wire.send(again)
            wire.pause(0.02)

    return act


def _flood(head: bytes, pieces: Callable[[], Iterator[bytes]]) -> Callable[[Wire], None]:
    def act(wire: Wire) -> None:
        wire.send(head)
        for piece in pieces():
            if wire.over:
                return
            wire.send(piece)

    return act


def _chunks() -> Iterator[bytes]:
    piece = b" " * _PIECE
    while True:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def _bomb() -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = b" " * 2**20
    while True:
        packed = packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield b"%x\r\n%b\r\n" % (len(packed), packed)


def _half(wire: Wire) -> None:
    wire.send(wire.answer[: len(wire.answer) // 2])
    wire.reset()


def _end(wire: Wire) -> None:
    wire.end_answers()
    wire.wait_for_client()


_JSON = ("Content-Type: application/json",)
_GARBAGE = random.Random(13).randbytes(2_000)

REFUSE = Fault("the connection is refused", Wire.reset)
"""By a closed port: the proxy does not listen while it is set."""
RESET_IN_REQUEST = Fault("a reset in the middle of the request", Wire.reset, reads_body=False)
RESET_IN_RESPONSE = Fault("a reset in the middle of the answer", _half, reaches=True)
CLOSED = Fault("the connection closes without an answer", Wire.end_answers)
HALF_CLOSED = Fault("a half-closed connection without an answer", _end)
STALL = Fault("no answer ever", Wire.wait_for_client)
DRIP_HEAD = Fault("an answer whose headers come in drops", _drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"."))
DRIP_BODY = Fault(
    "an answer whose body comes in drops", _drip(_head("200 OK", *_JSON, "Transfer-Encoding: chunked"), b"1\r\n \r\n")
)
INTERIM = Fault("interim answers without end", _drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"))
GARBAGE = Fault("bytes that are no HTTP", lambda wire: wire.send(_GARBAGE))
NO_CONTENT = Fault("204 without a body", lambda wire: wire.send(_head("204 No Content")))
EMPTY = Fault("200 with an empty body", lambda wire: wire.send(_head("200 OK", *_JSON, "Content-Length: 0")))
REDIRECT = Fault(
    "a redirect to another host",
    lambda wire: wire.send(_head("302 Found", "Location: https://login.example/?next=1", "Content-Length: 0")),
)
CHUNKS = Fault("chunks without end", _flood(_head("200 OK", *_JSON, "Transfer-Encoding: chunked"), _chunks))
BOMB = Fault(
    "a gzip bomb", _flood(_head("200 OK", *_JSON, "Content-Encoding: gzip", "Transfer-Encoding: chunked"), _bomb)
)
PAGES = tuple(page(status) for status in (200, 400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504, 520, 524))

FAULTS = (
    REFUSE,
    RESET_IN_REQUEST,
    RESET_IN_RESPONSE,
    CLOSED,
    CLOSED.reaching(),
    HALF_CLOSED,
    STALL,
    STALL.reaching(),
    DRIP_HEAD,
    DRIP_BODY,
    INTERIM,
    GARBAGE,
    GARBAGE.reaching(),
    NO_CONTENT,
    EMPTY,
    REDIRECT,
    CHUNKS,
    BOMB,
    *PAGES,
    page(500).reaching(),
    page(502).reaching(),
    page(503).reaching(),
    page(504).reaching(),
    page(524).reaching(),
)
"""Every fault that needs neither a certificate nor a name server."""


class FaultProxy:
    """Stands before the server at ``url``; for use in a ``with`` block.

    Args:
        url: of the server.
        tls: speak TLS with the client, which then finds the proxy at ``https://``.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._tls = tls
        self._changed = threading.Condition()
        self._fault: Fault | None = None
        self._method: str | None = None
        self._left: int | None = None
        self.hits = 0
        """Requests that a fault met."""
        self._stop = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.base_url = f"{parts.scheme if tls is None else 'https'}://127.0.0.1:{self._port}"
        self._accept_on(self._listener)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._close_listener()
        self._cut()

    @contextlib.contextmanager
    def fault(self, fault: Fault, *, method: str | None = None, times: int | None = None) -> Iterator[None]:
        """Inside, the fault meets requests of that method (None: all), so many times (None: always)."""
        self.set(fault, method=method, times=times)
        try:
            yield
        finally:
            self.set(None)

    def set(self, fault: Fault | None, *, method: str | None = None, times: int | None = None) -> None:
        """Let this fault meet requests from now on; None lets all pass. Connections that are open are cut."""
        with self._changed:
            before, self._fault = self._fault, fault
            self._method, self._left = method, times
            self._changed.notify_all()
        if fault is REFUSE:
            self._close_listener()
        elif before is REFUSE:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._accept_on(self._listener)
        if fault is REFUSE or before is not None:
            self._cut()

    def use_tls(self, tls: ssl.SSLContext) -> None:
        """Show another certificate from now on."""
        self._tls = tls

    def wait_until_hit(self, times: int = 1, seconds: float = 60.0) -> bool:
        """Wait until a fault has met so many requests in all."""
        with self._changed:
            return self._changed.wait_for(lambda: self.hits >= times, seconds)

    # ----------------------------------------------------------------------------------------------------------------

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone does not wake a thread that waits in accept().
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _cut(self) -> None:
        with self._changed:
            connections = list(self._open)
        for each in connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept_on(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), name="fault proxy", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), name="fault proxy connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
            stack.callback(client.close)
            if self._tls is not None:
                client = stack.enter_context(self._tls.wrap_socket(client, server_side=True))
            with self._changed:
                self._open.add(client)
            try:
                while self._one(client):
                    pass
            finally:
                with self._changed:
                    self._open.discard(client)

    def _one(self, client: socket.socket) -> bool:
        """Serve one request. Return whether another one may follow."""
        head, rest = _read_head(client)
        if not head:
            return False
        fault = self._take(head.split(b" ", 1)[0].decode("latin-1"))
        if fault is not None and not fault.reads_body:
            fault.act(Wire(client, b"", self._stop))
            return False
        if b"\r\nupgrade: websocket" in head.lower() and fault is None:
            self._pipe(client, head + rest)
            return False
        body = rest + _read(client, _length(head) - len(rest))
        answer = self._ask(head, body) if fault is None or fault.reaches else b""
        if fault is None:
            client.sendall(answer)
            return False  # the server was asked to close, and the client can read that
        fault.act(Wire(client, answer, self._stop))
        return False

    def _take(self, method: str) -> Fault | None:
        with self._changed:
            if self._fault is None or (self._method is not None and method != self._method) or self._left == 0:
                return None
            if self._left is not None:
                self._left -= 1
            self.hits += 1
            self._changed.notify_all()
            return self._fault

    def _ask(self, head: bytes, body: bytes) -> bytes:
        """Return the server's whole answer; empty if it gave none."""
        lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
        answer = bytearray()
        with contextlib.suppress(OSError), socket.create_connection(self._upstream) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            while data := server.recv(_PIECE):
                answer += data
        return bytes(answer)

    def _pipe(self, client: socket.socket, first: bytes) -> None:
        with socket.create_connection(self._upstream) as server:
            with self._changed:
                self._open.add(server)
            server.sendall(first)
            back = threading.Thread(target=_copy, args=(server, client), name="fault proxy pipe", daemon=True)
            back.start()
            _copy(client, server)
            back.join()
            with self._changed:
                self._open.discard(server)


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    data = bytearray()
    while b"\r\n\r\n" not in data and len(data) < _MOST_HEAD:
        more = client.recv(_PIECE)
        if not more:
            return b"", b""
        data += more
    head, end, rest = bytes(data).partition(b"\r\n\r\n")
    return head + end, rest


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _read(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = client.recv(min(size - len(data), _PIECE))
        if not more:
            break
        data += more
    return bytes(data)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
