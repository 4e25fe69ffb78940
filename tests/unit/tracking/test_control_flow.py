"""Control flow is neither success nor failure: retries, and what frameworks end on purpose."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from otel_letta.report import TaskStatus
from otel_letta.tracking import Reading
from otel_letta.tracking.conventions.celery import steered_by
from tests.support.tracked import Live
from tests.unit.tracking.test_inferred_tasks import Played, made

COMPLETED, FAILED, IN_PROGRESS = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.IN_PROGRESS
RETRY = {"celery.state": "RETRY", "celery.retry.reason": "Retry in 0.3s: ValueError('row SECRET is broken')"}
DONE = {"celery.state": "SUCCESS", "celery.retries": 1}


def steered(kind: str) -> tuple[str, bool] | None:
    known = {"celery.exceptions.Retry": ("will be tried again", True), "shop.Later": ("ended on purpose", False)}
    return known.get(kind)


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        # As celery 5.7.0 and opentelemetry-instrumentation-celery 0.66b2 write them down.
        (RETRY, ("will be tried again in 0.3 s: ValueError", True)),
        ({"celery.state": "RETRY", "celery.retry.reason": "Retry in 180s"}, ("will be tried again in 3 min", True)),
        ({"celery.state": "RETRY"}, ("will be tried again", True)),
        (
            {"celery.state": "RETRY", "celery.retry.reason": "Retry in 2026-11-29 15:09: KeyError('x')"},
            ("will be tried again", True),
        ),
        ({"celery.state": "IGNORED"}, ("was ignored", False)),
        ({"celery.state": "REJECTED"}, ("was rejected", False)),
        ({"celery.state": "SUCCESS"}, None),
        ({"celery.state": "FAILURE"}, None),
        ({"celery.state": 7, "celery.retry.reason": "Retry in 1s"}, None),
        ({}, None),
    ],
)
def test_celerys_states(attributes: dict[str, Any], found: tuple[str, bool] | None) -> None:
    assert steered_by(attributes) == found


def attempt(key: int, parent: int | None, start: float, end: float, attributes: dict[str, Any], **more: Any) -> Reading:
    return Reading.of(made("run/orders.send", key, parent, start, end, attributes, **more), "run/orders.send")


def exported(*readings: Reading, **options: Any) -> Played:
    played = Played(**options)
    for reading in readings:
        played.clock.now = max(played.clock.now, reading.end or 0)
        played.tracker.ended_alone(reading)
        played.tracker.tick()
    played.pass_seconds(4_000)
    return played


def test_an_attempt_that_is_tried_again_is_progress_and_the_task_ends_once() -> None:
    for last, end in ((DONE, COMPLETED), ({"celery.state": "FAILURE"}, FAILED)):
        error = {"error": "KeyError: gone"} if end is FAILED else {}
        played = exported(attempt(1, None, 0, 1, RETRY), attempt(2, 1, 2, 3, last, **error))
        assert [report.status for report in played.reports] == [IN_PROGRESS, end]
        assert played.reports[0].content == "will be tried again in 0.3 s: ValueError"
        assert not played.reports[0].waiting
        assert len({report.task_id for report in played.reports}) == 1
        assert "SECRET" not in "".join(report.to_json() for report in played.reports)


def test_attempts_of_other_tasks_or_traces_are_others() -> None:
    played = exported(attempt(1, None, 0, 1, RETRY), attempt(2, None, 2, 3, DONE, trace_id=2))
    assert [report.status for report in played.reports] == [IN_PROGRESS, COMPLETED]
    assert len({report.task_id for report in played.reports}) == 2


def test_an_attempt_that_never_comes_fails_the_task_after_the_longest_wait() -> None:
    played = exported(attempt(1, None, 0, 1, RETRY), wait_timeout=10_000.0)
    assert played.ends == []
    played.pass_seconds(10_000)
    assert [end.content for end in played.ends] == [
        "Task failed: lost, it was to be tried again and was not for 2 h 46 min"
    ]


def test_ignored_and_rejected_tasks_are_told_as_that() -> None:
    for state, content in (("IGNORED", "was ignored"), ("REJECTED", "was rejected")):
        played = exported(attempt(1, None, 0, 1, {"celery.state": state}))
        assert [(end.status, end.content) for end in played.ends] == [(COMPLETED, content)]


def declared(kind: str) -> Live:
    live = Live(steered=steered)
    with live.tracer.start_as_current_span("job", attributes={"letta.task.progress": 0.5}) as job:
        with live.tracer.start_as_current_span("step", attributes={"letta.task.content": "half"}) as step:
            step.add_event("exception", {"exception.type": kind, "exception.message": "row 17"})
            step.set_status(StatusCode.ERROR, f"{kind}: row 17")
        job.add_event("exception", {"exception.type": kind, "exception.message": "row 17"})
        job.set_status(StatusCode.ERROR, f"{kind}: row 17")
    return live


def test_a_declared_task_that_an_exception_steers_has_not_failed() -> None:
    assert [(end.status, end.content) for end in declared("shop.Later").ends] == [(COMPLETED, "ended on purpose")]
    retried = declared("celery.exceptions.Retry")
    assert (retried.ends, retried.last.content) == ([], "will be tried again")
    assert [end.status for end in declared("shop.Worse").ends] == [FAILED]


def test_what_our_own_helpers_write_down_about_a_retry_is_no_end() -> None:
    live = Live()
    said = {"letta.task.status": "in_progress", "letta.task.content": "will be tried again: ValueError"}
    for attributes in (said, {"letta.task.progress": 1.0}):
        live.tracer.start_span("job", attributes={"letta.task.id": "job-1", **attributes}).end()
    assert [end.status for end in live.ends] == [COMPLETED]
    assert {report.task_id for report in live.reports} == {"job-1"}


def test_a_live_attempt_goes_on_with_the_task_of_the_one_before_it() -> None:
    live = Live()
    with live.tracer.start_as_current_span("request"):
        for attributes in (RETRY, DONE):
            with live.tracer.start_as_current_span("run/x", attributes={"letta.task.progress": 0.1}) as span:
                span.set_attributes(attributes)
    assert len({report.key for report in live.reports}) == 1
    assert [report.sequence for report in live.reports] == list(range(1, len(live.reports) + 1))
    assert [(end.status, end.run) for end in live.ends] == [(COMPLETED, 1)]
