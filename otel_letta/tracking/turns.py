"""Turns of agents as log events tell of them: what has happened in one, and what that means for its end."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode

from otel_letta import semconv
from otel_letta.report import TaskStatus
from otel_letta.text import as_text
from otel_letta.tracking.conventions.reasons import Reason, clean_reason
from otel_letta.tracking.log_events import Happened, LogEvent
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tasks import InferredTask
from otel_letta.tracking.verdicts import Verdict

NEAR = 500_000_000
"""Nanoseconds between a prompt and the start of the span around its turn, which may be either first."""
_SLACK = 500_000_000
"""The same between two accounts of the end of one tool call that has no id."""
Conversation = tuple[str, str]
"""A service's name, and the id of a conversation of it; empty for none."""
_MOST_TOOLS = 1_000
_MOST_WORDS = 16
"""About the model, that are put into the order of their times."""


class ToolCall:
    """A tool call that a log event, a span, or both have told of."""

    wrapper: SpanKey | None = None
    """The span above the one that told of it: that may be of the same call."""

    def __init__(self, key: SpanKey, name: str, call: str, began: int, end: int | None, *, by_span: bool) -> None:
        self.key = key
        self.name = name
        self.call = call
        self.began = began
        self.end = end
        self.is_span = by_span
        """Its node is that of a span."""
        self.by_span = by_span
        self.by_log = not by_span
        self.is_decided = False
        """A log event told of its beginning, and none of its end."""

    def is_same(self, name: str, call: str, began: int, end: int) -> bool:
        """Return True if somebody else's account is of the same call."""
        if self.call and call:
            return self.call == call
        return self.name == name and (self.end is None or (began <= self.end + _SLACK and self.began <= end + _SLACK))


class Word(NamedTuple):
    """What an event says about the model, or what all until then say."""

    time: int = 0
    is_answer: bool = False
    """Of two records of one moment, that the call went well and what it answered, this one is the second."""
    happened: Happened | None = None
    began: int = 0
    """When the model was asked."""
    timed: bool = False
    reason: Reason = Reason()

    @classmethod
    def of(cls, event: LogEvent) -> Word:
        happened, reason = event.happened, Reason()
        if happened is Happened.TROUBLED:
            reason = Reason(clean_reason("", event.error).kind, f"HTTP {event.status}" if event.status else "")
        return cls(event.time, happened is Happened.ANSWERED, happened, event.began, event.timed, reason)


def _after(before: Word, word: Word) -> Word:
    """Return what holds after a further word."""
    if word.is_answer and before.happened is Happened.WANTED and not word.timed:
        return before  # the answer is complete, and is a wish to use a tool
    began = before.began
    if word.timed or before.happened not in (Happened.ASKED, Happened.REPLIED):
        began = max(began, word.began)
    return word._replace(began=began, reason=word.reason if word.happened is Happened.TROUBLED else before.reason)


