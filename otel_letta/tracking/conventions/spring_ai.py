"""Spring AI: ``spring.ai.kind`` beside the GenAI operation ``framework``, which says nothing (measured with 1.1.2 and
2.0.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.conventions.finishes import is_filler

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_KIND: Final = "spring.ai.kind"
_TOOL: Final = "spring.ai.tool.definition.name"
_TOOLS: Final = "spring.ai.chat.client.tool.names"


def _role(reading: Reading) -> Role | Unclaimed | None:
    attributes = reading.attributes
    kind = as_text(attributes.get(_KIND))
    if kind == "tool_call" or _TOOL in attributes:
        return Role.TOOL
    # A client without tools is a call of a model, and no agent.
    if kind == "chat_client" and not is_filler(attributes.get(_TOOLS)):
        return Role.AGENT
    return UNCLAIMED if kind is None else None


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.AGENT and not facts.named:
        facts.name = ""  # the span's name says what it is


SPRING_AI = Convention(
    name="spring ai",
    marks=frozenset({_KIND, _TOOL}),
    role=_role,
    names={Role.TOOL: (_TOOL,)},
    chats=("spring.ai.chat.client.conversation.id",),
    content={
        (Role.TOOL, "arguments"): ("spring.ai.tool.call.arguments",),
        (Role.TOOL, "results"): ("spring.ai.tool.call.result",),
    },
    refine=_refine,
)
