"""The conventions of agent tracing: a record each, in the order in which they are asked.

Roles come from attributes alone, never from the name of a framework or of its tracer, so a framework that nobody here
has seen is read by the same rules. The records are an allow list, too: nothing else of a span is reported. A new
convention is a file with a record, and a place in `CONVENTIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from otel_letta.text import as_text
from otel_letta.tracking.conventions.adk import ADK
from otel_letta.tracking.conventions.agentops import AGENTOPS
from otel_letta.tracking.conventions.ai_sdk import AI_SDK
from otel_letta.tracking.conventions.braintrust import BRAINTRUST
from otel_letta.tracking.conventions.cagent import CAGENT
from otel_letta.tracking.conventions.convention import AGENT, LLM, STEP, TOOL, UNCLAIMED, Convention, Role
from otel_letta.tracking.conventions.embabel import EMBABEL
from otel_letta.tracking.conventions.gen_ai import GEN_AI, GEN_AI_BARE
from otel_letta.tracking.conventions.gen_ai_pauses import GEN_AI_PAUSES
from otel_letta.tracking.conventions.gen_ai_span_kind import GEN_AI_SPAN_KIND
from otel_letta.tracking.conventions.gen_ai_tasks import GEN_AI_TASKS
from otel_letta.tracking.conventions.genkit import GENKIT
from otel_letta.tracking.conventions.haystack import HAYSTACK
from otel_letta.tracking.conventions.laminar import LAMINAR
from otel_letta.tracking.conventions.langfuse import LANGFUSE
from otel_letta.tracking.conventions.langsmith import LANGSMITH
from otel_letta.tracking.conventions.letta import LETTA
from otel_letta.tracking.conventions.logfire import LOGFIRE
from otel_letta.tracking.conventions.mcp import MCP
from otel_letta.tracking.conventions.mlflow import MLFLOW
from otel_letta.tracking.conventions.openinference import OPENINFERENCE
from otel_letta.tracking.conventions.openllmetry import OPENLLMETRY
from otel_letta.tracking.conventions.openllmetry_llm import OPENLLMETRY_LLM
from otel_letta.tracking.conventions.shapes import Names
from otel_letta.tracking.conventions.span_type import SPAN_TYPE
from otel_letta.tracking.conventions.spring_ai import SPRING_AI
from otel_letta.tracking.conventions.spring_ai_alibaba import SPRING_AI_ALIBABA
from otel_letta.tracking.conventions.workflows import WORKFLOWS

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

__all__ = [
    "AGENT",
    "ASKED",
    "CONTENT_FIELDS",
    "CONVENTIONS",
    "EVENTS",
    "LLM",
    "MARKS",
    "NAMES",
    "STEP",
    "TOOL",
    "Convention",
    "Role",
    "denies",
    "role_of",
    "shape_of",
]

CONVENTIONS = (
    LETTA,
    MCP,
    LOGFIRE,
    GEN_AI,
    OPENINFERENCE,
    OPENLLMETRY,
    LAMINAR,
    AI_SDK,
    GENKIT,
    HAYSTACK,
    SPRING_AI,
    SPRING_AI_ALIBABA,
    EMBABEL,
    GEN_AI_SPAN_KIND,
    LANGFUSE,
    MLFLOW,
    AGENTOPS,
    LANGSMITH,
    BRAINTRUST,
    SPAN_TYPE,
    OPENLLMETRY_LLM,
    ADK,
    CAGENT,
    WORKFLOWS,
    GEN_AI_BARE,
    GEN_AI_PAUSES,
    GEN_AI_TASKS,
)

NAMES = Names(CONVENTIONS)
"""All that the conventions' names of attributes may say."""

MARKS = NAMES.marks
"""Attributes of spans that agent frameworks make."""

ASKED = MARKS.union(*(convention.also_asked for convention in CONVENTIONS))
"""Attributes without any of which a span has no role."""

EVENTS: Mapping[str, tuple[str, ...]] = {
    name: attributes for convention in CONVENTIONS for name, attributes in convention.events.items()
}
"""Span events that conventions know, by their names, with the attributes that may be read."""

CONTENT_FIELDS: Mapping[str, str] = {
    "arguments": "what a tool was called with",
    "results": "what a tool gave back",
    "prompt": "what the agent was asked",
    "answer": "what the agent answered",
    "errors": "error lines with the values that they quote",
}
"""What the setting ``content`` can opt into."""

shape_of = NAMES.shape_of


def role_of(reading: Reading) -> Role | None:
    """Return the role of a span. The most specific convention that the span follows decides, alone."""
    for decide in reading.shape.deciding:
        role = decide(reading)
        if role is not UNCLAIMED:
            return None if role is TOOL and _is_no_tool(reading) else role
    return None


def _is_no_tool(reading: Reading) -> bool:
    """Return True for a span around calls of tools that is named like one: ``(merged tools)``."""
    names = reading.shape.names[TOOL]
    text = as_text(reading.attributes[names[0]]) if names else None
    return text is not None and text[:1] == "(" and text[-1:] == ")"


def denies(reading: Reading) -> bool:
    """Return True for a span that says that a person refused a tool's call: its own, or a part's of it."""
    attributes = reading.attributes
    return any(as_text(attributes[name]) in values for name, values in reading.shape.denied)
