"""``gen_ai.span.kind``: how APMPlus, veADK and ARMS write down roles (measured with Eino 0.7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

__all__ = ["GEN_AI_SPAN_KIND"]

_KIND: Final = "gen_ai.span.kind"
_KINDS: Mapping[str, Role | None] = {
    "agent": Role.AGENT,
    "workflow": Role.AGENT,
    "tool": Role.TOOL,
    "llm": Role.LLM,
    "chatmodel": Role.LLM,
    "model": Role.LLM,
    "chat": Role.LLM,
    "chain": Role.STEP,
    "graph": Role.STEP,
    "task": Role.STEP,
    "retriever": Role.STEP,
    "reranker": Role.STEP,
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_KIND))
    return UNCLAIMED if kind is None else _KINDS.get(kind.lower())


GEN_AI_SPAN_KIND = Convention(
    name="gen_ai.span.kind",
    marks=frozenset({_KIND}),
    role=_role,
    names={Role.AGENT: ("runinfo.name",), Role.STEP: ("runinfo.name",), Role.TOOL: ("runinfo.name",)},
    chats=("gen_ai.session.id",),
    answers=frozenset({"gen_ai.output"}),
    content={
        (Role.TOOL, "arguments"): ("gen_ai.input",),
        (Role.TOOL, "results"): ("gen_ai.output",),
        (Role.AGENT, "prompt"): ("gen_ai.input",),
        (Role.AGENT, "answer"): ("gen_ai.output",),
    },
)
