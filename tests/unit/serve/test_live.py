"""Tasks of other programs, live: from log records, before their spans are over."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.otlp.batch import LogRecord
from otel_letta.otlp.json import read_request
from otel_letta.pipeline import inbox
from otel_letta.pipeline.pipeline import Pipeline
from otel_letta.report import ProgressReport
from otel_letta.serve.feed import Feed
from otel_letta.settings import Settings
from tests.support.otlp_sender import span_of

SECOND = 10**9
START = 1_795_946_400 * SECOND
KEY = (f"{1:032x}", f"{1:016x}")


class Receiver:
    """A pipeline that sends nothing, its feed, and a clock by hand."""

    def __init__(self) -> None:
        self.now = START
        self.reports: list[ProgressReport] = []
        settings = Settings.resolve(agent_id="agent-1", base_url="http://letta.test", poll_interval=0.01)
        self.pipeline = Pipeline(settings, None)  # type: ignore[arg-type]
        self.pipeline.gate = lambda report, put: self.reports.append(report)
        self.settled: list[int] = []
        self.feed = self.pipeline.add_source(Feed(self.pipeline, self.settled.extend, lambda: self.now))
        self._number = 0

    def take(self, body: bytes, kind: str) -> int:
        self._number += 1
        self.feed.take(read_request(body, kind), self._number)
        self.settle()
        return self._number

    def logs(self, *records: dict[str, Any], **resource: str) -> int:
        return self.take(_request("resourceLogs", "scopeLogs", "logRecords", records, resource), "resourceLogs")

    def spans(self, *spans: dict[str, Any]) -> int:
        return self.take(_request("resourceSpans", "scopeSpans", "spans", spans, {}), "resourceSpans")

    def settle(self) -> None:
        """Have everything done that is due now; twice, since a span that is gone is given a moment."""
        for _ in range(3):
            self.pipeline._inbox.run(60, self.pipeline.watcher.poll)

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        with self.feed._lock:
            self.feed.live.tick()
        self.feed._next_sweep = 0
        self.feed._sweep()
        self.settle()

    @property
    def told(self) -> list[tuple[str, str, float]]:
        return [(report.name, report.status.value, report.progress) for report in self.reports]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def _request(groups: str, inner: str, items: str, parts: Any, resource: dict[str, str]) -> bytes:
    attributes = [_text(key, value) for key, value in ({"service.name": "svc"} | resource).items()]
    holder = {"resource": {"attributes": attributes}, inner: [{"scope": {"name": "s"}, items: list(parts)}]}
    return json.dumps({groups: [holder]}).encode()


def _text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def heartbeat(span: dict[str, Any], event: str = "heartbeat", **attributes: str) -> dict[str, Any]:
    """A record as partial span processors write it: the span as it is now, as JSON, in the body."""
    body = _request("resourceSpans", "scopeSpans", "spans", [span], {"host.name": "far"})
    said = {"partial.event": event, "partial.frequency": "5000ms", "partial.body.type": "json/v1", **attributes}
    return {
        "timeUnixNano": str(START),
        "traceId": span["traceId"],
        "spanId": span["spanId"],
        "body": {"stringValue": body.decode()},
        "attributes": [_text(key, value) for key, value in said.items()],
    }


def open_span(name: str = "nightly", number: int = 1, **more: Any) -> dict[str, Any]:
    span = span_of(name, number, startTimeUnixNano=str(START), **more)
    del span["endTimeUnixNano"], span["status"]
    return span


def ended(name: str = "nightly", number: int = 1, **more: Any) -> dict[str, Any]:
    return span_of(name, number, startTimeUnixNano=str(START), endTimeUnixNano=str(START + 9 * SECOND), **more)


def progress(share: float, at: int = 1, **more: str) -> dict[str, Any]:
    attributes = [{"key": "letta.task.progress", "value": {"doubleValue": share}}]
    attributes += [_text(f"letta.{key.replace('_', '.')}", value) for key, value in more.items()]
    return {"timeUnixNano": str(START + at), "eventName": "letta.task.progress", "attributes": attributes}


def on(number: int, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "traceId": f"{number:032x}", "spanId": f"{number:016x}"}


# -- heartbeats ------------------------------------------------------------------------------------------------------


def test_a_heartbeat_starts_a_task_and_the_span_itself_ends_it(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    assert receiver.told == [("nightly", "in_progress", 0.0)]
    receiver.logs(heartbeat(open_span()))
    assert len(receiver.told) == 1  # nothing new
    receiver.spans(ended())
    assert receiver.told[1:] == [("nightly", "completed", 1.0)]
    assert receiver.reports[-1].duration == 9.0


def test_what_a_heartbeat_has_that_the_last_one_had_not_is_reported(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    more = open_span()
    more["attributes"].append({"key": "letta.task.progress", "value": {"doubleValue": 0.4}})
    receiver.logs(heartbeat(more))
    assert receiver.told[-1] == ("nightly", "in_progress", 0.4)


def test_the_span_of_a_stop_ends_a_declared_task_at_once(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    receiver.logs(heartbeat(ended(status={"code": 2, "message": "no disk"}), "stop"))
    assert receiver.told[-1][:2] == ("nightly", "failed")
    assert "no disk" in receiver.reports[-1].content
    receiver.spans(ended())
    receiver.pass_seconds(1_000)
    assert len(receiver.told) == 2  # the span itself says the same


def test_an_agents_stop_counts_if_the_span_itself_does_not_come(receiver: Receiver) -> None:
    agent = [_text("gen_ai.operation.name", "invoke_agent"), _text("gen_ai.agent.name", "Researcher")]
    receiver.logs(heartbeat(open_span(attributes=agent)))
    receiver.logs(heartbeat(ended(attributes=agent), "stop"))
    assert len(receiver.feed.live) == 1  # it comes behind its parts, by which the agent is judged
    receiver.pass_seconds(60)
    assert len(receiver.feed.live) == 0
    receiver.pipeline._tracker.finish()
    assert receiver.told[-1][:2] == ("Researcher", "completed")


def test_a_span_whose_heartbeats_stop_is_lost(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    receiver.pass_seconds(30)
    receiver.logs(heartbeat(open_span()))
    receiver.pass_seconds(40)
    assert len(receiver.told) == 1
    receiver.pass_seconds(40)
    assert receiver.told[-1][:2] == ("nightly", "failed")
    assert "lost" in receiver.reports[-1].content


def test_a_heartbeat_that_comes_behind_the_end_opens_nothing(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    receiver.spans(ended())
    receiver.logs(heartbeat(open_span()), heartbeat(ended(), "stop"))
    receiver.pass_seconds(1_000)
    assert [status for _, status, _ in receiver.told] == ["in_progress", "completed"]
    assert len(receiver.feed.live) == 0


def test_a_span_that_is_no_task_is_none_when_it_is_open(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span("GET /", attributes=[])))
    receiver.spans(ended("GET /", attributes=[]))
    assert receiver.told == []


def test_a_span_below_an_open_one_is_a_step_of_its_task(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    step = {"traceId": KEY[0], "parentSpanId": KEY[1]}
    receiver.spans(ended("step", 2, **step, attributes=[_text("letta.task.content", "half way")]))
    assert [report.content for report in receiver.reports][-1] == "half way"
    assert {name for name, *_ in receiver.told} == {"nightly"}


def test_an_agents_open_span_is_a_task_that_its_tools_belong_to(receiver: Receiver) -> None:
    agent = [_text("gen_ai.operation.name", "invoke_agent"), _text("gen_ai.agent.name", "Researcher")]
    tool = [_text("gen_ai.operation.name", "execute_tool"), _text("gen_ai.tool.name", "search")]
    receiver.logs(heartbeat(open_span("invoke_agent", attributes=agent)))
    receiver.spans(ended("t", 2, traceId=KEY[0], parentSpanId=KEY[1], attributes=tool))
    receiver.settle()
    assert [report.name for report in receiver.reports] == ["Researcher"] * len(receiver.reports)
    assert any("search" in report.content for report in receiver.reports)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}',
        '{"resourceSpans": 5}',
        "\ud800",
        "[" * 5_000,
    ],
)
@pytest.mark.parametrize("kind", ["json/v1", "proto", "", "xml"])
def test_a_body_that_holds_no_span_is_passed_by(receiver: Receiver, body: str, kind: str) -> None:
    record = {**heartbeat(open_span(), **{"partial.body.type": kind}), "body": {"stringValue": body}}
    receiver.logs(record)
    assert (receiver.told, len(receiver.feed.live)) == ([], 0)


def test_a_body_in_protobuf_is_read_too(receiver: Receiver) -> None:
    import base64

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = bytes(15) + b"\1", bytes(7) + b"\1", "nightly"
    span.start_time_unix_nano = START
    pair = span.attributes.add()
    pair.key, pair.value.string_value = "letta.chat.id", "c1"
    text = base64.b64encode(request.SerializeToString()).decode()
    record = heartbeat(open_span(), **{"partial.body.type": "proto"})
    receiver.logs({**record, "body": {"stringValue": text}})
    assert receiver.told == [("nightly", "in_progress", 0.0)]


def test_ids_that_protobufs_own_json_has_made_base64_of_are_the_records(receiver: Receiver) -> None:
    """As releases before 0.0.5 of otel-partial-python wrote them."""
    import base64

    odd = open_span()
    odd["traceId"] = base64.b64encode(bytes.fromhex(KEY[0])).decode()
    odd["spanId"] = base64.b64encode(bytes.fromhex(KEY[1])).decode()
    receiver.logs({**heartbeat(odd), "traceId": KEY[0], "spanId": KEY[1]})
    receiver.spans(ended())
    assert [status for _, status, _ in receiver.told] == ["in_progress", "completed"]


# -- progress events ---------------------------------------------------------------------------------------------------


def test_a_progress_event_of_a_span_that_nobody_announced_starts_its_task(receiver: Receiver) -> None:
    receiver.logs(on(1, progress(0.25, task_content="a quarter")))
    assert receiver.told == [("svc", "in_progress", 0.25)]
    receiver.logs(on(1, progress(0.5, 2)))
    assert receiver.told[-1] == ("svc", "in_progress", 0.5)
    receiver.spans(ended())
    assert receiver.told[-1] == ("nightly", "completed", 1.0)
    assert len({report.task_id for report in receiver.reports}) == 1


def test_a_progress_event_speaks_for_a_span_that_heartbeats_have_announced(receiver: Receiver) -> None:
    receiver.logs(heartbeat(open_span()))
    receiver.logs(on(1, progress(0.5)))
    assert receiver.told == [("nightly", "in_progress", 0.0), ("nightly", "in_progress", 0.5)]


def test_an_event_without_a_span_speaks_for_the_task_that_it_names(receiver: Receiver) -> None:
    receiver.logs(progress(0.5, task_id="import-7", task_name="Import"))
    receiver.logs(progress(1.0, 2, task_id="import-7", task_name="Import", task_status="completed"))
    receiver.pass_seconds(60)
    assert receiver.told[0] == ("Import", "in_progress", 0.5)
    assert receiver.told[-1] == ("Import", "completed", 1.0)
    assert {report.task_id for report in receiver.reports} == {"import-7"}


def test_an_event_that_says_failed_ends_a_task_without_spans_as_failed(receiver: Receiver) -> None:
    receiver.logs(on(1, progress(0.5, task_status="failed", task_content="no rows")))
    receiver.pass_seconds(60)
    assert receiver.told[-1][1] == "failed"


def test_an_event_that_names_neither_a_span_nor_a_task_is_passed_by(receiver: Receiver) -> None:
    receiver.logs(progress(0.5))
    assert receiver.told == []


def test_an_older_writers_event_name_is_an_attribute(receiver: Receiver) -> None:
    record = on(1, progress(0.5))
    record["eventName"] = ""
    record["attributes"].append(_text("event.name", "letta.task.progress"))
    receiver.logs(record)
    assert receiver.told == [("svc", "in_progress", 0.5)]


# -- settling ----------------------------------------------------------------------------------------------------------


def test_of_the_heartbeats_of_an_open_span_only_the_newest_has_to_be_kept(receiver: Receiver) -> None:
    first, second = receiver.logs(heartbeat(open_span())), receiver.logs(heartbeat(open_span()))
    receiver.pass_seconds(2)
    assert receiver.settled == [first]
    end = receiver.spans(ended())
    receiver.pass_seconds(2)
    assert sorted(receiver.settled) == [first, second, end]


def test_a_body_is_kept_as_long_as_a_task_of_its_traces_is_under_way(receiver: Receiver) -> None:
    step = {"traceId": KEY[0], "parentSpanId": KEY[1]}
    body = receiver.spans(ended("tool", 2, **step, attributes=[_text("gen_ai.operation.name", "execute_tool")]))
    other = receiver.spans(ended("plain", 3, attributes=[]))
    receiver.pass_seconds(2)
    assert receiver.settled == [other]
    root = receiver.spans(ended("invoke_agent", attributes=[_text("gen_ai.operation.name", "invoke_agent")]))
    receiver.pipeline._tracker.finish()
    receiver.pass_seconds(2)
    assert sorted(receiver.settled) == sorted([other, body, root])


def test_the_turn_of_a_coding_agent_keeps_the_records_that_tell_of_it(receiver: Receiver) -> None:
    prompt = {
        "timeUnixNano": str(START),
        "attributes": [_text("event.name", "codex.user_prompt"), _text("conversation.id", "c-1")],
    }
    body = receiver.logs(prompt)
    receiver.pass_seconds(2)
    assert receiver.settled == []
    receiver.pipeline._tracker.finish()
    receiver.pass_seconds(2)
    assert receiver.settled == [body]


def test_a_full_inbox_holds_nobody_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts something into it then makes calls himself, in the middle of a batch."""
    monkeypatch.setattr(inbox.Inbox, "backlog", 0)
    receiver.logs(heartbeat(open_span()))
    spans = [ended(f"task {number}", number, traceId=f"{number:032x}") for number in range(1, 200)]
    thread = threading.Thread(target=receiver.spans, args=spans, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert len({name for name, status, _ in receiver.told if status == "completed"}) == 199


def test_a_held_span_is_a_span_like_any_other() -> None:
    from otel_letta.serve.live import HeldSpan

    (span,) = read_request(_request("resourceSpans", "scopeSpans", "spans", [open_span()], {}), "resourceSpans").spans
    held = HeldSpan(span)
    public = [name for name in vars(ReadableSpan) if isinstance(getattr(ReadableSpan, name), property)]
    for name in set(public) - {"end_time", "instrumentation_info", "dropped_events", "dropped_links"}:
        assert getattr(held, name) == getattr(span, name)
    assert held.end_time is None


def test_a_record_without_the_attribute_keeps_no_body() -> None:
    body = _request("resourceLogs", "scopeLogs", "logRecords", [{"body": {"stringValue": "secret"}}], {})
    (record,) = read_request(body, "resourceLogs").records
    assert isinstance(record, LogRecord)
    assert record.span is None


@pytest.mark.parametrize("live", [False, True], ids=["nothing is live", "another one is live"])
def test_progress_that_comes_after_its_span_opens_no_task(receiver: Receiver, live: bool) -> None:
    """Programs send spans and log records by requests of their own, at their end both at once."""
    late = {**progress(0.5), "traceId": KEY[0], "spanId": KEY[1]}
    if live:
        receiver.logs({**progress(0.1), "traceId": f"{2:032x}", "spanId": f"{2:016x}"})
    receiver.spans(ended(attributes=[_text("letta.chat.id", "chat-1")]))
    before = receiver.told
    receiver.logs(late)
    assert [(name, status) for name, status, _ in receiver.told if name == "nightly"] == [("nightly", "completed")]
    assert receiver.told == before
    assert len(receiver.feed.live) == live
    assert receiver.pipeline._tracker.open_tasks == live


def test_ended_spans_are_remembered_for_a_while_and_not_for_ever(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.serve.live._MOST_ENDED", 4)
    receiver.spans(ended())
    for number in range(2, 6):
        receiver.spans(ended(number=number))
        assert receiver.feed.live._is_over((1, 1))
    for number in range(6, 20):
        receiver.spans(ended(number=number))
    live = receiver.feed.live
    assert not live._is_over((1, 1))
    assert live._is_over((19, 19))
    assert len(live._over) + len(live._over_before) <= 10
