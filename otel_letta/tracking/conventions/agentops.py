"""AgentOps: ``agentops.span.kind``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_KIND: Final = "agentops.span.kind"
_KINDS: Mapping[str, Role | Unclaimed | None] = {
    "agent": Role.AGENT,
    "workflow": Role.AGENT,
    "tool": Role.TOOL,
    "llm": Role.LLM,
    "chain": Role.STEP,
    "task": Role.STEP,
    "guardrail": Role.STEP,
    "session": None,  # a whole program
    "operation": UNCLAIMED,
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_KIND))
    return UNCLAIMED if kind is None else _KINDS.get(kind.lower(), UNCLAIMED)


AGENTOPS = Convention(
    name="agentops",
    marks=frozenset({_KIND}),
    role=_role,
    names={
        Role.AGENT: ("agentops.entity.name",),
        Role.STEP: ("agentops.entity.name",),
        Role.TOOL: ("agentops.entity.name",),
    },
    answers=frozenset({"agentops.entity.output"}),
    content={
        (Role.TOOL, "arguments"): ("agentops.entity.input",),
        (Role.TOOL, "results"): ("agentops.entity.output",),
        (Role.AGENT, "prompt"): ("agentops.entity.input",),
        (Role.AGENT, "answer"): ("agentops.entity.output",),
    },
    event_prefixes=("agentops.",),
)
