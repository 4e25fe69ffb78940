"""Reads OTLP-JSON: what senders post, and what an OpenTelemetry Collector's file exporter writes, one request a line.

The encoding is protobuf's JSON mapping with OTLP's own exceptions: ids in hexadecimal and enums as numbers. Writers in
the wild differ, so enums may also be names, and 64-bit integers numbers or text. Unknown fields are ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_letta.otlp.batch import PARTIAL_EVENT, Batch, LogRecord, UndecodableError, as_attribute
from otel_letta.otlp.lines import LONGEST_LINE, TOO_LONG

_PARENT_IS_REMOTE = 0x200
"""Bit of a span's ``flags``; it means something only together with the next one (opentelemetry-proto, SpanFlags)."""
_HAS_IS_REMOTE = 0x100
_MOST_DEPTH = 20
LONGEST_DOCUMENT = 32 * 2**20
"""Bytes of one document over many lines."""
_P = TypeVar("_P")
_LATEST = 2**63
NoneType = type(None)

try:
    from orjson import loads as _fast_loads
except ImportError:  # only the receiver brings it
    _fast_loads = json.loads  # type: ignore[assignment, unused-ignore]

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
_STATUS_NAMES = {"UNSET": 0, "OK": 1, "ERROR": 2}


class _BrokenError(ValueError):
    """Something is not what OTLP has in its place."""


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
    except _BrokenError as error:
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
        except _BrokenError as error:
            yield Batch(number, broken=[str(error)])
        else:
            yield _batch(number, document)


def _is_request(text: bytes) -> bool:
    try:
        return isinstance(_parsed(text), dict)
    except _BrokenError:
        return False


def _one_document(line: int, parts: Iterable[bytes]) -> Batch:
    text = bytearray()
    for part in parts:
        text += part
        if part is TOO_LONG or len(text) > LONGEST_DOCUMENT:
            return Batch(line, broken=[f"a document of more than {LONGEST_DOCUMENT / 2**20:.0f} MB is not read"])
    try:
        return _batch(line, _parsed(bytes(text)))
    except _BrokenError as error:
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
        document = _fast_loads(body)
    except ValueError:
        try:  # The fast parser refuses what many write: halves of surrogate pairs, and the bare word NaN.
            document = _parsed(body)
        except _BrokenError as error:
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
        raise _BrokenError(f"longer than {LONGEST_LINE / 2**20:.0f} MB, skipped")
    try:
        return json.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        raise _BrokenError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _BrokenError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):
        raise _BrokenError("not JSON that can be read: too deep, or a number with too many digits") from None


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
    return _parts(request, "resourceSpans", "scopeSpans", "spans", "span", _span)


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
            raise _BrokenError("not an object")
        groups = _objects(request, of_resources)
    except _BrokenError as error:
        yield str(error)
        return
    for of_resource in groups:
        try:
            resource = Resource(_attributes(_object(of_resource, "resource")))
            inner = _objects(of_resource, of_scopes)
        except _BrokenError as error:
            yield str(error)
            continue
        for of_scope in inner:
            try:
                about = _object(of_scope, "scope")
                scope = InstrumentationScope(_text(about, "name"), _text(about, "version"))
                found = _objects(of_scope, parts)
            except _BrokenError as error:
                yield str(error)
                continue
            for part in found:
                number += 1
                try:
                    yield read(part, resource, scope)
                except _BrokenError as error:
                    yield f"{word} {number}: {error}"


def _record(record: dict[str, Any], resource: Resource, scope: InstrumentationScope) -> LogRecord:
    attributes = _attributes(record)
    return LogRecord(
        _time(record, "timeUnixNano") or _time(record, "observedTimeUnixNano"),
        _text(record, "eventName"),
        attributes,
        _lenient_hex(record, "traceId", 32),
        _lenient_hex(record, "spanId", 16),
        resource,
        scope,
        _content(record) if PARTIAL_EVENT in attributes else None,
    )


def _content(record: dict[str, Any]) -> str | bytes | None:
    content = _value(_object(record, "body"), _MOST_DEPTH)
    return content if isinstance(content, (str, bytes)) else None


def _lenient_hex(holder: Mapping[str, Any], name: str, digits: int) -> int:
    """Return an id, 0 for a text that is none: such a log record counts as one without (opentelemetry-proto, logs)."""
    _text(holder, name)
    try:
        return _hex(holder, name, digits)
    except _BrokenError:
        return 0


