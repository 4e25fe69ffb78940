"""A receiver on loopback that takes OTLP/HTTP, protobuf or JSON, and keeps it as an OpenTelemetry Collector would.

Each export request becomes one line of OTLP-JSON, of spans and of log records a file, which is what `otel-letta replay`
reads. Metrics are taken and forgotten. It may stand before a real receiver, which gets every request as it came, and
answers it.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["OtlpRecorder"]

_SIGNALS: dict[str, tuple[str, type[Message]]] = {
    "/v1/traces": ("spans.jsonl", ExportTraceServiceRequest),
    "/v1/logs": ("logs.jsonl", ExportLogsServiceRequest),
}
_FORWARDED = ("Authorization", "Content-Encoding", "Content-Type")
_IDS = ("traceId", "spanId", "parentSpanId")


class OtlpRecorder(LoopbackServer):
    """The server; ``folder`` gets its files. ``forward_to``: the URL of the receiver behind it."""

    def __init__(self, folder: Path, listener: socket.socket | None = None, forward_to: str = "") -> None:
        self._folder = folder
        self.forward_to = forward_to
        self._lock = threading.Lock()
        self.refused: list[str] = []
        """What came and is no OTLP: path and content type."""
        self.authorized: set[str] = set()
        """Each header ``Authorization`` that came, or an empty text where there was none."""
        super().__init__(_Handler, listener=listener)

    @property
    def files(self) -> list[Path]:
        """Those that something came for."""
        return [file for name, _ in _SIGNALS.values() if (file := self._folder / name).exists()]

    @property
    def sent(self) -> str:
        """All that came so far."""
        with self._lock:
            return "".join(file.read_text("utf-8") for file in self.files)

    def keep(self, name: str, request: dict[str, Any]) -> None:
        with self._lock, (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(request) + "\n")


class _Handler(Handler):
    server: OtlpRecorder

    def do_POST(self) -> None:
        raw, kind = self.read(), (self.headers.get("Content-Type") or "").partition(";")[0]
        body = raw
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/metrics":
            self.send(200, {} if kind == "application/json" else b"", kind)
            return
        self.server.authorized.add(self.headers.get("Authorization") or "")
        if self.path in _SIGNALS and kind in ("application/json", "application/x-protobuf"):
            name, message = _SIGNALS[self.path]
            self.server.keep(name, json.loads(body) if kind == "application/json" else _as_json(message, body))
        else:
            self.server.refused.append(f"{self.path} ({kind})")
            self.send(404, {})
            return
        if self.server.forward_to:
            self._forward(raw)
        else:
            self.send(200, {} if kind == "application/json" else b"", kind)

    def _forward(self, body: bytes) -> None:
        kept = {name: self.headers[name] for name in _FORWARDED if name in self.headers}
        answer = httpx.post(self.server.forward_to + self.path, content=body, headers=kept, trust_env=False, timeout=60)
        self.send(answer.status_code, answer.content, answer.headers["content-type"])


def _as_json(kind: type[Message], body: bytes) -> dict[str, Any]:
    message = kind()
    message.ParseFromString(body)
    request: dict[str, Any] = MessageToDict(message, use_integers_for_enums=True)
    _name_ids(request)
    return request


def _name_ids(value: object) -> None:
    """Write ids in hexadecimal, as OTLP does, where protobuf's own mapping has base64."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _IDS and isinstance(inner, str):
                value[key] = base64.b64decode(inner).hex()
            else:
                _name_ids(inner)
    elif isinstance(value, list):
        for inner in value:
            _name_ids(inner)
