"""The forms in which OTLP/HTTP may come: all that opentelemetry-proto's specification, protobuf's JSON mapping and HTTP
allow is taken, each once; what can be none is refused in the type of the request, and the next request gets through."""

from __future__ import annotations

import base64
import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard

from otel_letta.serve.http import Bounds
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import Answer, Connection, exchange, request_of, serving, span_of

BOUND = 20_000
JSON, PROTOBUF = "application/json", "application/x-protobuf"
Span = dict[str, Any]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Service]:
    with InMemoryLetta() as letta, serving(letta.base_url, letta.create_agent(), bounds=Bounds(body=BOUND)) as service:
        yield service


def send(receiver: Service, body: bytes, kind: str | None = JSON, **more: Any) -> Answer:
    """Send a request, and another one behind it on the same connection, which has to get through."""
    headers = {**({} if kind is None else {"Content-Type": kind}), **more.pop("headers", {})}
    about = {"method": "POST", "path": "/v1/traces", **more}
    case = {**about, "headers": headers, "body_b64": base64.b64encode(body).decode()}
    after = {"method": "POST", "path": "/v1/traces", "headers": {"Content-Type": JSON}, "body_b64": "e30="}
    with Connection(receiver.options.port) as connection:
        answer = exchange(connection, case, None)
        if connection.open:
            assert exchange(connection, after, None).status == 200
    return answer


def told(receiver: Service, name: str) -> int:
    """Return how many tasks of a name are known, when all that came before has been worked off."""
    assert receiver.pipeline.catch_up(60)
    return [task.name for task in receiver.intake.tasks.show(most_ended=1_000).ended].count(name)


def numbered(name: str, **more: Any) -> Span:
    """A declared task with ids that its name alone has."""
    return span_of(name, zlib.crc32(name.encode()) + 1, **more)


# --- JSON -----------------------------------------------------------------------------------------------------------


def _value(value: object) -> Callable[[Span], object]:
    return lambda span: span["attributes"].append({"key": "x", "value": value})


def _fields(**fields: object) -> Callable[[Span], object]:
    return lambda span: span.update(fields)


MAY_BE_MISSING = (
    *("kind", "status", "events", "links", "parentSpanId", "flags", "traceState", "startTimeUnixNano"),
    *("droppedAttributesCount", "droppedEventsCount", "droppedLinksCount"),
)
READ: dict[str, Callable[[Span], object]] = {
    "ids in upper case": lambda s: s.update(traceId=s["traceId"].upper(), spanId=s["spanId"].upper()),
    "a parent of zeros": _fields(parentSpanId="0" * 16),
    "an empty parent": _fields(parentSpanId=""),
    "times as numbers": _fields(startTimeUnixNano=1795946400000000000, endTimeUnixNano=1795946401500000000),
    "an end before the start": _fields(endTimeUnixNano="1795946300000000000"),
    "the name of a kind": _fields(kind="SPAN_KIND_SERVER"),
    "a kind as text": _fields(kind="2"),
    "a whole float": _fields(kind=1.0),
    "a kind of later": _fields(kind=99),
    "the name of a status": _fields(status={"code": "STATUS_CODE_OK"}),
    "a status as text": _fields(status={"code": "1"}),
    "flags as text": _fields(flags="257"),
    "unknown fields": _fields(futureField={"a": [1, None]}),
    "null for all that may be missing": lambda s: s.update(dict.fromkeys(MAY_BE_MISSING)),
    "null in events": _fields(events=[None, {"name": None, "timeUnixNano": None, "attributes": None}]),
    "an attribute without a key": lambda s: s["attributes"].append({"value": {"stringValue": "x"}}),
    "an attribute that is null": lambda s: s["attributes"].append(None),
    "the greatest integer": _value({"intValue": "9223372036854775807"}),
    "the smallest integer": _value({"intValue": -9223372036854775808}),
    "not a number": _value({"doubleValue": "NaN"}),
    "minus infinity": _value({"doubleValue": "-Infinity"}),
    "a double as text": _value({"doubleValue": "1.5"}),
    "bytes": _value({"bytesValue": "AAEC"}),
    "an array without values": _value({"arrayValue": {}}),
    "an array of null": _value({"arrayValue": {"values": None}}),
    "null in an array": _value({"arrayValue": {"values": [None, {}, {"stringValue": "a"}]}}),
    "pairs with null": _value({"kvlistValue": {"values": [None, {"key": None}, {"key": "a", "value": None}]}}),
    "a value of nothing": _value({}),
    "a value of later": _value({"futureValue": {"a": 1}}),
    "null beside a value": _value({"stringValue": None, "intValue": "5"}),
    **{f"null for {kind}": _value({kind: None}) for kind in ("stringValue", "intValue", "doubleValue", "boolValue")},
    **{f"null for an {kind}": _value({kind: None}) for kind in ("arrayValue", "kvlistValue", "bytesValue")},
}


