"""Agent Development Kits that write ``gcp.vertex.agent.*`` and name no operation (measured with adk-rust 2.3.0, which
never sets a status either: the root's events say how it ended)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta import semconv
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_INVOCATION: Final = "gcp.vertex.agent.invocation_id"
_AGENT: Final = "agent.name"
_TOOL: Final = "tool.name"
_COMPLETED: Final = "Agent execution complete"


def _role(reading: Reading) -> Role | Unclaimed | None:
    attributes = reading.attributes
    if _INVOCATION in attributes:
        if _TOOL in attributes:
            return Role.TOOL
        if _AGENT in attributes:
            return Role.AGENT
    return UNCLAIMED


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.AGENT and semconv.GEN_AI_OPERATION not in reading.attributes:
        facts.answered = facts.answered or any(name == _COMPLETED for name, _ in reading.signals)


ADK = Convention(
    name="agent development kits",
    marks=frozenset({_INVOCATION}),
    role=_role,
    names={Role.AGENT: (_AGENT,), Role.TOOL: (_TOOL,)},
    events={_COMPLETED: ()},
    content={
        (Role.TOOL, "arguments"): ("gcp.vertex.agent.tool_call_args",),
        (Role.TOOL, "results"): ("gcp.vertex.agent.tool_response",),
    },
    refine=_refine,
)
