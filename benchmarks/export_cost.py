"""What `LettaSpanExporter.export` costs for spans that are no tasks, beside encoding the same spans to OTLP.

512 ended spans (a batch of the SDK's default size) with six attributes each, as HTTP instrumentation writes them.
Encoding is ``encode_spans(...).SerializeToString()`` of opentelemetry-exporter-otlp-proto-common: what an OTLP exporter
does before it sends anything. Rounds alternate; the figure is the median of their ratios.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.figures import Figure, Run, at_most, median
from otel_letta import LettaSpanExporter

_SPANS = 512


def measure(run: Run) -> Iterator[Figure]:
    run.say("export()")
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("benchmark")
    for n in range(_SPANS):
        attributes = {
            "http.request.method": "GET",
            "url.full": f"https://shop.example/items/{n}",
            "server.address": "shop.example",
            "server.port": 443,
            "http.response.status_code": 200,
            "network.protocol.version": "1.1",
        }
        tracer.start_span("GET", attributes=attributes).end()
    spans = kept.get_finished_spans()

    # Nothing listens there, and nothing is sent: no span is a task.
    exporter = LettaSpanExporter(base_url="http://127.0.0.1:9", agent_id="agent-benchmark")
    ours, theirs = [], []
    for turn in range(run.pick(60, 15) + 1):
        began = time.perf_counter()
        exporter.export(spans)
        between = time.perf_counter()
        encode_spans(spans).SerializeToString()
        if turn:
            ours.append(between - began)
            theirs.append(time.perf_counter() - between)
    exporter.shutdown()
    share = median([a / b for a, b in zip(ours, theirs, strict=True)]) * 100
    note = f"{median(ours) / _SPANS * 1e6:.2f} µs and {median(theirs) / _SPANS * 1e6:.1f} µs a span"
    yield at_most("export() of spans that are no tasks / encoding them to OTLP", share, 10, "%", note)
