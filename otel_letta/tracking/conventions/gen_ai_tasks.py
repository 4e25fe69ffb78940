"""Tasks of agents: a proposal for OpenTelemetry's GenAI conventions (semantic-conventions-genai #37, #55), not adopted
yet. A span says in ``gen_ai.task.status`` where the task stands, in words like those of the A2A protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import Convention, Role
from otel_letta.tracking.conventions.interruptions import A_PERSON

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_STATUS = "gen_ai.task.status"
_NAME = "gen_ai.task.name"
_WAITS: Mapping[str, str] = {
    "input_required": A_PERSON,
    "waiting": A_PERSON,
    "paused": A_PERSON,
    "blocked": A_PERSON,
    "auth_required": f"{A_PERSON}: sign in",
}
_CANCELLED = frozenset({"cancelled", "canceled", "aborted"})
_FAILED = frozenset({"failed", "error", "rejected"})
_SUCCEEDED = frozenset({"success", "succeeded", "completed"})


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    status = (as_text(reading.attributes.get(_STATUS)) or "").lower().replace("-", "_")
    facts.waits_for = _WAITS.get(status, facts.waits_for)
    facts.cancelled = facts.cancelled or status in _CANCELLED
    facts.failed = facts.failed or status in _FAILED
    facts.answered = facts.answered or (facts.role is Role.AGENT and status in _SUCCEEDED)


GEN_AI_TASKS = Convention(
    name="gen_ai tasks (proposed)",
    also_asked=frozenset({_STATUS}),
    names={Role.AGENT: (_NAME,), Role.STEP: (_NAME,)},
    refine=_refine,
)
