"""Braintrust: a span's type inside of a JSON text, ``braintrust.span_attributes``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_ATTRIBUTES: Final = "braintrust.span_attributes"
_TYPES: Mapping[str, Role] = {"tool": Role.TOOL, "llm": Role.LLM, "task": Role.STEP, "agent": Role.AGENT}
_CAP = 2_000


def _role(reading: Reading) -> Role | Unclaimed | None:
    text = as_text(reading.attributes.get(_ATTRIBUTES)) or ""
    if not text.startswith("{") or len(text) > _CAP:
        return UNCLAIMED
    try:
        kind = json.loads(text).get("type")
    except (ValueError, RecursionError):
        return UNCLAIMED
    return _TYPES.get(kind, UNCLAIMED) if isinstance(kind, str) else UNCLAIMED


BRAINTRUST = Convention(
    name="braintrust",
    marks=frozenset({_ATTRIBUTES}),
    role=_role,
    content={
        (Role.TOOL, "arguments"): ("braintrust.input_json",),
        (Role.TOOL, "results"): ("braintrust.output_json",),
        (Role.AGENT, "prompt"): ("braintrust.input_json",),
        (Role.AGENT, "answer"): ("braintrust.output_json",),
    },
    event_prefixes=("braintrust.",),
)
