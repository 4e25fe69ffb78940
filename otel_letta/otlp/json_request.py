"""Reads the spans of an export request in JSON, as a receiver gets it: no further than somebody needs them.

Parsed in full, a request takes twice as long as one of which only the ids, times and names of attributes are taken out
(orjson beside msgspec, 1 kB a span). What a careless writer sends, and the fast parser refuses, is read the slow way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Optional, Union

import msgspec
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.otlp.batch import LATEST, PARENT_IS_AWAY, Batch, BrokenError
from otel_letta.otlp.json import read_request, resource_of, scope_of, span_of
from otel_letta.otlp.json_span import JsonSpan, ParentText, SpanText, TraceText, WholeSpan, parse
from otel_letta.otlp.received import Of, bytes_by_owner
from otel_letta.otlp.sieve import AWAY, NO_SPAN, NO_TRACE, Gate, Glance, arguments_of, sift

_NOTHING = msgspec.Raw(b"null")


class _OfScope(msgspec.Struct):
    scope: msgspec.Raw = _NOTHING
    spans: Optional[list[msgspec.Raw]] = None  # noqa: UP045 - evaluated, also by Python 3.10


class _OfResource(msgspec.Struct):
    resource: msgspec.Raw = _NOTHING
    scopeSpans: Optional[list[_OfScope]] = None  # noqa: N815, UP045


class _Request(msgspec.Struct):
    resourceSpans: Optional[list[_OfResource]] = None  # noqa: N815, UP045


class _Pair(msgspec.Struct, gc=False):
    key: str


class _Span(msgspec.Struct, gc=False):
    traceId: TraceText  # noqa: N815
    spanId: SpanText  # noqa: N815
    parentSpanId: Optional[ParentText] = None  # noqa: N815, UP045
    flags: Optional[int] = None  # noqa: UP045
    name: Optional[str] = None  # noqa: UP045
    startTimeUnixNano: Union[str, int] = 0  # noqa: N815, UP007
    endTimeUnixNano: Union[str, int] = 0  # noqa: N815, UP007
    attributes: Optional[list[_Pair]] = None  # noqa: UP045


_request_in = msgspec.json.Decoder(_Request).decode
_span_in = msgspec.json.Decoder(_Span).decode
_LATEST = str(LATEST)
_from_hex = bytes.fromhex


def read_traces(body: bytes, gate: Gate | None = None) -> Batch:
    """Read the body of an export request for spans.

    Args:
        gate: says which traces are worth it.

    Raises:
        UndecodableError: it is none. A span that cannot be read costs the others nothing: it is named in ``broken``.
    """
    batch = Batch()
    try:
        if gate is None or not _is_text(body):
            raise BrokenError
        groups = _groups(_request_in(body))
        sift(_glances(groups, gate.names), gate, _read, batch)
        if batch.plain and batch.spans and all(isinstance(span, JsonSpan) for span in batch.spans):
            batch.without_plain = functools.partial(_write, groups, batch.spans)
    except (msgspec.MsgspecError, BrokenError, RecursionError):
        return read_request(body, "resourceSpans")
    return batch


def _is_text(body: bytes) -> bool:
    """Return whether it is UTF-8: what the parser skips, it does not look at."""
    try:
        return body.isascii() or bool(body.decode())
    except UnicodeDecodeError:
        return False


def _glances(groups: Iterable[_Group], names: frozenset[str]) -> Iterator[Glance[msgspec.Raw]]:
    says_nothing, matters = names.isdisjoint, False
    for of_scope, of, _ in groups:
        for raw in of_scope.spans or ():
            try:
                # What follows on a span that matters mostly matters too: it is parsed whole at once, instead of once
                # more later.
                whole = _whole(raw) if matters else None
                span = whole or _span_in(raw)
                trace_id, span_id, above = _ids_of(span)
                start, end = span.startTimeUnixNano, span.endTimeUnixNano
                if not _is_time(start) or not _is_time(end):
                    raise ValueError("no time")
            except (msgspec.MsgspecError, ValueError, RecursionError):
                yield b"", b"", b"", 0, 0, True, False, raw, of  # to be read, which says what is wrong with it
                continue
            matters = not says_nothing([pair.key for pair in span.attributes or ()])
            yield trace_id, span_id, above, start, end, matters, whole is not None, raw, of


def _whole(raw: msgspec.Raw) -> WholeSpan | None:
    """Parse a span whole; None for one that is written otherwise than most are."""
    try:
        return parse(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _ids_of(span: _Span | WholeSpan) -> tuple[bytes, bytes, bytes]:
    """Return what a `Glance` begins with. ValueError for a span that can be none."""
    # The parser has looked at the length of the text. There may be blanks in it, which this skips.
    trace_id, span_id = _from_hex(span.traceId), _from_hex(span.spanId)
    if len(trace_id) != 16 or len(span_id) != 8 or trace_id == NO_TRACE or span_id == NO_SPAN:
        raise ValueError("no span")
    above = _from_hex(span.parentSpanId or "")
    if above:
        if len(above) != 8:
            raise ValueError("no parent")
        if above == NO_SPAN:
            above = b""
        elif span.flags is not None and span.flags & PARENT_IS_AWAY == PARENT_IS_AWAY:
            above += AWAY
    return trace_id, span_id, above


class _Group(NamedTuple):
    """Spans of one scope."""

    spans: _OfScope
    of: Of
    resource: msgspec.Raw


def _groups(request: _Request) -> list[_Group]:
    found = []
    for group in request.resourceSpans or ():
        resource = resource_of({"resource": msgspec.json.decode(group.resource)})
        for inner in group.scopeSpans or ():
            of = resource, scope_of({"scope": msgspec.json.decode(inner.scope)})
            found.append(_Group(inner, of, group.resource))
    return found


def _write(groups: Sequence[_Group], spans: Sequence[ReadableSpan]) -> bytes:
    """Write an export request of some of the spans of one."""
    chosen, found = bytes_by_owner(spans), []
    for group in groups:
        if parts := chosen.get(id(group.of)):
            found.append(_OfResource(group.resource, [_OfScope(group.spans.scope, list(map(msgspec.Raw, parts)))]))
    return msgspec.json.encode(_Request(found))


def _is_time(value: str | int) -> bool:
    """Return whether it is a time as nearly everybody writes it."""
    if isinstance(value, str):
        return value.isdigit() and value.isascii() and (len(value) < 19 or (len(value) == 19 and value < _LATEST))
    return 0 <= value < LATEST


def _read(glance: Glance[msgspec.Raw]) -> ReadableSpan:
    trace_id, *_, checked, raw, of = glance
    if not trace_id or not (checked or _whole(raw) is not None):
        return _read_slowly(raw, of)
    return JsonSpan(*arguments_of(glance))


def _read_slowly(raw: msgspec.Raw, of: Of) -> ReadableSpan:
    try:
        span = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise BrokenError("not JSON that can be read") from None
    if not isinstance(span, dict):
        raise BrokenError("not an object")
    return span_of(span, *of)
