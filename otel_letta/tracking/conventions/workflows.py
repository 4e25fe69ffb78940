"""Workflows of agents: ``workflow.id`` or ``workflow.name``, and an event ``workflow.started`` (measured with
Microsoft's Agent Framework 1.23 for Python; the spans of its agents are GenAI's).

Engines of any kind may have such attributes, so the event has to be there as well: it comes right after the start. What
builds a workflow, its messages, and the executors around its agents have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_ID: Final = "workflow.id"
_NAME: Final = "workflow.name"
_STARTED: Final = "workflow.started"
_COMPLETED: Final = "workflow.completed"


def _role(reading: Reading) -> Role | Unclaimed | None:
    return Role.AGENT if any(name == _STARTED for name, _ in reading.signals) else UNCLAIMED


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    names = [name for name, _ in reading.signals]
    if reading.end is not None and not facts.failed and _STARTED in names and _COMPLETED not in names:
        facts.cancelled = True  # it was, or whoever took its events left


WORKFLOWS = Convention(
    name="workflows of agents",
    also_asked=frozenset({_ID, _NAME}),
    role=_role,
    names={Role.AGENT: (_NAME,)},
    events={_STARTED: (), _COMPLETED: ()},
    refine=_refine,
)
