"""What was received, on its way into the pipeline, and what is known of it until its tasks have settled."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta import semconv
from otel_letta.otlp.batch import Batch, LogRecord
from otel_letta.otlp.received import ReceivedSpan
from otel_letta.otlp.sieve import Gate
from otel_letta.recent import Recent
from otel_letta.report import ProgressReport
from otel_letta.serve import over
from otel_letta.serve.live import LiveSpans
from otel_letta.serve.over import NOTHING, Gone
from otel_letta.serve.plain import PlainSpans, read_places, write_places
from otel_letta.tracking.log_events import LogEvent
from otel_letta.tracking.order import in_order
from otel_letta.tracking.reading import NOTED, SpanKey, key_of
from otel_letta.tracking.turns import Conversation, service_of

if TYPE_CHECKING:
    from otel_letta.pipeline.pipeline import Pipeline

PLACES = "places"
"""Of the spool's items that are of plain spans, not bodies."""
_SOON = 50_000_000
"""Nanoseconds until the next try, where a batch is going in."""
_MOST_BYTES = 32 * 2**20
_MOST_CALLS = 8_000
"""Of bodies, and calls of the pipeline, that are on their way to the tracker. Their spans wait as the bytes that came;
those that are parsed by now, a body or two, take three to five times as many. A fifth of the calls that the pipeline
would lose; one body makes at most a thousand."""
_PATIENCE = 60.0
"""Seconds for the pipeline's calls."""
_SWEEP = 10**9
"""Nanoseconds between two looks at what has settled."""
_MOST_BEGUN = 20_000
_YOUNG = 30 * 10**9
"""Nanoseconds for which spans stay that have their place in a trace, where the tracker has found nothing in it yet."""


class _Body:
    """What a body holds, as far as its settling depends on it."""

    __slots__ = ("conversations", "id", "live", "size", "traces", "until")

    def __init__(self, number: int, size: int) -> None:
        self.id = number
        self.size = size
        self.traces: set[int] = set()
        self.conversations: set[Conversation] = set()
        self.until = 0
        """When it may settle though nothing in it has begun; 0 once something has."""
        self.live: dict[SpanKey, int] = {}
        """Open spans that it spoke of, and their version then: a newer word takes the place of an older one."""


