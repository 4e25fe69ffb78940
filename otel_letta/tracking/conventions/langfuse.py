"""Langfuse: ``langfuse.observation.type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_TYPE: Final = "langfuse.observation.type"
_TYPES: Mapping[str, Role | Unclaimed | None] = {
    "agent": Role.AGENT,
    "tool": Role.TOOL,
    "generation": Role.LLM,
    "chain": Role.STEP,
    "retriever": Role.STEP,
    "evaluator": Role.STEP,
    "guardrail": Role.STEP,
    "embedding": None,
    "event": None,
    "span": UNCLAIMED,  # the default, so others may know better
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_TYPE))
    return UNCLAIMED if kind is None else _TYPES.get(kind.lower(), UNCLAIMED)


LANGFUSE = Convention(
    name="langfuse",
    marks=frozenset({_TYPE}),
    role=_role,
    chats=("langfuse.session.id",),
    answers=frozenset({"langfuse.observation.output", "langfuse.observation.usage_details"}),
    failed={"langfuse.observation.level": "error"},
    error_texts=("langfuse.observation.status_message",),
    content={
        (Role.TOOL, "arguments"): ("langfuse.observation.input",),
        (Role.TOOL, "results"): ("langfuse.observation.output",),
        (Role.AGENT, "prompt"): ("langfuse.observation.input",),
        (Role.AGENT, "answer"): ("langfuse.observation.output",),
    },
    event_prefixes=("langfuse.",),
)
