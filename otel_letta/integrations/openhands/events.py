"""OpenHands' events, read once into a few plain values.

OpenHands gives its events to a callback in the program, to a webhook, and to hooks of its CLI. All of them become an
`Event`, so that one set of rules (`runs`) judges starts, progress and ends. Nothing here imports OpenHands: events are
taken as mappings or as objects with the same attributes (facts measured with openhands-sdk 1.58).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from otel_letta.text import as_text

ID_CAP = 200
"""Most characters of an id or a name of OpenHands."""
FINISH = "finish"
"""Name of the tool by which an agent calls its work finished."""
PLAN = "task_tracker"
"""Name of the tool that keeps the agent's plan."""

_RAW_CAP = 8_000
"""Characters of a text that an event keeps; it is cleaned and cut to size later, on a thread that may take its time."""
_RAW_LINE_CAP = 1_000
"""The same of a text of which one short line is reported: tools start by the thousand."""
_ACP_TIMED_OUT = "ACP prompt timed out after "
_ACP_ERROR = "ACP error: "
"""How the messages begin that stand for the failure of an ACP agent's turn. Its answers come by the finish tool, and a
timeout has no other event (source of openhands-sdk 1.58.2, ``ACPAgent._emit_turn_timeout``)."""
_ACP_KINDS = frozenset({"read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode"})
"""ACP's kinds of tools. A call's title is often its arguments, such as a whole command."""
_MOST_ITEMS = 1_000
"""Of a plan. It is counted on OpenHands' thread, under the conversation's lock."""


class EventKind(str, Enum):
    """Kinds of events of a conversation."""

    CREATED = "created"
    """The conversation is new: its first event."""
    USER_MESSAGE = "user message"
    TOOL_STARTED = "tool started"
    """``text`` is the line that sums the call up."""
    TOOL_ENDED = "tool ended"
    DENIED = "denied"
    """A person, or a hook, refused a tool call."""
    ACP_CALL = "ACP call"
    """A tool call of an agent behind the Agent Client Protocol, told again whenever its status ``code`` changes."""
    QUESTION = "question"
    """The agent asks its user and waits for the answer."""
    ANSWER = "answer"
    FINISH = "finish"
    """The agent calls its work finished; ``text`` is its answer."""
    AGENT_MESSAGE = "agent message"
    """A message without a tool call, which ends a run."""
    ERROR = "error"
    """``code`` and ``text``."""
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    STATUS = "status"
    """``code`` is OpenHands' execution status. From then on ends are judged by it alone."""
    RUN_ENTERED = "run entered"
    """A run is watched, and `RUN_RETURNED` will follow; ``code`` is ``new`` for a conversation without events, ``text``
    says why it is run again."""
    RUN_RETURNED = "run returned"
    """The watched run returned with the status ``code``, or raised ``text``."""
    STOPPED = "stopped"
    """The agent was allowed to stop: how hooks learn of the end of a run that finished."""
    CLOSED = "closed"
    """No event will follow; ``text`` is the reason."""


@dataclass(frozen=True, slots=True)
class Event:
    """An OpenHands event in plain values."""

    kind: EventKind
    id: str = ""
    """OpenHands' id of the event, if it has one: the same event counts once."""
    tool: str = ""
    text: str = ""
    code: str = ""
    done: int | None = None
    """Items of the plan that are done, of ``total``."""
    total: int = 0
    failed: bool = False
    """The tool call failed."""
    call: str = ""
    """OpenHands' id of the tool call."""
    at: int = 0
    """When it happened, Unix nanoseconds; 0 is the moment of its report."""
    status: Callable[[], str] | None = None
    """Reads the execution status later, without waiting. After a tool's start it may be that a person has to confirm
    it, of which a conversation in this process sends no event."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The chat and message that asked for a task, and the task's name."""

    chat_id: str | None = None
    message_id: str | None = None
    name: str | None = None
    is_default: bool = False
    """Fills in only what no other origin gives."""

    @classmethod
    def given(cls, chat_id: object, message_id: object, name: object = None, *, is_default: bool = False) -> Origin:
        """Make an origin of a caller's arguments: ids may be UUIDs and numbers too, and a report takes text alone."""
        chat, message, called = (
            str(value) if type(value) is UUID else as_text(value) for value in (chat_id, message_id, name)
        )
        return cls(chat, message, called, is_default)

    def over(self, other: Origin) -> Origin:
        """Return this origin, its gaps filled from the other one."""
        return Origin(self.chat_id or other.chat_id, self.message_id or other.message_id, self.name or other.name)


def read_event(raw: object) -> Event | None:
    """Read an OpenHands event (an object, or its JSON); None if nothing of it is reported.

    Takes a handful of fields and no more: prompts, outputs, arguments and ``full_state`` stay where they are.
    """
    kind = _text(_get(raw, "kind"), 100) or type(raw).__name__
    reader = _READERS.get(kind)
    return reader(raw) if reader is not None else None


def read_hook(raw: object) -> Event | None:
    """Read the JSON that OpenHands gives to a hook; None if nothing of it is reported.

    A ``SessionStart`` is not: a session that is resumed starts again under the same id.
    """
    kind = _text(_get(raw, "event_type"), 100)
    tool = _text(_get(raw, "tool_name"), ID_CAP)
    if kind == "UserPromptSubmit":
        return Event(EventKind.USER_MESSAGE)
    if kind == "PreToolUse":
        return Event(EventKind.TOOL_STARTED, tool=tool) if tool != FINISH else None
    if kind == "PostToolUse":
        if tool == FINISH:
            return Event(EventKind.FINISH, text=_text(_get(_get(raw, "tool_input"), "message"), _RAW_CAP))
        return _tool_ended("", tool, _get(raw, "tool_response"))
    if kind == "Stop":
        return Event(EventKind.STOPPED)
    if kind == "SessionEnd":
        return Event(EventKind.CLOSED, text="the session ended before the task was finished")
    return None


