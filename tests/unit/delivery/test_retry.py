"""When to try again after failures."""

from __future__ import annotations

import math

import pytest

from otel_letta import errors
from otel_letta.delivery.retry import Circuits, Retry
from otel_letta.letta.transport import Lane

BUSY_SERVER = errors.LettaServerError(status=503)
DOWN = errors.LettaConnectionError()
LANE = Lane("http://letta.test", "agent-1")


class Waits:
    def wake(self) -> None:
        """It asks again when the test says so."""


def test_backoff_doubles_up_to_a_minute_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []
    monkeypatch.setattr(
        "otel_letta.delivery.retry.random.uniform", lambda low, high: ranges.append((low, high)) or high
    )
    retry = Retry(60.0)
    delays = [retry.failed(BUSY_SERVER, now=0.0) for _ in range(9)]

    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(low == high / 2 for low, high in ranges)
    retry.succeeded()
    assert retry.failed(BUSY_SERVER, now=0.0) == 1


def test_what_only_a_person_can_mend_is_probed_at_the_interval() -> None:
    retry = Retry(60.0)
    unauthorized = errors.LettaAuthenticationError(status=401)
    assert retry.failed(unauthorized, now=100.0) == 60.0
    assert (retry.parked, retry.not_before) == (unauthorized, 160.0)
    retry.succeeded()
    assert (retry.parked, retry.not_before) == (None, -math.inf)


def test_a_longer_retry_after_of_the_server_is_kept() -> None:
    assert Retry(60.0).failed(errors.LettaRateLimitError(status=429, retry_after=30.0), now=0.0) == 30.0


def failing(circuits: Circuits, who: object, now: float) -> None:
    circuits.begin(LANE, who)
    circuit = circuits.blamed(LANE, DOWN, who)
    assert circuit is not None
    circuit.failed(DOWN, now)
    circuits.end(who)


def test_those_who_tried_in_vain_come_after_the_others() -> None:
    circuits, stuck, free = Circuits(), Waits(), Waits()
    now = 0.0
    for _ in range(3):
        failing(circuits, stuck, now)
        circuits.try_at(LANE, stuck)  # whoever asks first
        now = circuits.try_at(LANE, free)
        assert now < circuits.try_at(LANE, stuck)
    circuits.bring_forward(now)  # the program ends: nobody can wait
    assert circuits.try_at(LANE, stuck) == now


def test_who_waits_alone_or_with_others_that_failed_too_keeps_the_pace() -> None:
    circuits, one, other = Circuits(), Waits(), Waits()
    failing(circuits, one, 0.0)
    alone = circuits.try_at(LANE, one)
    assert alone <= 1.0
    failing(circuits, other, alone)
    assert circuits.try_at(LANE, other) == circuits.try_at(LANE, one)


def test_the_next_try_is_only_ever_brought_forward() -> None:
    retry = Retry(60.0)
    retry.failed(errors.LettaAuthenticationError(status=401), now=0.0)
    retry.bring_forward(10.0)
    retry.bring_forward(20.0)
    assert retry.not_before == 10.0