def _span(span: dict[str, Any], resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    trace_id, span_id = _hex(span, "traceId", 32), _hex(span, "spanId", 16)
    if not trace_id or not span_id:
        raise _BrokenError("it has no id")
    parent_id = _hex(span, "parentSpanId", 16)
    parent = None
    if parent_id:
        flags = _integer(span, "flags")
        away = bool(flags & _PARENT_IS_REMOTE and flags & _HAS_IS_REMOTE)
        parent = SpanContext(trace_id, parent_id, away, TraceFlags(TraceFlags.SAMPLED))
    status = _object(span, "status")
    code = _STATUSES.get(_enum(status, "code", "STATUS_CODE_", _STATUS_NAMES), StatusCode.UNSET)
    return ReadableSpan(
        name=_text(span, "name"),
        context=SpanContext(trace_id, span_id, False, TraceFlags(TraceFlags.SAMPLED)),
        parent=parent,
        resource=resource,
        attributes=_attributes(span),
        events=[
            Event(_text(event, "name"), _attributes(event), _time(event, "timeUnixNano"))
            for event in _objects(span, "events")
        ],
        links=[
            Link(SpanContext(trace, linked, True, TraceFlags(TraceFlags.SAMPLED)))
            for link in _objects(span, "links")
            if (trace := _hex(link, "traceId", 32)) and (linked := _hex(link, "spanId", 16))
        ],
        kind=_KINDS.get(_enum(span, "kind", "SPAN_KIND_", _KIND_NAMES), SpanKind.INTERNAL),
        status=Status(code, (_text(status, "message") or None) if code is StatusCode.ERROR else None),
        start_time=_time(span, "startTimeUnixNano"),
        end_time=_time(span, "endTimeUnixNano"),
        instrumentation_scope=scope,
    )


def _object(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _BrokenError(f"{name} is not an object")
    return value


def _objects(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _BrokenError(f"{name} is not a list of objects")
    for item in value:
        if type(item) is not dict:
            break
    else:
        return value
    found = [item for item in value if item is not None]
    if not all(isinstance(item, dict) for item in found):
        raise _BrokenError(f"{name} is not a list of objects")
    return found


def _text(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _BrokenError(f"{name} is not text")
    return value


def _hex(holder: Mapping[str, Any], name: str, digits: int) -> int:
    text = _text(holder, name)
    if not text:
        return 0
    try:
        if len(text) != digits or not text.isascii() or not text.isalnum():
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise _BrokenError(f"{name} is not {digits} hexadecimal digits") from None


def _integer(holder: Mapping[str, Any], name: str) -> int:
    value = holder.get(name, 0)
    if isinstance(value, str) and len(value) <= 30:
        try:
            return int(value)
        except ValueError:
            pass
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    elif isinstance(value, float) and value.is_integer():
        return int(value)
    elif value is None:
        return 0
    raise _BrokenError(f"{name} is not a whole number")


def _time(holder: Mapping[str, Any], name: str) -> int:
    value = _integer(holder, name)
    if not 0 <= value < _LATEST:
        raise _BrokenError(f"{name} is no time")
    return value


def _enum(holder: Mapping[str, Any], name: str, prefix: str, names: Mapping[str, int]) -> int:
    value = holder.get(name)
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        return names.get(value.removeprefix(prefix), 0)
    return _integer(holder, name)


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _text(item, "key"): as_attribute(_value(_object(item, "value"), _MOST_DEPTH))
        for item in _objects(holder, "attributes")
        if item.get("value") is not None
    }


def _value(value: Mapping[str, Any], depth: int) -> Any:
    for kind, content in value.items():
        if kind == "intValue":
            return _integer(value, kind)
        if kind == "doubleValue":
            return _double(content)
        if kind in ("stringValue", "boolValue"):
            return content if isinstance(content, (str, bool)) else None
        if kind == "bytesValue":
            return _bytes(content)
        if kind == "arrayValue" and depth and isinstance(content, dict):
            return tuple(_value(item, depth - 1) for item in _objects(content, "values"))
        if kind == "kvlistValue" and depth and isinstance(content, dict):
            return {
                _text(pair, "key"): _value(_object(pair, "value"), depth - 1) for pair in _objects(content, "values")
            }
    return None


def _double(content: object) -> float:
    # Infinities and NaN are text in protobuf's JSON mapping, in words that float() knows.
    if isinstance(content, (int, float, str)) and not isinstance(content, bool) and len(str(content)[:50]) < 50:
        try:
            return float(content)
        except (ValueError, OverflowError):
            pass
    raise _BrokenError("doubleValue is not a number")


def _bytes(content: object) -> bytes:
    try:
        return base64.b64decode(content if isinstance(content, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise _BrokenError("bytesValue is not base64") from None
