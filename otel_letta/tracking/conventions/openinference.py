"""OpenInference, the convention of Arize Phoenix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from otel_letta import semconv
from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_KINDS: Mapping[str, Role] = {
    "AGENT": Role.AGENT,
    "TOOL": Role.TOOL,
    "LLM": Role.LLM,
    "CHAIN": Role.STEP,
    "GUARDRAIL": Role.STEP,
    "EVALUATOR": Role.STEP,
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(semconv.OPENINFERENCE_KIND))
    return UNCLAIMED if kind is None else _KINDS.get(kind.upper())


OPENINFERENCE = Convention(
    name="openinference",
    marks=frozenset({semconv.OPENINFERENCE_KIND}),
    role=_role,
    names={Role.AGENT: ("agent.name",), Role.TOOL: ("tool.name",)},
    chats=(semconv.SESSION_ID,),
    answers=frozenset({"llm.token_count.completion", "llm.output_messages", "output.value"}),
    answer_prefixes=("llm.output_messages.",),
    finishes=("llm.finish_reason", "llm.finish_reasons", "llm.response.finish_reasons"),
    call_ids=("tool_call.id", "tool.call.id"),
    tool_names=("agno.tools",),
    plans=("tool.parameters", "output.value", "input.value"),
    content={
        (Role.TOOL, "arguments"): ("tool.parameters", "input.value"),
        (Role.TOOL, "results"): ("output.value",),
        (Role.AGENT, "prompt"): ("input.value",),
        (Role.STEP, "prompt"): ("input.value",),
        (Role.AGENT, "answer"): ("output.value",),
        (Role.STEP, "answer"): ("output.value",),
    },
    event_prefixes=("llm.", "openinference."),
)