def _get(raw: object, name: str) -> object:
    return raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)


def _text(value: object, cap: int) -> str:
    text = as_text(value)
    return "" if text is None else text[:cap]


def _id(raw: object) -> str:
    return _text(_get(raw, "id"), ID_CAP)


def _call(raw: object) -> str:
    return _text(_get(raw, "tool_call_id"), ID_CAP)


def _read_message(raw: object) -> Event | None:
    source = _text(_get(raw, "source"), 20)
    if source == "user":
        return Event(EventKind.USER_MESSAGE, _id(raw))
    if source != "agent":  # OpenHands' own messages to the agent: a nudge, a hook's feedback
        return None
    parts = _get(_get(raw, "llm_message"), "content")
    texts = [_text(_get(part, "text"), _RAW_CAP) for part in parts[:50]] if isinstance(parts, (list, tuple)) else []
    text = "\n".join(text for text in texts if text)[:_RAW_CAP]
    if _get(raw, "llm_response_id") is None:  # no model wrote it
        if text.startswith(_ACP_TIMED_OUT):
            return Event(EventKind.ERROR, _id(raw), code="TimeoutError", text=text.partition(". ")[0])
        if text.startswith(_ACP_ERROR):
            return None  # a ConversationErrorEvent with the same follows
    return Event(EventKind.AGENT_MESSAGE, _id(raw), text=text)


def _read_action(raw: object) -> Event:
    tool = _text(_get(raw, "tool_name"), ID_CAP)
    if tool == FINISH:
        return Event(EventKind.FINISH, _id(raw), tool, _text(_get(_get(raw, "action"), "message"), _RAW_CAP))
    summary = _text(_get(raw, "summary"), _RAW_LINE_CAP)
    # Where the model gave no summary OpenHands makes one of the tool's arguments: those are nobody's business.
    line = "" if summary.startswith(f"{tool}: {{") else summary
    return Event(EventKind.TOOL_STARTED, _id(raw), tool, line, call=_call(raw))


def _read_observation(raw: object) -> Event:
    return _tool_ended(_id(raw), _text(_get(raw, "tool_name"), ID_CAP), _get(raw, "observation"), _call(raw))


def _tool_ended(event_id: str, tool: str, observation: object, call: str = "") -> Event:
    failed = _get(observation, "is_error") is True
    tasks = _get(observation, "task_list") if tool == PLAN and not failed else None
    if not isinstance(tasks, (list, tuple)) or not tasks:
        return Event(EventKind.TOOL_ENDED, event_id, tool, call=call, failed=failed)
    tasks = tasks[:_MOST_ITEMS]
    done = sum(_text(_get(task, "status"), 20) == "done" for task in tasks)
    return Event(EventKind.TOOL_ENDED, event_id, tool, call=call, done=done, total=len(tasks))


def _read_tool_error(raw: object) -> Event:
    tool = _text(_get(raw, "tool_name"), ID_CAP)
    return Event(EventKind.TOOL_ENDED, _id(raw), tool, call=_call(raw), failed=True)


def _read_denial(raw: object) -> Event:
    return Event(EventKind.DENIED, _id(raw), _text(_get(raw, "tool_name"), ID_CAP), call=_call(raw))


def _read_acp_call(raw: object) -> Event:
    kind, status = _text(_get(raw, "tool_kind"), 40), _text(_get(raw, "status"), 40)
    tool = kind if kind in _ACP_KINDS else "tool"
    # Without the event's id: what counts is the call and how far it is.
    return Event(EventKind.ACP_CALL, tool=tool, call=_call(raw), code=status, failed=_get(raw, "is_error") is True)


def _read_error(raw: object) -> Event:
    detail = _text(_get(raw, "detail"), _RAW_CAP)
    return Event(EventKind.ERROR, _id(raw), text=detail, code=_text(_get(raw, "code"), ID_CAP))


def _read_state(raw: object) -> Event | None:
    if _get(raw, "key") != "execution_status":
        return None
    return Event(EventKind.STATUS, _id(raw), code=_text(_get(raw, "value"), 40))


_READERS: dict[str, Callable[[object], Event | None]] = {
    "SystemPromptEvent": lambda raw: Event(EventKind.CREATED, _id(raw)),
    "MessageEvent": _read_message,
    "ActionEvent": _read_action,
    "ObservationEvent": _read_observation,
    "AgentErrorEvent": _read_tool_error,
    "UserRejectObservation": _read_denial,
    "ACPToolCallEvent": _read_acp_call,
    # Of releases after 1.58 (their source), which have an `ask_user` tool.
    "AskUserRequestEvent": lambda raw: Event(EventKind.QUESTION, _id(raw)),
    "AskUserResponseEvent": lambda raw: Event(EventKind.ANSWER, _id(raw)),
    "ConversationErrorEvent": _read_error,
    "ConversationStateUpdateEvent": _read_state,
    "PauseEvent": lambda raw: Event(EventKind.PAUSED, _id(raw)),
    "InterruptEvent": lambda raw: Event(EventKind.INTERRUPTED, _id(raw)),
}
