"""OpenLLMetry's older words for calls of models, ``llm.*``, which its Go SDK still uses (measured with 0.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_MODEL: Final = "llm.request.model"


def _role(reading: Reading) -> Role | Unclaimed | None:
    return Role.LLM if _MODEL in reading.attributes else UNCLAIMED


OPENLLMETRY_LLM = Convention(
    name="openllmetry, calls of models",
    marks=frozenset({_MODEL}),
    role=_role,
    answers=frozenset({"llm.usage.completion_tokens"}),
    answer_prefixes=("llm.completions.",),
    finishes=("llm.completions.0.finish_reason",),
)
