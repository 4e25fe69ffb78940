"""Writes OTLP-JSON: spans as the body of log records, in the format of partial span processors."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_letta import semconv

Pick = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Chooses the attributes that may be written."""
PickOfEvent = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Does the same for a span event, by its name too; none is an event that is left out."""

_KINDS = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_STATUSES = {StatusCode.UNSET: 0, StatusCode.OK: 1, StatusCode.ERROR: 2}
_IS_REMOTE, _IS_LOCAL = 0x300, 0x100
_INFO = 9


def span_record(
    span: ReadableSpan, event: str, now: int, pick: Pick, of_event: PickOfEvent, every: float
) -> dict[str, Any]:
    """Return the log record about a span as it is now.

    Args:
        event: ``heartbeat`` or ``stop``.
        now: Unix nanoseconds.
        pick: chooses attributes of the span and its resource.
        of_event: chooses those of its events.
        every: seconds between two heartbeats.
    """
    context = span.context
    said = {semconv.PARTIAL_EVENT: event, "partial.body.type": "json/v1"}
    if event != "stop":
        said["partial.frequency"] = f"{every * 1e3:.0f}ms"
    return {
        "timeUnixNano": str(now),
        "observedTimeUnixNano": str(now),
        "severityNumber": _INFO,
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "attributes": _attributes(said),
        "body": {"stringValue": json.dumps(_traces(span, pick, of_event), separators=(",", ":"))},
    }


def logs_request(resource: Resource, scope: str, records: Iterable[dict[str, Any]], pick: Pick) -> bytes:
    """Return an export request with log records of one program."""
    group = {
        "resource": {"attributes": _attributes(pick(resource.attributes))},
        "scopeLogs": [{"scope": {"name": scope}, "logRecords": list(records)}],
    }
    return json.dumps({"resourceLogs": [group]}, separators=(",", ":")).encode()


def _traces(span: ReadableSpan, pick: Pick, of_event: PickOfEvent) -> dict[str, Any]:
    context, parent, scope = span.context, span.parent, span.instrumentation_scope
    written: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": _KINDS.get(span.kind.name, 1),
        "startTimeUnixNano": str(span.start_time or 0),
        "attributes": _attributes(pick(dict(span.attributes or {}))),
        "events": [
            {"name": event.name, "timeUnixNano": str(event.timestamp), "attributes": _attributes(picked)}
            for event in span.events
            if (picked := of_event(event.name, event.attributes or {}))
        ],
        "status": {"code": _STATUSES[span.status.status_code]},
    }
    if parent is not None:
        written["parentSpanId"] = f"{parent.span_id:016x}"
        written["flags"] = _IS_REMOTE if parent.is_remote else _IS_LOCAL
    if span.end_time is not None:
        written["endTimeUnixNano"] = str(span.end_time)
    if span.status.description:
        written["status"]["message"] = span.status.description
    group = {
        "resource": {"attributes": _attributes(pick(span.resource.attributes))},
        "scopeSpans": [{"scope": {"name": scope.name if scope is not None else ""}, "spans": [written]}],
    }
    return {"resourceSpans": [group]}


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else str(value).replace("inf", "Infinity")}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
