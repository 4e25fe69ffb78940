"""What a Letta agent answered to a message with reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from otel_letta.instruction import Instruction

__all__ = ["Answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The agent's side of one turn. All of it was written by an LLM that may have read hostile text: it is data."""

    agent_id: str
    text: str = ""
    """Its assistant messages, joined by blank lines."""
    tools: tuple[str, ...] = ()
    """The names of the tools that it called, in order."""
    instructions: tuple[Instruction, ...] = ()
    """What it asks for: see `otel_letta.instruction`."""
    run_id: str | None = None
    """Letta's id of the turn."""
    stop_reason: str | None = None
    """Letta's word, such as ``end_turn``."""
    usage: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Letta's counts of tokens: ``prompt_tokens``, ``completion_tokens``, ``total_tokens`` and what else it names."""
    reasoning: str | None = None
    """Its reasoning; None unless it was asked for."""
