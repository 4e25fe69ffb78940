"""What one export request holds, whichever way it was written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

PARENT_IS_AWAY = 0x300
"""Bits of a span's ``flags``: it is known whether the parent is in another process, and it is (opentelemetry-proto,
SpanFlags)."""
LATEST = 2**63
"""Nanoseconds; no time is as late."""


class BrokenError(ValueError):
    """A part of a request is not what OTLP has in its place. The text quotes nothing of it."""


class UndecodableError(ValueError):
    """A request as a whole is not what OTLP has in its place. The text quotes nothing of it."""


@dataclass(slots=True)
class LogRecord:
    """A log record without its body, which is nobody's business here. Ids are 0 where it has none."""

    time: int
    """When it happened, or else when it was noticed; Unix nanoseconds, 0 if it does not say."""
    event_name: str
    """The field, not the attribute of the same meaning that older writers have."""
    attributes: dict[str, Any]
    trace_id: int
    span_id: int
    resource: Resource
    scope: InstrumentationScope
    span: str | bytes | None = None
    """The body of a record that has `semconv.PARTIAL_EVENT`, and of no other."""


@dataclass(slots=True)
class Batch:
    """An export request's spans and log records in their order, and what of it could not be read."""

    line: int = 0
    """The line of a file, counted from 1."""
    spans: list[ReadableSpan] = field(default_factory=list)
    plain: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    """Of traces in which nothing matters, by trace and span: the span above, see `Glance`. Only where a gate is set."""
    records: list[LogRecord] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """One line for each span, log record or group of them; they quote nothing of the input."""
    without_plain: Callable[[], bytes] | None = None
    """Writes the request anew without the spans of ``plain``; None where there are none, or no others."""

    @property
    def size(self) -> int:
        """The number of spans and log records that could be read."""
        return len(self.spans) + len(self.records) + sum(map(len, self.plain.values()))

    @property
    def is_plain(self) -> bool:
        """True if nothing in it matters."""
        return not self.spans and not self.records

    @property
    def newest(self) -> int:
        """The time of what happened last in it, Unix nanoseconds; 0 for nothing."""
        ends = (span.end_time or 0 for span in self.spans)
        return max(chain(ends, (record.time for record in self.records)), default=0)


def as_attribute(value: Any) -> Any:
    """Turn what was read into a value that an attribute of the SDK can have: those hold no maps, so a map becomes its
    JSON, which is what an instrumentation would have made of it."""
    if isinstance(value, dict):
        return json.dumps(value, default=str)  # once: a map in a map would double its quotes at every level
    if isinstance(value, tuple):
        return tuple(as_attribute(item) for item in value)
    return value
