"""What OpenHands' conversations say of themselves, as reports: one task a run.

OpenHands tells its news as events: to a callback in the program, to a webhook, and as hooks of its CLI. All of them are
read into the same few words (`Event`), so that one set of rules judges starts, progress and ends. Nothing here imports
OpenHands: events are taken as mappings or as objects with those attributes (facts measured with openhands-sdk 1.58).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from uuid import UUID

from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.text import as_text, clean_block, clean_error, clean_line
from otel_letta.tracking import wording

__all__ = ["Claims", "ConversationTracker", "Event", "Origin", "What", "read_event", "read_hook"]

_RAW_CAP = 8_000
"""Characters of a text that an event keeps; it is cleaned and cut to size later, on a thread that may take its time."""
_RAW_LINE_CAP = 1_000
"""The same of a text of which one short line is told: tools start by the thousand."""
_SUMMARY_CAP = 120
_ERROR_CAP = 200
_ID_CAP = 200

_MOST_CONVERSATIONS = 1_000
_MOST_ITEMS = 1_000
"""Of a plan. It is counted on OpenHands' thread, under the conversation's lock."""
_REMEMBERED_EVENTS = 20_000
"""Ids of events that were heard: webhooks deliver a batch again when its answer got lost."""
_PATIENCE = 40 * 10**9
"""Nanoseconds that a run which looks failed waits for the event that says why, or that it had finished before:
OpenHands sends it at once, but an agent-server may keep it back for 30 s, the default of its webhooks."""

_MOST_PROGRESS = 0.99
"""What a plan can say before the end: only an end is 100 %."""

_FINISH = "finish"
_PLAN = "task_tracker"


class What(str, Enum):
    """Kinds of news about a conversation."""

    BEGUN = "begun"
    """The conversation is new: its first event."""
    ASKED = "asked"
    """A user's message."""
    TOOL = "tool"
    """A tool starts; ``text`` is the line that sums it up."""
    TOOL_ENDED = "tool ended"
    FINISH = "finish"
    """The agent calls its work finished; ``text`` is what it says."""
    SAID = "said"
    """The agent spoke without using a tool, which ends a run."""
    ERROR = "error"
    """``code`` and ``text``."""
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    STATUS = "status"
    """``code`` is OpenHands' execution status. From then on ends are judged by it alone."""
    ENTERED = "entered"
    """Somebody watches a run and will say `LEFT`; ``code`` is ``new`` for a conversation without events."""
    LEFT = "left"
    """The run returned with the status ``code``, or raised ``text``."""
    STOPPED = "stopped"
    """The agent was allowed to stop: a hook's word for the end of a run that finished."""
    GONE = "gone"
    """Nothing more will come; ``text`` says why."""


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of news, in plain values."""

    what: What
    id: str = ""
    """OpenHands' id of the event, if it has one: the same event is heard once."""
    tool: str = ""
    text: str = ""
    code: str = ""
    done: int | None = None
    """Items of the plan that are done, of ``total``."""
    total: int = 0
    failed: bool = False
    """The tool call failed."""
    at: int = 0
    """When it happened, Unix nanoseconds; 0 is when it is heard."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked, and what the task is called."""

    chat_id: str | None = None
    message_id: str | None = None
    name: str | None = None
    is_default: bool = False
    """Counts only where nobody else says anything."""

    @classmethod
    def given(cls, chat_id: object, message_id: object, name: object = None, *, is_default: bool = False) -> Origin:
        """What a caller passed: people have UUIDs and numbers for ids too, and a report takes text alone."""
        chat, message, called = (
            str(value) if type(value) is UUID else as_text(value) for value in (chat_id, message_id, name)
        )
        return cls(chat, message, called, is_default)

    def over(self, other: Origin) -> Origin:
        """This one; where it says nothing, the other."""
        return Origin(self.chat_id or other.chat_id, self.message_id or other.message_id, self.name or other.name)


# -- reading events --------------------------------------------------------------------------------------------------


def read_event(raw: object) -> Event | None:
    """The news in an OpenHands event (an object, or its JSON); None if there is none that anybody is told.

    Takes a handful of fields and no more: prompts, outputs, arguments and ``full_state`` stay where they are.
    """
    kind = _text(_get(raw, "kind"), 100) or type(raw).__name__
    reader = _READERS.get(kind)
    return reader(raw) if reader is not None else None


