"""What a Letta agent answered to a message with reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeAlias

from otel_letta.instruction import Instruction
from otel_letta.report import ProgressReport

__all__ = ["Answer", "OnAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The agent's side of one turn. All of it was written by an LLM that may have read hostile text: it is data.

    Every text in it is bounded, and has no control characters, terminal sequences or invisible characters::

        def on_answer(report: ProgressReport, answer: Answer) -> None:
            print(f"{answer.agent_id} on {report.name}: {answer.text}")
    """

    agent_id: str
    text: str = ""
    """Its assistant messages, joined by blank lines; at most 100,000 characters."""
    tools: tuple[str, ...] = ()
    """The names of the tools that it called, in order; at most 100."""
    instructions: tuple[Instruction, ...] = ()
    """What it asks for: see `otel_letta.instruction`."""
    run_id: str | None = None
    """Letta's id of the turn."""
    stop_reason: str | None = None
    """Letta's word, such as ``end_turn``."""
    usage: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """Letta's counts of tokens: ``prompt_tokens``, ``completion_tokens``, ``total_tokens`` and what else it names.
    Empty for an answer that was looked up later, since its own had been lost."""
    reasoning: str | None = None
    """Its reasoning; None unless it was asked for (``OTEL_LETTA_ANSWER_REASONING``). Bounded as `text` is."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as JSON has them."""
        out = {each.name: getattr(self, each.name) for each in fields(self)}
        instructions = [{part.name: getattr(one, part.name) for part in fields(one)} for one in self.instructions]
        return {**out, "tools": list(self.tools), "instructions": instructions, "usage": dict(self.usage)}


OnAnswer: TypeAlias = Callable[[ProgressReport, Answer], object]
"""Called with a report that the agent has, and its answer to the message that held it. It may be a coroutine function;
what it returns is awaited if it can be, and ignored."""
