"""Genkit: actions with a type and a subtype (measured with Genkit 1.42 for JavaScript and 1.4 for Go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text, pattern
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_TYPE: Final = "genkit:type"
_SUBTYPE: Final = "genkit:metadata:subtype"
_OUTPUT: Final = "genkit:output"
_FINISH = pattern(r'\{"finishReason":"(?P<finish>\w{1,30})"')
"""The beginning of a model's output. Nothing else of it is read."""
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


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.LLM:
        found = _FINISH.match(as_text(reading.attributes.get(_OUTPUT)) or "")
        facts.finish_by([found["finish"]] if found is not None else [])


GENKIT = Convention(
    name="genkit",
    marks=frozenset({_SUBTYPE, _TYPE}),
    role=_role,
    names={Role.AGENT: ("genkit:name",), Role.TOOL: ("genkit:name",)},
    repeated_names=frozenset({"genkit:path", "genkit:metadata:flow:name"}),
    chats=("genkit:sessionId",),
    refine=_refine,
    failed={"genkit:state": "error"},
    answers=frozenset({_OUTPUT}),
    content={
        (Role.TOOL, "arguments"): ("genkit:input",),
        (Role.TOOL, "results"): (_OUTPUT,),
        (Role.AGENT, "prompt"): ("genkit:input",),
        (Role.AGENT, "answer"): (_OUTPUT,),
    },
)
