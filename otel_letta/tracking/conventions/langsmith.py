"""LangSmith's OpenTelemetry export: ``langsmith.span.kind``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_KIND: Final = "langsmith.span.kind"
_KINDS: Mapping[str, Role | None] = {
    "agent": Role.AGENT,
    "tool": Role.TOOL,
    "llm": Role.LLM,
    "chain": Role.STEP,
    "retriever": Role.STEP,
    "embedding": None,
    "prompt": None,
    "parser": None,
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_KIND))
    return UNCLAIMED if kind is None else _KINDS.get(kind.lower(), UNCLAIMED)


LANGSMITH = Convention(
    name="langsmith",
    marks=frozenset({_KIND}),
    role=_role,
    chats=("langsmith.metadata.thread_id", "langsmith.metadata.session_id", "langsmith.metadata.conversation_id"),
    event_prefixes=("langsmith.",),
)
