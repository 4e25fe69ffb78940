"""What the privacy step of a real Collector lets through: no content, and all that verdicts are made of."""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests.support.collector_run import TOKEN, Sink, gateway, send
from tests.support.recorded_agents import CASES, play, play_case, verdicts
from tests.support.waiting import until

_HERE = Path(__file__).parent
_MARKER = "SECRET-"
"""Every prompt, argument and output of the recorded programs begins with it."""
_INSTANCE = "service.instance.id"
"""A key that passes: here it holds which recording, and which line of it, a resource is of."""
_IDS = ("traceId", "spanId", "parentSpanId")

Lines = dict[str, list[dict[str, Any]]]
"""Requests by the name of the file that they are of."""


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, list[bytes]]:
    """All recordings, sent through one gateway: what arrived at the bridge, put together as it was recorded."""
    files = sorted({file for files in CASES.values() for file in files})
    folder = tmp_path_factory.mktemp("collector")
    with Sink() as bridge, gateway(folder, bridge.url, _HERE / "quick.yaml") as running:
        sent = [_labelled(file.name, number, line) for file in files for number, line in enumerate(_lines(file))]
        spans = sum(_count(request) for request in sent)
        for request in sent:
            send(running.http, request)
        last = {**_span("last", 1), "name": "last"}
        assert until(lambda: len(bridge.spans) >= spans, 300), f"{len(bridge.spans)} of {spans}"
        send(running.http, {"resourceLogs": [_of("end", [{"timeUnixNano": "1", "eventName": "user_prompt"}], "log")]})
        send(running.http, {"resourceSpans": [_of("end", [last])]})
        assert until(lambda: "last" in bridge.names and _has_log(bridge), 300)
        assert bridge.tokens == {f"Bearer {TOKEN}"}
        assert len(running.backend.spans) >= spans or until(lambda: len(running.backend.spans) > spans, 300)
        assert any(_MARKER.encode() in body for body in running.backend.raw), "the backend gets all of it"
        return _put_together(bridge), bridge.raw


def _has_log(bridge: Sink) -> bool:
    return any(
        attribute.value.string_value == "end:0"
        for request in list(bridge.logs)
        for resource in request.resource_logs
        for attribute in resource.resource.attributes
    )


def test_no_content_of_any_recording_arrives(through: tuple[Lines, list[bytes]]) -> None:
    leaks = {body[max(0, at - 60) : at + 40] for body in through[1] if (at := body.find(_MARKER.encode())) >= 0}
    assert not leaks


@pytest.mark.parametrize("name", CASES)
def test_the_verdicts_are_those_without_a_collector(
    name: str, through: tuple[Lines, list[bytes]], tmp_path: Path
) -> None:
    files = []
    for file in CASES[name]:
        files.append(tmp_path / file.name.removesuffix(".gz"))
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in through[0].get(file.name, [])), "utf-8")
    assert verdicts(play(files)) == verdicts(play_case(name))


# --- A hostile request ----------------------------------------------------------------------------------------------


def test_secrets_in_every_field_that_is_not_for_the_agent_stay_outside(tmp_path: Path) -> None:
    request, log = _hostile()
    with Sink() as bridge, gateway(tmp_path, bridge.url, _HERE / "quick.yaml") as running:
        send(running.http, request)
        send(running.http, log)
        assert until(lambda: bridge.spans and bridge.logs, 120)
        assert until(lambda: running.backend.raw, 120)
        assert _MARKER.encode() in running.backend.raw[0]
    assert not [body for body in bridge.raw if _MARKER.encode() in body]
    (span,) = bridge.spans
    assert {attribute.key for attribute in span.attributes} >= {"gen_ai.operation.name", "gen_ai.output.messages"}
    assert span.status.message == "ValueError: ****"


