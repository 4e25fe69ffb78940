"""Laminar, which OpenHands traces with. Its attributes tell tools and calls of models apart, and leave the rest to the
names of spans (measured with openhands-sdk 1.58, lmnr 0.7.67).

One trace holds a conversation: a span ``conversation`` that ends when it is closed, if ever, and below it one
``conversation.run`` or ``conversation.arun`` for each run. A run's status is UNSET unless it raised, however it ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from otel_letta import semconv
from otel_letta.text import as_text, clean_line, pattern
from otel_letta.tracking.conventions.convention import AGENT, LLM, TOOL, UNCLAIMED, Convention, Role, Unclaimed
from otel_letta.tracking.conventions.finishes import Finish
from otel_letta.tracking.conventions.reasons import clean_reason
from otel_letta.tracking.values import EXTRA_CAP, id_of

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_AGENT: Final = "OpenHands"
"""The name of a run: as by OpenHands' callback, since its spans know no name for it."""
_CONVERSATION = "conversation"
_RUNS: Final = frozenset({"conversation.run", "conversation.arun"})
_STEPS: Final = frozenset({"agent.step", "agent.astep"})
_KINDS: Mapping[str, Role] = {"TOOL": Role.TOOL, "LLM": Role.LLM}
# Laminar's default kind says nothing, so the operation shows in the name that the instrumented program gave it.
_NAMES: Mapping[str, Role] = {**dict.fromkeys(_RUNS, Role.AGENT), **dict.fromkeys(_STEPS, Role.STEP)}

_SESSION: Final = "lmnr.association.properties.session_id"
"""OpenHands' id of the conversation."""
_METADATA = "lmnr.association.properties.metadata."
_CHAT_IDS: Final = (f"{_METADATA}letta.chat_id", f"{_METADATA}{semconv.CHAT_ID}")
_MESSAGE_ID: Final = f"{_METADATA}letta.message_id"
_LETTA_MESSAGE_ID: Final = f"{_METADATA}{semconv.MESSAGE_ID}"
"""How the keys of ``OPENHANDS_OBSERVABILITY_METADATA`` arrive, on every span of a conversation."""

_DELEGATE_OF: Final = f"{_METADATA}delegate.parent_span_id"
"""The span of the tool that a sub-agent works for. Its conversation is a trace of its own, and all spans below the root
have this (measured with openhands-sdk 1.58.2)."""

_PATH = "lmnr.span.path"
_INPUT = "lmnr.span.input"
_OUTPUT = "lmnr.span.output"
_ANSWER = "gen_ai.output.messages"
_FINISH = "FinishAction"
_WRAPPED = pattern(r"Conversation run failed for id=[^:\s]{1,80}: ")
_MESSAGE_CAP = 65_536
_ACTION = pattern(r"(?P<tool>[A-Z][A-Za-z0-9]*)Action")
_WORDS = pattern(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _role(reading: Reading) -> Role | Unclaimed | None:
    kind = as_text(reading.attributes.get(semconv.LAMINAR_KIND))
    if kind is None:
        return UNCLAIMED
    if _DELEGATE_OF in reading.attributes:
        return None  # a sub-agent's work is the tool's that called it, and the tool is a step of the one who asked
    role = _KINDS.get(kind, _NAMES.get(reading.name))
    return None if role is LLM and _is_outside_runs(reading.attributes) else role


def _refine(reading: Reading, seen: AgentFacts, content: frozenset[str]) -> None:
    attributes = reading.attributes
    seen.session = id_of(attributes.get(_SESSION))
    seen.message_id = id_of(attributes.get(_MESSAGE_ID)) or id_of(attributes.get(_LETTA_MESSAGE_ID))
    seen.is_run = seen.role is AGENT and reading.name in _RUNS
    # Laminar never ends the span of a call that was cut off, and may leave everything out of one that was not.
    seen.answered = seen.answered or (seen.role is LLM and not seen.failed)
    if seen.role is LLM and _asks_for_tool(attributes):
        seen.finish = Finish.TOOLS
    if _is_of_run(attributes):
        seen.hint = _AGENT
    if seen.is_run:
        seen.name, seen.named, seen.hint = _AGENT, True, ""
        cause = _cause_of(reading.described or reading.exception[1])
        if seen.failed and cause:
            seen.reason = clean_reason(cause, whole="errors" in content)
    elif seen.role is TOOL:
        seen.name = tool_name(seen.name)
        seen.failed = seen.failed or _reports_error(attributes)
        seen.outside = _is_outside_runs(attributes)
        seen.finishes = reading.name == _FINISH
        if seen.finishes and "answer" in content:
            seen.extras = {**seen.extras, "answer": clean_line(_finish_message(attributes), EXTRA_CAP)}


def _is_conversation(name: str, attributes: Mapping[str, Any]) -> bool:
    """Return True for the span around all runs. OpenHands copies its metadata there as plain attributes, ids included,
    and yet it is no task: it would stay open from one run to the next."""
    return name == _CONVERSATION and semconv.LAMINAR_KIND in attributes


def _is_outside_runs(attributes: Mapping[str, Any]) -> bool:
    """Return True for what belongs to a conversation and to no run: its title is made beside them, and calls of tools
    that do not exist hang there."""
    path = attributes.get(_PATH)
    return isinstance(path, (tuple, list)) and _CONVERSATION in path and _RUNS.isdisjoint(path)


def _is_of_run(attributes: Mapping[str, Any]) -> bool:
    """Return True for a run and all below it, whether that has arrived or not."""
    path = attributes.get(_PATH)
    return isinstance(path, (tuple, list)) and not _RUNS.isdisjoint(path)


def _cause_of(error: str) -> str:
    """Return why a run was stopped: OpenHands wraps that in an error of its own, behind the conversation's id."""
    wrapped = _WRAPPED.match(error)
    return error[wrapped.end() :] if wrapped is not None else ""


def tool_name(name: str) -> str:
    """Return the model's name of a tool: ``file_editor`` for the span ``FileEditorAction``, named after a class."""
    action = _ACTION.fullmatch(name)
    return name if action is None else _WORDS.sub("_", action["tool"]).lower()


def _reports_error(attributes: Mapping[str, Any]) -> bool:
    """Return True if a tool answered with an error, which does not show in its span's status."""
    # A quotation mark inside of JSON's texts has a backslash before it, so this matches no text.
    return '"is_error":true' in (as_text(attributes.get(_OUTPUT)) or "")


def _asks_for_tool(attributes: Mapping[str, Any]) -> bool:
    """Return True if the model called tools, of which Laminar has no finish reason (lmnr 0.7.67)."""
    return '"tool_calls":[{' in (as_text(attributes.get(_ANSWER)) or "")


def _finish_message(attributes: Mapping[str, Any]) -> str:
    """Return the agent's own words at its end: content."""
    text = as_text(attributes.get(_INPUT)) or ""
    if len(text) > _MESSAGE_CAP:
        return ""
    try:
        action = json.loads(text)["action"]
        return as_text(action["message"]) or ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


LAMINAR = Convention(
    name="laminar",
    marks=frozenset({semconv.LAMINAR_KIND}),
    role=_role,
    repeated_names=frozenset({_PATH}),
    chosen_chats=_CHAT_IDS,
    chats=(_SESSION,),
    answers=frozenset({_OUTPUT}),
    plans=(_OUTPUT,),
    content={(Role.TOOL, "arguments"): (_INPUT,), (Role.TOOL, "results"): (_OUTPUT,)},
    declares_nothing=_is_conversation,
    refine=_refine,
)
