"""Reads OTLP in protobuf.

Parsing is cheap, and looking at what was parsed is not: a span is looked at as far as somebody asks for it, so that one
that is of no interest costs little more than its place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as LogRecordMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

from otel_letta import semconv
from otel_letta.otlp.batch import (
    LATEST,
    PARENT_IS_AWAY,
    Batch,
    BrokenError,
    LogRecord,
    UndecodableError,
    as_attribute,
)
from otel_letta.otlp.glances import RequestGlance, SpanGlance
from otel_letta.otlp.received import SAMPLED, Of, ReceivedSpan, bytes_by_owner, kind_of, status_of
from otel_letta.otlp.sieve import AWAY, NO_SPAN, NO_TRACE, Gate, Glance, arguments_of, read_into, sift

_MOST_DEPTH = 20
_UNREADABLE = "not readable: text that is not UTF-8, or nested too deep"


def read_traces(body: bytes, gate: Gate | None = None) -> Batch:
    """Read the body of an export request for spans.

    Args:
        gate: says which traces are worth it.

    Raises:
        UndecodableError: it is none. A span that cannot be read costs the others nothing: it is named in ``broken``.
    """
    batch, groups = Batch(), _groups(body)
    if gate is not None:
        sift(_glances(groups, gate.names), gate, _read, batch)
        if batch.plain and batch.spans:
            batch.without_plain = functools.partial(_write, groups, batch.spans)
    else:
        for glance in _glances(groups, frozenset()):
            read_into(batch, _read, glance)
    return batch


def read_logs(body: bytes) -> Batch:
    """Read the body of an export request for log records, as `read_traces` does spans."""
    batch = Batch()
    for group in _groups(body):
        for raw in group.parts:
            try:
                batch.records.append(_record(_parsed(LogRecordMessage, raw), *group.of))
            except BrokenError as error:
                batch.broken.append(f"a log record: {error}")
    return batch


class _Group(NamedTuple):
    """Spans or log records of one scope."""

    parts: Sequence[bytes]
    of: Of
    resource: Any
    scope: Any
    """The same two as messages."""


def _groups(body: bytes) -> list[_Group]:
    try:
        request = RequestGlance.FromString(body)
    except (DecodeError, RecursionError):
        raise UndecodableError("not an export request in protobuf") from None
    found = []
    for group in request.groups:
        resource = Resource(attributes_of(group.resource.attributes))
        for inner in group.groups:
            of = resource, InstrumentationScope(inner.scope.name, inner.scope.version)
            found.append(_Group(inner.parts, of, group.resource, inner.scope))
    return found


def _write(groups: Sequence[_Group], spans: Sequence[ReadableSpan]) -> bytes:
    """Write an export request of some of the spans of one."""
    chosen, request = bytes_by_owner(spans), RequestGlance()
    for group in groups:
        if parts := chosen.get(id(group.of)):
            request.groups.add(resource=group.resource).groups.add(scope=group.scope, parts=parts)
    written: bytes = request.SerializeToString()
    return written


def _parsed(kind: type[Any], raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except (DecodeError, RecursionError):
        raise BrokenError(_UNREADABLE) from None


def _glances(groups: Iterable[_Group], names: frozenset[str]) -> Iterator[Glance[bytes]]:
    parse, says_nothing = SpanGlance.FromString, names.isdisjoint
    for parts, of, *_ in groups:
        for raw in parts:
            try:
                span = parse(raw)
            except (DecodeError, RecursionError):
                yield b"", b"", b"", 0, 0, True, False, raw, of
                continue
            trace_id, span_id, above = span.trace_id, span.span_id, span.parent_span_id
            start, end = span.start_time_unix_nano, span.end_time_unix_nano
            if (
                len(trace_id) != 16
                or len(span_id) != 8
                or trace_id == NO_TRACE
                or span_id == NO_SPAN
                or start >= LATEST
                or end >= LATEST
            ):
                trace_id = b""  # to be read, which says that it can be none
            if above and (len(above) != 8 or above == NO_SPAN):
                above = b""
            elif above and span.flags & PARENT_IS_AWAY == PARENT_IS_AWAY:
                above += AWAY
            yield trace_id, span_id, above, start, end, not says_nothing(span.attributes), False, raw, of


def _read(glance: Glance[bytes]) -> WireSpan:
    _parsed(SpanMessage, glance[7])  # to know that it can be
    if not glance[0]:
        raise BrokenError("it has no id, or its start or end is no time")
    return WireSpan(*arguments_of(glance))


class WireSpan(ReceivedSpan):
    """A span in protobuf."""

    __slots__ = ()

    _parse = staticmethod(SpanMessage.FromString)

    @property
    def name(self) -> str:
        name: str = self._parsed.name
        return name

    @property
    def kind(self) -> SpanKind:
        return kind_of(self._parsed.kind)

    @property
    def status(self) -> Status:
        status = self._parsed.status
        return status_of(status.code, status.message)

    @property
    def attributes(self) -> _Values:
        if self._values is None:
            self._values = _Values(self._parsed.attributes)
        values: _Values = self._values
        return values

    @property
    def events(self) -> Sequence[Event]:
        return tuple(
            Event(event.name, attributes_of(event.attributes), min(event.time_unix_nano, LATEST - 1))
            for event in self._parsed.events
        )

    @property
    def links(self) -> Sequence[Link]:
        return tuple(
            Link(SpanContext(trace, span, True, SAMPLED))
            for link in self._parsed.links
            if len(link.trace_id) == 16
            and len(link.span_id) == 8
            and (trace := int.from_bytes(link.trace_id, "big"))
            and (span := int.from_bytes(link.span_id, "big"))
        )

    @property
    def dropped_attributes(self) -> int:
        return int(self._parsed.dropped_attributes_count)


class _Values(Mapping[str, Any]):
    """The attributes of a span: their names at once, their values when somebody wants one."""

    __slots__ = ("_names", "_pairs", "_read")

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs
        self._names = [pair.key for pair in pairs]
        self._read: dict[str, Any] | None = None

    def _all(self) -> dict[str, Any]:
        if self._read is None:
            self._read = attributes_of(self._pairs)
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
    if time >= LATEST:
        raise BrokenError("it has no time that can be")
    attributes = attributes_of(message.attributes)
    trace_id, span_id = message.trace_id, message.span_id
    return LogRecord(
        time,
        getattr(message, "event_name", ""),  # not in opentelemetry-proto before 1.30
        attributes,
        int.from_bytes(trace_id, "big") if len(trace_id) == 16 else 0,
        int.from_bytes(span_id, "big") if len(span_id) == 8 else 0,
        resource,
        scope,
        _content(message.body) if semconv.PARTIAL_EVENT in attributes else None,
    )


def _content(body: Any) -> str | bytes | None:
    content = _value(body, _MOST_DEPTH)
    return content if isinstance(content, (str, bytes)) else None


def attributes_of(pairs: Any) -> dict[str, Any]:
    """Read a list of pairs of a key and a value."""
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
