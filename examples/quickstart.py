"""The main job in one file: a traced program whose tasks a Letta agent hears about.

Without any setting it talks to the stand-in server of `otel_letta.testing`. With LETTA_AGENT_ID set (and
LETTA_BASE_URL, LETTA_PASSWORD as your server needs them) it talks to your agent: that costs two turns of its LLM.

    python examples/quickstart.py
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor, Settings
from otel_letta.testing import InMemoryLetta


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
    asked = Settings.resolve(require_agent=False)
    if asked.agent_id:
        print(f"Reporting to agent {asked.agent_id} at {asked.base_url}")
        return run()
    with InMemoryLetta() as letta:
        agent_id = letta.create_agent("quickstart")
        print(f"No LETTA_AGENT_ID is set: reporting to a stand-in for Letta at {letta.base_url}\n")
        code = run(base_url=letta.base_url, agent_id=agent_id, board_interval=0.5)
        print("What the agent sees in its memory block:\n")
        print(letta.board(agent_id))
        print("\nWhat woke the agent:\n")
        for message in letta.messages(agent_id):
            print(message.content, end="\n\n")
        return code


def run(**options: Any) -> int:
    provider = TracerProvider(resource=Resource.create({"service.name": "quickstart"}))
    processor = LettaSpanProcessor(**options)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    work()
    delivered = provider.force_flush()
    stats = processor.stats()
    provider.shutdown()
    print(f"Delivered: {delivered}. Agent turns: {stats['requests']}, board writes: {stats['board_writes']}\n")
    return 0 if delivered else 1


if __name__ == "__main__":
    sys.exit(main())
