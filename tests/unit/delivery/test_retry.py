"""When to try again after failures."""

from __future__ import annotations

import math

import pytest

from otel_letta import errors
from otel_letta.delivery.retry import Retry

BUSY_SERVER = errors.LettaServerError(status=503)


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


def test_the_next_try_is_only_ever_brought_forward() -> None:
    retry = Retry(60.0)
    retry.failed(errors.LettaAuthenticationError(status=401), now=0.0)
    retry.bring_forward(10.0)
    retry.bring_forward(20.0)
    assert retry.not_before == 10.0
