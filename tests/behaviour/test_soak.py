"""Two hundred ends a second behind faults that change. `python -m tests.support.soak 600` runs longer."""

from __future__ import annotations

import sys

import pytest

from tests.support.soak import growth, soak

MOST_GROWTH = 60.0
"""Megabytes: what waits during a fault takes room, and Python gives little of it back."""

MOST_BYTES_AN_END = 400.0
"""What an end may seem to cost for good: a fragment of the allocator's. A small object that stays is twice that."""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_end_arrives_exactly_once_and_memory_stays_flat() -> None:
    outcome = soak(45)
    assert outcome.flushed, outcome
    assert outcome.stats["dropped"] == {} or all(not name.startswith("end ") for name in outcome.stats["dropped"])  # type: ignore[attr-defined]
    assert (outcome.missing, outcome.twice) == (0, 0), outcome
    assert outcome.growth < MOST_GROWTH, outcome


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_ends() -> None:
    # Some 60 s: the largest of the memories has to be full, with 40,000 ends, before anything can be said.
    each, figures = growth()
    assert figures["flushed"] and figures["delivered"], figures
    assert each < MOST_BYTES_AN_END, figures
