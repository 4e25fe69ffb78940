"""OpenTelemetry's GenAI conventions (Development)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from otel_letta import semconv
from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.conventions.openllmetry import role_of_kind

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_OPERATIONS: Mapping[str, Role] = {
    "invoke_workflow": Role.AGENT,
    "invoke_agent": Role.AGENT,
    "execute_tool": Role.TOOL,
    "chat": Role.LLM,
    "text_completion": Role.LLM,
    "generate_content": Role.LLM,
    "execute_task": Role.STEP,
}

_NO_WORK = frozenset(
    {"create_agent", "embeddings", "retrieval", "rerank", "agent_step", "schedule_tool_calls"}
    | {"execute_agent_loop_cycle", "invoke_node", "memory", "plan", "fetch_response", "search_memory", "create_memory"}
    | {"update_memory", "upsert_memory", "delete_memory", "create_memory_store", "delete_memory_store"}
)
"""Parts of agents that have spans with roles below them, and operations that are no agent's work. Some write down the
model whose call is a span below theirs (``plan``), or was one before (``fetch_response``)."""
_CALL_IDS = ("gen_ai.tool.call.id", "gen_ai.tool.call_id", "gen_ai.tool_call.id")
_TOOLS_OWN = frozenset({semconv.GEN_AI_TOOL_NAME, *_CALL_IDS})


def _role(reading: Reading) -> Role | Unclaimed | None:
    operation = as_text(reading.attributes.get(semconv.GEN_AI_OPERATION))
    if operation is None:
        return UNCLAIMED
    if operation == "invoke_agent":
        # OpenLLMetry calls each part of some frameworks an agent, and knows better in its own attribute.
        kind = as_text(reading.attributes.get(semconv.TRACELOOP_KIND))
        if kind in ("task", "tool"):
            return role_of_kind(kind)
    if operation in _OPERATIONS:
        return _OPERATIONS[operation]
    if operation in _NO_WORK:
        return None
    return _role_by_evidence(reading.attributes, reading.failed)


def _role_by_evidence(attributes: Mapping[str, Any], failed: bool) -> Role | Unclaimed:
    """Return the role of a span whose operation nobody knows, by what else it says."""
    if not _TOOLS_OWN.isdisjoint(attributes):
        return Role.TOOL
    if semconv.GEN_AI_MODEL in attributes and (
        failed  # and so there was no answer to write down
        or any(type(name) is str and name.startswith(("gen_ai.response.", "gen_ai.usage.")) for name in attributes)
    ):
        return Role.LLM
    return UNCLAIMED


GEN_AI = Convention(
    name="gen_ai",
    marks=frozenset({semconv.GEN_AI_OPERATION}),
    role=_role,
    names={
        Role.AGENT: (semconv.GEN_AI_WORKFLOW_NAME, semconv.GEN_AI_AGENT_NAME),
        Role.STEP: (semconv.GEN_AI_WORKFLOW_NAME,),
        Role.TOOL: (semconv.GEN_AI_TOOL_NAME,),
    },
    chats=(semconv.GEN_AI_CONVERSATION,),
    answers=frozenset(
        {"gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "gen_ai.output.messages", "output_tokens"}
    ),
    answer_prefixes=("gen_ai.response.", "gen_ai.completion."),
    no_answers=frozenset({"gen_ai.response.model"}),
    finishes=(
        "gen_ai.response.finish_reasons",
        "gen_ai.response.finish_reason",
        "gen_ai.completion.0.finish_reason",
        "finish_reason",
    ),
    call_ids=(
        "gen_ai.tool.call.id",
        "gen_ai.tool.call_id",
        "gen_ai.tool_call.id",
        "tool_call.id",
        "tool_call_id",
        "call_id",
    ),
    error_types=("gen_ai.tool.error.type",),
    failed={"gen_ai.tool.status": "error", "tool.status": "error", "gen_ai.tool.call.outcome": "error"},
    denied={
        "decision": frozenset({"reject", "rejected", "deny", "denied"}),
        "gen_ai.tool.call.outcome": frozenset({"denied", "rejected"}),
    },
    events={"gen_ai.choice": ("finish_reason",)},
    plans=("gen_ai.tool.call.result", "gen_ai.tool.call.arguments"),
    content={
        (Role.TOOL, "arguments"): ("gen_ai.tool.call.arguments",),
        (Role.TOOL, "results"): ("gen_ai.tool.call.result",),
        (Role.AGENT, "prompt"): ("gen_ai.input.messages",),
        (Role.STEP, "prompt"): ("gen_ai.input.messages",),
        (Role.AGENT, "answer"): ("gen_ai.output.messages",),
        (Role.STEP, "answer"): ("gen_ai.output.messages",),
    },
    event_prefixes=("gen_ai.",),
)


def _bare_role(reading: Reading) -> Role | Unclaimed | None:
    attributes = reading.attributes
    if semconv.GEN_AI_OPERATION in attributes:
        return UNCLAIMED  # one that the attributes do not bear out
    if semconv.GEN_AI_MODEL in attributes:
        return Role.LLM
    return UNCLAIMED if _TOOLS_OWN.isdisjoint(attributes) else Role.TOOL


GEN_AI_BARE = Convention(
    name="gen_ai without an operation",
    marks=frozenset({semconv.GEN_AI_MODEL}) | _TOOLS_OWN,
    role=_bare_role,
    names={Role.TOOL: ("tool.name", "tool_name")},
)
"""The last to be asked: spans of older versions, which every other convention knows better."""
