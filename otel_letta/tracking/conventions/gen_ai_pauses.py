"""Pauses of agents: a proposal for OpenTelemetry's GenAI conventions (semantic-conventions-genai #159), not adopted.

An agent's span has an event for each pause, resume and checkpoint. The last of the first two says whether it waits, and
a pause may say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import Convention
from otel_letta.tracking.conventions.interruptions import A_PERSON

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_PAUSED = "gen_ai.agent.paused"
_RESUMED = "gen_ai.agent.resumed"
_CHECKPOINTED = "gen_ai.agent.checkpointed"
_REASON = "gen_ai.agent.pause.reason"
_WAITS: Mapping[str, str] = {
    "external_system": "another system",
    "rate_limit": "a rate limit",
    "scheduled_delay": "a time that was set",
}


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    changes = [signal for signal in reading.signals if signal[0] in (_PAUSED, _RESUMED)]
    if changes:
        name, attributes = changes[-1]
        reason = (as_text(attributes.get(_REASON)) or "").lower()
        facts.waits_for = _WAITS.get(reason, A_PERSON) if name == _PAUSED else None


GEN_AI_PAUSES = Convention(
    name="gen_ai pauses (proposed)",
    events={_PAUSED: (_REASON,), _RESUMED: (), _CHECKPOINTED: ()},
    refine=_refine,
)
