"""Log events of agent programs, read once: what a record says about a turn, by its event's name and a few attributes.

Coding agents on a command line write down their life as log records. The last part of an event's name says what
happened; who wrote it does not matter. What is read is an allow list: prompts, arguments, outputs, error texts and the
record's body are none of it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from otel_letta import semconv
from otel_letta.text import as_text
from otel_letta.tracking.conventions.shapes import CONVERSATIONS
from otel_letta.tracking.values import id_of, nanoseconds_of

EVENT_NAME = "event.name"
"""Where older writers put an event's name; newer ones have a field for it."""

_TURNS = ("prompt.id", "prompt_id", "turn.id", "turn_id")
_TOOLS = (semconv.GEN_AI_TOOL_NAME, "tool_name", "function_name", "tool.name")
_CALLS = ("gen_ai.tool.call.id", "call_id", "tool_use_id", "tool_call_id", "tool.call.id")
_STATUSES = ("http.response.status_code", "status_code", "http.status_code")
_ERROR_TYPES = (semconv.ERROR_TYPE, "error_type")
_FAILED_STATUS = 400
_LAST_STATUS = 599
_DAY = 86_400_000.0
"""Milliseconds."""
_DIGITS = 20


class Happened(enum.Enum):
    """What a record tells."""

    PROMPTED = "somebody asked: a turn begins"
    DECIDED = "a tool is about to be used"
    DENIED = "a tool was not allowed to be used"
    USED = "a tool is done"
    ASKED = "the model was asked"
    REPLIED = "a call of the model went well; programs that also say what it answered may yet tell of trouble"
    ANSWERED = "the model's answer is complete"
    WANTED = "the answer is a wish to use a tool"
    TROUBLED = "a call of the model failed"
    ENDED = "the conversation is over"


_BY_NAME = {
    "user_prompt": Happened.PROMPTED,
    "tool_decision": Happened.DECIDED,
    "tool_result": Happened.USED,
    "tool_call": Happened.USED,
    "api_request": Happened.REPLIED,
    "api_response": Happened.ANSWERED,
    "assistant_response": Happened.ANSWERED,
    "api_error": Happened.TROUBLED,
    "api_retries_exhausted": Happened.TROUBLED,
}
_STREAMS = ("sse_event", "websocket_event")
_ENDS = ("session.end", "session_end")
_OF_MODELS = (Happened.REPLIED, Happened.ANSWERED, Happened.TROUBLED)
_STREAMED: Mapping[str, Happened] = {"response.completed": Happened.ANSWERED, "response.failed": Happened.TROUBLED}
"""Kinds of events of a streamed answer, in the words of OpenAI's Responses API."""
_WISHES = ("response.function_call", "response.custom_tool_call")
_NO = ("den", "reject", "abort", "cancel")


def last_part(name: str) -> str:
    """Return the last part of an event's name; empty for a name that tells nothing here."""
    part = name.rpartition(".")[2]
    return part if part in _BY_NAME or part in _STREAMS or name.endswith(_ENDS) else ""


class LogEvent:
    """What a log record says about a turn of an agent. Times are Unix nanoseconds."""

    happened: Happened
    time: int
    began: int
    """When it began, for what takes time and says how long it took."""
    trace_id: int
    span_id: int
    conversation: str
    turn: str
    tool: str
    call: str
    """The id of the tool's call."""
    failed: bool
    error: str
    """The error's type; as it came."""
    status: int
    """Of a failed request."""
    resource: Mapping[str, Any]
    scope: str
    timed: bool
    """It says how long it took."""

    @classmethod
    def of(
        cls,
        name: str,
        attributes: Mapping[str, Any],
        resource: Mapping[str, Any],
        *,
        time: int,
        trace_id: int = 0,
        span_id: int = 0,
        scope: str = "",
    ) -> LogEvent | None:
        """Read a log record; None for one that says nothing about a turn.

        Args:
            name: the record's event name; the attribute of that meaning comes first.
            time: when it happened, Unix nanoseconds.
        """
        name = as_text(attributes.get(EVENT_NAME)) or name
        part = last_part(name)
        if not part or not nanoseconds_of(time):
            return None
        self = cls()
        self.time, self.trace_id, self.span_id = time, trace_id, span_id
        self.resource, self.scope = resource, scope
        self.conversation = conversation_of(attributes) or conversation_of(resource)
        self.turn = _first_id(attributes, _TURNS)
        self.tool = _first(attributes, _TOOLS)
        self.call = call_of(attributes)
        self.error = _first(attributes, _ERROR_TYPES)
        took = _number(attributes.get("duration_ms"))
        self.timed = took is not None and 0.0 <= took < _DAY
        self.began = max(time - int((took or 0.0) * 1e6), 1) if self.timed else time
        self.status = _status(attributes)
        self.failed = (as_text(attributes.get("success")) or "").lower() == "false"
        happened = Happened.ENDED if name.endswith(_ENDS) else self._happened(part, attributes)
        if happened is None:
            return None
        self.happened = happened
        return self

    def _happened(self, part: str, attributes: Mapping[str, Any]) -> Happened | None:
        if part in _STREAMS:
            kind = as_text(attributes.get("event.kind")) or ""
            self.began, self.timed = self.time, False  # the duration is that of one event
            return Happened.WANTED if kind.startswith(_WISHES) else _STREAMED.get(kind)
        happened = _BY_NAME[part]
        if happened in (Happened.DECIDED, Happened.USED):
            decision = (as_text(attributes.get("decision")) or "").lower()
            return Happened.DENIED if decision.startswith(_NO) else happened
        if happened in _OF_MODELS and (self.status or self.failed):
            return Happened.TROUBLED
        if part == "api_request" and not self.timed and not any(name in attributes for name in _STATUSES):
            return Happened.ASKED
        return happened


def conversation_of(attributes: Mapping[str, Any], names: tuple[str, ...] = CONVERSATIONS) -> str:
    """Return the id of a conversation, or of a session; empty for none. ``names``: the attributes that may hold it."""
    return _first_id(attributes, names)


def call_of(attributes: Mapping[str, Any]) -> str:
    """Return the id of a tool's call; empty for none."""
    return _first_id(attributes, _CALLS)


def _first_id(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in attributes and (found := id_of(attributes[name])):
            return found
    return ""


def _first(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = (as_text(attributes[name]) for name in names if name in attributes)
    return next(filter(None, found), "")


def _number(value: Any) -> float | None:
    """Return a number, which some writers put down as text."""
    text = as_text(value)
    try:
        return float(text) if text and len(text) <= _DIGITS else None
    except ValueError:
        return None


def _status(attributes: Mapping[str, Any]) -> int:
    """Return the HTTP status of a failed request; 0 for none."""
    for name in _STATUSES:
        number = _number(attributes.get(name))
        if number is not None and _FAILED_STATUS <= number <= _LAST_STATUS:
            return int(number)
    return 0
