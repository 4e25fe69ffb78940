"""Which turn a log event or a span belongs to: by its trace, its turn's id, or its conversation and time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from otel_letta.recent import Recent
from otel_letta.tracking.log_events import LogEvent, conversation_of
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tree import REMEMBERED
from otel_letta.tracking.turns import NEAR, Conversation, Turn, service_of

_MOST_TURNS, _MOST_SPANS = 20, 200
"""Turns, and spans with a role, of a conversation that are remembered."""


class TurnIndex:
    """The turns of late, and what is needed to find the one that an event or a span belongs to.

    Args:
        is_open: True for a turn that has not ended.
    """

    def __init__(self, is_open: Callable[[Turn], bool]) -> None:
        self._is_open = is_open
        self.turns: Recent[SpanKey, Turn] = Recent(REMEMBERED)
        self.by_trace: Recent[int, Turn] = Recent(REMEMBERED)
        """The newest turn of a trace."""
        self._by_conversation: Recent[Conversation, list[Turn]] = Recent(REMEMBERED)
        """The newest last."""
        self.joined: Recent[int, Turn] = Recent(REMEMBERED)
        """Traces of spans that became part of a turn that has another trace, or none."""
        self._spans_of: Recent[Conversation, deque[tuple[SpanKey, int]]] = Recent()
        """The last spans with a role, and their starts."""
        self._last: deque[tuple[SpanKey, int]] | None = None
        """Those of the conversation that had one last."""

    def add(self, key: SpanKey, turn: Turn) -> None:
        self.turns.put(key, turn)
        if turn.conversation:
            conversation = turn.service, turn.conversation
            self._by_conversation.put(conversation, [*self.others(conversation)[-_MOST_TURNS:], turn])

    def others(self, conversation: Conversation) -> list[Turn]:
        """Return the turns of a conversation."""
        return (self._by_conversation.get(conversation) or []) if conversation[1] else []

    def under_way(self) -> tuple[set[int], set[Conversation]]:
        """Return the traces of which spans have joined an open turn, and the conversations that have one."""
        traces: set[int] = set()
        conversations: set[Conversation] = set()
        for conversation, turns in self._by_conversation.items():
            for turn in filter(self._is_open, turns):
                traces |= turn.traces
                conversations.add(conversation)
        return traces, conversations

    def spans_of(self, conversation: Conversation) -> Collection[tuple[SpanKey, int]]:
        """Return the last spans with a role of a conversation, and their starts."""
        return self._spans_of.get(conversation, ())

    def of_event(self, event: LogEvent) -> Turn | None:
        """Return the turn of a log event."""
        if not event.conversation:
            return self.by_trace.get(event.trace_id)
        others = self.others((service_of(event.resource), event.conversation))
        if event.turn:
            named = next((turn for turn in reversed(others) if turn.id == event.turn), None)
            if named is not None or any(turn.id for turn in others):
                return named
        turn = self.by_trace.get(event.trace_id) if event.trace_id else None
        return turn or next((turn for turn in reversed(others) if turn.began <= event.time), None)

    def of_span(self, reading: Reading) -> Turn | None:
        """Return the turn of an ended span."""
        if self.turns:
            trace = reading.key[0]
            turn = self.by_trace.get(trace) or self.joined.get(trace)
            if turn is not None:
                return turn
        names = reading.shape.conversations
        conversation = conversation_of(reading.attributes, names) if names and reading.role is not None else ""
        if not conversation:
            return None
        key = service_of(reading.resource), conversation
        spans = self._spans_of.get(key) or deque(maxlen=_MOST_SPANS)
        spans.append((reading.key, reading.start))
        if spans is not self._last:  # or else it is the newest
            self._spans_of.put(key, spans)
            self._last = spans
        return self.at(key, reading.start) if self.turns else None

    def at(self, conversation: Conversation, start: int) -> Turn | None:
        """Return the turn of a conversation in which a span started."""
        for turn in reversed(self.others(conversation)):
            if turn.began - NEAR <= start and not turn.known_by_spans:
                return turn if self._is_open(turn) or start <= turn.latest else None
        return None
