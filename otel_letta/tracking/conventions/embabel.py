"""Embabel: ``embabel.event.type`` on each of its spans (read in the source of 1.5.0,
``embabel-agent-observability``; no recording is behind it).

Tools carry the GenAI attributes too, and so do the models' spans, which are Spring AI's. Around and beside those it has
spans of its own for the same call. The status of an agent's process says more than its span's, which is an error only
if something was raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.conventions.interruptions import A_PERSON
from otel_letta.tracking.conventions.reasons import Reason

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_TYPE: Final = "embabel.event.type"
_TYPES: Mapping[str, Role] = {"agent_process": Role.AGENT, "action": Role.STEP, "tool_call": Role.TOOL}
_STATUS: Final = "embabel.agent.status"
_ACTION_STATUS: Final = "embabel.action.status"
_FAILED: Mapping[str, str] = {"failed": "", "stuck": "stuck", "terminated": "terminated early"}
_WAITS: Mapping[str, str] = {"waiting": A_PERSON, "paused": "its schedule"}


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(_TYPE))
    return UNCLAIMED if kind is None else _TYPES.get(kind)


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is not Role.AGENT:
        return
    status = (as_text(reading.attributes.get(_STATUS)) or "").lower()
    if status in _FAILED and not facts.failed:
        facts.failed, facts.reason = True, Reason("", _FAILED[status])
    facts.waits_for = _WAITS.get(status, facts.waits_for)


EMBABEL = Convention(
    name="embabel",
    marks=frozenset({_TYPE}),
    role=_role,
    names={
        Role.AGENT: ("embabel.agent.name",),
        Role.STEP: ("embabel.action.short_name",),
        Role.TOOL: ("embabel.tool.name",),
    },
    call_ids=("embabel.tool.correlation_id",),
    error_types=("embabel.tool.error.type",),
    error_texts=("embabel.tool.error.message",),
    failed={"embabel.tool.status": "error", _ACTION_STATUS: "failed"},
    cancelled={_STATUS: "killed"},
    refine=_refine,
)
