"""A gateway between programs, a backend and a bridge, each of which a test can stop."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.collector import Collector, Runs
from tests.support.collector_keys import FOLDER
from tests.support.loopback import Handler, LoopbackServer
from tests.support.program import Address

__all__ = ["TOKEN", "Bridge", "Gateway", "Sink", "gateway", "ports", "post", "send"]

TOKEN = "bridge-token"
_ROOT = Path(__file__).parents[2]
_REAL = _ROOT / "tests" / "real" / "collector"
_ATTEMPTS = 200


class Sink(LoopbackServer):
    """Takes OTLP/HTTP, and remembers it. ``status``: the answer; anything but 200 remembers nothing.

    While ``open`` is not set, whoever sends has to wait for the answer.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(_Taking, port=port)
        self.lock = threading.Lock()
        self.status = 200
        self.refused = 0
        self.traces: list[ExportTraceServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []
        self.raw: list[bytes] = []
        self.tokens: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def __exit__(self, *arguments: object) -> None:
        self.open.set()
        super().__exit__(*arguments)

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
        sink.open.wait(300)
        self.send(status)


class Bridge(Runs):
    """`otel-letta serve` as a process, which can be killed and come back. It does not run before `start`.

    Args:
        folder: for its outbox and its log.
        arguments: further ones of the command.
        environ: variables that differ.
    """

    def __init__(self, letta: Address, agent: str, folder: Path, *arguments: str, **environ: str) -> None:
        (self.port,) = ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "otel_letta", "serve", "--port", str(self.port), *arguments]
        variables = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_AGENT_ID": agent,
            **({"LETTA_PASSWORD": letta.password} if letta.password else {}),
            "OTEL_LETTA_MESSAGE_INTERVAL": "0",
            "OTEL_LETTA_SERVE_TOKEN": TOKEN,
            "OTEL_LETTA_OUTBOX": str(folder / "outbox.db"),
            **environ,
        }
        super().__init__(command, variables, folder / f"serve-{self.port}.log")

    def freeze(self) -> None:
        """It stays, and does nothing any more: its port takes connections that nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@dataclass
class Gateway:
    """The parts of a run, and where programs send to."""

    collector: Collector
    backend_collector: Collector
    backend: Sink
    http: str
    environ: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def gateway(
    folder: Path, bridge: str, *more: Path, first: str = "gateway.yaml", small_disk: str = "", **environ: str
) -> Iterator[Gateway]:
    """Run a configuration of `collector/`, and a second Collector as its backend.

    Args:
        bridge: the URL of the bridge.
        more: further files of configuration, after those of the repository.
        first: the file of `collector/`.
        small_disk: size of a disk of its own for the queue, as ``mount`` has it; it goes with the process.
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
        "LETTA_HOP_DIR": str(folder / "hop"),
        "HEALTH_ENDPOINT": health,
        **environ,
    }
    with Sink() as sink:
        its = {**shared, "BACKEND_SINK": sink.url, "HEALTH_ENDPOINT": its_health}
        files = [FOLDER / first, FOLDER / "privacy.yaml", *more]
        with (
            Collector([_REAL / "backend.yaml"], its, folder / "backend.log") as second,
            Collector(
                files, ours, folder / "gateway.log", {ours["LETTA_QUEUE_DIR"]: small_disk} if small_disk else {}
            ) as ours_,
        ):
            yield Gateway(ours_, second, sink, f"http://{http}", ours)


def ports(count: int) -> list[int]:
    """Return free ports, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def send(url: str, body: dict[str, Any]) -> None:
    """Send a request as a program does: again, all of it, if it was not taken."""
    for _ in range(_ATTEMPTS):
        try:
            return post(url, body)
        except urllib.error.HTTPError as error:
            assert error.code in (429, 503), error.read()
    raise AssertionError("nobody took it")


def post(url: str, body: dict[str, Any]) -> None:
    """Send a request once; HTTPError if it was not taken."""
    path = "/v1/traces" if "resourceSpans" in body else "/v1/logs"
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
