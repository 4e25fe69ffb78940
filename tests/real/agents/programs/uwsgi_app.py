"""A WSGI application whose requests are tasks. It is loaded before uWSGI forks its workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor

provider = TracerProvider()
provider.add_span_processor(LettaSpanProcessor())
tracer = provider.get_tracer("app")

# A task of the master's: the library has threads and an open connection when the workers are forked.
with tracer.start_as_current_span("Warm up", attributes={"letta.chat.id": "chat-master"}):
    pass
provider.force_flush()


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    name = environ["PATH_INFO"].strip("/")
    with tracer.start_as_current_span(f"Job {name}", attributes={"letta.chat.id": f"chat-{name}"}) as span:
        span.set_attribute("letta.task.progress", 0.5)
        span.set_attribute("letta.task.result", f"done by {os.getpid()}")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
