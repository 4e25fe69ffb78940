"""Which reports say what an earlier process has said already."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.serve.told import Told

BEGAN = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
TRACE, SPAN = f"{7:032x}", f"{9:016x}"


def report(*, starts: float, until: float, made: float, ends: bool = True, **more: Any) -> ProgressReport:
    """A report of a task that started so many seconds after `BEGAN`, which speaks of a time, and was made later."""
    return ProgressReport(
        **{
            "task_id": f"{TRACE}-{SPAN}",
            "trace_id": TRACE,
            "span_id": SPAN,
            "status": TaskStatus.COMPLETED if ends else TaskStatus.IN_PROGRESS,
            "started": BEGAN + timedelta(seconds=starts),
            "duration": until - starts,
            "timestamp": BEGAN + timedelta(seconds=made),
            **more,
        }
    )


def passed(told: Told, *reports: ProgressReport) -> list[ProgressReport]:
    found: list[ProgressReport] = []
    for each in reports:
        told.pass_on(each, found.append)
    return found


FIRST = report(starts=0, until=5, made=6)


@pytest.fixture(params=["noted", "in the outbox"])
def restarted(request: pytest.FixtureRequest) -> Told:
    """What a process knows whose predecessor has reported `FIRST`."""
    before, after = Told(lambda: None), Told(lambda: None)
    assert passed(before, FIRST) == [FIRST]
    if request.param == "noted":
        with before.fresh() as fresh:
            after.restore(fresh)
    else:
        after.expect(FIRST, "agent-1")
    return after


def test_what_is_read_again_is_said_at_another_time_and_not_passed_on(restarted: Told) -> None:
    again = report(starts=0, until=5, made=60)
    begun, step = (report(starts=0, until=59, made=made, ends=False) for made in (59, 60))
    assert passed(restarted, begun, step, again) == []


def test_a_task_that_is_named_by_its_trace_is_known_by_its_root(restarted: Told) -> None:
    by_trace = report(starts=0, until=5, made=60, task_id=TRACE)
    assert passed(restarted, by_trace) == []
    known_by_trace = Told()
    known_by_trace.expect(by_trace, "agent-1")
    assert passed(known_by_trace, report(starts=0, until=5, made=70)) == []


def test_another_run_of_a_task_is_passed_on(restarted: Told) -> None:
    run = [report(starts=7, until=60, made=60, ends=False), report(starts=7, until=70, made=70)]
    assert passed(restarted, *run) == run


def test_an_end_that_speaks_of_another_time_is_news(restarted: Told) -> None:
    """A task that was given up came to an end after all."""
    later = report(starts=0, until=8, made=60)
    assert passed(restarted, later) == [later]
    goes_on = report(starts=0, until=90, made=90, ends=False)
    assert passed(restarted, goes_on) == [goes_on]


def test_within_one_process_what_is_said_later_is_news() -> None:
    lost, after_all = report(starts=0, until=600, made=600), report(starts=0, until=5, made=700)
    assert passed(Told(), lost, after_all, after_all) == [lost, after_all]


def test_an_end_that_could_not_be_kept_is_there_the_next_time() -> None:
    told = Told(lambda: None)
    passed(told, FIRST)
    with pytest.raises(OSError), told.fresh() as first:
        passed(told, report(starts=7, until=70, made=70))
        raise OSError
    with told.fresh() as both:
        assert both.splitlines()[:1] == first.splitlines()
        assert len(both.splitlines()) == 2
    with told.fresh() as nothing:
        assert nothing == b""