@pytest.mark.parametrize("form", READ)
def test_a_span_in_json_is_read_in_each_form_that_it_may_have(receiver: Service, form: str) -> None:
    span = numbered(form)
    READ[form](span)

    answer = send(receiver, request_of(span))

    assert (answer.status, answer.type, answer.json) == (200, JSON, {})
    assert told(receiver, form) == 1


AROUND: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "white space": lambda body: b"\r\n\t" + body + b" \n",
    "null in the lists": lambda body: body.replace(b'"resourceSpans": [', b'"resourceSpans": [null, {}, '),
    "null for a resource": lambda body: body.replace(b'"resource": {"attributes": []}', b'"resource": null'),
    "null for a scope": lambda body: body.replace(b'"scope": {"name": "s"}', b'"scope": null, "schemaUrl": null'),
    "a key twice": lambda body: body.replace(b'"kind": 1', b'"kind": 3, "kind": 1'),
    "the bare word NaN": lambda body: body.replace(b'"kind": 1', b'"x": NaN, "kind": 1'),
    "half of a pair": lambda body: body.replace(b'"kind": 1', b'"x": "\\ud800", "kind": 1'),
}


@pytest.mark.parametrize("form", AROUND)
def test_a_request_in_json_is_read_in_each_form_that_it_may_have(receiver: Service, form: str) -> None:
    body = request_of(numbered(form))
    assert AROUND[form](body) != body

    answer = send(receiver, AROUND[form](body))

    assert (answer.status, answer.json) == (200, {})
    assert told(receiver, form) == 1


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"[]",
            b'"x"',
            b"1",
            b'{"resourceSpans": {}}',
            b"{} x",
            b"{}{}",
            b"{'a': 1}",
            b"/* a */ {}",
            b"{}\0",
            b'{"a": 1,}',
        ),
        *(request_of(span_of("Grün")).replace(b"\\u00fc", b"\xfc"), gzip.compress(b"{}", mtime=0)),
    ],
)
def test_what_is_no_json_of_an_export_request_is_refused_for_good(receiver: Service, body: bytes) -> None:
    answer = send(receiver, body)

    assert (answer.status, answer.type, answer.json["code"]) == (400, JSON, 3)
    assert answer.json["message"]


# --- HTTP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["APPLICATION/JSON", "application/json ; charset=utf-8", 'application/json; a="b;c"'])
def test_the_media_type_alone_decides(receiver: Service, kind: str) -> None:
    assert send(receiver, request_of(numbered(kind)), kind).status == 200
    assert told(receiver, kind) == 1


@pytest.mark.parametrize(
    "kind", [None, "", "text/json", "application/protobuf", "application/grpc", "application/json, text/plain", "*/*"]
)
def test_any_other_type_is_refused(receiver: Service, kind: str | None) -> None:
    assert send(receiver, request_of(numbered("of another type")), kind).status == 415
    assert told(receiver, "of another type") == 0


