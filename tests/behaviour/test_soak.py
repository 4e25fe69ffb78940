"""Two hundred ends a second behind faults that change. `python -m tests.support.soak 600` runs longer."""

from __future__ import annotations

import sys

import pytest

from tests.support.soak import soak

MOST_GROWTH = 60.0
"""Megabytes: what waits during a fault takes room, and Python gives little of it back."""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_end_arrives_exactly_once_and_memory_stays_flat() -> None:
    outcome = soak(45)
    assert outcome.flushed, outcome
    assert outcome.stats["dropped"] == {} or all(not name.startswith("end ") for name in outcome.stats["dropped"])  # type: ignore[attr-defined]
    assert (outcome.missing, outcome.twice) == (0, 0), outcome
    assert outcome.growth < MOST_GROWTH, outcome
