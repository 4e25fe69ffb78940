"""OTLP in protobuf and JSON: both give the same spans, and nothing that anybody sends breaks them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.otlp.batch import UndecodableError
from otel_letta.otlp.json import read_request
from otel_letta.otlp.proto import read_logs, read_traces
from otel_letta.tracking.reading import Reading

DATA = Path(__file__).parents[2] / "data"
RECORDED = [
    DATA / "agents" / "adk_go.cancel_mid.otlp.jsonl.gz",
    *sorted((DATA / "traces").glob("*.otlp.jsonl.gz"))[::6],
]
FEWER = settings(max_examples=150)


def recorded(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as lines:
        return [json.loads(line) for line in lines][:20]


def in_protobuf(document: dict[str, Any]) -> bytes:
    """Write what was recorded as JSON in protobuf: its own reader takes ids for base64."""
    import base64

    text = json.loads(json.dumps(document))
    for group in text["resourceSpans"]:
        for inner in group["scopeSpans"]:
            for span in inner["spans"]:
                for holder in (span, *span.get("links", ())):
                    for name in ("traceId", "spanId", "parentSpanId"):
                        if holder.get(name):
                            holder[name] = base64.b64encode(bytes.fromhex(holder[name])).decode()
    return ParseDict(text, ExportTraceServiceRequest(), ignore_unknown_fields=True).SerializeToString()


SEEDS = [in_protobuf(document) for path in RECORDED for document in recorded(path)[:2]]


def facts(span: ReadableSpan) -> tuple[Any, ...]:
    reading = Reading.of(span)
    return (
        reading.key,
        reading.parent,
        reading.remote,
        reading.name,
        dict(reading.attributes),
        dict(reading.resource),
        (reading.start, reading.end),
        reading.failed,
        reading.ok,
        reading.kind,
        reading.scope,
        list(reading.events),
        list(reading.signals),
        reading.exception,
        list(reading.links),
        reading.described,
        reading.role,
        [(event.name, event.timestamp) for event in span.events],
    )


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.partition(".otlp")[0])
def test_the_same_request_gives_the_same_readings_in_both_encodings(path: Path) -> None:
    for document in recorded(path):
        expected = read_request(json.dumps(document).encode(), "resourceSpans")
        found = read_traces(in_protobuf(document))
        assert expected.broken == found.broken == []
        assert [facts(span) for span in found.spans] == [facts(span) for span in expected.spans]


def request(*names: bytes) -> bytes:
    """A request with a span for each name, whatever bytes that is made of."""
    found = ExportTraceServiceRequest()
    spans = found.resource_spans.add().scope_spans.add().spans
    for number in range(1, len(names) + 1):
        span = spans.add()
        span.trace_id, span.span_id, span.name = bytes([number]) * 16, bytes([number]) * 8, f"<{number:06}>"
    raw = found.SerializeToString()
    for number, name in enumerate(names, 1):
        raw = raw.replace(f"<{number:06}>".encode(), name.ljust(8, b" ")[:8])
    return raw


def test_a_span_with_text_that_is_no_utf8_costs_the_others_nothing() -> None:
    batch = read_traces(request(b"first", b"\xf0\x9f\x92", b"third"))
    assert [span.name.strip() for span in batch.spans] == ["first", "third"]
    assert len(batch.broken) == 1


def test_a_span_that_is_nested_too_deep_costs_the_others_nothing() -> None:
    found = ExportTraceServiceRequest()
    spans = found.resource_spans.add().scope_spans.add().spans
    for number in (1, 2):
        span = spans.add()
        span.trace_id, span.span_id = bytes([number]) * 16, bytes([number]) * 8
    value = spans[0].attributes.add().value
    for _ in range(120):
        value = value.array_value.values.add()
    batch = read_traces(found.SerializeToString())
    assert [span.context.span_id for span in batch.spans] == [int.from_bytes(bytes([2]) * 8, "big")]
    assert len(batch.broken) == 1


@pytest.mark.parametrize("body", [b"\xff", b"{}", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0a\x05\x12"])
def test_bytes_that_are_no_request_are_refused(body: bytes) -> None:
    for read in (read_traces, read_logs):
        with pytest.raises(UndecodableError):
            read(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trace_id", b""),
        ("trace_id", b"\1" * 15),
        ("trace_id", bytes(16)),
        ("span_id", bytes(8)),
        ("span_id", b"\1" * 9),
        ("start_time_unix_nano", 2**63),
        ("end_time_unix_nano", 2**64 - 1),
    ],
)
def test_a_span_without_an_id_or_a_possible_time_is_rejected(field: str, value: Any) -> None:
    found = ExportTraceServiceRequest.FromString(request(b"a", b"b"))
    setattr(found.resource_spans[0].scope_spans[0].spans[0], field, value)
    batch = read_traces(found.SerializeToString())
    assert (len(batch.spans), len(batch.broken)) == (1, 1)


def test_a_tree_of_maps_grows_no_faster_than_it_came() -> None:
    """Each level of a map in a map once doubled the quotes of those below it."""
    found = ExportTraceServiceRequest.FromString(request(b"a"))
    pair = found.resource_spans[0].scope_spans[0].spans[0].attributes.add()
    pair.key, value = "deep", pair.value
    for _ in range(14):
        inner = value.kvlist_value.values.add()
        inner.key, value = 'a "key"', inner.value
    value.string_value = "leaf"
    (span,) = read_traces(found.SerializeToString()).spans
    assert len(str((span.attributes or {})["deep"])) < 500
    document: Any = {"stringValue": "leaf"}
    for _ in range(14):
        document = {"kvlistValue": {"values": [{"key": 'a "key"', "value": document}]}}
    ids = {"traceId": "1" * 32, "spanId": "1" * 16, "attributes": [{"key": "deep", "value": document}]}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [ids]}]}]}).encode()
    (span,) = read_request(body, "resourceSpans").spans
    assert len(str((span.attributes or {})["deep"])) < 500


def test_the_body_of_a_log_record_is_read_only_where_it_is_a_span() -> None:
    found = ExportLogsServiceRequest()
    records = found.resource_logs.add().scope_logs.add().log_records
    for said in ("", "heartbeat"):
        record = records.add()
        record.body.string_value = "body"
        if said:
            pair = record.attributes.add()
            pair.key, pair.value.string_value = "partial.event", said
    assert [record.span for record in read_logs(found.SerializeToString()).records] == [None, "body"]


@pytest.mark.parametrize("field", ["resourceSpans", "resourceLogs"])
@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"5", b'"x"', b"{", b"\xff{}", b"[" * 100_000])
def test_json_that_is_no_request_is_refused(field: str, body: bytes) -> None:
    with pytest.raises(UndecodableError):
        read_request(body, field)


def test_json_of_careless_writers_is_read() -> None:
    """Half a surrogate pair, NaN as a word, null for a list's item and for any field, a byte order mark."""
    span = (
        b'{"name": "cut \\ud83d", "traceId": "aBaBaBaBaBaBaBaBaBaBaBaBaBaBaBaB", "spanId": "cDcDcDcDcDcDcDcD", '
        b'"parentSpanId": null, "kind": null, "events": null, "status": null, "attributes": [null, {"key": "a", '
        b'"value": null}, {"key": "b", "value": {"arrayValue": {}}}, {"key": "c", "value": {"doubleValue": NaN}}]}'
    )
    body = b'{"resourceSpans": [null, {"resource": null, "scopeSpans": [{"scope": null, "spans": [null, %s]}]}]}'
    body = b"\xef\xbb\xbf" + body % span
    batch = read_request(body, "resourceSpans")
    assert batch.broken == []
    assert [list(span.attributes or ()) for span in batch.spans] == [["b", "c"]]


