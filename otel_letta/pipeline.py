"""Puts tracking, delivery and a transport together, and owns their life: sharing, fork, flush, shutdown.

An exporter and a processor that are configured alike share one pipeline, so that a span seen by both is told once.
Hooks run on the traced program's threads: they note what happened in a queue and return. One thread of the pipeline
reads the queue, looks at open spans a few times a second while there are any, and hands reports to delivery.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import queue
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.baggage import get_baggage
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_value
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta import semconv
from otel_letta.aborts import abort_reason
from otel_letta.delivery.board import BoardKeeper
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.delivery.worker import is_ours, suppressed
from otel_letta.errors import LettaConfigurationError
from otel_letta.letta.transport import Transport
from otel_letta.live import watch
from otel_letta.open_spans import OpenSpan, OpenSpans
from otel_letta.opt_in import OptIn, TaskFilter
from otel_letta.report import ProgressReport
from otel_letta.settings import Delivery, Settings, SettingsOptions, _refuse_unknown
from otel_letta.tracking.openhands import Claims, ConversationTracker, Event, Origin
from otel_letta.tracking.reading import NOTED, Reading, SpanKey, attributes_of, key_of, may_declare
from otel_letta.tracking.tracker import Tracker

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from otel_letta.selfmetrics import SelfMetrics

__all__ = ["Handle", "Pipeline", "join"]

_logger = logging.getLogger(__name__)

_BACKLOG = 10_000
"""Queued notes at which a hook helps to work them off. Reading them is pure computation, so this is not blocking."""
_POLL_SHARE = 20
"""Looking at the open spans may take one part in so many of the time; with very many of them it gets rarer."""

_FOR_DELIVERY = 0.94
"""Share of the exit's time that delivery gets. The rest is for the interpreter, which takes 0.1 s and more to go."""

_THREAD_RETRY = 1.0
"""Seconds until a hook tries again to start a thread."""

_ONE_EXIT = 30.0
"""Seconds. Components that shut down within so long of one another share the time allowed."""

_FRAMES_TO_LOGFIRE = 10
"""At most so many from a hook up to Logfire's wrapper around it: five in Logfire 5.2, more if that samples tails."""

_START, _END, _ALONE, _WAKE, _LOOK, _EVENT, _PASSED, _CONVERSATION, _OVER = range(9)
_Note = tuple[int, Any, Any, Any]

if sys.version_info >= (3, 11):
    _handled = sys.exception
else:

    def _handled() -> BaseException | None:
        return sys.exc_info()[1]


def tracker_for(
    settings: Settings,
    emit: Callable[[ProgressReport], None],
    now: Callable[[], int],
    claimed: Callable[[str], bool] = lambda conversation_id: False,
) -> Tracker:
    """A tracker as the settings want it; see `Tracker` for ``emit``, ``now`` and ``claimed``."""
    return Tracker(
        emit=emit,
        now=now,
        host=socket.gethostname(),
        allowed_agents=settings.agent_allow_list,
        default_agent=settings.agent_id,
        content_cap=settings.content_cap,
        wake_after=settings.wake_after,
        grace=settings.grace,
        idle_timeout=settings.idle_timeout,
        chat_attributes=settings.chat_id_attributes,
        content=settings.content,
        claimed=claimed,
        most_tasks=settings.max_pending_tasks,
    )


