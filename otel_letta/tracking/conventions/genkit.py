"""Genkit: actions with a type and a subtype (measured with Genkit 1.42 for JavaScript and 1.4 for Go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

__all__ = ["GENKIT"]

_TYPE: Final = "genkit:type"
_SUBTYPE: Final = "genkit:metadata:subtype"
_SUBTYPES: Mapping[str, Role] = {
    "flow": Role.AGENT,
    "agent": Role.AGENT,
    "model": Role.LLM,
    "background-model": Role.LLM,
    "tool": Role.TOOL,  # and tool.v2 in Go
}


def _role(reading: Reading) -> Role | Unclaimed | None:
    attributes = reading.attributes
    subtype = as_text(attributes.get(_SUBTYPE)) or as_text(attributes.get(_TYPE))
    return UNCLAIMED if subtype is None else _SUBTYPES.get(subtype.partition(".")[0])


GENKIT = Convention(
    name="genkit",
    marks=frozenset({_SUBTYPE, _TYPE}),
    role=_role,
    names={Role.AGENT: ("genkit:name",), Role.TOOL: ("genkit:name",)},
    repeated_names=frozenset({"genkit:path", "genkit:metadata:flow:name"}),
    chats=("genkit:sessionId",),
    failed={"genkit:state": "error"},
    answers=frozenset({"genkit:output"}),
    content={
        (Role.TOOL, "arguments"): ("genkit:input",),
        (Role.TOOL, "results"): ("genkit:output",),
        (Role.AGENT, "prompt"): ("genkit:input",),
        (Role.AGENT, "answer"): ("genkit:output",),
    },
)
