"""A handler as on AWS Lambda: everything is delivered before the invocation ends.

    python examples/lambda_handler.py

Between invocations the process is frozen, threads included, so what is not sent then arrives with the next invocation
or never. Expect two invocations: one task that completes, and one that fails with the handler's own exception.

A task's end is a message, and delivering that lasts as long as the agent's turn, which you pay for. With
OTEL_LETTA_DELIVERY=board the agent is not woken, and the flush takes a fraction of a second.
"""

from __future__ import annotations

import functools
import time
from types import SimpleNamespace
from typing import Any

from _stand_in import letta_agent
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor, task


@functools.cache
def reporting() -> LettaSpanProcessor:
    """Made by the first invocation; later ones find it, as long as the process lives."""
    processor = LettaSpanProcessor()
    provider = TracerProvider(resource=Resource.create({"service.name": "thumbnails"}))
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return processor


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    processor = reporting()
    try:
        with task("Make thumbnails", chat_id=event["chat_id"], message_id=event["message_id"]) as t:
            for image in t.track(event["images"]):
                resize(image)
            t.result(f"{len(event['images'])} thumbnails")
        return {"statusCode": 200}
    finally:
        # After the task's block, so that its end is among what is sent; half a second is left for the answer itself.
        delivered = processor.force_flush(timeout_millis=max(context.get_remaining_time_in_millis() - 500, 0))
        print("Delivered before the freeze:", delivered)


def resize(image: str) -> None:
    time.sleep(0.1)
    if not image.endswith(".png"):
        raise ValueError(f"cannot resize {image}")


if __name__ == "__main__":
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 15_000)
    with letta_agent():
        handler({"chat_id": "chat-8", "message_id": "msg-1", "images": ["a.png", "b.png", "c.png"]}, context)
        try:
            handler({"chat_id": "chat-8", "message_id": "msg-2", "images": ["d.png", "notes.txt"]}, context)
        except ValueError as error:
            print("The invocation failed, as it should:", error)
        trace.get_tracer_provider().shutdown()  # only here: on Lambda nobody says when the process ends
