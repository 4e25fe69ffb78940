"""The spans that are open now, without keeping any of them alive."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_letta.tracking.roles import SpanKey

if TYPE_CHECKING:
    from otel_letta.tracking.state import Task

__all__ = ["OpenSpan", "OpenSpans"]


class OpenSpan(weakref.ref[Span]):
    """An open span: a weak reference with room for what tracking knows about it.

    One object instead of two, since one is made for every recorded span of the program, task or not. For the same
    reason only what every span needs has a slot; the rest is a default of the class until it is set.
    """

    __slots__ = ("__dict__", "key", "over", "parent")

    key: SpanKey
    parent: OpenSpan | None
    """Strong on purpose: a child may outlive the plain span between it and its task."""
    over: bool
    """The span ended without ever being a task or step: nobody needs to look through it any more. Unset until then."""
    task: Task | None = None
    has_role: bool = False
    """It is part of an agent's work; see `otel_letta.tracking.conventions`."""
    owner: bool = False
    """True if the task is the span's own, False if the span is a step of it."""
    awaited: str | None = None
    """The instrumentation scope whose spans below wait to hear whether this one, of the same scope, has a role."""
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
    said: str | None = None
    """The content that this span said last."""
    event_time: int = 0
    """Time of the last progress event that was read."""

    @property
    def outside(self) -> SpanKey | None:
        """The parent of a span whose parent is not open here, if that is known."""
        span = self.ended or self()
        above = span.parent if span is not None and self.parent is None else None
        return None if above is None else (above.trace_id, above.span_id)


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
