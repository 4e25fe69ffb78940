"""Single spans, read: what a convention makes of one, without any rules around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from otel_letta.tracking import Reading
from otel_letta.tracking.conventions.facts import AgentFacts, read_facts

__all__ = ["END", "facts", "raised", "read"]

END = 1_800_000_002_000_000_000


def read(
    attributes: Mapping[str, Any],
    *,
    name: str = "some span",
    error: str | None = None,
    ok: bool = False,
    events: Sequence[Event] = (),
    resource: Mapping[str, Any] | None = None,
) -> Reading:
    """Read a span that took two seconds. ``error``: its status's text, if that is ERROR."""
    code = StatusCode.OK if ok else StatusCode.UNSET if error is None else StatusCode.ERROR
    span = ReadableSpan(
        name=name,
        context=SpanContext(1, 2, False, TraceFlags(TraceFlags.SAMPLED)),
        resource=Resource(dict(resource or {})),
        attributes=dict(attributes),
        events=list(events),
        status=Status(code, error),
        start_time=END - 2_000_000_000,
        end_time=END,
    )
    return Reading.of(span)


def facts(attributes: Mapping[str, Any], *, content: Sequence[str] = (), **span: Any) -> AgentFacts:
    """Read the facts of a span that has a role. The rest is as for `read`."""
    reading = read(attributes, **span)
    assert reading.role is not None
    found = AgentFacts(reading.role)
    read_facts(found, reading, content=frozenset(content))
    return found


def raised(kind: str, message: str = "", *, at: int = END, stack: str = "") -> Event:
    """Make the event of an exception, by default at the span's end."""
    attributes = {"exception.type": kind, "exception.message": message, "exception.stacktrace": stack}
    return Event("exception", attributes, at)
