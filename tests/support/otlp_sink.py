"""A backend on loopback that takes OTLP/HTTP and remembers what came."""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["OtlpSink"]


class OtlpSink(LoopbackServer):
    def __init__(self) -> None:
        super().__init__(_Handler)
        self.requests = 0
        self.spans: list[tuple[str, str]] = []
        """Name and trace id of each."""

    @property
    def endpoint(self) -> str:
        return f"{self.url}/v1/traces"

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.spans]


class _Handler(Handler):
    server: OtlpSink

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.read())
        scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
        self.server.spans += [(span.name, span.trace_id.hex()) for scope in scopes for span in scope.spans]
        self.server.requests += 1
        self.send(200)