def read_hook(raw: object) -> Event | None:
    """The news in what OpenHands gives to a hook, the JSON on its standard input.

    A ``SessionStart`` is none: a session that is resumed starts again under the same id.
    """
    kind = _text(_get(raw, "event_type"), 100)
    tool = _text(_get(raw, "tool_name"), _ID_CAP)
    if kind == "UserPromptSubmit":
        return Event(What.ASKED)
    if kind == "PreToolUse":
        return Event(What.TOOL, tool=tool) if tool != _FINISH else None
    if kind == "PostToolUse":
        if tool == _FINISH:
            return Event(What.FINISH, text=_text(_get(_get(raw, "tool_input"), "message"), _RAW_CAP))
        return _tool_ended("", tool, _get(raw, "tool_response"))
    if kind == "Stop":
        return Event(What.STOPPED)
    if kind == "SessionEnd":
        return Event(What.GONE, text="the session ended before the task was finished")
    return None


def _get(raw: object, name: str) -> object:
    return raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)


def _text(value: object, cap: int) -> str:
    text = as_text(value)
    return "" if text is None else text[:cap]


def _id(raw: object) -> str:
    return _text(_get(raw, "id"), _ID_CAP)


def _read_system_prompt(raw: object) -> Event:
    return Event(What.BEGUN, _id(raw))


def _read_message(raw: object) -> Event | None:
    source = _text(_get(raw, "source"), 20)
    if source == "user":
        return Event(What.ASKED, _id(raw))
    if source != "agent":  # OpenHands' own words to the agent: a nudge, a hook's feedback
        return None
    parts = _get(_get(raw, "llm_message"), "content")
    texts = [_text(_get(part, "text"), _RAW_CAP) for part in parts[:50]] if isinstance(parts, (list, tuple)) else []
    return Event(What.SAID, _id(raw), text="\n".join(text for text in texts if text)[:_RAW_CAP])


def _read_action(raw: object) -> Event:
    tool = _text(_get(raw, "tool_name"), _ID_CAP)
    if tool == _FINISH:
        return Event(What.FINISH, _id(raw), tool, _text(_get(_get(raw, "action"), "message"), _RAW_CAP))
    summary = _text(_get(raw, "summary"), _RAW_LINE_CAP)
    # Where the model gave no summary OpenHands makes one of the tool's arguments: those are nobody's business.
    return Event(What.TOOL, _id(raw), tool, "" if summary.startswith(f"{tool}: {{") else summary)


def _read_observation(raw: object) -> Event:
    return _tool_ended(_id(raw), _text(_get(raw, "tool_name"), _ID_CAP), _get(raw, "observation"))


def _tool_ended(event_id: str, tool: str, observation: object) -> Event:
    failed = _get(observation, "is_error") is True
    tasks = _get(observation, "task_list") if tool == _PLAN and not failed else None
    if not isinstance(tasks, (list, tuple)) or not tasks:
        return Event(What.TOOL_ENDED, event_id, tool, failed=failed)
    tasks = tasks[:_MOST_ITEMS]
    done = sum(_text(_get(task, "status"), 20) == "done" for task in tasks)
    return Event(What.TOOL_ENDED, event_id, tool, done=done, total=len(tasks))


def _read_tool_error(raw: object) -> Event:
    return Event(What.TOOL_ENDED, _id(raw), _text(_get(raw, "tool_name"), _ID_CAP), failed=True)


def _read_error(raw: object) -> Event:
    detail = _text(_get(raw, "detail"), _RAW_CAP)
    return Event(What.ERROR, _id(raw), text=detail, code=_text(_get(raw, "code"), _ID_CAP))


def _read_state(raw: object) -> Event | None:
    if _get(raw, "key") != "execution_status":
        return None
    return Event(What.STATUS, _id(raw), code=_text(_get(raw, "value"), 40))


def _read_pause(raw: object) -> Event:
    return Event(What.PAUSED, _id(raw))


def _read_interrupt(raw: object) -> Event:
    return Event(What.INTERRUPTED, _id(raw))


_READERS: dict[str, Callable[[object], Event | None]] = {
    "SystemPromptEvent": _read_system_prompt,
    "MessageEvent": _read_message,
    "ActionEvent": _read_action,
    "ObservationEvent": _read_observation,
    "AgentErrorEvent": _read_tool_error,
    "ConversationErrorEvent": _read_error,
    "ConversationStateUpdateEvent": _read_state,
    "PauseEvent": _read_pause,
    "InterruptEvent": _read_interrupt,
}