def _hostile() -> tuple[dict[str, Any], dict[str, Any]]:
    secret = {"stringValue": f"{_MARKER}text\nwith lines, context of nothing"}
    nested = {"kvlistValue": {"values": [{"key": "role", "value": secret}]}}
    array = {"arrayValue": {"values": [secret, nested]}}
    keys = ("gen_ai.output.messages", "gen_ai.input.messages", "genkit:output", "lmnr.span.output", "output.value")
    more = ("gen_ai.tool.call.arguments", "error.message", "llm.completions.0.content", "anything.at.all", "content")
    attributes = [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "invoke_agent"}},
        *(
            {"key": key, "value": value}
            for key, value in zip(keys, (secret, nested, array, secret, nested), strict=True)
        ),
        *(
            {"key": key, "value": value}
            for key, value in zip(more, (secret, secret, array, nested, secret), strict=True)
        ),
    ]
    own = [{"key": f"own.{_MARKER}key", "value": secret}]
    event = {"timeUnixNano": "2", "attributes": [*own, {"key": "content", "value": secret}]}
    raised = [
        {"key": "exception.type", "value": {"stringValue": "ValueError"}},
        {"key": "exception.message", "value": secret},
        {"key": "exception.stacktrace", "value": secret},
    ]
    span = {
        **_span("x", 7),
        "name": f"tell me all that you know of {_MARKER}things, and then of others",
        "traceState": f"vendor={_MARKER}state",
        "attributes": attributes,
        "status": {"code": 2, "message": f"ValueError: no row for {_MARKER}customer"},
        "events": [{**event, "name": f"{_MARKER}event"}, {**event, "name": "exception", "attributes": raised}],
    }
    record = {
        "timeUnixNano": "3",
        "eventName": "user_prompt",
        "severityText": f"{_MARKER}severity",
        "body": secret,
        "attributes": [*own, {"key": "prompt", "value": secret}, {"key": "prompt.id", "value": {"stringValue": "p1"}}],
    }
    unknown = {**record, "eventName": f"{_MARKER}name"}
    resource = {"attributes": own}
    scope = {"name": "scope", "attributes": own}
    return (
        {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": [span]}]}]},
        {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": [record, unknown]}]}]},
    )


# --- Recordings as requests -----------------------------------------------------------------------------------------


def _span(name: str, number: int) -> dict[str, Any]:
    ids = {"traceId": f"{number:032x}", "spanId": f"{number:016x}"}
    return {**ids, "name": name, "startTimeUnixNano": "1", "endTimeUnixNano": "2"}


def _of(label: str, items: list[dict[str, Any]], kind: str = "span") -> dict[str, Any]:
    resource = {"attributes": [{"key": _INSTANCE, "value": {"stringValue": f"{label}:0"}}]}
    inner = {"spans": items} if kind == "span" else {"logRecords": items}
    return {"resource": resource, "scopeSpans" if kind == "span" else "scopeLogs": [inner]}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _labelled(name: str, number: int, request: dict[str, Any]) -> dict[str, Any]:
    for part in (*request.get("resourceSpans", []), *request.get("resourceLogs", [])):
        attributes = part.setdefault("resource", {}).setdefault("attributes", [])
        attributes[:] = [each for each in attributes if each["key"] != _INSTANCE]
        attributes.append({"key": _INSTANCE, "value": {"stringValue": f"{name}:{number}"}})
    return request


def _count(request: dict[str, Any]) -> int:
    parts = request.get("resourceSpans", [])
    return sum(len(scope.get("spans", [])) for part in parts for scope in part.get("scopeSpans", []))


def _put_together(bridge: Sink) -> Lines:
    """Return the requests that arrived, by recording, in the order of its lines."""
    found: dict[str, dict[int, dict[str, list[Any]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for message in (*bridge.traces, *bridge.logs):
        for kind, parts in _with_hex_ids(MessageToDict(message)).items():
            for part in parts:
                labels = [each for each in part["resource"]["attributes"] if each["key"] == _INSTANCE]
                name, _, number = labels[0]["value"]["stringValue"].rpartition(":")
                found[name][int(number)][kind].append(part)
    return {name: [dict(lines[number]) for number in sorted(lines)] for name, lines in found.items()}


def _with_hex_ids(value: Any) -> Any:
    """OTLP's JSON has ids in hex, and protobuf's own has them in base64."""
    if isinstance(value, list):
        return [_with_hex_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64decode(item).hex() if key in _IDS and isinstance(item, str) else _with_hex_ids(item)
        for key, item in value.items()
    }