def _streamed(body: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return packer.compress(body) + packer.flush()


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"abcd"
PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "GZip in any case": ("GZip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip in parts, some of them empty": ("gzip", lambda b: b"".join(map(gzip.compress, (b[:9], b"", b[9:], b"")))),
    "gzip and padding": ("gzip", lambda b: gzip.compress(b) + bytes(512)),
    "gzip, of gzip": ("gzip, gzip", lambda b: gzip.compress(gzip.compress(b))),
    "gzip, and no coding": ("gzip,identity", gzip.compress),
    "no coding": ("identity", bytes),
    "an empty coding": ("", bytes),
    "deflate": ("deflate", zlib.compress),
    "zstd without a size, with a sum": ("zstd", _streamed),
    "zstd in frames": ("zstd", lambda b: zstandard.compress(b[:40]) + zstandard.compress(b[40:])),
    "zstd behind a frame to skip": ("zstd", lambda b: SKIPPABLE + zstandard.compress(b)),
    "zstd before a frame to skip": ("zstd", lambda b: zstandard.compress(b) + SKIPPABLE),
}


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("chunk", [0, 7], ids=["whole", "in chunks"])
def test_each_coding_is_unpacked(receiver: Service, form: str, chunk: int) -> None:
    coding, pack = PACKED[form]
    name = f"{form} {chunk}"
    framing = {"chunked": True, "chunk_size": chunk} if chunk else {}

    answer = send(receiver, pack(request_of(numbered(name))), headers={"Content-Encoding": coding}, **framing)

    assert answer.status == 200
    assert told(receiver, name) == 1


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate", "zstd"])
def test_the_bound_is_exact_in_each_coding(receiver: Service, coding: str, over: int) -> None:
    name = f"bound of {coding or 'plain text'} {over}"
    body = request_of(numbered(name)).ljust(BOUND + over)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}.get(coding, bytes)(body)

    answer = send(receiver, packed, headers={"Content-Encoding": coding} if coding else {})

    assert answer.status == (413 if over else 200)
    assert told(receiver, name) == (0 if over else 1)


@pytest.mark.parametrize("kind", [JSON, PROTOBUF])
@pytest.mark.parametrize(
    ("status", "how"),
    [
        (400, {"headers": {"Content-Encoding": "gzip"}}),
        (415, {"headers": {"Content-Encoding": "br"}}),
        (403, {"headers": {"Host": "evil.example"}}),
        (404, {"path": "/v1/trace"}),
        (404, {"path": "/v1development/profiles"}),
        (405, {"method": "PUT"}),
        (405, {"method": "OPTIONS", "headers": {"Origin": "http://evil.example"}}),
        (413, {"fill": {"at": 0, "count": BOUND, "byte": 32}}),
    ],
)
def test_a_refusal_is_a_status_in_the_type_of_the_request(
    receiver: Service, kind: str, status: int, how: dict[str, Any]
) -> None:
    answer = send(receiver, b"no request", kind, **how)

    assert (answer.status, answer.type) == (status, kind)
    assert answer.json["message"] if kind == JSON else answer.body[:1] == b"\x08"


def test_requests_one_behind_the_other_are_answered_in_their_order(receiver: Service) -> None:
    def request(body: bytes, kind: str = JSON, path: str = "/v1/traces") -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    bad = [request(b"{"), request(b"x", "text/plain"), request(b"x", path="/x"), request(b" " * (BOUND + 1))]
    good = [request(request_of(numbered(f"in line {number}"))) for number in range(len(bad))]
    with Connection(receiver.options.port) as connection:
        connection.send(b"".join(one for pair in zip(bad, good, strict=True) for one in pair))

        assert [connection.answer().status for _ in range(8)] == [400, 200, 415, 200, 404, 200, 413, 200]
    assert [told(receiver, f"in line {number}") for number in range(len(bad))] == [1] * len(bad)
