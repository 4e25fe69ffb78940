"""``span.type`` and ``entity.type``: words for roles that some frameworks and coding agents use beside other
conventions, or instead of them (measured with VoltAgent 2 and Claude Code 2.1.197).

Others use ``span.type`` for something else (``web``, ``db``), so alone it makes nobody's span an agent framework's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_TYPE: Final = "span.type"
_ENTITY: Final = "entity.type"
_TYPES: Mapping[str, Role | None] = {
    "agent": Role.AGENT,
    "interaction": Role.AGENT,
    "llm": Role.LLM,
    "llm_request": Role.LLM,
    "tool": Role.TOOL,
    # Parts of a tool's call.
    "tool.execution": None,
    "tool.blocked_on_user": None,
    "memory": None,
    "hook": None,
}
_ENTITIES: Mapping[str, Role] = {"agent": Role.AGENT, "workflow": Role.AGENT}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_TYPE))
    if kind is not None:
        return _TYPES.get(kind.lower(), UNCLAIMED)
    # It is on all spans of the entity, and those of its parts have a type.
    return _ENTITIES.get((as_text(reading.attributes.get(_ENTITY)) or "").lower(), UNCLAIMED)


SPAN_TYPE = Convention(
    name="span.type",
    also_asked=frozenset({_TYPE, _ENTITY}),
    role=_role,
    names={Role.AGENT: ("entity.name",), Role.TOOL: ("tool_name",)},
    repeated_names=frozenset({"entity.id", "span.label"}),
    chats=("conversation.id",),
    answers=frozenset({"llm.usage.completion_tokens", "usage.completion_tokens"}),
    finishes=("stop_reason",),
    call_ids=("tool.call.id", "tool_use_id"),
    failed={"agent.state": "error"},
    cancelled={"agent.state": "cancelled", "cancelled": "true"},
)
