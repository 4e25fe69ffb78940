"""Senders of OTLP/HTTP that are exact about what goes over the socket, and the receiver that they send to."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_letta.serve.server import Options, Service, listen
from otel_letta.settings import Settings
from tests.support.waiting import until

__all__ = [
    "Answer",
    "Connection",
    "cases",
    "exchange",
    "post",
    "progress_event",
    "progress_of",
    "request_of",
    "serving",
    "span_of",
]

_CASES = Path(__file__).parents[1] / "data" / "otlp_cases" / "cases.jsonl.gz"
_MEGABYTE = 1 << 20
_PATIENCE = 60.0


def cases() -> list[dict[str, Any]]:
    """Requests that real senders send, with the right answers; each names where it comes from."""
    with gzip.open(_CASES, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def serving(base_url: str, agent: str, *, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Service]:
    """A receiver in this process, on a port of its own, that reports to an agent."""
    resolved = Settings.resolve(
        base_url=base_url, agent_id=agent, **{"message_interval": 0, "board_interval": 0, **(settings or {})}
    )
    listener = listen("127.0.0.1", 0)
    try:
        service = Service(Options(port=listener.getsockname()[1], **options), resolved)
    except BaseException:
        listener.close()
        raise
    thread = threading.Thread(target=service.run, args=([listener],))
    thread.start()
    try:
        assert until(lambda: service.server.started or not thread.is_alive())
        assert thread.is_alive()
        yield service
    finally:
        service.stop()
        thread.join(_PATIENCE)
        assert not thread.is_alive()


@dataclass
class Answer:
    """An answer as it came; status 0 is a connection that was closed instead."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection, on which requests follow one another."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self.port = port
        self.open = True
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send; False if the other side does not read any more."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self) -> Answer:
        """Read the next answer."""
        try:
            status, headers = self._head()
            while 100 <= status < 200:
                status, headers = self._head()
            body = self._file.read(int(headers.get("content-length", 0)))
        except ConnectionResetError:
            status, headers, body = 0, {}, b""
        if not status or "close" in headers.get("connection", "").lower():
            self.open = False
        return Answer(status, headers, body)

    def _head(self) -> tuple[int, dict[str, str]]:
        first = self._file.readline()
        if not first:
            return 0, {}
        version, status, *_ = first.split()
        assert version.startswith(b"HTTP/1.")
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(status), headers


def exchange(connection: Connection, case: dict[str, Any], token: str | None) -> Answer:
    """Send a case exactly as it says, and read the answer."""
    body = base64.b64decode(case["body_b64"])
    fill = case.get("fill", {"count": 0})
    headers = {name: value.replace("{token}", token or "") for name, value in case["headers"].items()}
    known = {name.lower() for name in headers}
    if "host" not in known:
        headers["Host"] = f"127.0.0.1:{connection.port}"
    if token and "authorization" not in known and case.get("auth") != "none":
        headers["Authorization"] = f"Bearer {token}"
    if case.get("chunked"):
        headers["Transfer-Encoding"] = "chunked"
    elif "content-length" not in known:
        headers["Content-Length"] = str(len(body) + fill["count"])
    head = f"{case['method']} {case['path']} HTTP/{case.get('http', '1.1')}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    connection.send(head.encode("latin-1"))
    left = case.get("cut", len(body) + fill["count"])
    for piece in _pieces(case, body):
        piece = piece[:left]
        left -= len(piece)
        if case.get("chunked"):
            piece = b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b""
        if not connection.send(piece):
            break
        time.sleep(case.get("pause", 0))  # it is what the case is about
    else:
        if case.get("chunked") and "cut" not in case:
            connection.send(b"0\r\n\r\n")
    if "cut" in case:
        connection.socket.shutdown(socket.SHUT_WR)
    return connection.answer()


def _pieces(case: dict[str, Any], body: bytes) -> Iterator[bytes]:
    if fill := case.get("fill"):
        yield body[: fill["at"]]
        for start in range(0, fill["count"], _MEGABYTE):
            yield bytes([fill["byte"]]) * min(_MEGABYTE, fill["count"] - start)
        yield body[fill["at"] :]
        return
    size = case.get("chunk_size") or -(-len(body) // case.get("pieces", 1)) or 1
    for start in range(0, len(body), size):
        yield body[start : start + size]


def post(port: int, path: str, body: bytes, kind: str = "application/json", **headers: str) -> Answer:
    """Send one request on a connection of its own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    case = {"method": "POST", "path": path, "headers": {"Content-Type": kind, **named}}
    with Connection(port) as connection:
        return exchange(connection, {**case, "body_b64": base64.b64encode(body).decode()}, None)


def span_of(name: str, number: int = 1, **more: Any) -> dict[str, Any]:
    """A declared task, ended well, as OTLP-JSON has it."""
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": "1795946400000000000",
        "endTimeUnixNano": "1795946401500000000",
        "attributes": [{"key": "letta.chat.id", "value": {"stringValue": "c1"}}],
        "status": {"code": 1},
        **more,
    }


def request_of(*parts: dict[str, Any], logs: bool = False, **resource: str) -> bytes:
    """An export request in JSON."""
    attributes = [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in resource.items()]
    groups, inner, items = (
        ("resourceLogs", "scopeLogs", "logRecords") if logs else ("resourceSpans", "scopeSpans", "spans")
    )
    document = {
        groups: [{"resource": {"attributes": attributes}, inner: [{"scope": {"name": "s"}, items: list(parts)}]}]
    }
    return json.dumps(document).encode()


def progress_event(number: int, **attributes: str) -> dict[str, Any]:
    """A log event of a span of its own, which says that a task is under way."""
    return {
        "timeUnixNano": "1795946400500000000",
        "eventName": "letta.task.progress",
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "attributes": [
            {"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in attributes.items()
        ],
    }


def progress_of(task: str, number: int) -> bytes:
    """A log request of a program, one of many of the service ``shop``, that says that a task of its is under way."""
    event = progress_event(number, letta__task__id=task)
    return request_of(event, logs=True, service__name="shop", service__instance__id=f"{number}")
