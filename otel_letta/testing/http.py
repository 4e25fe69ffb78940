"""HTTP on loopback: a listener that can stop, cut its connections and resume on the same port."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from otel_letta.testing.api import Api
from otel_letta.testing.bodies import Answer, json_answer
from otel_letta.testing.world import Request

HOST = "127.0.0.1"
_MASK = "***"
_CREDENTIALS = ("authorization", "x-bare-password")
_CLOSE_TIMEOUT = 5.0


class _Connections:
    """The open connections, so that they can be cut, and so that closing can wait for their threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()

    def add(self, connection: socket.socket) -> None:
        with self._changed:
            self._open.add(connection)

    def discard(self, connection: socket.socket) -> None:
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def cut(self) -> None:
        """End them for the client at once; their threads notice when they next read or write."""
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_until_none(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a held turn would block it; InMemoryLetta.close waits, for a bounded time
    request_queue_size = 128

    def __init__(self, port: int, api: Api, connections: _Connections) -> None:
        self.api = api
        self.connections = connections
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: that one asks the resolver for this host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when a client went away; a mistake of ours, or in a test's predicate, shall be seen."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "InMemoryLetta"
    sys_version = ""
    # TCP_NODELAY: head and body leave as two packets, and Nagle's algorithm would hold the second for 40 ms.
    disable_nagle_algorithm = True

    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Write nothing that a client sent anywhere."""

    def _serve(self) -> None:
        raw = self._read_body()
        if raw is None:
            return
        try:
            target = urlsplit(self.path)
        except ValueError:
            self._send(json_answer({"detail": "Bad Request"}, 400))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            method=self.command,
            path=target.path,
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            headers={name: _MASK if name in _CREDENTIALS else value for name, value in headers.items()},
            body=_decoded(raw),
            time=time.monotonic(),
        )
        credentials = {name: headers[name] for name in _CREDENTIALS if name in headers}
        self._send(self.server.api.answer(request, raw, credentials))

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _read_body(self) -> bytes | None:
        """Read the whole body; None when there is none to trust: the client broke off, or gave no length."""
        if self.request_version == "HTTP/0.9":  # how http.server reads a request line that was cut short
            self.close_connection = True
            return None
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(json_answer({"detail": "Length Required"}, 411))
            return None
        length = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch("[0-9]{1,12}", length):
            self.close_connection = True
            self._send(json_answer({"detail": "Bad Request"}, 400))
            return None
        raw = self.rfile.read(int(length))
        if len(raw) < int(length):
            self.close_connection = True
            return None
        return raw

    def _send(self, answer: Answer) -> None:
        if answer.drop:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        bodiless = answer.status in (204, 304) or answer.status < 200
        payload = b"" if bodiless else answer.payload
        self.send_response(answer.status)
        headers = {name.title(): value for name, value in answer.headers.items()}
        if answer.content_type and not bodiless:
            headers.setdefault("Content-Type", answer.content_type)
        if not bodiless:
            headers["Content-Length"] = str(len(payload))
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if payload and self.command != "HEAD":
            self.wfile.write(payload)


def _decoded(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")


class Listener:
    """The server's socket and thread; may be started and stopped again and again, always on the same port."""

    def __init__(self, api: Api, port: int) -> None:
        self.port = port
        """0 until the first `start`, if a free one may be taken."""
        self._api = api
        self._connections = _Connections()
        self._running: tuple[_Server, threading.Thread] | None = None
        self._reserved: socket.socket | None = None

    @property
    def listening(self) -> bool:
        return self._running is not None

    def start(self) -> None:
        """Listen; OSError when the port is taken."""
        self._release_port()
        server = _Server(self.port, self._api, self._connections)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="in-memory-letta", daemon=True)
        self._running = server, thread
        thread.start()

    def stop(self) -> None:
        """Refuse connections and cut the open ones, but keep the port: no other process can take it."""
        if self._running is None:
            return
        self._stop_serving()
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind((HOST, self.port))
        except OSError:  # a courtesy only: without it the port is refused all the same
            reserved.close()
        else:
            self._reserved = reserved

    def close(self) -> None:
        """Stop for good, and wait a bounded time until the connections' threads have ended."""
        self._stop_serving()
        self._release_port()
        self._connections.wait_until_none(_CLOSE_TIMEOUT)

    def _stop_serving(self) -> None:
        if self._running is None:
            return
        server, thread = self._running
        server.shutdown()
        server.server_close()
        self._connections.cut()
        thread.join(_CLOSE_TIMEOUT)
        self._running = None

    def _release_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