class Turn:
    """A turn that log events tell of."""

    tool_began = 0
    trouble: SpanKey | None = None
    """The node of the trouble that lasts."""
    has_spans = False
    """Spans with a role have joined it in its own trace, so the agent's will."""
    models_by_spans = False
    known_by_spans = False
    """All of it is, so its events are not for us."""
    root_is_over = False
    """The prompt's span was the last of its process, and ended without a role before the prompt's record came."""
    is_rootless = False
    """No log event told of it: only spans do, and none of them bounds it."""
    active_at = 0
    """When a span of it came the last time."""
    has_root = False
    """The agent's span has taken its place."""
    deadline: int | None = None
    traces: frozenset[int] = frozenset()
    """Where spans of it come from that have another trace than its root."""

    def __init__(self, root: SpanKey, event: LogEvent, own_trace: bool) -> None:
        self.root = root
        self.began = event.time
        self.latest = event.time
        """The time of its last event."""
        self.id = event.turn
        self.conversation = event.conversation
        self.service = service_of(event.resource)
        self._resource = Resource(dict(event.resource))
        self.scope = event.scope
        self.own_trace = own_trace
        """Its prompt's record belongs to a span."""
        self.tools: list[ToolCall] = []
        self.models: list[SpanKey] = []
        self._words: list[Word] = []
        """The last ones about the model, by time."""
        self._before = self._model = Word()

    def add(self, tool: ToolCall) -> None:
        self.tools.append(tool)
        self.tool_began = max(self.tool_began, tool.began)
        del self.tools[:-_MOST_TOOLS]

    def give_away(self, keys: Collection[SpanKey]) -> None:
        """Forget calls that turned out to be the next turn's."""
        self.tools = [tool for tool in self.tools if tool.key not in keys]
        self.tool_began = max((tool.began for tool in self.tools), default=0)

    @property
    def open_tools(self) -> list[ToolCall]:
        return [tool for tool in self.tools if tool.end is None]

    def logged(self, name: str, event: LogEvent) -> ToolCall | None:
        """Return the call that a log event speaks of; None for one that is not known yet."""
        untold = [tool for tool in self.tools if not tool.by_log or tool.is_decided or tool.end is None]
        tool = self._find(untold, name, event.call, event.began, event.time)
        if tool is not None:
            tool.by_log, tool.is_decided = True, event.happened is Happened.DECIDED
        return tool

    def spanned(self, key: SpanKey, name: str, call: str, began: int, end: int) -> ToolCall | None:
        """Return the call that a span is of; None for one that is not known yet."""
        untold = [tool for tool in self.tools if not tool.by_span or tool.wrapper == key]
        tool = self._find(untold, name, call, began, end)
        if tool is not None:
            tool.by_span = True
        return tool

    def _find(self, untold: list[ToolCall], name: str, call: str, began: int, end: int) -> ToolCall | None:
        """Return the call with an id, or else the nearest of those that may be the same."""
        found = next((tool for tool in self.tools if call and tool.call == call), None)
        if found is None:
            near = [tool for tool in untold if tool.is_same(name, call, began, end)]
            found = min(near, key=lambda tool: abs((tool.end or end) - end), default=None)
        if found is not None:
            found.call = found.call or call
        return found

    def is_within(self, reading: Reading) -> bool:
        """Return True for the span of the agent whose turn it is, not of a sub-agent of it."""
        return reading.start <= self.began + NEAR and (reading.end or 0) >= self.began

    def reading(
        self,
        key: SpanKey,
        parent: SpanKey | None,
        attributes: dict[str, str],
        start: int,
        end: int | None = None,
        error: str | None = None,
    ) -> Reading:
        """Return the reading of a span that its program does not make.

        Args:
            error: why it failed, perhaps empty; None if it did not.
        """
        if self.conversation:
            attributes[semconv.GEN_AI_CONVERSATION] = self.conversation
        span = ReadableSpan(
            name="",
            context=SpanContext(*key, False),
            parent=None if parent is None else SpanContext(*parent, False),
            resource=self._resource,
            attributes=attributes,
            start_time=start,
            end_time=end,
            status=Status() if error is None else Status(StatusCode.ERROR, error),
            instrumentation_scope=InstrumentationScope(self.scope),
        )
        return Reading.of(span)

    def model_spoke(self, event: LogEvent) -> bool:
        """Take in an event about the model, in whatever order they come; False for one that others overtook."""
        word = Word.of(event)
        place = bisect.bisect_right(self._words, word[:2], key=lambda known: known[:2])
        self._words.insert(place, word)
        if place < len(self._words) - 1:
            self._model = functools.reduce(_after, self._words, self._before)
            return False
        self._model = _after(self._model, word)
        if len(self._words) > _MOST_WORDS:
            self._before = _after(self._before, self._words.pop(0))
        if event.happened not in (Happened.ASKED, Happened.TROUBLED):
            self.trouble = None
        return True

    @property
    def model(self) -> Happened | None:
        """What the last event about the model said."""
        return self._model.happened

    @property
    def reason(self) -> Reason:
        """Why the model failed the last time."""
        return self._model.reason

    def verdict(self, says_answers: bool) -> Verdict:
        """Return how the turn has ended, if nothing follows.

        Args:
            says_answers: its program says when an answer is complete.
        """
        stopped = Verdict(TaskStatus.FAILED, stopped=True)
        # A model that was asked before the last tool began had asked for that.
        if self.open_tools or self._model.began < self.tool_began:
            return stopped
        if self.model is Happened.TROUBLED:
            return Verdict(TaskStatus.FAILED, self.reason)
        if self.model is Happened.ANSWERED or (self.model is Happened.REPLIED and not says_answers):
            return Verdict(TaskStatus.COMPLETED)
        return stopped


def is_of(task: InferredTask, event: LogEvent) -> bool:
    """Return True for a task of an event's conversation."""
    chat = task.chat[2] if task.chat is not None else ""
    return bool(chat) and chat == event.conversation and task.service in (None, service_of(event.resource))


def began_with(task: InferredTask, event: LogEvent) -> bool:
    """Return True for a task that began when the turn did."""
    if task.root is None:
        return task.started >= event.time - NEAR
    return task.root.start <= event.time + NEAR and (task.root.end is None or task.root.end >= event.time)


def of_tool(name: str, call: str) -> dict[str, str]:
    """Return the attributes of a tool call's span."""
    attributes = {semconv.GEN_AI_OPERATION: "execute_tool", semconv.GEN_AI_TOOL_NAME: name}
    return {**attributes, "gen_ai.tool.call.id": call} if call else attributes


def service_of(resource: Mapping[str, Any]) -> str:
    return as_text(resource.get(semconv.SERVICE_NAME)) or ""


def made_up(parts: tuple[str, ...]) -> SpanKey:
    """Return ids that are the same whenever the same was logged."""
    import hashlib  # most programs log no turns

    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
