"""One task, seen in two backends at once: your tracing backend (OTLP) and a Letta agent.

    pip install opentelemetry-exporter-otlp-proto-http
    python examples/two_backends.py

OTEL_EXPORTER_OTLP_ENDPOINT names your backend; without it, one that prints what it receives is started. Expect three
spans there, and one task at the agent, with the same trace id: neither backend knows of the other. Set
OTEL_LETTA_TRACE_LINK=https://jaeger.example/trace/{trace_id} and the agent gets the link too.
"""

from __future__ import annotations

import time

from _stand_in import letta_agent, tracing_backend
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_letta import LettaSpanProcessor

tracer = trace.get_tracer("two_backends")


def work() -> None:
    with tracer.start_as_current_span("Nightly backup", attributes={"letta.chat.id": "chat-7"}) as span:
        with tracer.start_as_current_span("dump database"):
            time.sleep(0.3)
        span.set_attribute("letta.task.progress", 0.5)
        span.set_attribute("letta.task.content", "Database dumped, uploading")
        with tracer.start_as_current_span("upload"):
            time.sleep(0.3)
        span.set_attribute("letta.task.result", "1.2 GB uploaded")


if __name__ == "__main__":
    with letta_agent(), tracing_backend():
        provider = TracerProvider(resource=Resource.create({"service.name": "backup"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        provider.add_span_processor(LettaSpanProcessor())
        trace.set_tracer_provider(provider)
        work()
        provider.shutdown()
