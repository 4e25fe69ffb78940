"""``gen_ai.span.kind``: how APMPlus, veADK and ARMS write down roles (measured with Eino 0.7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text, pattern
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.values import JSON_CAP

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_KIND: Final = "gen_ai.span.kind"
_MESSAGES: Final = "gen_ai.completion.0.content"
_FINISH = pattern(r'"response_meta":\{"finish_reason":"(?P<finish>\w{0,30})"')
"""Where a message holds it that has no text. A quotation mark inside of a text would have a backslash before it, and
nothing else of the message is read."""
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


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.LLM and facts.finish is None:
        text = as_text(reading.attributes.get(_MESSAGES)) or ""
        facts.finish_by(found["finish"] for found in _FINISH.finditer(text[:JSON_CAP]))


GEN_AI_SPAN_KIND = Convention(
    name="gen_ai.span.kind",
    marks=frozenset({_KIND}),
    role=_role,
    names={Role.AGENT: ("runinfo.name",), Role.STEP: ("runinfo.name",), Role.TOOL: ("runinfo.name",)},
    refine=_refine,
    chats=("gen_ai.session.id",),
    answers=frozenset({"gen_ai.output"}),
    content={
        (Role.TOOL, "arguments"): ("gen_ai.input",),
        (Role.TOOL, "results"): ("gen_ai.output",),
        (Role.AGENT, "prompt"): ("gen_ai.input",),
        (Role.AGENT, "answer"): ("gen_ai.output",),
    },
)
