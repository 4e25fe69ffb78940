"""Reads OTLP in protobuf.

Parsing is cheap, and looking at what was parsed is not: a span is looked at as far as somebody asks for it, so that one
that is of no interest costs little more than its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as LogRecordMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_letta.otlp.batch import PARTIAL_EVENT, Batch, LogRecord, UndecodableError, as_attribute
from otel_letta.otlp.wire import salvage

_T = TypeVar("_T")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_AWAY = 0x300
"""Bits of a span's ``flags``: it is known whether the parent is in another process, and it is."""
_LATEST = 2**63
_MOST_DEPTH = 20
_KINDS = (SpanKind.INTERNAL, *SpanKind)
"""By number; the first is "unspecified"."""
_UNSET = Status(StatusCode.UNSET)
_OK = Status(StatusCode.OK)


class _BrokenError(ValueError):
    """A span or log record is not what OTLP has in its place."""


def read_traces(body: bytes) -> Batch:
    """Read the body of an export request for spans.

    Raises:
        UndecodableError: it is none. A span that cannot be read costs the others nothing: it is named in ``broken``.
    """
    batch = Batch()
    request = _parsed(ExportTraceServiceRequest, SpanMessage, body, batch)
    for group in request.resource_spans:
        resource = Resource(_attributes(group.resource.attributes))
        for inner in group.scope_spans:
            scope = InstrumentationScope(inner.scope.name, inner.scope.version)
            _read_all("span", inner.spans, lambda span: WireSpan(span, resource, scope), batch.spans, batch)  # noqa: B023
    return batch


def read_logs(body: bytes) -> Batch:
    """Read the body of an export request for log records, as `read_traces` does spans."""
    batch = Batch()
    request = _parsed(ExportLogsServiceRequest, LogRecordMessage, body, batch)
    for group in request.resource_logs:
        resource = Resource(_attributes(group.resource.attributes))
        for inner in group.scope_logs:
            scope = InstrumentationScope(inner.scope.name, inner.scope.version)
            _read_all("log record", inner.log_records, lambda it: _record(it, resource, scope), batch.records, batch)  # noqa: B023
    return batch


def _parsed(kind: type[Any], part: type[Any], body: bytes, batch: Batch) -> Any:
    try:
        return kind.FromString(body)
    except (DecodeError, RecursionError):
        # One text that is not UTF-8, or one value that is nested too deep, and the parser refuses all of it.
        whole, lost = salvage(body, lambda raw: _parses(part, raw))
        try:
            request = kind.FromString(whole)
        except (DecodeError, RecursionError):
            raise UndecodableError("not an export request in protobuf") from None
        batch.broken += ["not readable: text that is not UTF-8, or nested too deep"] * lost
        return request


def _parses(kind: type[Any], raw: bytes) -> bool:
    try:
        kind.FromString(raw)
    except (DecodeError, RecursionError):
        return False
    return True


def _read_all(word: str, parts: Sequence[Any], read: Callable[[Any], _T], found: list[_T], batch: Batch) -> None:
    for part in parts:
        try:
            found.append(read(part))
        except _BrokenError as error:
            batch.broken.append(f"{word} {len(found) + len(batch.broken) + 1}: {error}")


