"""How OpenHands' spans are read. It traces with Laminar, whose attributes tell tools and calls of models apart, and
leaves the rest to the names of spans (measured with openhands-sdk 1.58, lmnr 0.7.67).

One trace holds a conversation: a span ``conversation`` that ends when it is closed, if ever, and below it one
``conversation.run`` or ``conversation.arun`` for each run. A run's status is UNSET unless it raised, however it ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from otel_letta import semconv
from otel_letta.text import as_text

__all__ = [
    "AGENT",
    "CHAT_IDS",
    "MESSAGE_IDS",
    "RUNS",
    "SESSION",
    "STEPS",
    "cause_of",
    "finish_message",
    "finishes",
    "is_conversation",
    "is_of_run",
    "is_outside_runs",
    "reports_error",
    "tool_name",
]

AGENT: Final = "OpenHands"
"""What a run is called: as by OpenHands' callback, since its spans know no name for it."""
_CONVERSATION = "conversation"
RUNS: Final = frozenset({"conversation.run", "conversation.arun"})
STEPS: Final = frozenset({"agent.step", "agent.astep"})

SESSION: Final = "lmnr.association.properties.session_id"
"""OpenHands' id of the conversation."""
_METADATA = "lmnr.association.properties.metadata."
CHAT_IDS: Final = (f"{_METADATA}letta.chat_id", f"{_METADATA}{semconv.CHAT_ID}")
MESSAGE_IDS: Final = (f"{_METADATA}letta.message_id", f"{_METADATA}{semconv.MESSAGE_ID}")
"""How the keys of ``OPENHANDS_OBSERVABILITY_METADATA`` arrive, on every span of a conversation."""

_PATH = "lmnr.span.path"
_INPUT = "lmnr.span.input"
_OUTPUT = "lmnr.span.output"
_FINISH = "FinishAction"
_WRAPPED = re.compile(r"Conversation run failed for id=[^:\s]{1,80}: ")
_MESSAGE_CAP = 65_536
_ACTION = re.compile(r"(?P<tool>[A-Z][A-Za-z0-9]*)Action")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def is_conversation(name: str, attributes: Mapping[str, Any]) -> bool:
    """True for the span around all runs. OpenHands copies its metadata there as plain attributes, ids included, and
    yet it is no task: it would stay open from one run to the next."""
    return name == _CONVERSATION and semconv.LAMINAR_KIND in attributes


def is_outside_runs(attributes: Mapping[str, Any]) -> bool:
    """True for what belongs to a conversation and to no run: its title is made beside them, and calls of tools that
    do not exist hang there."""
    path = attributes.get(_PATH)
    return isinstance(path, (tuple, list)) and _CONVERSATION in path and RUNS.isdisjoint(path)


def is_of_run(attributes: Mapping[str, Any]) -> bool:
    """True for a run and what is below it, whether that has arrived or not."""
    path = attributes.get(_PATH)
    return isinstance(path, (tuple, list)) and not RUNS.isdisjoint(path)


def cause_of(error: str) -> str:
    """What stopped a run: OpenHands wraps that in an error of its own, behind the conversation's id."""
    wrapped = _WRAPPED.match(error)
    return error[wrapped.end() :] if wrapped is not None else ""


def tool_name(name: str) -> str:
    """What the model calls a tool: ``file_editor`` for the span ``FileEditorAction``, which is named after a class."""
    action = _ACTION.fullmatch(name)
    return name if action is None else _WORDS.sub("_", action["tool"]).lower()


def reports_error(attributes: Mapping[str, Any]) -> bool:
    """True if a tool answered with an error, which does not show in its span's status."""
    # A quotation mark inside of JSON's texts has a backslash before it, so this matches no text.
    return '"is_error":true' in (as_text(attributes.get(_OUTPUT)) or "")


def finishes(name: str) -> bool:
    """True for the call by which the agent says that its work is finished."""
    return name == _FINISH


def finish_message(attributes: Mapping[str, Any]) -> str:
    """What the agent says at its end: content."""
    text = as_text(attributes.get(_INPUT)) or ""
    if len(text) > _MESSAGE_CAP:
        return ""
    try:
        action = json.loads(text)["action"]
        return as_text(action["message"]) or ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
