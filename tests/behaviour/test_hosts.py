"""Four containers, each with a temporary folder of its own, that report to one agent at the same moment."""

from __future__ import annotations

import pytest

from benchmarks.hosts import round_of
from otel_letta.testing import InMemoryLetta


@pytest.mark.parametrize(
    ("turn", "run_delay"),
    [
        (0.2, 0.05),
        # A busy server: a whole turn of one fits in the time in which another's cannot be seen yet.
        (0.05, 0.3),
    ],
)
def test_the_agent_has_every_end_of_four_containers_once(turn: float, run_delay: float) -> None:
    """Takes seconds: eight turns one after another, and pauses of chance between them."""
    with InMemoryLetta(turn_seconds=turn, run_delay=run_delay) as server:
        result = round_of(server, 4, 60.0)
    assert (result["in_context"], result["twice"]) == (8, 0)
    assert (result["flushed"], result["dropped"]) == (4, 0)
