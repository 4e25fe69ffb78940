"""The receiver's gRPC side: the same bodies in other envelopes."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped, unused-ignore]

from otel_letta.delivery.stats import Throttle
from otel_letta.serve.answers import Refusal, partial_success, retry_info, status_of
from otel_letta.serve.http import Doors
from otel_letta.serve.intake import Intake
from otel_letta.serve.metrics import Metrics

if TYPE_CHECKING:
    from otel_letta.serve.server import Options

_logger = logging.getLogger(__name__)

_THREADS = 4
_MOST_AT_ONCE = 64
"""Requests that wait or are worked on; more are refused, and senders come back."""
_MOST_IN_ALL = 256
"""The same with those whose bodies are still coming. gRPC itself refuses more, as RESOURCE_EXHAUSTED: senders that keep
to OTLP drop for good what gets that, so it has to stay out of their way."""
_GRACE = 2.0
"""Seconds that requests under way get when the server stops."""
_METHODS = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS = "grpc-status-details-bin"


class RpcServer:
    """OTLP/gRPC on a port of its own.

    Args:
        options: address, certificate and bounds.
        intake: takes in the bodies.
        doors: asks for the token.
        metrics: counts.
        shared: other processes listen on the same port.

    Raises:
        RuntimeError: the address cannot be had.
    """

    def __init__(
        self, options: Options, intake: Intake, doors: Doors, metrics: Metrics, *, shared: bool = False
    ) -> None:
        self._intake = intake
        self._doors = doors
        self._metrics = metrics
        self._errors = Throttle(_logger)
        workers, self._refuse = _Workers(_THREADS, thread_name_prefix="otel_letta-grpc"), _Refuse()
        handlers = {path: self._handler(signal) for path, signal in _METHODS.items()}
        self._server = grpc.server(
            workers,
            handlers=[_Handlers(handlers, workers, self._refuse)],
            options=[
                ("grpc.max_receive_message_length", options.bounds.body),
                ("grpc.max_metadata_size", 65_536),
                ("grpc.so_reuseport", int(shared)),  # every worker has a socket of its own
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
            maximum_concurrent_rpcs=_MOST_IN_ALL,
            compression=grpc.Compression.NoCompression,
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"{host}:{options.grpc_port}"
        if options.certificate is not None and options.key is not None:
            pair = options.key.read_bytes(), options.certificate.read_bytes()
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            self.port = self._server.add_insecure_port(address)

    def start(self) -> None:
        """Begin to listen."""
        self._server.start()

    def stop(self) -> None:
        """Stop listening, and wait a moment for requests under way."""
        self._server.stop(_GRACE).wait()
        self._refuse.experimental_thread_pool.shutdown()

    def _handler(self, signal: str) -> Any:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            began, status = time.perf_counter(), 200
            try:
                return self._export(signal, body, dict(context.invocation_metadata()))
            except Refusal as refusal:
                status = refusal.status
                _abort(context, refusal)
            except Exception as error:
                status = 503
                kind = type(error).__name__
                self._errors.log(logging.ERROR, kind, "unexpected %s in a request", kind)
                _logger.debug("unexpected error", exc_info=True)
                _abort(context, Refusal(503, "this receiver had an error of its own"))
            finally:
                self._metrics.answered(signal, status, len(body), time.perf_counter() - began)
            return b""

        return grpc.unary_unary_rpc_method_handler(export)

    def _export(self, signal: str, body: bytes, metadata: dict[str, Any]) -> bytes:
        headers = {name.encode(): value.encode() for name, value in metadata.items() if isinstance(value, str)}
        self._doors.check(headers)
        if signal == "metrics":
            return b""
        batch = self._intake.take(signal, False, body)
        return partial_success(len(batch.broken), "; ".join(batch.broken[:5]))


class _Workers(ThreadPoolExecutor):
    """Threads that count what they are given."""

    def __init__(self, threads: int, thread_name_prefix: str) -> None:
        super().__init__(threads, thread_name_prefix)
        self._lock = threading.Lock()
        self.jobs = 0
        """Those that wait, and those under way."""

    def submit(self, job: Any, /, *args: Any, **named: Any) -> Any:
        def counted() -> Any:
            try:
                return job(*args, **named)
            finally:
                with self._lock:
                    self.jobs -= 1

        with self._lock:
            self.jobs += 1
        return super().submit(counted)


class _Refuse:
    """Refuses requests, without their bodies, on a thread that is not the one of those under way."""

    def __init__(self) -> None:
        self.experimental_thread_pool = ThreadPoolExecutor(1, thread_name_prefix="otel_letta-grpc-busy")
        """grpcio looks for this name; where it does not, they wait among the others."""

    def __call__(self, bodies: Any, context: Any) -> bytes:
        _abort(context, Refusal(503, "this receiver has too much to do at the moment"))
        return b""


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """Finds the handler of a method; where too much waits, one that refuses."""

    def __init__(self, handlers: dict[str, Any], workers: _Workers, refuse: _Refuse) -> None:
        self._handlers = handlers
        self._workers = workers
        self._busy = grpc.stream_unary_rpc_method_handler(refuse)

    def service(self, handler_call_details: Any) -> Any:
        found = self._handlers.get(handler_call_details.method)
        return self._busy if found is not None and self._workers.jobs >= _MOST_AT_ONCE else found


def _abort(context: Any, refusal: Refusal) -> None:
    """End a call without raising: what is raised would be logged as an error of the server."""
    context.set_code(_CODES.get(refusal.code, grpc.StatusCode.UNAVAILABLE))
    context.set_details(refusal.text)
    status = status_of(refusal) + (retry_info() if refusal.status == 503 else b"")
    context.set_trailing_metadata(((_DETAILS, status),))
