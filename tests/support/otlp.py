"""Recorded traces as spans: reads the OTLP JSON lines that an OpenTelemetry Collector's file exporter writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

__all__ = ["read_spans"]

_STATUS = (StatusCode.UNSET, StatusCode.OK, StatusCode.ERROR)
_PARENT_IS_REMOTE = 0x200
"""Bit of ``flags`` (opentelemetry-proto, SpanFlags)."""


def read_spans(path: Path, extra: dict[str, Any] | None = None) -> list[ReadableSpan]:
    """All spans of a file in their recorded order, each with the ``extra`` attributes too."""
    return [span for line in path.read_text("utf-8").splitlines() for span in _spans(json.loads(line), extra or {})]


def _spans(document: dict[str, Any], extra: dict[str, Any]) -> Iterator[ReadableSpan]:
    for resource_spans in document["resourceSpans"]:
        resource = Resource(_attributes(resource_spans["resource"]))
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                yield _span(span, resource, extra)


def _span(span: dict[str, Any], resource: Resource, extra: dict[str, Any]) -> ReadableSpan:
    parent = None
    if span.get("parentSpanId"):
        remote = bool(span.get("flags", 0) & _PARENT_IS_REMOTE)
        parent = _context(span["traceId"], span["parentSpanId"], is_remote=remote)
    status = span.get("status", {})
    return ReadableSpan(
        name=span["name"],
        context=_context(span["traceId"], span["spanId"], is_remote=False),
        parent=parent,
        resource=resource,
        attributes={**_attributes(span), **extra},
        events=[
            Event(event["name"], _attributes(event), int(event["timeUnixNano"])) for event in span.get("events", ())
        ],
        status=Status(_STATUS[status.get("code", 0)], status.get("message")),
        start_time=int(span["startTimeUnixNano"]),
        end_time=int(span["endTimeUnixNano"]),
    )


def _context(trace_id: str, span_id: str, *, is_remote: bool) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: _value(item["value"]) for item in holder.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    (kind, content), *_ = value.items() or [("", None)]
    if kind == "intValue":
        return int(content)
    if kind == "arrayValue":
        return tuple(_value(item) for item in content.get("values", ()))
    return content