# -- who speaks for a conversation -----------------------------------------------------------------------------------


class Claims:
    """The conversations that a callback speaks for: whoever reads their spans has nothing to add. Bounded.

    Any thread may call it: each change is one step of a dict.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._ids: dict[str, None] = {}
        self._most = most

    def add(self, conversation_id: str) -> None:
        self._ids[_plain(conversation_id)] = None
        if len(self._ids) > self._most:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread was in between: the next one will
                self._ids.pop(next(iter(self._ids)), None)

    def discard(self, conversation_id: str) -> None:
        self._ids.pop(_plain(conversation_id), None)

    def __contains__(self, conversation_id: str) -> bool:
        return _plain(conversation_id) in self._ids


def _plain(conversation_id: str) -> str:
    # OpenHands writes its UUIDs with dashes in spans and without them in the addresses of webhooks.
    return conversation_id.replace("-", "").lower()


# -- the rules -------------------------------------------------------------------------------------------------------


class _Run:
    """A task that is under way."""

    def __init__(self, task_id: str, started: int) -> None:
        self.task_id = task_id
        self.started = started
        self.sequence = 0
        self.progress = 0.0
        self.content: str | None = None
        self.result: str | None = None
        self.spoke = False
        """The result is a message, not the word of the finish tool."""
        self.failed_steps = 0
        self.halted = False
        """Paused, or waiting for somebody's confirmation."""
        self.failing: tuple[int, str] | None = None
        """When it looked failed, and why; what is still on its way may say more, or that it is not so."""


class _Conversation:
    def __init__(self, conversation_id: str) -> None:
        self.id = conversation_id
        self.origin = Origin()
        self.told_by: Origin | None = None
        self.runs: int | None = None
        """How many there were; None if the beginning was not seen."""
        self.exact = False
        """Somebody says how a run ended: neither the finish tool nor a message ends it by itself."""
        self.run: _Run | None = None
        self.explained = True
        """False after a failure was told without its reason, which may still come."""


