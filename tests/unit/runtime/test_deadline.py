"""A deadline: until when, unless cancelled."""

from __future__ import annotations

import math
import threading
import time

from otel_letta.runtime.deadline import Deadline, bounded


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


def test_who_waits_may_be_woken_to_see_what_else_has_changed() -> None:
    deadline = Deadline()
    given_up: list[bool] = []
    waiting = threading.Thread(target=lambda: given_up.append(deadline.wait(100.0)))
    waiting.start()
    while waiting.is_alive():
        deadline.wake()
    assert given_up == [False]


def test_one_within_another_passes_with_whichever_is_earlier() -> None:
    cancelled = threading.Event()
    outer = Deadline.after(100.0, cancelled.is_set)
    assert Deadline.after(200.0, within=outer).at == outer.at
    assert Deadline.after(50.0, within=outer).at < outer.at
    assert Deadline.after(50.0, within=None).left() <= 50.0
    inner = Deadline.after(200.0, within=outer)
    cancelled.set()
    assert inner.passed and inner.cancelled


def test_who_waits_on_one_within_another_notices_that_the_other_was_brought_forward() -> None:
    outer = Deadline()
    inner = Deadline.after(100.0, within=outer)
    given_up: list[bool] = []
    waiting = threading.Thread(target=lambda: given_up.append(inner.wait(100.0)))
    waiting.start()
    outer.bring_forward(time.monotonic())
    waiting.join(30)
    assert given_up == [True]


def test_it_is_near_while_there_is_time_for_winding_up() -> None:
    assert not Deadline().is_near(3.0)
    assert not Deadline.after(100.0).is_near(3.0)
    deadline = Deadline.after(100.0)
    inner = Deadline(within=deadline)
    assert deadline.is_near(1_000.0) is False  # of a hundred seconds no more than seventy are kept
    deadline.bring_forward(time.monotonic())
    assert deadline.is_near(3.0) and inner.is_near(3.0)


def test_a_renewed_one_has_no_limit() -> None:
    deadline = Deadline.after(0.0)
    deadline.renew()
    assert deadline.at == math.inf and not deadline.passed and not deadline.is_near(1_000.0)


def test_a_bounded_time_is_never_nothing() -> None:
    assert bounded(3.0, None) == 3.0
    assert bounded(3.0, Deadline.after(100.0)) == 3.0
    assert 2.0 < bounded(100.0, Deadline.after(3.0)) <= 3.0
    assert bounded(3.0, Deadline.after(-1.0)) == 0.01
