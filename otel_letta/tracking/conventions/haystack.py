"""Haystack's own tracing (read in the source of haystack-ai 3.4.1, ``components/agents``; no recording is behind it).

An agent's run, and each call of a tool, has a span with attributes of its own. The model's has none by default, so it
is looked through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_RUN: Final = "haystack.agent.max_steps"
_TOOL: Final = "haystack.tool.name"


def _role(reading: Reading) -> Role | Unclaimed | None:
    if _TOOL in reading.attributes:
        return Role.TOOL
    return Role.AGENT if _RUN in reading.attributes else UNCLAIMED


HAYSTACK = Convention(
    name="haystack",
    marks=frozenset({_RUN, _TOOL}),
    role=_role,
    names={Role.TOOL: (_TOOL,)},
    failed={"haystack.tool.error": "true"},
    content={
        (Role.TOOL, "arguments"): ("haystack.agent.step.tool.input",),
        (Role.TOOL, "results"): ("haystack.agent.step.tool.output",),
        (Role.AGENT, "prompt"): ("haystack.agent.input",),
        (Role.AGENT, "answer"): ("haystack.agent.output",),
    },
)
