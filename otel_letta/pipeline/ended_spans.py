"""Ended spans whose start nobody here saw: what an exporter brings."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta import semconv
from otel_letta.pipeline.hooks import attributes_in, declares_nothing, is_no_record
from otel_letta.runtime import fork
from otel_letta.tracking.order import in_order
from otel_letta.tracking.reading import Reading, SpanKey, key_of

if TYPE_CHECKING:
    from otel_letta.pipeline.inbox import Inbox
    from otel_letta.pipeline.watcher import Watcher
    from otel_letta.tracking import Tracker
    from otel_letta.tracking.opt_in import OptIn

_logger = logging.getLogger(__name__)

_TOGETHER = 16
"""Spans of one request that are taken in one call, which is to be no longer than a slice of the inbox; more of them
where there would be too many calls."""
_MOST_PARTS = 1_000
_MOST_PASSED = 10_000
"""Plain spans that are remembered while no task waits."""


class EndedSpans:
    """A way for ended spans to the tracker; of plain ones only their place goes there.

    Args:
        inbox: makes the calls of the tracker.
        opt_in: makes tasks of spans that would be none.
    """

    def __init__(self, inbox: Inbox, opt_in: OptIn | None) -> None:
        self._inbox = inbox
        self._opt_in = opt_in
        self._warned_of_eviction = False

    def restart(self, tracker: Tracker, watcher: Watcher) -> None:
        """Begin anew, in a new process."""
        self._tracker = tracker
        self._watcher = watcher
        self._waiting = False
        """A span is on its way to the tracker, or waits there for what is above it."""
        self._passed: deque[tuple[SpanKey, SpanKey | None, bool]] = deque(maxlen=_MOST_PASSED)
        """Plain spans that ended while nothing waited, with what was above them."""

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        """Take over ended spans, on an exporter's thread."""
        fork.check()
        for call in self._calls(in_order(spans)):
            self._inbox.put_checked(*call)

    def take(self, spans: Sequence[ReadableSpan]) -> None:
        """Take over the spans of one request. Their order, and what to do with each, is found out by the inbox."""
        ordered: list[ReadableSpan] = []

        def take_part(start: int) -> None:
            if not ordered:
                ordered.extend(in_order(spans))
            self._inbox.make(self._calls(ordered[start : start + size]))

        size = max(_TOGETHER, len(spans) // _MOST_PARTS + 1)
        for start in range(0, len(spans), size):
            self._inbox.put(take_part, start)

    def _calls(self, spans: Iterable[ReadableSpan]) -> Iterator[tuple[Any, ...]]:
        """Yield what is to be called for spans that come in order."""
        for span in spans:
            if is_no_record(span) or self._watcher.is_inherited(span):
                continue
            opted = None if self._opt_in is None else self._opt_in.name_of(span)
            declares = opted is not None or not declares_nothing(attributes_in(span))
            key = key_of(span)
            if declares and not self._warned_of_eviction:
                self._warn_of_eviction(span)
            if not declares and not (self._waiting and _may_be_a_failed_part(span)):
                # A task may outlive the plain span that it was started in, and shall not wait for its end then.
                parent = span.parent
                above = None if parent is None else (parent.trace_id, parent.span_id)
                passed = key, above, parent is not None and parent.is_remote
                if self._waiting:
                    yield self._pass, passed, span
                else:
                    self._passed.append(passed)
            # The watcher of an open span will bring its end, and knows more about it.
            elif self._watcher.open.get(key) is None:
                # From here on plain spans matter too: one may be what this one waits for to know its task.
                self._waiting |= declares
                yield self._end_alone, span, opted

    def put(self, span: ReadableSpan, opted: str | None = None) -> None:
        """Enqueue one span of interest."""
        self._inbox.put(self._end_alone, span, opted)

    def _warn_of_eviction(self, span: ReadableSpan) -> None:
        """Say once that a task lost what it said first: the SDK drops the oldest attributes, which name the chat."""
        if not getattr(span, "dropped_attributes", 0):
            return
        attributes = attributes_in(span)
        if semconv.DECLARING.isdisjoint(attributes) or semconv.TASK_ID in attributes or semconv.CHAT_ID in attributes:
            return
        self._warned_of_eviction = True
        _logger.warning(
            "a task came without ids, and the SDK has dropped attributes of its span: raise "
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT, or set letta.chat.id and letta.task.id last"
        )

    def settle(self) -> None:
        """Nothing waits any more."""
        self._waiting = False

    def _pass(self, passed: tuple[SpanKey, SpanKey | None, bool], span: ReadableSpan) -> None:
        self._tracker.passed(*passed, lambda: Reading.of(span))

    def _end_alone(self, span: ReadableSpan, opted: str | None) -> None:
        while self._passed:
            self._tracker.passed(*self._passed.popleft())
        reading = Reading.of(span, opted)
        above = self._watcher.read(reading.parent) if reading.parent is not None else ()
        self._tracker.ended_alone(reading, above)


def _may_be_a_failed_part(span: ReadableSpan) -> bool:
    """Return True for a plain span that failed: a tool call that it is part of may not know of the failure."""
    return span.status.status_code is StatusCode.ERROR and span.kind is SpanKind.INTERNAL
