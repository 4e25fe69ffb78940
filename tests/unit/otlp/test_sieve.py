"""A receiver reads only what matters: the same spans in both encodings, whatever stands beside them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_letta.otlp import json_request, proto
from otel_letta.otlp.batch import Batch
from otel_letta.otlp.json import read_request
from otel_letta.otlp.sieve import AWAY, Gate
from otel_letta.tracking.reading import NOTED
from tests.unit.otlp.test_proto import RECORDED, facts, in_protobuf, recorded

Read = Callable[[bytes, "Gate | None"], Batch]
GATE = Gate(frozenset({"letta.chat.id"}), ())
SAYS = [{"key": "letta.chat.id", "value": {"stringValue": "c"}}]
PLAIN = [{"key": "http.route", "value": {"stringValue": "letta.chat.id"}}]


def span(trace: int, number: int, attributes: Any = PLAIN, **fields: Any) -> dict[str, Any]:
    ids = {"traceId": f"{trace:032x}", "spanId": f"{number:016x}"}
    times = {"startTimeUnixNano": "1795946400000000000", "endTimeUnixNano": "1795946401000000000"}
    return {**ids, **times, "name": f"span {number}", "attributes": attributes, **fields}


def document(*spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


@pytest.fixture(params=["json", "protobuf"])
def read(request: pytest.FixtureRequest) -> Callable[..., Batch]:
    def read(*spans: dict[str, Any], gate: Gate | None = GATE) -> Batch:
        whole = document(*spans)
        if request.param == "json":
            return json_request.read_traces(json.dumps(whole).encode(), gate)
        return proto.read_traces(in_protobuf(whole), gate)

    return read


def ids(batch: Batch) -> list[int]:
    return sorted(found.context.span_id for found in batch.spans)


def test_of_a_trace_in_which_something_matters_all_spans_are_read(read: Callable[..., Batch]) -> None:
    batch = read(span(1, 1), span(2, 2), span(1, 3, SAYS, parentSpanId=f"{1:016x}"), span(2, 4))
    assert ids(batch) == [1, 3]
    assert list(batch.plain) == [(2).to_bytes(16, "big")]
    assert batch.size == 4


def test_what_follows_on_a_span_that_matters_is_looked_at_as_any_other(read: Callable[..., Batch]) -> None:
    """It is parsed further than others, and may be written in a way that takes longer to read."""
    unusual = [{"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "a"}]}}}, *PLAIN]
    batch = read(span(1, 1, SAYS), span(2, 2, unusual), span(1, 3, SAYS), span(3, 4), span(1, 5, [*unusual, *SAYS]))
    assert ids(batch) == [1, 3, 5]
    assert set(batch.plain) == {(2).to_bytes(16, "big"), (3).to_bytes(16, "big")}
    assert [dict(found.attributes)["list"] for found in batch.spans if found.context.span_id == 5] == [("a",)]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.partition(".otlp")[0])
def test_what_a_span_says_when_it_is_asked_is_what_it_said_when_it_came(path: Path) -> None:
    """Of spans that are read behind a gate, all but the place is parsed later."""
    for whole in recorded(path):
        expected = read_request(json.dumps(whole).encode(), "resourceSpans")
        everything = Gate(frozenset(), {span.context.trace_id.to_bytes(16, "big") for span in expected.spans})
        for names in (frozenset[str](), NOTED):
            gate = everything._replace(names=names)
            for found in (
                json_request.read_traces(json.dumps(whole).encode(), gate),
                proto.read_traces(in_protobuf(whole), gate),
            ):
                assert found.broken == expected.broken == []
                assert sorted(map(facts, found.spans), key=itemgetter(0)) == sorted(
                    map(facts, expected.spans), key=itemgetter(0)
                )


def test_a_span_that_waits_holds_its_own_bytes_and_nothing_that_was_parsed(read: Callable[..., Batch]) -> None:
    found, *_ = read(span(1, 1, SAYS), span(1, 2, SAYS), span(1, 3, SAYS)).spans[1:]
    held = gc.get_referents(found)
    assert {type(each) for each in held} <= {bytes, tuple, int, bool, type(None), type}
    assert max(len(each) for each in held if isinstance(each, bytes)) < 400


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.partition(".otlp")[0])
def test_a_request_without_its_plain_spans_says_the_same_of_the_others(path: Path) -> None:
    noise = [span(2**100 + number, number) for number in range(1, 20)]
    for whole in recorded(path):
        groups = whole["resourceSpans"]
        beside = {"resource": {"attributes": PLAIN}, "scopeSpans": [{"scope": {"name": "web"}, "spans": noise}]}
        amid = {**groups[0], "scopeSpans": [*groups[0]["scopeSpans"], {"scope": {"name": "web"}, "spans": noise}]}
        busy = {"resourceSpans": [beside, amid, *groups[1:], beside]}
        known = {found.context.trace_id for found in read_request(_text(whole), "resourceSpans").spans}
        gate = Gate(NOTED, {trace_id.to_bytes(16, "big") for trace_id in known})
        for read, body in ((json_request.read_traces, _text(busy)), (proto.read_traces, in_protobuf(busy))):
            batch = read(body, gate)
            if batch.without_plain is None:  # something in it is written in a way that has to be kept as it came
                assert read is json_request.read_traces
                continue
            kept = batch.without_plain()
            again = read(kept, gate)
            assert (again.plain, again.broken, again.without_plain) == ({}, [], None)
            assert list(map(facts, again.spans)) == list(map(facts, batch.spans))
            assert b"http.route" not in kept


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def test_what_is_kept_is_all_of_it_or_nothing_where_no_span_is_plain_or_all_are(read: Callable[..., Batch]) -> None:
    assert read(span(1, 1, SAYS), span(1, 2)).without_plain is None
    batch = read(span(1, 1), span(2, 2))
    assert (batch.without_plain, batch.is_plain) == (None, True)


def test_of_a_wanted_trace_all_spans_are_read(read: Callable[..., Batch]) -> None:
    batch = read(span(1, 1), span(2, 2), gate=Gate(GATE.names, {(2).to_bytes(16, "big")}))
    assert ids(batch) == [2]


def test_without_a_gate_all_spans_are_read(read: Callable[..., Batch]) -> None:
    assert ids(read(span(1, 1), span(2, 2), gate=None)) == [1, 2]


def test_of_other_spans_the_place_is_kept(read: Callable[..., Batch]) -> None:
    above = f"{9:016x}"
    batch = read(span(1, 1), span(1, 2, parentSpanId=above), span(1, 3, parentSpanId=above, flags=0x301))
    nine = (9).to_bytes(8, "big")
    assert batch.plain == {
        (1).to_bytes(16, "big"): {
            (1).to_bytes(8, "big"): b"",
            (2).to_bytes(8, "big"): nine,
            (3).to_bytes(8, "big"): nine + AWAY,
        }
    }


@pytest.mark.parametrize("fields", [{"spanId": "00" * 8}, {"traceId": ""}, {"endTimeUnixNano": str(2**63)}])
def test_a_plain_span_that_can_be_none_is_rejected(read: Callable[..., Batch], fields: dict[str, Any]) -> None:
    batch = read(span(1, 1, **fields), span(2, 2))
    assert (batch.spans, len(batch.broken), batch.size) == ([], 1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": f"{1:031x} "},
        {"parentSpanId": "12"},
        {"name": 5},
        {"attributes": {}},
        {"attributes": [{"key": 7, "value": {"stringValue": "x"}}]},
        {"startTimeUnixNano": "soon"},
    ],
)
def test_json_that_is_no_span_is_rejected_alone(fields: dict[str, Any]) -> None:
    batch = json_request.read_traces(json.dumps(document(span(1, 1, **fields), span(2, 2))).encode(), GATE)
    assert (batch.spans, len(batch.broken), batch.size) == ([], 1, 1)


def test_json_of_careless_writers_is_read_all_the_same() -> None:
    careless = span(1, 1, [None, *SAYS, {"key": "x", "value": {"doubleValue": float("nan")}}], kind=None)
    for spans in ([careless, span(2, 2)], [None, span(1, 1, SAYS)], [span(1, 1, SAYS, name="cut \ud83d")]):
        text = json.dumps(document(*spans)).encode()
        assert ids(json_request.read_traces(text, GATE))[:1] == [1]
    assert ids(json_request.read_traces(b"\xef\xbb\xbf" + json.dumps(document(span(1, 1, SAYS))).encode(), GATE)) == [1]


def test_text_that_is_no_utf8_is_found_where_nobody_looks() -> None:
    found = ExportTraceServiceRequest.FromString(in_protobuf(document(span(1, 1), span(2, 2))))
    batch = proto.read_traces(found.SerializeToString().replace(b"http.route", b"http.\xff\xff\xff\xff\xff", 1), GATE)
    assert (len(batch.broken), batch.size) == (1, 1)
    with pytest.raises(ValueError, match="not UTF-8"):
        json_request.read_traces(json.dumps(document(span(1, 1))).encode().replace(b"http.route", b"http\xff"), GATE)
