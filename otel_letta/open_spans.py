"""The spans that are open now, without keeping any of them alive."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_letta.tracking.reading import Reading, SpanKey, scope_of

__all__ = ["OpenSpan", "OpenSpans"]


class OpenSpan(weakref.ref[Span]):
    """An open span: a weak reference with room for what is known about it; an `Ancestor` of those below it.

    One object instead of two, since one is made for every recorded span of the program, task or not. For the same
    reason only what every span needs has a slot; the rest is a default of the class until it is set.
    """

    __slots__ = ("__dict__", "key", "over", "parent")

    key: SpanKey
    parent: OpenSpan | None
    """Strong on purpose: a child may outlive the plain span between it and its task."""
    over: bool
    """The span ended without ever being a task or step: nobody needs to look through it any more. Unset until then."""
    followed: bool = False
    """It is part of a task, or has a role, so the tracker has to learn of its end; see `Tracker`."""
    awaited: bool = False
    """Spans below wait to learn whether this one gets a role."""
    start_exception: int = 0
    """id() of the exception being handled when the span started, 0 if none that matters."""
    inbound: tuple[object, object] = (None, None)
    """Chat and message id as the baggage of the span's context had them, if the settings want that."""
    ended: ReadableSpan | None = None
    """The ended span, until tracking has heard of the end."""
    noted: bool = False
    """A note that asks to look at the span is waiting."""
    spoken: bool = False
    """A log event has spoken for the span."""
    opted: str | None = None
    """The task's name, if a setting or a filter makes a task of the span."""
    ignored: bool = False
    """Started where instrumentation is suppressed: nothing of it is told."""
    seen: Mapping[str, Any] = MappingProxyType({})
    """The attributes at the last look, compared by identity."""
    event_time: int = 0
    """Time of the last span event that was read."""

    @property
    def above(self) -> list[OpenSpan]:
        """The spans above it that are, or were, open here, nearest first."""
        found = []
        parent = self.parent
        while parent is not None:
            found.append(parent)
            parent = parent.parent
        return found

    @property
    def outside(self) -> SpanKey | None:
        """The parent of the last of these, of the span itself if there are none, if that is known."""
        top = self
        while top.parent is not None:
            top = top.parent
        span = top.ended or top()
        return None if span is None or span.parent is None else span.parent[:2]

    @property
    def scope(self) -> str | None:
        span = self()
        return None if span is None or self.ignored else scope_of(span)

    def read(self) -> Reading | None:
        span = self()
        return None if span is None else Reading.of(span, self.opted)

    def await_end(self) -> bool:
        self.awaited = True  # before asking whether it is over, so that the one thread or the other notices
        return not getattr(self, "over", False)


class OpenSpans:
    """Registry of open spans by key.

    Every operation is a single step of a dict or deque, so that hooks need no lock: a hook can run inside the
    garbage collector, in the middle of whatever the same thread was doing, and would deadlock on one.
    """

    def __init__(self) -> None:
        self._spans: dict[SpanKey, OpenSpan] = {}
        self._lost: deque[OpenSpan] = deque()
        self._suspects: list[OpenSpan] = []
        self._forget = self._lost.append

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, span: Span) -> OpenSpan | None:
        """Register a started span; None if it is registered already (a second processor)."""
        spans = self._spans
        # A slice of the context, which is a tuple, costs half of what reading two of its properties does.
        key = span.context[:2]
        if key in spans:
            return None
        entry = OpenSpan(span, self._forget)
        entry.key = key
        parent = span.parent
        if parent is None or parent.is_remote or (above := spans.get(parent[:2])) is None:
            entry.parent = None
        else:
            entry.parent = above
            # Spans that hand over to one another for ever (a loop whose every turn starts inside the last one) would
            # otherwise make a chain that never ends.
            while above.parent is not None and getattr(above.parent, "over", False):
                above.parent = above.parent.parent
        spans[key] = entry
        return entry

    def get(self, key: SpanKey) -> OpenSpan | None:
        return self._spans.get(key)

    def pop(self, key: SpanKey) -> OpenSpan | None:
        return self._spans.pop(key, None)

    def snapshot(self) -> list[OpenSpan]:
        """All open spans in the order of their starts."""
        return list(self._spans.values())

    def take_lost(self, *, patient: bool = False) -> Iterator[OpenSpan]:
        """Entries of spans that were garbage-collected without an end; each is given once.

        Args:
            patient: not before the second call. The collector clears weak references first and runs destructors
                then, and one of those (a generator's ``with`` block, say) may still end the span.
        """
        suspects, self._suspects = self._suspects, []
        while self._lost:
            (self._suspects if patient else suspects).append(self._lost.popleft())
        for entry in suspects:
            # An ended span's entry left the registry at its end; its later collection means nothing.
            if self._spans.get(entry.key) is entry:
                del self._spans[entry.key]
                yield entry
