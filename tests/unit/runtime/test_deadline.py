"""A deadline: until when, unless cancelled."""

from __future__ import annotations

import math
import threading
import time

from otel_letta.runtime.deadline import Deadline


def test_without_a_limit_it_never_passes() -> None:
    deadline = Deadline()
    assert not deadline.passed
    assert deadline.left() == math.inf
    assert deadline.left(most=3.0) == 3.0


def test_it_passes_when_its_time_has_come() -> None:
    deadline = Deadline.after(0.0)
    assert deadline.passed
    assert deadline.left() == 0.0
    assert deadline.wait(100.0)


def test_a_wait_is_no_longer_than_asked_for() -> None:
    assert not Deadline.after(100.0).wait(0.001)


def test_a_cancelled_one_has_passed_whatever_time_is_left() -> None:
    cancelled = threading.Event()
    deadline = Deadline.after(100.0, cancelled.is_set)
    assert not deadline.passed
    cancelled.set()
    assert deadline.passed and deadline.cancelled
    assert deadline.wait(100.0)


def test_who_waits_notices_that_it_was_brought_forward() -> None:
    deadline = Deadline.after(100.0)
    given_up: list[bool] = []
    waiting = threading.Thread(target=lambda: given_up.append(deadline.wait(100.0)))
    waiting.start()
    deadline.bring_forward(time.monotonic())
    waiting.join(30)
    assert given_up == [True]


def test_it_cannot_be_put_off() -> None:
    deadline = Deadline.after(1.0)
    before = deadline.at
    deadline.bring_forward(before + 100)
    assert deadline.at == before


def test_who_waits_is_woken_to_see_that_it_was_cancelled() -> None:
    cancelled = threading.Event()
    deadline = Deadline.after(100.0, cancelled.is_set)
    given_up: list[bool] = []
    waiting = threading.Thread(target=lambda: given_up.append(deadline.wait(100.0)))
    waiting.start()
    cancelled.set()
    while waiting.is_alive():
        deadline.wake()
    assert given_up == [True]
