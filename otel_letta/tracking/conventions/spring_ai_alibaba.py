"""Spring AI Alibaba: graphs and their nodes (measured with 1.1.2.2). Calls of tools have no span of their own, but a
node: its name says that there was one, and not which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_GRAPH: Final = "spring.ai.alibaba.graph.name"
_NODE: Final = "spring.ai.alibaba.graph.node.name"
_TOOL_NODE = "_AGENT_TOOL_"
_NO_NAME = "graph-execution"


def _role(reading: Reading) -> Role | Unclaimed | None:
    if _GRAPH in reading.attributes:
        return Role.AGENT
    node = as_text(reading.attributes.get(_NODE))
    if node is None:
        return UNCLAIMED
    return Role.TOOL if node == _TOOL_NODE else None


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.TOOL or facts.name == _NO_NAME:
        facts.name, facts.named = "", False


SPRING_AI_ALIBABA = Convention(
    name="spring ai alibaba",
    marks=frozenset({_GRAPH, _NODE}),
    role=_role,
    names={Role.AGENT: (_GRAPH,)},
    failed={"spring.ai.alibaba.graph.success": "false", "spring.ai.alibaba.graph.node.success": "false"},
    refine=_refine,
)
