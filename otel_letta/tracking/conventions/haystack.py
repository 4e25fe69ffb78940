"""Haystack's own tracing (measured with haystack-ai 3.4.1 and opentelemetry-haystack 2.0.0).

An agent's run, and each call of a tool, has a span with attributes of its own. The model's has none by default, so it
is looked through. How many steps a run took is written down when it is through: a run that was cut off lacks that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.conventions.finishes import Finish

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_RUN: Final = "haystack.agent.max_steps"
_TOOL: Final = "haystack.tool.name"
_STEPS: Final = "haystack.agent.steps_taken"


def _role(reading: Reading) -> Role | Unclaimed | None:
    if _TOOL in reading.attributes:
        return Role.TOOL
    return Role.AGENT if _RUN in reading.attributes else UNCLAIMED


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.AGENT and _RUN in reading.attributes and reading.end is not None:
        facts.answered = _STEPS in reading.attributes
        facts.finish = facts.finish if facts.answered else Finish.EMPTY


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
    refine=_refine,
)
