"""What a receiver leaves unread changes no report: its place is known, and it is read where it comes to matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from otel_letta.otlp import json_request
from otel_letta.otlp.sieve import AWAY
from otel_letta.serve import plain as plain_spans
from otel_letta.serve.plain import PlainSpans
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, progress_event, request_of, serving, span_of
from tests.support.waiting import until


def plain_span(number: int, trace: int = 1, above: int | None = None) -> dict[str, Any]:
    more = {} if above is None else {"parentSpanId": f"{above:016x}"}
    return {**span_of(f"plain {number}", number, attributes=[], **more), "traceId": f"{trace:032x}"}


def part_of(number: int, above: int) -> dict[str, Any]:
    return span_of("part", number, traceId=f"{1:032x}", parentSpanId=f"{above:016x}")


def ends(letta: InMemoryLetta, agent: str) -> list[str]:
    return [report["task"] for report in letta.reports(agent) if report["status"] != "in_progress"]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_a_plain_span_between_two_that_matter_joins_them_whenever_it_comes(
    letta: InMemoryLetta, agent: str, order: tuple[int, ...]
) -> None:
    spans = [plain_span(2, above=1), part_of(3, above=2), span_of("whole")]
    with serving(letta.base_url, agent) as service:
        for place in order:
            assert post(service.options.port, "/v1/traces", request_of(spans[place])).status == 200
        assert until(lambda: ends(letta, agent))
        assert service.pipeline.flush(60)
    assert ends(letta, agent) == ["whole"]


def test_the_plain_end_of_a_task_that_a_log_event_opened_ends_it(letta: InMemoryLetta, agent: str) -> None:
    event = progress_event(1, letta__task__name="nightly")
    with serving(letta.base_url, agent) as service:
        assert post(service.options.port, "/v1/logs", request_of(event, logs=True)).status == 200
        assert post(service.options.port, "/v1/traces", request_of(plain_span(1))).status == 200
        assert until(lambda: ends(letta, agent) == ["nightly"])


def test_an_event_that_comes_after_the_plain_end_opens_nothing(letta: InMemoryLetta, agent: str) -> None:
    event = {
        "timeUnixNano": "1795946400500000000",
        "eventName": "letta.task.progress",
        "traceId": f"{1:032x}",
        "spanId": f"{1:016x}",
        "attributes": [{"key": "letta.task.progress", "value": {"doubleValue": 0.5}}],
    }
    with serving(letta.base_url, agent) as service:
        assert post(service.options.port, "/v1/traces", request_of(plain_span(1))).status == 200
        assert post(service.options.port, "/v1/logs", request_of(event, logs=True)).status == 200
        assert service.pipeline.flush(60)
        assert service.pipeline.stats()["open_spans"] == 0


def test_what_was_left_unread_while_its_trace_came_to_matter_is_read_again(service: Service) -> None:
    feed, body = service.intake.feed, request_of(plain_span(2, above=1))
    batch = json_request.read_traces(body, feed.gate)
    assert feed.take(json_request.read_traces(request_of(part_of(3, above=2)), feed.gate), 1)
    assert not feed.take(batch, 2)
    again = json_request.read_traces(body, feed.gate)
    assert [span.name for span in again.spans] == ["plain 2"]
    assert feed.take(again, 2)


def test_a_setting_that_makes_tasks_of_plain_spans_has_all_of_them_read(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent, settings={"tasks": "name:plain*"}) as service:
        assert service.intake.feed.gate is None
        failed = {**plain_span(1), "status": {"code": 2}}
        assert post(service.options.port, "/v1/traces", request_of(failed)).status == 200
        assert until(lambda: ends(letta, agent) == ["plain 1"])


def test_a_pipeline_that_cannot_keep_up_asks_senders_to_come_back(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        with service.pipeline._inbox.lock:  # it does nothing
            body = request_of(*(span_of(f"task {number}", number) for number in range(1, 200)))
            answers = []
            for number in range(2_000):
                answers.append(post(service.options.port, "/v1/traces", body + b" " * number))
                if answers[-1].status != 200:
                    break
                service.intake.feed._taken += 2**20  # as if they were larger
            assert answers[-1].status == 503
            assert int(answers[-1].headers["retry-after"]) > 0
            kept = service.intake.spool.size()[0]
        assert kept == len(answers) - 1
        assert until(lambda: not service.intake.feed.is_full or service.intake.feed._placed > 0)


def test_of_a_body_only_what_is_read_counts_as_waiting(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent) as service, service.pipeline._inbox.lock:  # it does nothing
        feed, plain = service.intake.feed, [plain_span(number) for number in range(10, 109)]
        assert post(service.options.port, "/v1/traces", request_of(*plain)).status == 200
        assert feed._taken == 0
        body = request_of(
            span_of("task", 1, traceId=f"{7:032x}"),
            *({**each, "spanId": f"{n:016x}"} for n, each in enumerate(plain, 500)),
        )
        assert post(service.options.port, "/v1/traces", body).status == 200
        assert feed._taken == len(body) // 100


@pytest.fixture
def service(letta: InMemoryLetta, agent: str) -> Any:
    with serving(letta.base_url, agent) as service:
        yield service


# -- what is kept of them ----------------------------------------------------------------------------------------------


def test_places_are_kept_until_their_trace_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (number.to_bytes(16, "big") for number in (1, 2, 3))
    a, b = (number.to_bytes(8, "big") for number in (10, 11))
    found = PlainSpans(most=3)
    found.keep({one: {a: b""}, two: {a: b + AWAY}})
    found.keep({two: {b: a}})
    assert (2, 11) in found
    assert (2, 12) not in found
    assert found.want([2, 5]) == [((2, 10), (2, 11), True), ((2, 11), (2, 10), False)]
    assert (2, 11) not in found
    assert list(found.wanted) == [two, (5).to_bytes(16, "big")]
    found.keep({three: {a: b"", b: b""}})
    found.keep({three: {a: b"", b: b""}})  # the same again is no more
    assert (1, 10) in found
    found.keep({two: {a: b""}})
    assert (1, 10) not in found  # the oldest trace goes
    assert (3, 10) in found


def test_only_so_many_traces_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_spans, "_MOST_WANTED", 2)
    found = PlainSpans()
    found.want([1, 2])
    found.want([1])
    found.want([3])
    assert [int.from_bytes(each, "big") for each in found.wanted] == [1, 3]
