"""An App Server's agents: a skill."""

from __future__ import annotations

from otel_letta.cli.setup.steps import Step, Wishes


def steps(wishes: Wishes, agent_id: str) -> list[Step]:
    """Return what is to be done."""
    return []