# -- whatever comes ----------------------------------------------------------------------------------------------------


def read_all(body: bytes) -> None:
    """Read a body in every way, and look at everything in it; nothing but a refusal may be raised."""
    for read in (read_traces, read_logs):
        try:
            batch = read(body)
        except UndecodableError:
            continue
        for span in batch.spans:
            facts(span)
    for field in ("resourceSpans", "resourceLogs"):
        try:
            batch = read_request(body, field)
        except UndecodableError:
            continue
        for span in batch.spans:
            facts(span)


@FEWER
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    read_all(body)


@FEWER
@given(st.data())
def test_a_recording_that_was_damaged_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(body) - 1))
        what = data.draw(st.sampled_from(["flip", "cut", "double"]))
        if what == "flip":
            body[at] = data.draw(st.integers(0, 255))
        elif what == "cut" and len(body) > 10:
            del body[at : at + data.draw(st.integers(1, 9))]
        else:
            body[at:at] = body[at : at + 40]
    read_all(bytes(body))


FIELDS = (  # noqa: SIM905 - one name a line would be a page
    "resourceSpans scopeSpans spans resource scope attributes key value traceId spanId name events links status code "
    "message kind flags startTimeUnixNano endTimeUnixNano timeUnixNano resourceLogs scopeLogs logRecords body "
    "eventName stringValue intValue doubleValue boolValue bytesValue arrayValue kvlistValue values"
).split()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=25,
)


@FEWER
@given(JSON)
def test_any_json_is_read_or_refused(document: Any) -> None:
    read_all(json.dumps(document).encode())
    read_all(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [document]}]}]}).encode())
    read_all(json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [document]}]}]}).encode())
