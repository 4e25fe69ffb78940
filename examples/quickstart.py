"""The main job in one file: a traced program whose tasks a Letta agent hears about.

Without any setting it talks to the stand-in server of `otel_letta.testing`. With LETTA_AGENT_ID set (and
LETTA_BASE_URL, LETTA_PASSWORD as your server needs them) it talks to your agent: that costs two turns of its LLM.

    python examples/quickstart.py

Expect one task that completes with a result, and one that fails with "ValueError: bad row 1043".
"""

from __future__ import annotations

import contextlib
import sys
import time

from _stand_in import letta_agent
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor


def work() -> None:
    """A program that knows OpenTelemetry and nothing of Letta: the attributes are all it takes."""
    tracer = trace.get_tracer("quickstart")
    with tracer.start_as_current_span(
        "Refactor module", attributes={"letta.chat.id": "chat-123", "letta.message.id": "msg-456"}
    ) as span:
        for file in range(1, 11):
            time.sleep(0.15)
            span.set_attribute("letta.task.progress", file / 10)
            span.set_attribute("letta.task.content", f"Rewrote {file} of 10 files")
        span.set_attribute("letta.task.result", "10 files rewritten, all tests pass")

    with (
        contextlib.suppress(ValueError),
        tracer.start_as_current_span("Import sales", attributes={"letta.task.progress": 0.0}),
    ):
        time.sleep(0.3)
        raise ValueError("bad row 1043")


def main() -> int:
    provider = TracerProvider(resource=Resource.create({"service.name": "quickstart"}))
    processor = LettaSpanProcessor()
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    work()
    delivered = provider.force_flush()
    stats = processor.stats()
    provider.shutdown()
    print(f"Delivered: {delivered}. Agent turns: {stats['requests']}, board writes: {stats['board_writes']}")
    return 0 if delivered else 1


if __name__ == "__main__":
    with letta_agent():
        code = main()
    sys.exit(code)
