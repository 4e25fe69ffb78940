"""OpenLLMetry, the convention of Traceloop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from otel_letta import semconv
from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_KINDS: Mapping[str, Role] = {
    "workflow": Role.AGENT,
    "agent": Role.AGENT,
    "task": Role.STEP,
    "tool": Role.TOOL,
}
_NAME = "traceloop.entity.name"
_INPUT = "traceloop.entity.input"
_OUTPUT = "traceloop.entity.output"
_TOOL = "tool.name"
"""The tool that a step calls: its instrumentation for LlamaIndex has no other sign of one (measured with 0.62.4)."""
_ASSOCIATED = "traceloop.association.properties."


def role_of_kind(kind: str) -> Role | None:
    """Return the role that a value of ``traceloop.span.kind`` stands for."""
    return _KINDS.get(kind)


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(semconv.TRACELOOP_KIND))
    if kind == "task" and as_text(reading.attributes.get(_TOOL)):
        return Role.TOOL
    return UNCLAIMED if kind is None else role_of_kind(kind)


OPENLLMETRY = Convention(
    name="openllmetry",
    marks=frozenset({semconv.TRACELOOP_KIND}),
    role=_role,
    names={Role.AGENT: (_NAME,), Role.STEP: (_NAME,), Role.TOOL: (_TOOL, _NAME)},
    repeated_names=frozenset({"traceloop.entity.path", "traceloop.workflow.name"}),
    chats=(f"{_ASSOCIATED}session_id", f"{_ASSOCIATED}thread_id"),
    answers=frozenset({_OUTPUT}),
    finishes=("llm.completions.0.finish_reason",),
    plans=(_OUTPUT, _INPUT),
    content={
        (Role.TOOL, "arguments"): (_INPUT,),
        (Role.TOOL, "results"): (_OUTPUT,),
        (Role.AGENT, "prompt"): (_INPUT,),
        (Role.STEP, "prompt"): (_INPUT,),
        (Role.AGENT, "answer"): (_OUTPUT,),
        (Role.STEP, "answer"): (_OUTPUT,),
    },
    event_prefixes=("traceloop.",),
)
