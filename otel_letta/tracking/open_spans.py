"""The spans that are open now, without keeping any of them alive."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Span

from otel_letta.tracking.roles import SpanKey

if TYPE_CHECKING:
    from otel_letta.tracking.tasks import Task

__all__ = ["OpenSpan", "OpenSpans"]


class OpenSpan(weakref.ref[Span]):
    """An open span: a weak reference with room for what tracking knows about it.

    One object instead of two, since one is made for every recorded span of the program, task or not.
    """

    __slots__ = ("event_time", "key", "over", "owner", "parent", "said", "seen", "start_exception", "task")

    key: SpanKey
    parent: OpenSpan | None
    """Strong on purpose: a child may outlive the plain span between it and its task."""
    task: Task | None
    owner: bool
    """True if the task is the span's own, False if the span is a step of it."""
    start_exception: int
    """id() of the exception being handled when the span started, 0 if none."""
    seen: dict[str, Any] | None
    """The attributes at the last look, compared by identity."""
    said: str | None
    """The content that this span said last."""
    event_time: int
    """Time of the last progress event that was read."""
    over: bool
    """The span ended without ever being a task or step: nobody needs to look through it any more."""


class OpenSpans:
    """Registry of open spans by key.

    Every operation is a single step of a dict or deque, so that hooks need no lock: a hook can run inside the
    garbage collector, in the middle of whatever the same thread was doing, and would deadlock on one.
    """

    def __init__(self) -> None:
        self._spans: dict[SpanKey, OpenSpan] = {}
        self._lost: deque[OpenSpan] = deque()
        self._forget = self._lost.append

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, key: SpanKey, span: Span, parent: SpanKey | None, start_exception: int) -> OpenSpan | None:
        """Register a started span; None if it is registered already (a second processor)."""
        spans = self._spans
        if key in spans:
            return None
        entry = OpenSpan(span, self._forget)
        entry.key = key
        above = spans.get(parent) if parent is not None else None
        if above is not None:
            # Spans that hand over to one another for ever (a loop whose every turn starts inside the last one) would
            # otherwise make a chain that never ends.
            while above.parent is not None and above.parent.over:
                above.parent = above.parent.parent
        entry.parent = above
        entry.task = None
        entry.owner = False
        entry.start_exception = start_exception
        entry.seen = None
        entry.said = None
        entry.event_time = 0
        entry.over = False
        spans[key] = entry
        return entry

    def get(self, key: SpanKey) -> OpenSpan | None:
        return self._spans.get(key)

    def pop(self, key: SpanKey) -> OpenSpan | None:
        return self._spans.pop(key, None)

    def snapshot(self) -> list[OpenSpan]:
        """All open spans in the order of their starts."""
        return list(self._spans.values())

    def take_lost(self) -> Iterator[OpenSpan]:
        """Entries of spans that were garbage-collected without an end; each is given once."""
        while self._lost:
            entry = self._lost.popleft()
            # An ended span's entry left the registry at its end; its later collection means nothing.
            if self._spans.get(entry.key) is entry:
                del self._spans[entry.key]
                yield entry
