"""Four containers, each with a temporary folder of its own, that report to one agent at the same moment."""

from __future__ import annotations

from benchmarks.hosts import round_of
from otel_letta.testing import InMemoryLetta


def test_the_agent_has_every_end_of_four_containers_once() -> None:
    """Takes seconds: eight turns one after another, and pauses of chance between them."""
    with InMemoryLetta(turn_seconds=0.2, run_delay=0.05) as server:
        result = round_of(server, 4, 60.0)
    assert (result["in_context"], result["twice"]) == (8, 0)
    assert (result["flushed"], result["dropped"]) == (4, 0)