class Feed:
    """A source of the pipeline: spans and log records from elsewhere.

    Args:
        pipeline: takes them.
        settled: is given the ids of bodies that nothing depends on any more; must not block.
        now: the wall clock, Unix nanoseconds.
        keep: keeps what is not in the bodies, by its kind: the places of plain spans whose trace has come to matter,
            and what is over in bodies that stay; None to keep nothing.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settled: Callable[[Sequence[int]], None],
        now: Callable[[], int] = time.time_ns,
        keep: Callable[[str, bytes], Future[int]] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._settled = settled
        self._keep = keep
        self._now = now
        self._lock = threading.RLock()
        """Held while a batch goes in: an end must not overtake what came before it. Reentrant, since a full inbox makes
        calls, and `tick`, on the thread that puts one in."""
        silence = int(pipeline.settings.idle_timeout * 8e9)
        self._plain = PlainSpans()
        self.live = LiveSpans(pipeline.watcher, now, silence, self._plain.__contains__)
        self.gate = None if pipeline.names_tasks else Gate(NOTED, self._plain.wanted)
        """Says which spans are worth reading; None if any may be a task."""
        self._bodies: dict[int, _Body] = {}
        self._over: dict[int, set[int]] = {}
        """Ids of the items that say what is over in bodies, and those bodies'."""
        self._begun: Recent[int, None] = Recent(_MOST_BEGUN)
        """Traces of which there were reports, if anything is kept."""
        self._next_sweep = 0
        self._taken = self._placed = 0

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

    def take(self, batch: Batch, number: int = 0, size: int = 0, gone: Gone = NOTHING) -> bool:
        """Hand a batch to the pipeline; never waits for anything but another batch.

        Args:
            number: id of its body in the spool; 0 if it is not there, since nothing in it matters.
            size: bytes of that.
            gone: what of it was over already in an earlier process, and is left out.

        Returns:
            False if it has to be read again, and nothing has happened: since it was read, a trace has come to matter
            of which it has plain spans.
        """
        with self._lock:
            if any(trace_id in self._plain.wanted for trace_id in batch.plain):
                return False
            self._plain.keep(batch.plain)
            size = size * (len(batch.spans) + len(batch.records)) // (batch.size or 1)  # the rest is gone already
            if gone is not NOTHING:
                batch.spans = [span for span in batch.spans if key_of(span)[0] not in gone.traces]
            if not batch.is_plain:
                self._take(batch, _Body(number, size), gone)
            elif number:  # it was to be read when it was kept
                self._settled([number])
        return True

    def _take(self, batch: Batch, body: _Body, gone: Gone) -> None:
        for record in sorted(batch.records, key=lambda record: record.time):
            self._take_record(record, body, gone)
        if batch.spans:
            self._take_spans(batch.spans, body)
        self._taken += body.size
        self._pipeline.call(self._place, body)

    def restore_places(self, places: bytes) -> None:
        """Take over what was kept by ``keep_places``."""
        with self._lock:
            self._plain.keep(read_places(places))

    @property
    def is_full(self) -> bool:
        """True if so much is on its way to the tracker that no more should be taken."""
        return self._taken - self._placed > _MOST_BYTES or self._pipeline.waiting_calls > _MOST_CALLS

    def work_off(self) -> None:
        """Wait while it is full."""
        while self.is_full and self._pipeline.catch_up(_PATIENCE):
            pass

    def _want(self, trace_ids: Collection[int]) -> None:
        """Have all spans of some traces read from now on, and hand over what is known of those that came before."""
        links = self._plain.want(trace_ids)
        if not links:
            return
        self._pipeline.pass_by(links)
        if self._keep is not None:
            traces = {trace_id for (trace_id, _), _, _ in links}
            self._keep(PLACES, write_places(links)).add_done_callback(functools.partial(self._place_kept, traces))

    def _place_kept(self, traces: set[int], kept: Future[int]) -> None:
        """Settle kept places with their traces."""
        if kept.exception() is None:  # else they are in memory alone: what has begun goes on without the disk
            body = _Body(kept.result(), 0)
            body.traces = traces
            self._pipeline.call(self._place, body)

    def _take_record(self, record: LogRecord, body: _Body, gone: Gone) -> None:
        if semconv.PARTIAL_EVENT in record.attributes or semconv.TASK_PROGRESS in (
            record.event_name,
            record.attributes.get("event.name"),
        ):
            key = self.live.take(record, gone.traces)
            if key is not None:
                self._want(key[:1])
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
            conversation = service_of(event.resource), event.conversation
            if conversation in gone.conversations and event.trace_id in (0, *gone.traces):
                return
            if event.trace_id:
                self._want([event.trace_id])
                body.traces.add(event.trace_id)
            self._pipeline.take_event(event)
            body.conversations.add(conversation)

    def _take_spans(self, spans: Sequence[ReadableSpan], body: _Body) -> None:
        keys = [span.key if isinstance(span, ReceivedSpan) else key_of(span) for span in spans]
        traces = {trace_id for trace_id, _ in keys}
        body.traces |= traces
        self._want(traces)
        if not len(self.live):
            self.live.remember(keys)
            self._pipeline.take_ended(spans)
            return
        waiting: list[ReadableSpan] = []
        for span in in_order(spans):
            if key_of(span) in self.live:
                self._pipeline.take_ended(waiting)
                waiting = []
                self.live.end(span)
            else:
                self.live.remember([key_of(span)])
                waiting.append(span)
        self._pipeline.take_ended(waiting)

    # -- settling, on the pipeline's thread ----------------------------------------------------------------------------

    def begin(self, trace_id: int) -> None:
        """Note that there is a report of a trace."""
        if self._keep is not None:
            self._begun.put(trace_id, None)

    def _place(self, body: _Body) -> None:
        if self._keep is not None and body.traces:
            body.until = self._now() + _YOUNG
        self._bodies[body.id] = body
        self._placed += body.size

    def _sweep(self) -> None:
        """Settle the bodies of which no task under way, and no open span, depends."""
        traces, conversations = self._pipeline.under_way()
        done, stay = [], []
        over_traces: set[int] = set()
        over_conversations: set[Conversation] = set()
        for body in self._bodies.values():
            more = self._gone_from(body, traces, conversations)
            if more is None:
                done.append(body.id)
            elif any(more):
                stay.append(body.id)
                over_traces |= more.traces
                over_conversations |= more.conversations
        for number in stay:  # a span is open there of which nothing is known yet
            over_traces -= self._bodies[number].traces
        for number in done:
            del self._bodies[number]
        done += self._spent(done)
        if stay and self._keep is not None:  # before anything goes
            gone = Gone(frozenset(over_traces), frozenset(over_conversations))
            kept = self._keep(over.KIND, over.write(stay, gone))
            kept.add_done_callback(lambda kept: self._over_kept(kept, stay, done))
        elif done:
            self._settled(done)

    def _spent(self, done: Collection[int]) -> list[int]:
        """Take out the items that say what is over in no bodies but these."""
        for bodies in self._over.values():
            bodies.difference_update(done)
        spent = [number for number, bodies in self._over.items() if not bodies]
        for number in spent:
            del self._over[number]
        return spent

    def _over_kept(self, kept: Future[int], stay: Collection[int], done: Sequence[int]) -> None:
        if kept.exception() is None:
            self.settle_with(kept.result(), stay)
        if done:
            self._settled(done)

    def settle_with(self, number: int, bodies: Collection[int]) -> None:
        """Settle an item that says what is over when the bodies have settled that it speaks of."""
        self._pipeline.call(self._note_over, number, set(bodies))

    def _note_over(self, number: int, bodies: set[int]) -> None:
        bodies.intersection_update(self._bodies)
        if bodies:
            self._over[number] = bodies
        else:
            self._settled([number])

    def _gone_from(self, body: _Body, traces: set[int], conversations: set[Conversation]) -> Gone | None:
        """Take out of a body what is over, and return it; None if nothing else is left."""
        open_spans = {key: version for key, version in body.live.items() if self.live.version(key)}
        ended = {key[0] for key in body.live if key not in open_spans}
        if (
            body.traces.isdisjoint(traces)
            and body.conversations.isdisjoint(conversations)
            and not any(self.live.version(key) == version for key, version in open_spans.items())
        ):
            if not body.until or self._now() >= body.until or not self._begun.keys().isdisjoint(body.traces):
                return None
            return NOTHING
        body.until = 0
        known = body.traces | ended
        body.live = open_spans
        body.traces = known & traces | {key[0] for key in open_spans if key[0] in known}
        before, body.conversations = body.conversations, body.conversations & conversations
        return Gone(frozenset(known - body.traces), frozenset(before - body.conversations))

    def waiting(self) -> int:
        """Return how many bodies have not settled."""
        return len(self._bodies)