class WireSpan(ReadableSpan):
    """An ended span as it was received. What few spans are asked for is read when it is asked for."""

    def __init__(self, message: Any, resource: Resource, scope: InstrumentationScope) -> None:
        trace_id, span_id, parent_id = message.trace_id, message.span_id, message.parent_span_id
        trace, span = int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big")
        if len(trace_id) != 16 or len(span_id) != 8 or not trace or not span:
            raise _BrokenError("it has no id")
        start, end = message.start_time_unix_nano, message.end_time_unix_nano
        if start >= _LATEST or end >= _LATEST:
            raise _BrokenError("its start or end is no time")
        self._message = message
        self._of = resource, scope
        self._ids = SpanContext(trace, span, False, _SAMPLED)
        self._above: SpanContext | None = None
        self._start: int = start
        self._end: int = end
        if parent_id and len(parent_id) == 8 and (above := int.from_bytes(parent_id, "big")):
            self._above = SpanContext(trace, above, message.flags & _AWAY == _AWAY, _SAMPLED)
        self._values: _Values | None = None

    @property
    def name(self) -> str:
        name: str = self._message.name
        return name

    def get_span_context(self) -> SpanContext:
        return self._ids

    @property
    def context(self) -> SpanContext:
        return self._ids

    @property
    def parent(self) -> SpanContext | None:
        return self._above

    @property
    def kind(self) -> SpanKind:
        number = self._message.kind
        return _KINDS[number] if 0 <= number < len(_KINDS) else SpanKind.INTERNAL

    @property
    def start_time(self) -> int:
        return self._start

    @property
    def end_time(self) -> int:
        return self._end

    @property
    def status(self) -> Status:
        status = self._message.status
        if status.code == 2:
            return Status(StatusCode.ERROR, status.message or None)
        return _OK if status.code == 1 else _UNSET

    @property
    def attributes(self) -> _Values:
        if self._values is None:
            self._values = _Values(self._message.attributes)
        return self._values

    @property
    def events(self) -> Sequence[Event]:
        return tuple(
            Event(event.name, _attributes(event.attributes), min(event.time_unix_nano, _LATEST - 1))
            for event in self._message.events
        )

    @property
    def links(self) -> Sequence[Link]:
        return tuple(
            Link(SpanContext(trace, span, True, _SAMPLED))
            for link in self._message.links
            if len(link.trace_id) == 16
            and len(link.span_id) == 8
            and (trace := int.from_bytes(link.trace_id, "big"))
            and (span := int.from_bytes(link.span_id, "big"))
        )

    @property
    def resource(self) -> Resource:
        return self._of[0]

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._of[1]

    @property
    def dropped_attributes(self) -> int:
        return int(self._message.dropped_attributes_count)


class _Values(Mapping[str, Any]):
    """The attributes of a span: their names at once, their values when somebody wants one."""

    __slots__ = ("_names", "_pairs", "_read")

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs
        self._names = [pair.key for pair in pairs]
        self._read: dict[str, Any] | None = None

    def _all(self) -> dict[str, Any]:
        if self._read is None:
            self._read = _attributes(self._pairs)
        return self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._names if self._read is None else self._read)

    def __len__(self) -> int:
        return len(self._names if self._read is None else self._read)

    def __getitem__(self, name: str) -> Any:
        return self._all()[name]

    def copy(self) -> dict[str, Any]:
        return self._all().copy()


def _record(message: Any, resource: Resource, scope: InstrumentationScope) -> LogRecord:
    time = message.time_unix_nano or message.observed_time_unix_nano
    if time >= _LATEST:
        raise _BrokenError("it has no time that can be")
    attributes = _attributes(message.attributes)
    trace_id, span_id = message.trace_id, message.span_id
    return LogRecord(
        time,
        getattr(message, "event_name", ""),  # not in opentelemetry-proto before 1.30
        attributes,
        int.from_bytes(trace_id, "big") if len(trace_id) == 16 else 0,
        int.from_bytes(span_id, "big") if len(span_id) == 8 else 0,
        resource,
        scope,
        _content(message.body) if PARTIAL_EVENT in attributes else None,
    )


def _content(body: Any) -> str | bytes | None:
    content = _value(body, _MOST_DEPTH)
    return content if isinstance(content, (str, bytes)) else None


def _attributes(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        value = pair.value
        kind = value.WhichOneof("value")
        if kind == "string_value":
            found[pair.key] = value.string_value
        elif kind is not None:
            found[pair.key] = as_attribute(_value(value, _MOST_DEPTH))
    return found


def _value(value: Any, depth: int) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    content = getattr(value, kind)
    if kind == "array_value":
        return tuple(_value(item, depth - 1) for item in content.values) if depth else None
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value, depth - 1) for pair in content.values} if depth else None
    return content