class ConversationTracker:
    """Turns news of conversations into reports. Not thread-safe: its owner calls it from one thread at a time.

    Args:
        emit: takes each report, in order.
        now: the wall clock, Unix nanoseconds.
        host: this machine's name.
        content_cap: most characters of a result.
        most: conversations that are followed at once. Of more, the one that was silent longest is given up.
    """

    def __init__(
        self,
        *,
        emit: Callable[[ProgressReport], None],
        now: Callable[[], int],
        host: str | None = None,
        content_cap: int = 2_000,
        most: int = _MOST_CONVERSATIONS,
    ) -> None:
        self._emit = emit
        self._now = now
        self._host = host
        self._content_cap = content_cap
        self._most = most
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()
        self._heard: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._failing: dict[str, _Run] = {}
        self._at = 0
        """The moment that is spoken of."""
        self.open_tasks = 0

    def hear(self, conversation_id: str, origin: Origin, event: Event) -> None:
        """Take in one piece of news."""
        self._at = event.at or self._now()
        conversation = self._find(conversation_id)
        if event.id and not self._is_new(conversation.id, event.id):
            return
        if origin is not conversation.told_by:
            conversation.told_by = origin
            before = conversation.origin
            conversation.origin = before.over(origin) if origin.is_default else origin.over(before)
        _RULES[event.what](self, conversation, event)

    def tick(self) -> int | None:
        """End runs that looked failed for long enough. Returns when to come again (Unix ns), None for never."""
        now = self._at = self._now()
        due = None
        for key, run in list(self._failing.items()):
            conversation = self._conversations.get(key)
            if conversation is None or conversation.run is not run or run.failing is None:
                del self._failing[key]
                continue
            since, reason = run.failing
            if since + _PATIENCE <= now:
                conversation.explained = False
                self._fail(conversation, reason)
            else:
                due = since + _PATIENCE if due is None else min(due, since + _PATIENCE)
        return due

    def shutdown(self) -> None:
        """The program ends: what is open fails."""
        self._at = self._now()
        for conversation in self._conversations.values():
            run = conversation.run
            why = run.failing[1] if run is not None and run.failing is not None else ""
            self._fail(conversation, why or "the program shut down while the task was still open")

    def _find(self, conversation_id: str) -> _Conversation:
        key = _plain(conversation_id)
        conversation = self._conversations.get(key)
        if conversation is None:
            if len(self._conversations) >= self._most:
                idle = next((c for c in self._conversations.values() if c.run is None), None)
                silent = idle or next(iter(self._conversations.values()))
                self._fail(silent, "too many conversations at once: this one is not followed any more")
                del self._conversations[_plain(silent.id)]
            conversation = self._conversations[key] = _Conversation(clean_line(conversation_id, _ID_CAP))
        self._conversations.move_to_end(key)
        return conversation

    def _is_new(self, conversation_id: str, event_id: str) -> bool:
        key = (conversation_id, event_id)
        if key in self._heard:
            return False
        self._heard[key] = None
        if len(self._heard) > _REMEMBERED_EVENTS:
            self._heard.popitem(last=False)
        return True

    # Each rule is about one kind of news.

    def _begun(self, conversation: _Conversation, event: Event) -> None:
        if conversation.runs is None and conversation.run is None:
            conversation.runs = 0

    def _asked(self, conversation: _Conversation, event: Event) -> None:
        self._running(conversation)

    def _tool(self, conversation: _Conversation, event: Event) -> None:
        run = self._running(conversation, quiet=True)
        run.result = None  # it goes on after what looked like its end
        if event.tool != _PLAN or event.text:  # what the plan says comes right afterwards
            self._tell(conversation, clean_error(event.text, _SUMMARY_CAP) or clean_line(event.tool, _SUMMARY_CAP))

    def _tool_ended(self, conversation: _Conversation, event: Event) -> None:
        run = conversation.run
        if run is None:
            return
        run.failed_steps += event.failed
        if event.tool == _FINISH and run.result is not None and not conversation.exact:
            self._complete(conversation)
        elif event.done is not None:
            run.progress = max(run.progress, min(event.done / event.total, _MOST_PROGRESS))
            self._tell(conversation, f"{event.done} of {event.total} steps of the plan done")

    def _finish(self, conversation: _Conversation, event: Event) -> None:
        run = self._running(conversation, quiet=True)
        run.result, run.spoke = event.text, False

    def _said(self, conversation: _Conversation, event: Event) -> None:
        run = self._running(conversation, quiet=True)
        run.result, run.spoke = event.text, True
        if not conversation.exact:
            self._complete(conversation)

    def _error(self, conversation: _Conversation, event: Event) -> None:
        if conversation.run is None:
            if not conversation.explained:  # its failure was told already
                conversation.explained = True
                return
            self._running(conversation, quiet=True)
        self._fail(conversation, _reason(event.code, event.text))

    def _paused(self, conversation: _Conversation, event: Event) -> None:
        self._halt(conversation, "Paused")

    def _interrupted(self, conversation: _Conversation, event: Event) -> None:
        self._fail(conversation, "interrupted")

    def _status(self, conversation: _Conversation, event: Event) -> None:
        status = event.code
        conversation.exact = True
        if status == "running":
            self._running(conversation)
        elif status == "error":
            self._doubt(conversation, "OpenHands stopped with an error")
        elif status == "deleting":
            self._doubt(conversation, "the conversation was deleted before the task was finished")
        else:
            self._judge(conversation, status)

    def _doubt(self, conversation: _Conversation, reason: str) -> None:
        run = conversation.run
        if run is not None and run.failing is None:
            run.failing = self._at, reason
            self._failing[_plain(conversation.id)] = run

    def _judge(self, conversation: _Conversation, status: str) -> None:
        if status == "finished":
            self._complete(conversation)
        elif status == "stuck":
            self._fail(conversation, "stuck: OpenHands saw it repeat itself")
        elif status == "paused":
            self._halt(conversation, "Paused")
        elif status == "waiting_for_confirmation":
            self._halt(conversation, "Waiting for confirmation")

    def _entered(self, conversation: _Conversation, event: Event) -> None:
        if event.code == "new" and conversation.runs is None and conversation.run is None:
            conversation.runs = 0
        conversation.exact = True
        self._running(conversation)

    def _left(self, conversation: _Conversation, event: Event) -> None:
        conversation.exact = False
        run = conversation.run
        if not event.text:
            self._judge(conversation, event.code)
            if conversation.run is None or conversation.run.halted:
                return
            if event.code != "error" and conversation.run.result is not None:
                self._complete(conversation)
                return
        # A remote conversation may hear of the reason only now, when this is told: it is no failure of its own.
        if run is not None:
            conversation.explained = False
        self._fail(conversation, clean_error(event.text, _ERROR_CAP) or "stopped before it was finished")

    def _stopped(self, conversation: _Conversation, event: Event) -> None:
        self._complete(conversation)

    def _gone(self, conversation: _Conversation, event: Event) -> None:
        self._fail(conversation, event.text)

    # A run's life.

    def _running(self, conversation: _Conversation, *, quiet: bool = False) -> _Run:
        """The run that is under way, begun if there is none. ``quiet``: other words follow at once."""
        run = conversation.run
        if run is not None:
            run.failing = None
            if run.halted:
                run.halted = False
                if not quiet:
                    self._tell(conversation, "Resumed")
            return run
        now = self._at
        if conversation.runs is None:
            # Earlier runs may have been told, by another process too: numbers from 1 on could be theirs.
            number = f"{_utc(now):%Y%m%dT%H%M%S.%f}"[:-3] + "Z"
        else:
            conversation.runs += 1
            number = str(conversation.runs)
        run = conversation.run = _Run(f"{conversation.id}/{number}", now)
        conversation.explained = True
        self.open_tasks += 1
        self._tell(conversation, None)
        return run

    def _halt(self, conversation: _Conversation, word: str) -> None:
        if conversation.run is not None:
            conversation.run.halted = True
            self._tell(conversation, word)

    def _tell(self, conversation: _Conversation, content: str | None) -> None:
        run = conversation.run
        assert run is not None
        if content is not None and content == run.content:
            return
        run.content = content
        self._report(conversation, run, TaskStatus.IN_PROGRESS, content or wording.started())

    def _complete(self, conversation: _Conversation) -> None:
        run, conversation.run = conversation.run, None
        if run is None:
            return
        run.progress = 1.0
        content = wording.completed(max(self._at - run.started, 0) / 1e9, run.failed_steps)
        if run.spoke:
            content = "Ended with a message: it may be a question"
        self._report(conversation, run, TaskStatus.COMPLETED, content)

    def _fail(self, conversation: _Conversation, reason: str) -> None:
        run, conversation.run = conversation.run, None
        if run is not None:
            self._report(conversation, run, TaskStatus.FAILED, wording.failed(reason, run.content), error=reason)

    def _report(
        self, conversation: _Conversation, run: _Run, status: TaskStatus, content: str, *, error: str | None = None
    ) -> None:
        run.sequence += 1
        self.open_tasks -= status.is_terminal
        now = self._at
        origin = conversation.origin
        self._emit(
            ProgressReport(
                chat_id=origin.chat_id,
                message_id=origin.message_id,
                content=clean_line(content, self._content_cap),
                progress=run.progress,
                status=status,
                task_id=run.task_id,
                name=origin.name or "OpenHands",
                result=clean_block(run.result, self._content_cap) if status.is_terminal and run.result else None,
                error=error,
                sequence=run.sequence,
                timestamp=_utc(now),
                started=_utc(run.started),
                duration=max(now - run.started, 0) / 1e9,
                service="openhands",
                host=self._host,
            )
        )


_RULES: dict[What, Callable[[ConversationTracker, _Conversation, Event], None]] = {
    What.BEGUN: ConversationTracker._begun,
    What.ASKED: ConversationTracker._asked,
    What.TOOL: ConversationTracker._tool,
    What.TOOL_ENDED: ConversationTracker._tool_ended,
    What.FINISH: ConversationTracker._finish,
    What.SAID: ConversationTracker._said,
    What.ERROR: ConversationTracker._error,
    What.PAUSED: ConversationTracker._paused,
    What.INTERRUPTED: ConversationTracker._interrupted,
    What.STATUS: ConversationTracker._status,
    What.ENTERED: ConversationTracker._entered,
    What.LEFT: ConversationTracker._left,
    What.STOPPED: ConversationTracker._stopped,
    What.GONE: ConversationTracker._gone,
}


def _reason(code: str, detail: str) -> str:
    parts = (clean_error(code, 80), clean_error(detail, _ERROR_CAP))
    return ": ".join(part for part in parts if part) or "OpenHands stopped with an error"


def _utc(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
