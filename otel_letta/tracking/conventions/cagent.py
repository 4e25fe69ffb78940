"""Docker's cagent: bare words, ``agent`` and ``session.id``, on each of its spans (read in the source of 1.32.3,
``pkg/runtime``; no recording is behind it).

A session's span has nothing else, so it is looked through and bounds the run below it. A call of a model says how much
came back, if it went well. A call of a tool has two spans with the id of the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.conventions.finishes import Finish, is_filler

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_EACH: Final = frozenset({"agent", "session.id"})
_CALL: Final = "tool.call_id"
_TOOLS: Final = "tool.calls"
_LENGTH: Final = "content.length"


def _role(reading: Reading) -> Role | Unclaimed | None:
    names = reading.attributes.keys()
    if not names >= _EACH:
        return UNCLAIMED
    if _CALL in names:
        return Role.TOOL
    if _TOOLS in names and _LENGTH in names:
        return Role.LLM
    # A call of a model that failed has no more than a session, but is never the outermost.
    return Role.LLM if reading.failed and reading.parent is not None and names == _EACH else UNCLAIMED


def _refine(reading: Reading, facts: AgentFacts, content: frozenset[str]) -> None:
    if facts.role is Role.LLM and not is_filler(reading.attributes.get(_TOOLS)):
        facts.finish, facts.finish_word = Finish.TOOLS, "tool_calls"


CAGENT = Convention(
    name="cagent",
    also_asked=frozenset({"agent"}),
    role=_role,
    names={Role.TOOL: ("tool.name",)},
    call_ids=(_CALL,),
    answers=frozenset({_TOOLS, _LENGTH}),
    refine=_refine,
)
