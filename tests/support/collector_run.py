"""A gateway between programs, a backend and a bridge, each of which a test can stop."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.collector import Collector
from tests.support.collector_keys import FOLDER
from tests.support.loopback import Handler, LoopbackServer

__all__ = ["TOKEN", "Gateway", "Sink", "gateway", "ports", "send"]

TOKEN = "bridge-token"
_REAL = Path(__file__).parents[1] / "real" / "collector"
_ATTEMPTS = 200


class Sink(LoopbackServer):
    """Takes OTLP/HTTP, and remembers it. ``status``: the answer; anything but 200 remembers nothing."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(_Taking, port=port)
        self.lock = threading.Lock()
        self.status = 200
        self.refused = 0
        self.traces: list[ExportTraceServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []
        self.raw: list[bytes] = []
        self.tokens: set[str] = set()

    @property
    def spans(self) -> list[Any]:
        with self.lock:
            requests = list(self.traces)
        scopes = [scope for request in requests for spans in request.resource_spans for scope in spans.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]


class _Taking(Handler):
    server: Sink

    def do_POST(self) -> None:
        body, sink = self.read(), self.server
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with sink.lock:
            if sink.status != 200:
                sink.refused += 1
            else:
                sink.tokens.add(self.headers.get("Authorization", ""))
                sink.raw.append(body)
                if self.path == "/v1/traces":
                    sink.traces.append(ExportTraceServiceRequest.FromString(body))
                else:
                    sink.logs.append(ExportLogsServiceRequest.FromString(body))
            status = sink.status
        self.send(status)


@dataclass
class Gateway:
    """The parts of a run, and where programs send to."""

    collector: Collector
    backend_collector: Collector
    backend: Sink
    http: str
    environ: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def gateway(folder: Path, bridge: str, *more: Path, **environ: str) -> Iterator[Gateway]:
    """Run `collector/gateway.yaml` as it is, and a second Collector as its backend.

    Args:
        bridge: the URL of the bridge.
        more: further files of configuration, after those of the repository.
        environ: variables that differ.
    """
    grpc, http, hop, backend, health, its_health = (f"127.0.0.1:{port}" for port in ports(6))
    shared = {"BACKEND_ENDPOINT": backend, "LETTA_BRIDGE_TOKEN": TOKEN}
    ours = {
        **shared,
        "OTLP_GRPC_LISTEN": grpc,
        "OTLP_HTTP_LISTEN": http,
        "LETTA_HOP": hop,
        "LETTA_BRIDGE": bridge,
        "LETTA_QUEUE_DIR": str(folder / "queue"),
        "HEALTH_ENDPOINT": health,
        **environ,
    }
    with Sink() as sink:
        its = {**shared, "BACKEND_SINK": sink.url, "HEALTH_ENDPOINT": its_health}
        files = [FOLDER / "gateway.yaml", FOLDER / "privacy.yaml", *more]
        with (
            Collector([_REAL / "backend.yaml"], its, folder / "backend.log") as second,
            Collector(files, ours, folder / "gateway.log") as first,
        ):
            yield Gateway(first, second, sink, f"http://{http}", ours)


def ports(count: int) -> list[int]:
    """Return free ports, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def send(url: str, body: dict[str, Any]) -> None:
    """Send a request as a program does: again, all of it, if it was not taken."""
    path = "/v1/traces" if "resourceSpans" in body else "/v1/logs"
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers={"Content-Type": "application/json"})
    for _ in range(_ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200
                return
        except urllib.error.HTTPError as error:
            assert error.code in (429, 503), error.read()
    raise AssertionError("nobody took it")
