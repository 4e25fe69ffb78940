"""Reads OTLP-JSON: what senders post, and what an OpenTelemetry Collector's file exporter writes, one request a line.

The encoding is protobuf's JSON mapping with OTLP's own exceptions: ids in hexadecimal and enums as numbers. Writers in
the wild differ, so enums may also be names, and 64-bit integers numbers or text. Unknown fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_letta import semconv
from otel_letta.otlp.batch import (
    PARENT_IS_AWAY,
    Batch,
    BrokenError,
    LogRecord,
    UndecodableError,
)
from otel_letta.otlp.json_fields import (
    MOST_DEPTH,
    attributes_in,
    enum_in,
    id_in,
    integer_in,
    object_in,
    objects_in,
    text_in,
    time_in,
    value_of,
)
from otel_letta.otlp.lines import LONGEST_LINE, TOO_LONG

LONGEST_DOCUMENT = 32 * 2**20
"""Bytes of one document over many lines."""
_P = TypeVar("_P")
NoneType = type(None)

try:
    from msgspec import MsgspecError
    from msgspec.json import decode as _decode
except ImportError:  # only the receiver brings it
    _decode = json.loads  # type: ignore[assignment, unused-ignore]
    MsgspecError = ValueError  # type: ignore[assignment, misc, unused-ignore]

_KINDS = {
    0: SpanKind.INTERNAL,
    1: SpanKind.INTERNAL,
    2: SpanKind.SERVER,
    3: SpanKind.CLIENT,
    4: SpanKind.PRODUCER,
    5: SpanKind.CONSUMER,
}
_KIND_NAMES = {"UNSPECIFIED": 0, "INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_STATUSES = {0: StatusCode.UNSET, 1: StatusCode.OK, 2: StatusCode.ERROR}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_WITHOUT_WORDS = {code: Status(code) for code in _STATUSES.values()}
_STATUS_NAMES = {"UNSET": 0, "OK": 1, "ERROR": 2}


def read_batches(lines: Iterable[bytes]) -> Iterator[Batch]:
    """Read export requests, one a line; or one JSON document that goes over many lines.

    `TOO_LONG` stands for a line that is too long; see `bounded_lines`.

    A line that cannot be read gives a batch that says so, and the next one is read. Metrics are no error.
    """
    numbered: Iterator[tuple[int, bytes]] = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return
    try:
        document = _parsed(first[1])
    except BrokenError as error:
        # The first line of an indented document ends in an opening bracket, and so may one that was cut off. Only
        # behind that another request can begin.
        second = next(numbered, None)
        numbered = numbered if second is None else chain([second], numbered)
        start = first[1].strip()
        if start.endswith((b"{", b"[")) and (start == b"[" or second is None or not _is_request(second[1])):
            yield _one_document(first[0], chain([first[1]], (line for _, line in numbered)))
            return
        yield Batch(first[0], broken=[str(error)])
    else:
        yield _batch(first[0], document)
    for number, line in numbered:
        try:
            document = _parsed(line)
        except BrokenError as error:
            yield Batch(number, broken=[str(error)])
        else:
            yield _batch(number, document)


def _is_request(text: bytes) -> bool:
    try:
        return isinstance(_parsed(text), dict)
    except BrokenError:
        return False


def _one_document(line: int, parts: Iterable[bytes]) -> Batch:
    text = bytearray()
    for part in parts:
        text += part
        if part is TOO_LONG or len(text) > LONGEST_DOCUMENT:
            return Batch(line, broken=[f"a document of more than {LONGEST_DOCUMENT / 2**20:.0f} MB is not read"])
    try:
        return _batch(line, _parsed(bytes(text)))
    except BrokenError as error:
        return Batch(line, broken=[str(error)])


def read_request(body: bytes, of_resources: str) -> Batch:
    """Read the body of one export request.

    Args:
        of_resources: ``resourceSpans`` or ``resourceLogs``; anything else in it is ignored.

    Raises:
        UndecodableError: it is not JSON, or not an export request. A span or log record that cannot be read costs the
            others nothing: it is named in ``broken``.
    """
    try:
        document = _decode(body)
    except (MsgspecError, ValueError, RecursionError):
        try:  # The fast parser refuses what many write: halves of surrogate pairs, and the bare word NaN.
            document = _parsed(body)
        except BrokenError as error:
            raise UndecodableError(str(error)) from None
    if not isinstance(document, dict):
        raise UndecodableError("not an object")
    if not isinstance(document.get(of_resources, []), (list, NoneType)):
        raise UndecodableError(f"{of_resources} is not a list")
    batch = Batch()
    if of_resources == "resourceSpans":
        for span in spans_of(document):
            (batch.spans if isinstance(span, ReadableSpan) else batch.broken).append(span)  # type: ignore[arg-type]
    else:
        for record in records_of(document):
            (batch.records if isinstance(record, LogRecord) else batch.broken).append(record)  # type: ignore[arg-type]
    return batch


def _parsed(text: bytes) -> object:
    if text is TOO_LONG:
        raise BrokenError(f"longer than {LONGEST_LINE / 2**20:.0f} MB, skipped")
    try:
        return json.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        raise BrokenError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BrokenError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):
        raise BrokenError("not JSON that can be read: too deep, or a number with too many digits") from None


def _batch(line: int, document: object) -> Batch:
    batch = Batch(line)
    for request in document if isinstance(document, list) else [document]:
        for span in spans_of(request):
            if isinstance(span, ReadableSpan):
                batch.spans.append(span)
            else:
                batch.broken.append(span)
        for record in records_of(request) if isinstance(request, dict) else ():  # what is none was named above
            if isinstance(record, LogRecord):
                batch.records.append(record)
            else:
                batch.broken.append(record)
    return batch


def spans_of(request: object) -> Iterator[ReadableSpan | str]:
    """Yield the spans of an export request that was parsed as JSON; for one that cannot be read, what is wrong."""
    return _parts(request, "resourceSpans", "scopeSpans", "spans", "span", span_of)


def records_of(request: object) -> Iterator[LogRecord | str]:
    """Yield the log records of an export request, as `spans_of` does spans."""
    return _parts(request, "resourceLogs", "scopeLogs", "logRecords", "log record", _record)


def _parts(
    request: object,
    of_resources: str,
    of_scopes: str,
    parts: str,
    word: str,
    read: Callable[[dict[str, Any], Resource, InstrumentationScope], _P],
) -> Iterator[_P | str]:
    """Yield what one group of them after the other holds: one that cannot be read costs the others nothing."""
    number = 0
    try:
        if not isinstance(request, dict):
            raise BrokenError("not an object")
        groups = objects_in(request, of_resources)
    except BrokenError as error:
        yield str(error)
        return
    for of_resource in groups:
        try:
            resource = resource_of(of_resource)
            inner = objects_in(of_resource, of_scopes)
        except BrokenError as error:
            yield str(error)
            continue
        for of_scope in inner:
            try:
                scope = scope_of(of_scope)
                found = objects_in(of_scope, parts)
            except BrokenError as error:
                yield str(error)
                continue
            for part in found:
                number += 1
                try:
                    yield read(part, resource, scope)
                except BrokenError as error:
                    yield f"{word} {number}: {error}"


def resource_of(group: Mapping[str, Any]) -> Resource:
    """Read the resource of a group of spans or records. Raises BrokenError."""
    return Resource(attributes_in(object_in(group, "resource")))


def scope_of(group: Mapping[str, Any]) -> InstrumentationScope:
    """Read the scope of a group of spans or records. Raises BrokenError."""
    about = object_in(group, "scope")
    return InstrumentationScope(text_in(about, "name"), text_in(about, "version"))


def _record(record: dict[str, Any], resource: Resource, scope: InstrumentationScope) -> LogRecord:
    attributes = attributes_in(record)
    return LogRecord(
        time_in(record, "timeUnixNano") or time_in(record, "observedTimeUnixNano"),
        text_in(record, "eventName"),
        attributes,
        _lenient_hex(record, "traceId", 32),
        _lenient_hex(record, "spanId", 16),
        resource,
        scope,
        _content(record) if semconv.PARTIAL_EVENT in attributes else None,
    )


def _content(record: dict[str, Any]) -> str | bytes | None:
    content = value_of(object_in(record, "body"), MOST_DEPTH)
    return content if isinstance(content, (str, bytes)) else None


def _lenient_hex(holder: Mapping[str, Any], name: str, digits: int) -> int:
    """Return an id, 0 for a text that is none: such a log record counts as one without (opentelemetry-proto, logs)."""
    text_in(holder, name)
    try:
        return id_in(holder, name, digits)
    except BrokenError:
        return 0


def span_of(span: dict[str, Any], resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """Read a span. Raises BrokenError for what can never be one."""
    trace_id, span_id = id_in(span, "traceId", 32), id_in(span, "spanId", 16)
    if not trace_id or not span_id:
        raise BrokenError("it has no id")
    parent_id = id_in(span, "parentSpanId", 16)
    parent = None
    if parent_id:
        flags = integer_in(span, "flags")
        away = flags & PARENT_IS_AWAY == PARENT_IS_AWAY
        parent = SpanContext(trace_id, parent_id, away, _SAMPLED)
    status = object_in(span, "status")
    code = _STATUSES.get(enum_in(status, "code", "STATUS_CODE_", _STATUS_NAMES), StatusCode.UNSET)
    words = text_in(status, "message") if code is StatusCode.ERROR else ""
    return ReadableSpan(
        name=text_in(span, "name"),
        context=SpanContext(trace_id, span_id, False, _SAMPLED),
        parent=parent,
        resource=resource,
        attributes=attributes_in(span),
        events=[
            Event(text_in(event, "name"), attributes_in(event), time_in(event, "timeUnixNano"))
            for event in objects_in(span, "events")
        ],
        links=[
            Link(SpanContext(trace, linked, True, _SAMPLED))
            for link in objects_in(span, "links")
            if (trace := id_in(link, "traceId", 32)) and (linked := id_in(link, "spanId", 16))
        ],
        kind=_KINDS.get(enum_in(span, "kind", "SPAN_KIND_", _KIND_NAMES), SpanKind.INTERNAL),
        status=Status(code, words) if words else _WITHOUT_WORDS[code],
        start_time=time_in(span, "startTimeUnixNano"),
        end_time=time_in(span, "endTimeUnixNano"),
        instrumentation_scope=scope,
    )
