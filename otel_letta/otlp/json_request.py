"""Reads the spans of an export request in JSON, as a receiver gets it: no further than somebody needs them.

Parsed in full, a request takes twice as long as one of which only the ids, times and names of attributes are taken out
(orjson beside msgspec, 1 kB a span). What a careless writer sends, and the fast parser refuses, is read the slow way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional, Union

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_letta.otlp.batch import LATEST, PARENT_IS_AWAY, Batch, BrokenError
from otel_letta.otlp.json import read_request, resource_of, scope_of, span_of
from otel_letta.otlp.json_span import JsonSpan, WholeSpan, parse
from otel_letta.otlp.sieve import AWAY, NO_SPAN, NO_TRACE, Gate, Glance, Of, sift

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
    traceId: str  # noqa: N815
    spanId: str  # noqa: N815
    parentSpanId: Optional[str] = None  # noqa: N815, UP045
    flags: Optional[int] = None  # noqa: UP045
    name: Optional[str] = None  # noqa: UP045
    startTimeUnixNano: Union[str, int] = 0  # noqa: N815, UP007
    endTimeUnixNano: Union[str, int] = 0  # noqa: N815, UP007
    attributes: Optional[list[_Pair]] = None  # noqa: UP045


_Raw = Union[msgspec.Raw, WholeSpan]  # noqa: UP007 - a name for annotations, also in Python 3.10
"""A span as it came, or parsed whole already."""
_request_in = msgspec.json.Decoder(_Request).decode
_span_in = msgspec.json.Decoder(_Span).decode
_LATEST = str(LATEST)


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
        sift(_glances(_request_in(body), gate.names), gate, _read, batch)
    except (msgspec.MsgspecError, BrokenError, RecursionError):
        return read_request(body, "resourceSpans")
    return batch


def _is_text(body: bytes) -> bool:
    """Return whether it is UTF-8: what the parser skips, it does not look at."""
    try:
        return body.isascii() or bool(body.decode())
    except UnicodeDecodeError:
        return False


def _glances(request: _Request, names: frozenset[str]) -> Iterator[Glance[_Raw]]:
    says_nothing, matters = names.isdisjoint, False
    for raw, of in _parts(request):
        try:
            span = _looked_at(raw, whole=matters)
            trace_id, span_id, above = _place_of(span)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            yield b"", b"", b"", True, raw, of  # to be read, which says what is wrong with it
            continue
        matters = not says_nothing([pair.key for pair in span.attributes or ()])
        yield trace_id, span_id, above, matters, span if isinstance(span, WholeSpan) else raw, of


def _looked_at(raw: msgspec.Raw, *, whole: bool) -> _Span | WholeSpan:
    """Parse a span as far as a glance needs it. What follows on a span that matters mostly matters too: it is parsed
    whole at once, instead of once more later."""
    if whole:
        try:
            return parse(raw)
        except (msgspec.MsgspecError, RecursionError):  # it is written otherwise than most are
            pass
    return _span_in(raw)


def _place_of(span: _Span | WholeSpan) -> tuple[bytes, bytes, bytes]:
    """Return what a `Glance` begins with. ValueError for a span that can be none."""
    trace_id, span_id = bytes.fromhex(span.traceId), bytes.fromhex(span.spanId)
    above = bytes.fromhex(span.parentSpanId) if span.parentSpanId else b""
    if (
        len(span.traceId) != 32
        or len(trace_id) != 16
        or len(span.spanId) != 16
        or len(span_id) != 8
        or trace_id == NO_TRACE
        or span_id == NO_SPAN
        or (above and (len(above) != 8 or len(span.parentSpanId or "") != 16))
        or not _is_time(span.startTimeUnixNano)
        or not _is_time(span.endTimeUnixNano)
    ):
        raise ValueError("no span")
    if above == NO_SPAN:
        return trace_id, span_id, b""
    if above and (span.flags or 0) & PARENT_IS_AWAY == PARENT_IS_AWAY:
        above += AWAY
    return trace_id, span_id, above


def _parts(request: _Request) -> Iterator[tuple[msgspec.Raw, Of]]:
    for group in request.resourceSpans or ():
        resource = resource_of({"resource": msgspec.json.decode(group.resource)})
        for inner in group.scopeSpans or ():
            of = resource, scope_of({"scope": msgspec.json.decode(inner.scope)})
            for raw in inner.spans or ():
                yield raw, of


def _is_time(value: Any) -> bool:
    """Return whether it is a time as nearly everybody writes it."""
    if type(value) is int:
        return 0 <= value < LATEST
    return (len(value) < 19 or (len(value) == 19 and value < _LATEST)) and value.isascii() and value.isdigit()


def _read(raw: _Raw, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    if isinstance(raw, WholeSpan):
        return _span_of(raw, resource, scope)
    try:
        return _span_of(parse(raw), resource, scope)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _read_slowly(raw, resource, scope)


def _span_of(span: WholeSpan, resource: Resource, scope: InstrumentationScope) -> JsonSpan:
    trace_id, span_id, above = _place_of(span)
    ids = int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big")
    times = int(span.startTimeUnixNano), int(span.endTimeUnixNano)
    return JsonSpan(span, ids, int.from_bytes(above[:8], "big"), above[8:] == AWAY, times, resource, scope)


def _read_slowly(raw: msgspec.Raw, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    try:
        span = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise BrokenError("not JSON that can be read") from None
    if not isinstance(span, dict):
        raise BrokenError("not an object")
    return span_of(span, resource, scope)
