"""A traced asyncio worker: three jobs at once, one of which is cancelled.

    python examples/asyncio_worker.py

Expect two tasks that complete with a result, and one that fails as "cancelled or timed out": OpenTelemetry alone
leaves the span of a cancelled coroutine looking like a success. The spans inside a job are steps of it, and not
reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from _stand_in import letta_agent
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor, task

tracer = trace.get_tracer("asyncio_worker")


async def pages(site: str, count: int) -> AsyncIterator[str]:
    for number in range(1, count + 1):
        with tracer.start_as_current_span("fetch page"):
            await asyncio.sleep(0.1)
        yield f"https://{site}/{number}"


async def index(site: str, count: int, chat_id: str, message_id: str) -> None:
    async with task(f"Index {site}", chat_id=chat_id, message_id=message_id) as t:
        found = [page async for page in t.track(pages(site, count), total=count)]
        t.result(f"{len(found)} pages indexed")


async def main() -> None:
    docs = asyncio.create_task(index("docs.example", 8, "chat-1", "msg-1"))
    blog = asyncio.create_task(index("blog.example", 12, "chat-2", "msg-2"))
    wiki = asyncio.create_task(index("wiki.example", 1_000_000, "chat-3", "msg-3"))
    await asyncio.gather(docs, blog)
    wiki.cancel()  # its user has changed their mind
    await asyncio.gather(wiki, return_exceptions=True)


if __name__ == "__main__":
    with letta_agent():
        provider = TracerProvider(resource=Resource.create({"service.name": "asyncio-worker"}))
        provider.add_span_processor(LettaSpanProcessor())
        trace.set_tracer_provider(provider)
        asyncio.run(main())
        provider.shutdown()  # outside the loop: it waits for delivery, 5 s at most
