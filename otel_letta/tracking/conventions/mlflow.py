"""MLflow: ``mlflow.spanType``, written as JSON, so in quotation marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_TYPE: Final = "mlflow.spanType"
_TYPES: Mapping[str, Role | Unclaimed | None] = {
    "agent": Role.AGENT,
    "workflow": Role.AGENT,
    "tool": Role.TOOL,
    "llm": Role.LLM,
    "chat_model": Role.LLM,
    "chain": Role.STEP,
    "task": Role.STEP,
    "retriever": Role.STEP,
    "reranker": Role.STEP,
    "guardrail": Role.STEP,
    "evaluator": Role.STEP,
    "embedding": None,
    "parser": None,
    "memory": None,
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_TYPE))
    return UNCLAIMED if kind is None else _TYPES.get(kind.strip('" ').lower(), UNCLAIMED)


MLFLOW = Convention(
    name="mlflow",
    marks=frozenset({_TYPE}),
    role=_role,
    chats=("mlflow.trace.session",),
    answers=frozenset({"mlflow.spanOutputs", "mlflow.chat.tokenUsage"}),
    content={
        (Role.TOOL, "arguments"): ("mlflow.spanInputs",),
        (Role.TOOL, "results"): ("mlflow.spanOutputs",),
        (Role.AGENT, "prompt"): ("mlflow.spanInputs",),
        (Role.AGENT, "answer"): ("mlflow.spanOutputs",),
    },
    event_prefixes=("mlflow.",),
)
