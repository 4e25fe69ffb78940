"""HTTP on loopback, as all stand-ins of these tests serve it: on a free port, in threads of its own, and silent."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

__all__ = ["Handler", "LoopbackServer", "answering"]

_S = TypeVar("_S", bound="LoopbackServer")


class Handler(BaseHTTPRequestHandler):
    """One request; subclasses have the methods ``do_GET`` and so on."""

    protocol_version = "HTTP/1.1"
    # TCP_NODELAY: head and body leave as two packets, and Nagle's algorithm would hold the second for 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Nothing is written anywhere."""

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Iterator[bytes]:
        """The parts of a body whose length nobody knew when it began; Node's exporters send such."""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            """Trailers say nothing."""

    def send(self, status: int, body: Any = b"", content_type: str | None = None) -> None:
        """Answer with bytes as they are, and with everything else as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if content_type or not isinstance(body, bytes):
            self.send_header("Content-Type", content_type or "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class LoopbackServer(ThreadingHTTPServer):
    """Listens from its construction, and answers from `start` or the beginning of its ``with`` block."""

    daemon_threads = True
    block_on_close = False  # a request that is held would block it
    request_queue_size = 128

    def __init__(
        self, handler: type[Handler], *, host: str = "127.0.0.1", port: int = 0, listener: socket.socket | None = None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = listener
        super().__init__((host, port), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="stand-in", daemon=True)

    def server_bind(self) -> None:
        if self._listener is not None:  # bound already, and perhaps in a network of its own
            self.socket.close()
            self.socket, self.server_address = self._listener, self._listener.getsockname()
        else:
            # Not HTTPServer's: that one asks the resolver for this host's name, which can take seconds.
            socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join(5)
        self.server_close()

    def __enter__(self: _S) -> _S:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when the client went away; everything else is a mistake that shall be seen."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Answer every GET with the same. Yield the address."""

    class Answer(Handler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # who asked may have enough
                self.send(status, body)

    with LoopbackServer(Answer) as server:
        yield server.url