class Pipeline:
    """The way from a provider's spans to one Letta agent. Made by `join`."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        metrics: SelfMetrics | None = None,
        task_filter: TaskFilter | None = None,
    ) -> None:
        self.settings = settings
        self._opt_in = OptIn(settings.tasks, task_filter) if settings.tasks or task_filter is not None else None
        self._metrics = metrics
        self._transport = transport if metrics is None else metrics.timed(transport)
        self._handles: set[Handle] = set()
        self._foreign: frozenset[SpanKey] = frozenset()
        self._forked_at = 0
        self._errors = Throttle(_logger)
        self._budget_used = 0.0
        self._left_at = -math.inf
        self.claims = Claims()
        """OpenHands' conversations that a callback speaks for: their spans are not told."""
        self._begin()

    def _begin(self) -> None:
        """Everything that belongs to one process."""
        settings = self.settings
        # Notes are taken out only by who holds the tracker's lock, or two readers could change their order. Both are
        # reentrant: a hook may run in a destructor or a signal handler, in the middle of another append or put.
        self._notes: deque[_Note] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asleep = False
        self._stopped = False
        self._open = OpenSpans()
        self._watching = False
        self._alone_waiting = False
        self._passed: deque[tuple[SpanKey, SpanKey | None, bool]] = deque(maxlen=_BACKLOG)
        """Plain spans from an exporter that ended while no task waited: who was above them."""
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.RLock()
        self._no_thread_before = 0.0
        self._tracker_lock = threading.Lock()
        self._closed = False
        self._next_poll = 0.0
        self._poll_interval = settings.poll_interval
        self._reads_baggage = settings.baggage
        self._stats = Stats() if self._metrics is None else self._metrics.stats(lambda: self._courier.lanes())
        self._tracker_due: int | None = None
        self._tracker = tracker_for(settings, self.deliver, time.time_ns, claimed=self.claims.__contains__)
        self._conversations = ConversationTracker(
            emit=self.deliver, now=time.time_ns, host=socket.gethostname(), content_cap=settings.content_cap
        )
        self._courier = Courier(self._transport, settings, self._stats)
        self._boards: dict[str, BoardKeeper] = {}

    # -- hooks: on the traced program's threads ----------------------------------------------------------------------

    # Every recorded span of the program passes through the next two, and most are no tasks: each line is measured.

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A recorded span started. ``parent_context``: None is the current one."""
        entry = self._open.add(span)
        if entry is None:
            return
        if self._reads_baggage:
            # Now, and of every span: it may become a task later, when its context is somewhere else.
            chat_id = get_baggage(semconv.CHAT_ID, parent_context)
            message_id = get_baggage(semconv.MESSAGE_ID, parent_context)
            if chat_id is not None or message_id is not None:
                entry.inbound = chat_id, message_id
        exception = _handled()
        if exception is not None and not isinstance(exception, Exception):
            entry.start_exception = id(exception)
        try:
            attributes = span._attributes  # the property costs four times as much
        except AttributeError:
            attributes = span.attributes
        if (self._opt_in is not None and self._opted_in(entry, span)) or (attributes and may_declare(attributes)):
            if is_suppressed():
                entry.ignored = True
            else:
                self._note((_START, entry, span, None))
        elif not self._watching:
            # Any span may become a task later, so somebody has to look. Set after the entry is in the registry:
            # the thread clears the flag before it finds the registry empty.
            self._watching = True
            self._note((_WAKE, None, None, None))

    def _opted_in(self, entry: OpenSpan, span: ReadableSpan) -> bool:
        assert self._opt_in is not None
        name = self._opt_in.name_of(span)
        if name is None:
            return False
        entry.opted = name
        entry.spoken = True  # so that its end is noted, whatever it carries then
        return True

    def on_end(self, span: ReadableSpan) -> None:
        """A recorded span ended."""
        entry = self._open.pop(span.context[:2])
        try:
            attributes = span._attributes
        except AttributeError:
            attributes = span.attributes
        if entry is None:
            # Ended by somebody else already, started before the processor was added, or in the process that this
            # one was forked from.
            if attributes and may_declare(attributes) and not self._is_foreign(span):
                self._note((_ALONE, span, None, None))
        elif entry.followed or (attributes and may_declare(attributes)) or entry.spoken:
            # Whether instrumentation is suppressed here does not matter: a destructor can end a span anywhere.
            if not entry.ignored:
                entry.ended = span
                self._note((_END, entry, span, _why_aborted(span, entry)))
        else:
            entry.over = True
            if entry.awaited:  # set by the thread before it asks for `over`
                self._note((_OVER, entry, None, None))

    def on_end_after_leaving(self, span: ReadableSpan) -> None:
        """A span ended whose processor was shut down, while others of this pipeline go on."""
        if self._open.get(span.context[:2]) is not None:
            self.on_end(span)

    def look_soon(self, span: object) -> None:
        """A helper has written on an open span: look at it now, not at the next poll."""
        if isinstance(span, Span):
            entry = self._open.get(key_of(span))
            # One note is enough, however often the span is written to until it is read.
            if entry is not None and not entry.noted:
                entry.noted = True
                self._note((_LOOK, entry, None, None))

    def on_event(self, key: SpanKey, attributes: dict[str, Any]) -> None:
        """A log event speaks for a span; one of a span that is not open here is ignored."""
        entry = self._open.get(key)
        if entry is not None and not entry.ignored and may_declare(attributes):
            entry.spoken = True
            self._note((_EVENT, entry, attributes, None))

    def on_conversation(self, conversation_id: str, origin: Origin, event: Event) -> None:
        """News of an OpenHands conversation, told by a callback, a webhook or a hook instead of by spans."""
        if not event.at:
            event = replace(event, at=time.time_ns())
        self._note((_CONVERSATION, conversation_id, origin, event))

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        """Ended spans from an exporter."""
        for span in spans:
            opted = None if self._opt_in is None else self._opt_in.name_of(span)
            declares = opted is not None or may_declare(attributes_of(span))
            key = key_of(span)
            if not declares and not (self._alone_waiting and _may_be_a_failed_part(span)):
                # A task may outlive the plain span that it was started in, and shall not wait for its end then.
                parent = span.parent
                above = None if parent is None else (parent.trace_id, parent.span_id)
                remote = parent is not None and parent.is_remote
                if self._alone_waiting:
                    self._note((_PASSED, key, above, remote))
                else:
                    self._passed.append((key, above, remote))
                continue
            # A live processor that watches this span will tell its end, and knows more about it.
            if self._open.get(key) is not None or self._is_foreign(span):
                continue
            if declares:
                # From here on plain spans matter too: one may be what this one waits for to know its task.
                self._alone_waiting = True
            self._note((_ALONE, span, opted, None))

    def _is_foreign(self, span: ReadableSpan) -> bool:
        """True for a span that was open when this process was forked: the parent process ends and tells it."""
        return bool(self._forked_at) and ((span.start_time or 0) < self._forked_at or key_of(span) in self._foreign)

    def _note(self, note: _Note) -> None:
        if self._closed:
            return
        self._notes.append(note)
        if self._asleep:
            self._ring()
        elif self._thread is None:
            self._start_thread()
        # Not in a destructor that runs in the middle of our own work, with half of that work done.
        if len(self._notes) > _BACKLOG and not is_ours():
            self._work_off(wait=False)

    def _start_thread(self) -> None:
        with self._thread_lock:
            if self._thread is not None or self._closed or time.monotonic() < self._no_thread_before:
                return
            thread = threading.Thread(target=self._run, name="otel_letta", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:
                # At interpreter shutdown Python 3.12 starts no thread any more: flush and shutdown do the work. Or
                # the machine is out of threads, and will have some again.
                self._thread = None
                self._no_thread_before = time.monotonic() + _THREAD_RETRY
                _logger.debug("no thread can be started: reports go out at flush or shutdown")
                return
            self._care_for_exit()

    def _care_for_exit(self) -> None:
        """Deliver at the end of a child of multiprocessing: with fork and forkserver it exits without `atexit`, so
        no provider is shut down there."""
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            from multiprocessing import util

            util.Finalize(None, _at_process_end, args=(weakref.ref(self),), exitpriority=0)

    # -- the pipeline's thread ---------------------------------------------------------------------------------------

    def _ring(self) -> None:
        self._asleep = False
        self._bell.put(None)

    def _run(self) -> None:
        with suppressed():
            while not self._stopped:
                self._sleep()
                self._guarded(self._turn)

    def _sleep(self) -> None:
        """Until there are notes, or something is due."""
        while not self._bell.empty():
            self._bell.get_nowait()  # rung when already awake
        self._asleep = True
        if not self._notes and not self._stopped:
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=self._pause())
        self._asleep = False

    def _pause(self) -> float | None:
        """Seconds until the open spans want a look; None (no wake-ups at all) while there are none."""
        waits = []
        if self._watching:
            waits.append(self._next_poll - time.monotonic())
        due = self._tracker_due
        if due is not None:
            waits.append((due - time.time_ns()) / 1e9)
        return max(min(waits), 0.0) if waits else None

    def _turn(self) -> None:
        with self._tracker_lock:
            self._drain()
            if self._watching and time.monotonic() >= self._next_poll:
                self._poll()
            self._tend()

    def _work_off(self, *, wait: bool, timeout: float = 0.0) -> bool:
        """Read all notes on the calling thread. False if another thread held the tracker for too long."""
        with suppressed():
            if not self._tracker_lock.acquire(blocking=wait, timeout=timeout if wait else -1):
                return False
            try:
                self._drain()
                if wait:
                    self._poll()
                    # Somebody flushes, and may not be here when the parents that spans wait for have ended. A span
                    # without a chat of its own is more likely a step of what is still open.
                    self._guarded(lambda: self._tracker.release(anonymous=False))
                self._tend()
            finally:
                self._tracker_lock.release()
        return True

    def _drain(self) -> None:
        for _ in range(len(self._notes)):
            try:
                note = self._notes.popleft()
            except IndexError:  # a hook that ran in the middle of this has helped
                return
            self._handle(note)

    def _handle(self, note: _Note) -> None:
        kind, what, span, aborted = note
        # One bad span must not take the others with it.
        self._guarded(lambda: self._tell_tracker(kind, what, span, aborted))

    def _tell_tracker(self, kind: int, what: Any, span: Any, aborted: Any) -> None:
        tracker = self._tracker
        if kind == _START:
            if not what.followed:
                self._look_at_ancestors(what)
                self._start_task(what, span)
            self._watch()
        elif kind == _WAKE:
            self._watch()
        elif kind == _LOOK:
            what.noted = False
            self._look(what)
        elif kind == _EVENT:
            source = what.ended or what()
            if source is not None:
                self._look_at_ancestors(what)
                reading = Reading.of(source, what.opted, span)
                what.followed = tracker.changed(reading, what.above, what.outside, what.inbound)
            self._watch()
        elif kind == _END:
            self._look_at_ancestors(what)
            reading = Reading.of(span, what.opted)
            what.followed = tracker.ended(reading, what.above, what.outside, what.inbound, aborted)
            what.ended = None
            if what.followed:
                what.parent = None  # the tracker needs nothing above it for those below
            else:
                what.over = True
        elif kind == _PASSED:
            tracker.passed(what, span, aborted)
        elif kind == _OVER:
            tracker.ended_plain(what.key, what.above, what.outside)
        elif kind == _ALONE:
            while self._passed:
                tracker.passed(*self._passed.popleft())
            reading = Reading.of(what, span)
            parent = self._open.get(reading.parent) if reading.parent is not None else None
            if parent is not None:
                self._look(parent)
            tracker.ended_alone(reading, () if parent is None else (parent, *parent.above))
        elif kind == _CONVERSATION:
            self._conversations.hear(what, span, aborted)

    def _start_task(self, entry: OpenSpan, span: ReadableSpan, *, found: bool = False) -> None:
        """``found``: what makes a task of the span was not there from its start."""
        # Remembered as it was before it is read: what is set in between shall look new at the next look.
        seen = attributes_of(span)
        take = self._tracker.changed if found else self._tracker.started
        entry.followed = take(Reading.of(span, entry.opted), entry.above, entry.outside, entry.inbound)
        entry.seen = seen

    def _watch(self) -> None:
        """Look at the open spans from now on."""
        now = time.monotonic()
        if self._next_poll < now:
            self._next_poll = now + self._poll_interval
        self._watching = True

    def _look_at_ancestors(self, entry: OpenSpan) -> None:
        """An ancestor may have become a task since the last look; then this span is its step, not a task."""
        parent = entry.parent
        chain = []
        while parent is not None and not parent.followed:
            chain.append(parent)
            parent = parent.parent
        for ancestor in reversed(chain):
            # It may have ended meanwhile, and the note of that still be in the queue.
            span = ancestor.ended or ancestor()
            if span is None or ancestor.ignored:
                continue
            attributes = attributes_of(span)
            if (may_declare(attributes) or ancestor.opted) and _differs(attributes, ancestor.seen):
                self._start_task(ancestor, span, found=True)

    def _poll(self) -> None:
        """Look at every open span for what was set since the last time."""
        began = time.monotonic()
        for entry in self._open.snapshot():
            self._guarded(lambda entry=entry: self._look(entry))  # type: ignore[misc]
        for entry in self._open.take_lost(patient=True):
            self._guarded(lambda entry=entry: self._lose(entry))  # type: ignore[misc]
        self._watching = False
        if len(self._open):
            self._watching = True
        now = time.monotonic()
        self._next_poll = now + max(self._poll_interval, (now - began) * _POLL_SHARE)

    def _lose(self, entry: OpenSpan) -> None:
        self._tracker.lost(entry.key, entry.above, entry.outside)
        if not entry.followed:
            entry.over = True

    def _look(self, entry: OpenSpan) -> None:
        span = entry()
        if span is None or span.end_time is not None or entry.ignored:
            return
        attributes = attributes_of(span)
        if not entry.followed:
            if may_declare(attributes) and _differs(attributes, entry.seen):
                self._look_at_ancestors(entry)
                self._start_task(entry, span, found=True)
            return
        events = span.events
        newest_event = events[-1].timestamp if events else 0
        # What names an agent or its conversation may have any name, and comes with few others.
        more = len(attributes) != len(entry.seen)
        if newest_event > entry.event_time or more or _differs(attributes, entry.seen):
            self._tracker.changed(Reading.of(span, entry.opted), entry.above, entry.outside, entry.inbound)
            entry.seen = attributes
            entry.event_time = max(entry.event_time, newest_event)

    def _tend(self) -> None:
        due = self._tracker.tick()
        if due is None and not self._notes:
            self._alone_waiting = False
        explained = self._conversations.tick()
        self._tracker_due = due if explained is None else explained if due is None else min(due, explained)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001
            self.note_error("reading spans", error)

    def note_error(self, where: str, error: Exception) -> None:
        """Log a bug of ours, at most once a minute for each kind; its text could hold anything: for DEBUG only."""
        kind = type(error).__name__
        self._errors.log(logging.ERROR, f"{where} {kind}", "%s: unexpected %s", where, kind)
        _logger.debug("unexpected error", exc_info=error)

    # -- reports -----------------------------------------------------------------------------------------------------

    def deliver(self, report: ProgressReport) -> None:
        """Hand a report over to the board, or as a message, as the settings want it."""
        self._stats.count("reports")
        mode = self.settings.delivery
        agent = report.agent_id or self.settings.agent_id
        if mode is not Delivery.MESSAGES and not self._on_board(agent, report):
            mode = Delivery.MESSAGES if mode is Delivery.AUTO else mode
        if mode is Delivery.MESSAGES or (mode is Delivery.AUTO and report.status.is_terminal):
            if report.wakes:
                self._courier.put(report)
            elif mode is Delivery.MESSAGES:
                self._stats.count("held")

    def _on_board(self, agent: str, report: ProgressReport) -> bool:
        """Put the report on the agent's board; False if the server has none."""
        courier = self._courier
        with courier.lock:
            keeper = self._boards.get(agent)
            if keeper is None:
                keeper = self._boards[agent] = BoardKeeper(
                    agent,
                    self._transport,
                    self.settings,
                    self._stats,
                    lock=courier.lock,
                    settled=courier.settled,
                    on_unsupported=self._without_board,
                )
            if keeper.gone:
                return False
            keeper.put(report)
            return True

    def _without_board(self, agent: str, open_reports: list[ProgressReport]) -> None:
        if self.settings.delivery is Delivery.AUTO:
            for report in open_reports:
                if report.wakes:
                    self._courier.put(report)

    # -- life --------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
        deadline = time.monotonic() + timeout
        if not self._work_off(wait=True, timeout=timeout):
            return False
        with suppressed():
            return self._flush_delivery(deadline, closing=False)

    def _flush_delivery(self, deadline: float, *, closing: bool) -> bool:
        courier = self._courier
        with courier.lock:
            keepers = list(self._boards.values())
            for keeper in keepers:
                keeper.hurry(closing=closing)
        if closing:
            courier.begin_closing(deadline)
        delivered = courier.flush(deadline)
        for keeper in keepers:
            delivered &= self._flush_board(keeper, deadline)
        # A board that turned out to be impossible has handed its tasks over as messages.
        delivered &= courier.flush(deadline)
        if closing:
            courier.finish()
        return delivered

    def _flush_board(self, keeper: BoardKeeper, deadline: float) -> bool:
        courier = self._courier
        while True:
            with courier.lock:
                now = time.monotonic()
                if not keeper.unsettled(now):
                    return True
                if now >= deadline or keeper.next_try(now) >= deadline:
                    return False
                unstaffed = not keeper.staffed and not keeper.busy
                if not unstaffed:
                    courier.settled.wait(min(deadline - now, 1.0))
            if unstaffed:
                keeper.run_here(deadline)

    def leave(self, handle: Handle, timeout: float) -> bool:
        """A component shuts down. The last one out closes the pipeline."""
        with _registry_lock:
            if handle not in self._handles:
                return True
            self._handles.discard(handle)
            last = not self._handles
            if last:
                _forget(self)
        # Two components of one provider must not take the time allowed for one each. Another provider's end, long
        # ago, is no reason to cut this one short.
        if time.monotonic() - self._left_at > _ONE_EXIT:
            self._budget_used = 0.0
        budget = max(min(timeout, self.settings.shutdown_timeout - self._budget_used), 0.05)
        began = time.monotonic()
        deadline = began + budget * _FOR_DELIVERY
        try:
            with suppressed():
                self._closed = last
                if last or (handle.live and not any(other.live for other in self._handles)):
                    self._end_open_tasks(budget, conversations=last)
                else:
                    self._work_off(wait=True, timeout=budget)
                if not last:
                    return self._flush_delivery(deadline, closing=False)
                self._stopped = True
                self._ring()
                delivered = self._flush_delivery(deadline, closing=True)
                with self._courier.lock:
                    for keeper in self._boards.values():
                        keeper.stop()
                return delivered
        finally:
            self._left_at = time.monotonic()
            self._budget_used += self._left_at - began

    def _end_open_tasks(self, timeout: float, *, conversations: bool = True) -> None:
        if not self._tracker_lock.acquire(timeout=timeout):
            return
        try:
            self._drain()
            self._poll()
            self._guarded(self._tracker.shutdown)
            if conversations:
                self._guarded(self._conversations.shutdown)
        finally:
            self._tracker_lock.release()

    def at_process_end(self) -> None:
        """A child of multiprocessing is about to exit, perhaps without shutting its provider down."""
        deadline = time.monotonic() + self.settings.shutdown_timeout
        with suppressed():
            others = [t for t in threading.enumerate() if not t.daemon and t is not threading.current_thread()]
            if others:  # multiprocessing waits for these afterwards, and they may end their tasks well
                self._work_off(wait=True, timeout=self.settings.shutdown_timeout)
            else:
                self._end_open_tasks(self.settings.shutdown_timeout)
            if not self._flush_delivery(deadline, closing=False):
                _logger.warning("not every report was delivered before this child process ended")

    def stats(self) -> dict[str, Any]:
        """Counts of what became of reports; see `LettaSpanExporter.stats`."""
        with self._courier.lock:
            boards = {agent: keeper.state() for agent, keeper in self._boards.items()}
        return {
            **self._stats.snapshot(),
            "open_spans": len(self._open),
            "open_tasks": self._tracker.open_tasks + self._conversations.open_tasks,
            "evicted": self._tracker.evicted,
            "lanes": self._courier.lanes(),
            "boards": boards,
        }

    def after_fork_in_child(self) -> None:
        """Start clean: the parent goes on with its threads, connections, open spans and unsent reports."""
        waiting = {entry.key for entry in self._open.snapshot()}
        self._foreign = frozenset(self._foreign | waiting)
        self._forked_at = time.time_ns()
        self._budget_used = 0.0
        self._errors = Throttle(_logger)
        self._begin()


