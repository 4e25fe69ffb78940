"""The watcher of open spans: hooks and polls become calls of the tracker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import StatusCode, get_current_span

from otel_letta import semconv
from otel_letta.pipeline import pooled
from otel_letta.pipeline.hooks import attributes_in, declares_nothing, handled, is_no_record, make_hooks
from otel_letta.pipeline.open_spans import OpenSpan, OpenSpans, Record, differs, noted_in
from otel_letta.pipeline.pooled import handled_elsewhere
from otel_letta.runtime import fork
from otel_letta.runtime.aborts import abort_reason
from otel_letta.runtime.suppress import is_suppressed
from otel_letta.tracking.reading import Reading, SpanKey, attributes_of, key_of, may_declare
from otel_letta.tracking.values import nanoseconds_of

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_letta.pipeline.inbox import Inbox
    from otel_letta.settings import Settings
    from otel_letta.tracking import Tracker
    from otel_letta.tracking.opt_in import OptIn

_POLL_SHARE, _LONGEST_PAUSE = 20, 5.0
"""Reading the open spans may take one part in so many of the processor's time (not of the clock's: a process that was
stopped meanwhile took no more of it), so with very many of them it gets rarer: after so many seconds, at the most."""
_YIELD = 500
"""Open spans that are read before other threads get the interpreter."""


class Watcher:
    """The only owner of open spans. Its hooks run on the program's threads, all else on the inbox's, lock held.

    Args:
        settings: how often to poll, and whether baggage is read.
        inbox: takes the hooks' calls.
        opt_in: makes tasks of spans that would be none.
        end_alone: takes an ended span of interest that was not open here.
        complain: takes the place and an error of ours.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        opt_in: OptIn | None,
        end_alone: Callable[[ReadableSpan], None],
        complain: Callable[[str, Exception], None],
    ) -> None:
        self.open = OpenSpans()
        self.watching = False
        """False while no span is open, or none has been noticed."""
        self.spelling: Callable[[Mapping[str, Any]], None] | None = None
        """Examines the attributes of open spans for names that are spelt wrongly."""
        self.asks_all = settings.baggage or opt_in is not None
        """Spans are asked for more than their attributes when they start."""
        self._reads_baggage = settings.baggage
        self._opt_in = opt_in
        self._inbox = inbox
        self._end_alone = end_alone
        self._complain = complain
        self._interval = settings.poll_interval
        self._next_poll = 0.0
        self._tracker: Tracker
        self._foreign: set[SpanKey] = set()
        self._forked_at = 0
        self.on_start, self.on_end = make_hooks(self, inbox, complain)

    def restart(self, tracker: Tracker, *, forked: bool) -> None:
        """Begin with no span open, in a new process."""
        self._tracker = tracker
        if forked:
            self._forked_at = fork.forked_at() or time.time_ns()
            # First of all: clearing may run destructors that end some of them.
            self._foreign |= self.open.keys()
            # Noticed late, the child may have started some itself.
            own = self.open.started_since(self._forked_at) if fork.was_noticed_late() else []
            if not fork.was_noticed_late():
                current = get_current_span()
                self._foreign |= {key_of(current)} if isinstance(current, ReadableSpan) else set()
            self.open.clear()
            self._foreign -= self.open.enter(own)
        self.watching = False

    def is_foreign(self, span: ReadableSpan) -> bool:
        """Return whether a span was open when this process was forked: the parent process ends and reports it.

        For spans that `on_start` never saw in this process, although it sees all that start here.
        """
        return bool(self._forked_at) and ((span.start_time or 0) < self._forked_at or key_of(span) in self._foreign)

    def is_inherited(self, span: ReadableSpan) -> bool:
        """Return the same for spans of which nobody saw the start, so that it may have been given a time long ago.

        Known are those that were open here, and that was current at the fork. What is above it ends after it.
        """
        if not self._foreign or (span.start_time or 0) >= self._forked_at or key_of(span) not in self._foreign:
            return False
        parent = span.parent
        if parent is not None and not parent.is_remote:
            self._foreign.add((parent.trace_id, parent.span_id))
        return True

    # -- hooks: on the traced program's threads, for the few spans that need more than `make_hooks` does ---------------

    def begin(self, record: Record) -> None:
        """Have the open spans polled from now on, since one has started: any span may become a task later."""
        self._check_fork(record)
        # Set after the span is in the registry: the thread clears the flag before it finds the registry empty.
        self.watching = True
        self._inbox.put(self._watch)
        if not self._inbox.has_thread:
            # Nobody polls: spans that are never ended would be kept alive for ever.
            self.watching = False
            for record in self.open.all():
                self.open.observe_open(record)

    def prepare(
        self, record: Record, span: Span, parent_context: Context | None, exception: BaseException | None
    ) -> None:
        """Note what can be known of a span only now, before anybody else knows its record."""
        opted = None if self._opt_in is None else self._opt_in.name_of(span)
        inbound: tuple[object, object] = None, None
        if self._reads_baggage:
            from opentelemetry.baggage import get_baggage  # few programs read baggage, and its import takes its time

            # Of every span: it may become a task later, when its context is somewhere else.
            inbound = get_baggage(semconv.CHAT_ID, parent_context), get_baggage(semconv.MESSAGE_ID, parent_context)
        if opted is None and inbound == (None, None) and (exception is None or isinstance(exception, Exception)):
            return
        self.open.prepare(record, span)
        entry: OpenSpan = record[2]
        entry.start_exception = id(exception) if exception is not None else 0
        entry.inbound = inbound
        entry.opted = opted
        entry.spoken = opted is not None

    def note_start(self, record: Record) -> None:
        """Enqueue the start of a span that is a task, or may be one."""
        self._check_fork(record)
        if (exception := handled_elsewhere(record[0])) is not None:
            entry = self.open.observe_open(record)
            if entry is not None:
                entry.start_exception = id(exception)
        if is_suppressed():
            entry = self.open.observe_open(record)
            if entry is not None:
                entry.ignored = True
        else:
            self._inbox.put_checked(self.start, record)

    def _check_fork(self, record: Record) -> None:
        if fork.check():
            # This one starts now, so it is the child's, however exactly the time of the fork is known.
            self._foreign -= self.open.enter([record])

    def take(self, key: SpanKey) -> Record | None:
        """Take a span out of the registry while there are two of one id."""
        record = self.open.get(key)
        if record is not None and self.open.twins.pop(key, None) is None:
            self.open.records.pop(key[1], None)
        return record

    def note_unread_end(self, record: Record, span: ReadableSpan) -> None:
        """Enqueue the end of a span that may be a task, and that was never observed."""
        if fork.check() and self.is_foreign(span):
            return
        record.append(span)
        record[0] = None
        if record[2] is span:  # unless somebody has observed it meanwhile
            exception = _handled_at_end(span)
            self._inbox.put_checked(self.end, record, None if exception is None else _why_aborted(span, exception))
        else:
            self.note_end(record, span, span.attributes or {})

    def note_end(self, record: Record | None, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        """Enqueue the end of a span that was observed, or was not open here, if it matters."""
        if record is None:
            # Ended by somebody else already, started before the processor was added, or in the process that this
            # one was forked from.
            if not declares_nothing(attributes):
                fork.check()
                if not self.is_foreign(span):
                    self._end_alone(span)
            return
        entry: OpenSpan = record[2]
        entry.over = True
        if entry.followed or entry.spoken or not declares_nothing(attributes):
            if fork.check() and self.is_foreign(span):
                return
            # Whether instrumentation is suppressed here does not matter: a destructor can end a span anywhere.
            if not entry.ignored:
                entry.over = span
                exception = _handled_at_end(span)
                if exception is not None and id(exception) == entry.start_exception:
                    exception = None  # cleaning up inside ``except CancelledError`` is innocent
                self._inbox.put_checked(self.end, record, None if exception is None else _why_aborted(span, exception))
        elif entry.awaited:  # set by the thread before it asks for `over`
            exception = handled()
            why = None if exception is None else _why_aborted(span, exception)
            self._inbox.put(self._end_plain, record, entry, span, why)

    def on_end_after_leaving(self, span: ReadableSpan) -> None:
        """Take note of an end whose processor was shut down, while others of this pipeline go on."""
        if not is_no_record(span) and self.open.get(key_of(span)) is not None:
            self.on_end(span)

    def read_soon(self, span: object) -> None:
        """Read an open span soon, not at the next poll: a helper has written on it."""
        if isinstance(span, Span):
            record = self.open.get(key_of(span))
            entry = None if record is None else self.open.observe_open(record)
            # One call is enough, however often the span is written to until it is made.
            if record is not None and entry is not None and not entry.noted:
                entry.noted = True
                self._inbox.put(self._read_noted, record, entry)

    def on_event(self, key: SpanKey, attributes: dict[str, Any]) -> None:
        """Take in a log event that speaks for a span; ignored if the span is not open here."""
        record = self.open.get(key)
        entry = None if record is None else self.open.observe_open(record)
        if record is not None and entry is not None and not entry.ignored and may_declare(attributes):
            entry.spoken = True
            self._inbox.put(self._merge_event, record, entry, attributes)

    # -- on the inbox's thread, lock held ------------------------------------------------------------------------------

    def _watch(self) -> None:
        now = time.monotonic()
        if self._next_poll < now:
            self._next_poll = now + self._interval
        self.watching = True

    def start(self, record: Record) -> None:
        """Bring the start of a span."""
        entry, span = self._observed(record)
        # Of a span that has ended meanwhile, the call of its end is enough.
        if entry is not None and span is not None and not entry.is_over and not entry.followed:
            self._read_ancestors(record)
            self._hand_over(record, entry, span, self._tracker.started)
        self._watch()

    def end(self, record: Record, aborted: str | None) -> None:
        """Bring the end of a span."""
        entry = self.open.observe(record)
        span = None if entry is None else entry.ended
        assert entry is not None
        assert span is not None
        self._read_ancestors(record)
        above, outside = self.open.above(record)
        entry.followed = self._tracker.ended(Reading.of(span, entry.opted), above, outside, entry.inbound, aborted)
        entry.over = True
        if entry.followed:
            record[1] = None  # the tracker needs nothing above it for those below

    def _end_plain(self, record: Record, entry: OpenSpan, span: ReadableSpan, aborted: str | None) -> None:
        self._tracker.ended_plain(Reading.of(span, entry.opted), *self.open.above(record), aborted)

    def _merge_event(self, record: Record, entry: OpenSpan, attributes: dict[str, Any]) -> None:
        span = entry.span
        if span is not None:
            self._read_ancestors(record)
            reading = Reading.of(span, entry.opted, attributes)
            entry.followed = self._tracker.changed(reading, *self.open.above(record), entry.inbound)
        self._watch()

    def _read_noted(self, record: Record, entry: OpenSpan) -> None:
        entry.noted = False
        self._read(record)

    def read(self, key: SpanKey) -> list[OpenSpan]:
        """Read an open span now; return it and those above it, or nothing if it is not open here."""
        record = self.open.get(key)
        entry = None if record is None else self.open.observe(record)
        if record is None or entry is None:
            return []
        self._read(record)
        return [entry, *self.open.above(record)[0]]

    def poll_if_due(self) -> float:
        """Read every open span for what was set since the last time, if it is time to.

        Returns:
            The time of `time.monotonic` of the next poll; infinity while no span is open.
        """
        if self.watching and time.monotonic() >= self._next_poll:
            self.poll()
        return self._next_poll if self.watching else math.inf

    def poll(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Read every open span for what was set since the last time. Return False if ``goes_on`` did before that."""
        began, in_time = time.thread_time(), True
        for number, record in enumerate(self.open.all(), 1):
            self._guarded(self._read, record)
            if not number % _YIELD:
                time.sleep(0)
                if not (in_time := goes_on()):
                    break
        for record in self.open.take_lost(patient=True):
            self._guarded(self._lose, record)
        self.watching = False
        if len(self.open):
            self.watching = True
        pause = min((time.thread_time() - began) * _POLL_SHARE, _LONGEST_PAUSE)
        self._next_poll = time.monotonic() + max(self._interval, pause)
        return in_time

    def _guarded(self, work: Callable[[Record], None], record: Record) -> None:
        try:
            work(record)
        except Exception as error:  # noqa: BLE001
            self._complain("reading spans", error)

    def _lose(self, record: Record) -> None:
        entry: OpenSpan = record[2]
        entry.over = True
        self._tracker.lost(entry.key, *self.open.above(record))

    def _observed(self, record: Record) -> tuple[OpenSpan | None, ReadableSpan | None]:
        span = record[0]  # first: it may have no other reference any more
        entry = self.open.observe(record)
        return entry, entry() if entry is not None and span is None else span

    def _read(self, record: Record) -> None:
        entry, span = self._observed(record)
        if entry is None or span is None or span.end_time is not None or entry.ignored:
            return
        if not entry.followed:
            declares = not declares_nothing(attributes_in(span))
            if not declares and self.spelling is not None:
                self.spelling(attributes_of(span))
            if declares and differs(_noted(span), entry.seen):
                self._read_ancestors(record)
                self._hand_over(record, entry, span, self._tracker.changed)
            return
        if differs(_noted(span), entry.seen):
            self._hand_over(record, entry, span, self._tracker.changed)

    def _read_ancestors(self, record: Record) -> None:
        """Read what is above a span: it may have become a task since it was read, and then the span is its step."""
        unread = []
        above = record[1]
        while above is not None:
            entry = self.open.observe(above)
            if entry is not None:
                if entry.followed:
                    break
                unread.append((above, entry))
            above = above[1]
        for above, entry in reversed(unread):
            # It may have ended meanwhile, and the call of that still be in the inbox.
            span = entry.span
            if span is None or entry.ignored or (entry.opted is None and declares_nothing(attributes_in(span))):
                continue
            if differs(_noted(span), entry.seen):
                self._hand_over(above, entry, span, self._tracker.changed)

    def _hand_over(self, record: Record, entry: OpenSpan, span: ReadableSpan, take: Callable[..., bool]) -> None:
        # Remembered as it was before it is read: what is set in between shall be new at the next poll.
        noted = _noted(span)
        if self.spelling is not None:
            self.spelling(attributes_of(span))
        above, outside = self.open.above(record)
        reading = Reading.of(span, entry.opted)
        reading.key = entry.key  # the same, once: the tracker keeps it as long as the span is open
        entry.followed = take(reading, above, outside, entry.inbound)
        entry.seen = noted


def _handled_at_end(span: ReadableSpan) -> BaseException | None:
    """Return the exception that is being handled where a span ends that shows no status."""
    exception = handled()
    if exception is None and get_ident() != pooled.main and span.status.status_code is StatusCode.UNSET:
        return handled_elsewhere(span)
    return exception


def _why_aborted(span: ReadableSpan, exception: BaseException) -> str | None:
    """Return what stopped a span that OpenTelemetry shows as merely UNSET, None if nothing did.

    OpenTelemetry records only `Exception`. The exceptions below it pass through a span without a trace, so they are
    searched for in the hook, while they are still being handled. One that was being handled when the span started is
    not the span's.
    """
    return abort_reason(exception) if span.status.status_code is StatusCode.UNSET else None


def _noted(span: ReadableSpan) -> tuple[Any, ...]:
    events = span.events
    return noted_in(attributes_of(span), nanoseconds_of(events[-1].timestamp) if events else 0)
