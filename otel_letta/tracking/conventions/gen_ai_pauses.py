"""Pauses of agents: a proposal for OpenTelemetry's GenAI conventions (semantic-conventions-genai #159), not adopted.

An agent's span has an event for each pause, resume and checkpoint. The last of the first two says whether it waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_letta.tracking.conventions.convention import Convention
from otel_letta.tracking.conventions.interruptions import A_PERSON

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_PAUSED = "gen_ai.agent.paused"
_RESUMED = "gen_ai.agent.resumed"
_CHECKPOINTED = "gen_ai.agent.checkpointed"


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    changes = [name for name, _ in reading.signals if name in (_PAUSED, _RESUMED)]
    if changes:
        facts.waits_for = A_PERSON if changes[-1] == _PAUSED else None


GEN_AI_PAUSES = Convention(
    name="gen_ai pauses (proposed)",
    events={_PAUSED: (), _RESUMED: (), _CHECKPOINTED: ()},
    refine=_refine,
)
