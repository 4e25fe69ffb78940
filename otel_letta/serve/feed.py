"""What was received, on its way into the pipeline, and what is known of it until its tasks have settled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta import semconv
from otel_letta.otlp.batch import PARTIAL_EVENT, Batch, LogRecord
from otel_letta.report import ProgressReport
from otel_letta.serve.live import LiveSpans
from otel_letta.tracking.log_events import LogEvent
from otel_letta.tracking.order import in_order
from otel_letta.tracking.reading import SpanKey, key_of

if TYPE_CHECKING:
    from otel_letta.pipeline.pipeline import Pipeline

_SOON = 50_000_000
"""Nanoseconds until the next try, where a batch is going in."""
_SWEEP = 10**9
"""Nanoseconds between two looks at what has settled."""


class _Body:
    """What a body holds, as far as its settling depends on it."""

    __slots__ = ("conversations", "id", "live", "traces")

    def __init__(self, number: int) -> None:
        self.id = number
        self.traces: set[int] = set()
        self.conversations: set[tuple[str, str]] = set()
        self.live: dict[SpanKey, int] = {}
        """Open spans that it spoke of, and their version then: a newer word takes the place of an older one."""


class Feed:
    """A source of the pipeline: spans and log records from elsewhere.

    Args:
        pipeline: takes them.
        settled: is given the ids of bodies that nothing depends on any more. Called on the pipeline's thread.
        now: the wall clock, Unix nanoseconds.
    """

    def __init__(
        self, pipeline: Pipeline, settled: Callable[[Sequence[int]], None], now: Callable[[], int] = time.time_ns
    ) -> None:
        self._pipeline = pipeline
        self._settled = settled
        self._now = now
        self._lock = threading.RLock()
        """Held while a batch goes in: an end must not overtake what came before it. Reentrant, since a full inbox makes
        calls, and `tick`, on the thread that puts one in."""
        silence = int(pipeline.settings.idle_timeout * 8e9)
        self.live = LiveSpans(pipeline.watcher, now, silence)
        self._bodies: dict[int, _Body] = {}
        self._next_sweep = 0

    # -- a source ------------------------------------------------------------------------------------------------------

    @property
    def open_tasks(self) -> int:
        return 0  # they are the tracker's

    def start(self, emit: Callable[[ProgressReport], None]) -> None:
        """Do nothing: reports are made of spans, by the tracker."""

    def tick(self, now_ns: int) -> int | None:
        due: int | None = now_ns + _SOON
        if self._lock.acquire(blocking=False):
            try:
                due = self.live.tick()
            finally:
                self._lock.release()
        if self._bodies and now_ns >= self._next_sweep:
            self._sweep()
            self._next_sweep = now_ns + _SWEEP
        if self._bodies:
            due = self._next_sweep if due is None else min(due, self._next_sweep)
        return due

    def shutdown(self) -> None:
        """Do nothing: what is open goes on elsewhere."""

    def restore(self, report: ProgressReport) -> None:
        """Do nothing: its tasks are made of spans."""

    def claims(self, conversation_id: str) -> bool:
        return False

    # -- batches -------------------------------------------------------------------------------------------------------

    def take(self, batch: Batch, number: int) -> None:
        """Hand a batch to the pipeline; never waits for anything but another batch.

        Args:
            number: id of its body in the spool.
        """
        body = _Body(number)
        with self._lock:
            for record in sorted(batch.records, key=lambda record: record.time):
                self._take_record(record, body)
            if batch.spans:
                self._take_spans(batch.spans, body)
        self._pipeline.call(self._place, body)

    def _take_record(self, record: LogRecord, body: _Body) -> None:
        if PARTIAL_EVENT in record.attributes or semconv.TASK_PROGRESS in (
            record.event_name,
            record.attributes.get("event.name"),
        ):
            key = self.live.take(record)
            if key is not None:
                body.live[key] = self.live.version(key)
            return
        event = LogEvent.of(
            record.event_name,
            record.attributes,
            record.resource.attributes,
            time=record.time or self._now(),
            trace_id=record.trace_id,
            span_id=record.span_id,
            scope=record.scope.name,
        )
        if event is not None:
            self._pipeline.take_event(event)
            body.traces.add(event.trace_id)
            service = record.resource.attributes.get(semconv.SERVICE_NAME)
            body.conversations.add((str(service or ""), event.conversation))

    def _take_spans(self, spans: Sequence[ReadableSpan], body: _Body) -> None:
        keys = [key_of(span) for span in spans]
        body.traces |= {trace_id for trace_id, _ in keys}
        if not len(self.live):
            self.live.remember(keys)
            self._pipeline.export(spans)
            return
        waiting: list[ReadableSpan] = []
        for span in in_order(spans):
            if key_of(span) in self.live:
                self._pipeline.export(waiting)
                waiting = []
                self.live.end(span)
            else:
                self.live.remember([key_of(span)])
                waiting.append(span)
        self._pipeline.export(waiting)

    # -- settling, on the pipeline's thread ----------------------------------------------------------------------------

    def _place(self, body: _Body) -> None:
        self._bodies[body.id] = body

    def _sweep(self) -> None:
        """Settle the bodies of which no task under way, and no open span, depends."""
        under_way = self._pipeline.under_way()
        done = [body.id for body in self._bodies.values() if not self._matters(body, *under_way)]
        for number in done:
            del self._bodies[number]
        if done:
            self._settled(done)

    def _matters(self, body: _Body, traces: set[int], conversations: set[tuple[str, str]]) -> bool:
        if any(self.live.version(key) == version for key, version in body.live.items() if version):
            return True
        if not body.conversations.isdisjoint(conversations):
            return True
        body.traces &= traces  # what is over stays so: the next look is quicker
        return bool(body.traces)

    def waiting(self) -> int:
        """Return how many bodies have not settled."""
        return len(self._bodies)
