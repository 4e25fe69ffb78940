"""The conventions of agent tracing: a record each, in the order in which they are asked.

Roles come from attributes alone, never from the name of a framework or of its tracer, so a framework that nobody here
has seen is read by the same rules. The records are an allow list, too: nothing else of a span is reported. A new
convention is a file with a record, and a place in `CONVENTIONS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role
from otel_letta.tracking.conventions.gen_ai import GEN_AI, GEN_AI_BARE
from otel_letta.tracking.conventions.gen_ai_pauses import GEN_AI_PAUSES
from otel_letta.tracking.conventions.gen_ai_tasks import GEN_AI_TASKS
from otel_letta.tracking.conventions.laminar import LAMINAR
from otel_letta.tracking.conventions.letta import LETTA
from otel_letta.tracking.conventions.logfire import LOGFIRE
from otel_letta.tracking.conventions.mcp import MCP
from otel_letta.tracking.conventions.openinference import OPENINFERENCE
from otel_letta.tracking.conventions.openllmetry import OPENLLMETRY

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

__all__ = ["CONTENT_FIELDS", "CONVENTIONS", "EVENTS", "MARKS", "Convention", "Role", "role_of"]

CONVENTIONS = (
    LETTA,
    MCP,
    LOGFIRE,
    GEN_AI,
    OPENINFERENCE,
    OPENLLMETRY,
    LAMINAR,
    GEN_AI_BARE,
    GEN_AI_PAUSES,
    GEN_AI_TASKS,
)

MARKS = frozenset().union(*(convention.marks for convention in CONVENTIONS))
"""Attributes of spans that agent frameworks make."""

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

_DECIDING = tuple(
    (convention.marks | convention.also_asked, convention.role)
    for convention in CONVENTIONS
    if convention.marks or convention.also_asked
)


def role_of(reading: Reading) -> Role | None:
    """Return the role of a span. The most specific convention that the span follows decides, alone."""
    names = reading.attributes.keys()
    if names.isdisjoint(MARKS):  # this way round it takes as many steps as there are marks, not attributes
        return None
    for marks, decide in _DECIDING:
        if not names.isdisjoint(marks):
            role = decide(reading)
            if role is not UNCLAIMED:
                return role
    return None


def names_of(role: Role) -> tuple[str, ...]:
    """Return the attributes that hold what people call a span of this role."""
    return tuple(itertools.chain.from_iterable(convention.names.get(role, ()) for convention in CONVENTIONS))