def _at_process_end(reference: weakref.ref[Pipeline]) -> None:
    pipeline = reference()
    if pipeline is not None and not pipeline._closed:
        pipeline._guarded(pipeline.at_process_end)


def _why_aborted(span: ReadableSpan, entry: OpenSpan) -> str | None:
    """What stopped a span that OpenTelemetry shows as merely UNSET, None if nothing did.

    OpenTelemetry records only `Exception`. The exceptions below it pass through a span without a trace, so they are
    looked for here, while they are still being handled. One that was already being handled when the span started is
    not the span's: cleaning up inside ``except CancelledError`` is innocent.
    """
    exception = _handled()
    if exception is None or id(exception) == entry.start_exception:
        return None
    return abort_reason(exception) if span.status.status_code is StatusCode.UNSET else None


def _differs(attributes: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """By identity, so that comparing runs no code of the values."""
    return any(attributes.get(name) is not seen.get(name) for name in NOTED)


def _may_be_a_failed_part(span: ReadableSpan) -> bool:
    """A plain span that failed: if it is part of a tool call, that may say nothing of it."""
    return span.status.status_code is StatusCode.ERROR and span.kind is SpanKind.INTERNAL


# -- sharing -----------------------------------------------------------------------------------------------------


class Handle:
    """One component's share in a pipeline."""

    def __init__(self, pipeline: Pipeline, *, live: bool) -> None:
        self.pipeline = pipeline
        self.live = live
        self.closed = False

    def close(self, timeout: float) -> bool:
        """Leave the pipeline; True if everything was delivered. Later calls do nothing."""
        if self.closed:
            return True
        self.closed = True
        return self.pipeline.leave(self, timeout)


_registry: dict[tuple[Hashable, ...], Pipeline] = {}
_registry_lock = threading.RLock()
_all: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def join(
    settings: Settings,
    transport: Transport | None,
    *,
    live: bool,
    metrics: SelfMetrics | None = None,
    task_filter: TaskFilter | None = None,
) -> Handle:
    """A share in the pipeline for these settings, which is made if there is none.

    Two components are alike if their settings are; a transport of one's own makes a pipeline of one's own, shared
    with whoever brings the same one; so does a filter. ``metrics`` measure the pipeline if it is made here.
    """
    key = (settings.identity(), *(id(thing) if thing is not None else None for thing in (transport, task_filter)))
    with _registry_lock:
        pipeline = _registry.get(key)
        if pipeline is None:
            if transport is None:
                from otel_letta.letta.select import SelectingTransport  # imports httpx, which takes its time

                _import_early()
                transport = SelectingTransport(settings)
            settings.warn_once(_logger)
            pipeline = _registry[key] = Pipeline(settings, transport, metrics, task_filter)
            _all.add(pipeline)
            watch(pipeline.look_soon)
        handle = Handle(pipeline, live=live)
        pipeline._handles.add(handle)
        return handle


def _import_early() -> None:
    """Do now what a first request would do on our threads: httpx, Python and OpenSSL set much up only on demand.

    A fork in the middle of that leaves its locks locked in the child for ever, where every later use of it hangs. It
    was seen with imports, OpenSSL's initialisation and the search for the temporary directory (which has our locks).
    """
    tempfile.gettempdir()
    for name in ("httpcore", "certifi", "encodings.idna", "importlib.resources", "ssl"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "ssl" in sys.modules:
        sys.modules["ssl"].SSLContext(sys.modules["ssl"].PROTOCOL_TLS_CLIENT)


def _forget(pipeline: Pipeline) -> None:
    for key, known in list(_registry.items()):
        if known is pipeline:
            del _registry[key]


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for pipeline in list(_all):
        pipeline.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Component:
    """What exporter and processor have in common: settings that may be bad, a share, and never an exception."""

    def __init__(
        self,
        kind: str,
        *,
        live: bool,
        transport: Transport | None,
        meter_provider: MeterProvider | None = None,
        task_filter: TaskFilter | None = None,
        options: dict[str, Any],
    ) -> None:
        self._handle: Handle | None = None
        self._hooked: Pipeline | None = None
        self._shutdown = False
        self._metrics: SelfMetrics | None = None
        settings = options.pop("settings", None)
        try:
            unknown = _take_unknown(options)
            if settings is None:
                settings = Settings.resolve(**options)
            elif options:
                raise LettaConfigurationError(f"settings and {', '.join(sorted(options))} exclude each other")
            if unknown and settings.sources["base_url"] == "default":
                raise unknown[0]  # it may have been meant to name the server: then all, and a password, would go astray
            for error in unknown:  # else a slip in a YAML file must not switch reporting off
                _logger.warning("%s ignores an option: %s", kind, error)
            if settings.disabled:
                _logger.debug("%s does nothing: OTEL_SDK_DISABLED is set", kind)
                return
            self._metrics = _self_metrics(kind, settings, meter_provider)
            self._handle = join(settings, transport, live=live, metrics=self._metrics, task_filter=task_filter)
            self._hooked = self._handle.pipeline
        except LettaConfigurationError as error:
            # Auto-instrumentation builds exporters from the environment; one that raises here takes the program's
            # other exporters and instrumentations with it (measured).
            _logger.error("%s does nothing: %s", kind, error)
            self._metrics = _self_metrics(kind, None, meter_provider)
        except Exception as error:
            _logger.error("%s does nothing: unexpected %s", kind, type(error).__name__)
            _logger.debug("unexpected error", exc_info=True)

    @property
    def active(self) -> bool:
        """False if there is nothing that this could do: its settings are bad, or it was shut down."""
        return self._hooked is not None

    def stats(self) -> dict[str, Any]:
        """Numbers since the start: what was sent, held, conflated, dropped and why, and what is wrong now.

        Returns:
            ``reports``, ``sent``, ``requests`` (agent turns), ``board_writes``, ``conflated``, ``held``,
            ``retries``; ``dropped``: reason → number; ``open_spans``, ``open_tasks``, ``evicted`` (traces of agents
            that were given up because there were too many); ``lanes``: name → ``waiting``,
            ``in_flight``, ``parked`` (why, or None), ``last_error``; ``boards``: agent → ``label``, ``open_tasks``,
            ``parked``. Empty for a component without valid settings. Components that are configured alike share a
            pipeline and its numbers.
        """
        return self._handle.pipeline.stats() if self._handle is not None else {}

    def _flush(self, timeout_millis: float | None) -> bool:
        pipeline = self._hooked
        if pipeline is None:
            return True
        try:
            return pipeline.flush(max(30_000 if timeout_millis is None else timeout_millis, 0) / 1e3)
        except Exception as error:  # noqa: BLE001
            self._swallow("force_flush", error)
            return False

    def _close(self, timeout_millis: float | None) -> None:
        pipeline, self._hooked = self._hooked, None
        handle = self._handle
        if pipeline is None or handle is None:
            return
        most = pipeline.settings.shutdown_timeout
        try:
            handle.close(most if timeout_millis is None else min(timeout_millis / 1e3, most))
        except Exception as error:  # noqa: BLE001
            self._swallow("shutdown", error)

    def _swallow(self, where: str, error: Exception) -> None:
        """A hook's exception would replace the traced program's own, so it ends here."""
        if self._handle is not None:
            self._handle.pipeline.note_error(where, error)


def _take_unknown(options: dict[str, Any]) -> list[LettaConfigurationError]:
    """Take out the options that do not exist; returns a complaint about each, which never quotes its value."""
    complaints = []
    for name in [name for name in options if name not in SettingsOptions.__annotations__]:
        del options[name]
        try:
            _refuse_unknown([name])
        except LettaConfigurationError as error:
            complaints.append(error)
    return complaints


def _self_metrics(kind: str, settings: Settings | None, meter_provider: MeterProvider | None) -> SelfMetrics | None:
    if os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() != "true":
        return None
    from otel_letta.selfmetrics import SelfMetrics

    try:
        return SelfMetrics(kind, settings, meter_provider)
    except Exception:
        _logger.warning("%s has no metrics: the meter provider failed", kind, exc_info=True)
        return None


def is_suppressed() -> bool:
    """True on a thread or in a task that OpenTelemetry's own machinery works on."""
    return bool(get_value(_SUPPRESS_INSTRUMENTATION_KEY)) and not _is_logfires_own_suppression()


def _is_logfires_own_suppression() -> bool:
    """True in a hook that Logfire calls (``additional_span_processors``): it calls all of them with instrumentation
    suppressed, having left out the spans that were suppressed before. Nothing but the stack tells the two apart."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES_TO_LOGFIRE):
        if frame.f_globals.get("__name__") == "logfire._internal.exporters.processor_wrapper":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
