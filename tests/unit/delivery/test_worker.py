"""Threads that exist only while there is something to do, and waiting for all of them."""

from __future__ import annotations

import logging
import threading
from collections import deque

import pytest

from otel_letta.delivery.worker import Crew, Job, Worker
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import on_own_thread


class Doing(Worker):
    """A worker that does what it is given, in order."""

    def __init__(self, crew: Crew) -> None:
        super().__init__("test worker", crew)
        self.jobs: deque[Job] = deque()
        self.not_before = 0.0
        self.idle = threading.Event()

    def give(self, *jobs: Job) -> None:
        with self._lock:
            self.jobs.extend(jobs)
            self.wake()

    def has_pending(self, now: float) -> bool:
        return self.busy or bool(self.jobs)

    def next_try(self, now: float) -> float:
        return now if self.busy else self.not_before

    def on_idle(self) -> None:
        self.idle.set()

    def _next_job(self, now: float) -> tuple[Job | None, float | None]:
        if not self.jobs:
            return None, None
        if self.not_before > now:
            return None, self.not_before - now
        return self.jobs.popleft(), None


@pytest.fixture
def crew() -> Crew:
    return Crew()


@pytest.fixture
def worker(crew: Crew) -> Doing:
    return Doing(crew)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def flush(crew: Crew, *workers: Worker, until: Deadline | None = None) -> bool:
    return crew.flush(lambda: workers, until or Deadline.after(20.0))


def test_jobs_are_done_one_after_another_on_a_thread_of_their_own(crew: Crew, worker: Doing) -> None:
    done: list[tuple[int, str, bool]] = []
    jobs: list[Job] = [
        lambda until, number=number: done.append(  # type: ignore[misc]
            (number, threading.current_thread().name, on_own_thread())
        )
        for number in range(5)
    ]
    worker.give(*jobs)
    assert flush(crew, worker)
    assert done == [(number, "test worker", True) for number in range(5)]


def test_a_thread_without_work_ends(crew: Crew, worker: Doing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_letta.delivery.worker._IDLE_SECONDS", 0.01)
    worker.give(lambda until: None)
    assert worker.idle.wait(60)
    worker.give(lambda until: None)  # and another one begins
    assert flush(crew, worker)


def test_a_stopped_one_leaves_the_rest_undone(crew: Crew, worker: Doing) -> None:
    inside, leave = threading.Event(), threading.Event()

    def job(until: Deadline) -> None:
        inside.set()
        assert leave.wait(60)

    worker.give(job, lambda until: None)
    assert inside.wait(60)
    with crew.lock:
        worker.stop()
    leave.set()
    assert worker.idle.wait(60)
    assert len(worker.jobs) == 1


def test_an_unexpected_error_ends_neither_the_thread_nor_the_flush(
    crew: Crew, worker: Doing, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(until: Deadline) -> None:
        raise ValueError("a bug")

    done = threading.Event()
    worker.give(fail, lambda until: done.set())
    assert flush(crew, worker) and done.is_set()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "test worker" in record.getMessage()


def test_jobs_have_no_limit_of_time_until_the_crew_is_dismissed(crew: Crew, worker: Doing) -> None:
    seen: list[tuple[float, bool]] = []
    inside = threading.Event()

    def job(until: Deadline) -> None:
        inside.set()
        assert until.wait(60)  # woken by the dismissal
        seen.append((until.at, until.cancelled))

    worker.give(job)
    assert inside.wait(60)
    crew.dismiss()
    assert flush(crew, worker)
    assert seen == [(float("inf"), True)]


# -- flush --------------------------------------------------------------------------------------------------------


def test_a_flush_without_workers_has_nothing_to_wait_for(crew: Crew) -> None:
    assert flush(crew, until=Deadline.after(0.0))


@pytest.mark.parametrize("until", [Deadline.after(0.0), Deadline(cancelled=lambda: True)], ids=["passed", "cancelled"])
def test_a_flush_gives_up_at_its_deadline(crew: Crew, worker: Doing, until: Deadline) -> None:
    leave = threading.Event()
    worker.give(lambda until: leave.wait(60) and None)
    assert not flush(crew, worker, until=until)
    leave.set()
    assert flush(crew, worker)


def test_a_flush_does_not_wait_for_a_try_that_comes_too_late(crew: Crew, worker: Doing) -> None:
    worker.not_before = crew.clock() + 10_000
    worker.give(lambda until: None)
    assert not flush(crew, worker, until=Deadline.after(5_000))


def test_a_flush_waits_for_work_that_one_worker_hands_to_another(crew: Crew, worker: Doing) -> None:
    other = Doing(crew)
    done = threading.Event()
    worker.give(lambda until: other.give(lambda until: done.set()))
    assert flush(crew, worker, other)
    assert done.is_set()


@pytest.mark.usefixtures("no_threads")
def test_where_no_thread_can_be_started_whoever_flushes_does_the_work_within_its_time(
    crew: Crew, worker: Doing
) -> None:
    seen: list[tuple[str, float]] = []
    worker.give(lambda until: seen.append((threading.current_thread().name, until.at)))
    until = Deadline.after(20.0)
    assert flush(crew, worker, until=until)
    assert seen == [(threading.current_thread().name, until.at)]


@pytest.mark.usefixtures("no_threads")
def test_the_work_of_a_cancelled_flush_is_cancelled_too(crew: Crew, worker: Doing) -> None:
    cancelled = False

    def job(until: Deadline) -> None:
        nonlocal cancelled
        cancelled = True
        assert until.passed

    worker.give(job, lambda until: None)
    assert not flush(crew, worker, until=Deadline(cancelled=lambda: cancelled))
    assert len(worker.jobs) == 1


def test_an_alarm_that_was_moved_leaves_nothing_behind(crew: Crew, worker: Doing) -> None:
    # Each would stay until its time comes: an hour later for a lane whose agent was woken too often.
    others = [Doing(crew) for _ in range(5)]
    with crew.lock:
        for number, other in enumerate(others):
            crew.lanes.set_alarm(other, 2_000_000.0 + number)
        for number in range(1_000):
            crew.lanes.set_alarm(worker, 1_000_000.0 - number)
        kept = list(crew.lanes._alarms)
    assert len(kept) < 100
    set_now = {(at, who) for at, _, who in kept if who.alarm == at}
    assert set_now == {(999_001.0, worker), *((2_000_000.0 + number, each) for number, each in enumerate(others))}
