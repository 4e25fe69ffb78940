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
import queue
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from opentelemetry.baggage import get_baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta import semconv
from otel_letta.delivery.desk import Desk
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.letta.transport import Transport
from otel_letta.pipeline.source import Source
from otel_letta.report import ProgressReport
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import is_suppressed, on_own_thread, suppress_tracing
from otel_letta.runtime.wake import watch
from otel_letta.settings import Settings
from otel_letta.tracking.aborts import abort_reason
from otel_letta.tracking.open_spans import OpenSpan, OpenSpans
from otel_letta.tracking.opt_in import OptIn, TaskFilter
from otel_letta.tracking.roles import SpanFacts, SpanKey, attributes_of, key_of, may_declare
from otel_letta.tracking.tasks import TaskTracker

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

_START, _END, _ALONE, _WAKE, _LOOK, _EVENT, _PASSED, _CALL, _OVER = range(9)
_Note = tuple[int, Any, Any, Any]

_S = TypeVar("_S", bound=Source)

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
) -> TaskTracker:
    """A tracker as the settings want it; see `TaskTracker` for ``emit``, ``now`` and ``claimed``."""
    return TaskTracker(
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


class Metrics(Protocol):
    """Measurements of delivery, handed in by the component that makes the pipeline."""

    def timed(self, transport: Transport) -> Transport:
        """Return the transport with its requests timed."""

    def stats(self, lanes: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Stats:
        """Return counts that are metrics too. ``lanes`` returns what waits, by lane."""


class Pipeline:
    """The way from a provider's spans to one Letta agent. Made by `join`."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        metrics: Metrics | None = None,
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
        self._sources: dict[type[Source], Source] = {}
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
        self._stats = Stats() if self._metrics is None else self._metrics.stats(lambda: self.desk.stats()["lanes"])
        self.desk = Desk(settings, self._transport, self._stats)
        self._tracker_due: int | None = None
        self._tracker = tracker_for(settings, self.desk.put, time.time_ns, claimed=self.claimed)
        for source in self._sources.values():
            source.start(self.desk.put)

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
        elif entry.task is not None or (attributes and may_declare(attributes)) or entry.spoken:
            # Whether instrumentation is suppressed here does not matter: a destructor can end a span anywhere.
            if not entry.ignored:
                entry.ended = span
                self._note((_END, entry, span, _why_aborted(span, entry)))
        else:
            entry.over = True
            if entry.awaited is not None:  # set by the thread before it asks for `over`
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

    def add_source(self, source: _S) -> _S:
        """Add a source; return the one of its type that another component added before, if there is one."""
        source.start(self.desk.put)  # before the thread can see it
        known = self._sources.setdefault(type(source), source)
        assert isinstance(known, type(source))
        return known

    def claimed(self, conversation_id: str) -> bool:
        """Return whether a source speaks for the conversation, so that its spans are not reported as well."""
        return any(source.claims(conversation_id) for source in list(self._sources.values()))

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the pipeline's thread call a source's method. Never waits."""
        self._note((_CALL, function, arguments, None))

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
        if len(self._notes) > _BACKLOG and not on_own_thread():
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
        with suppress_tracing():
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
        with suppress_tracing():
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
            if what.task is None and not what.has_role:
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
                facts = _read(source, what.opted)
                facts.attributes = {**facts.attributes, **span}
                tracker.observed(what, facts)
            self._watch()
        elif kind == _END:
            self._look_at_ancestors(what)
            tracker.ended(what, _read(span, what.opted), aborted)
            what.ended = None
            if what.task is not None:
                what.parent = None  # whoever looks up from a child stops at this span's task
        elif kind == _PASSED:
            tracker.passed(what, span, aborted)
        elif kind == _OVER:
            tracker.ended_plain(what)
        elif kind == _ALONE:
            while self._passed:
                tracker.passed(*self._passed.popleft())
            facts = _read(what, span)
            parent = self._open.get(facts.parent) if facts.parent is not None else None
            if parent is not None:
                self._look(parent)
            tracker.ended_alone(facts, parent)
        elif kind == _CALL:
            what(*span)

    def _start_task(self, entry: OpenSpan, span: ReadableSpan, *, found: bool = False) -> None:
        """``found``: what makes a task of the span was not there from its start."""
        # Remembered as it was before it is read: what is set in between shall look new at the next look.
        seen = attributes_of(span)
        (self._tracker.observed if found else self._tracker.started)(entry, _read(span, entry.opted))
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
        while parent is not None and parent.task is None and not parent.has_role:
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
            self._guarded(lambda entry=entry: self._tracker.lost(entry))  # type: ignore[misc]
        self._watching = False
        if len(self._open):
            self._watching = True
        now = time.monotonic()
        self._next_poll = now + max(self._poll_interval, (now - began) * _POLL_SHARE)

    def _look(self, entry: OpenSpan) -> None:
        span = entry()
        if span is None or span.end_time is not None or entry.ignored:
            return
        attributes = attributes_of(span)
        if entry.task is None and not entry.has_role:
            if may_declare(attributes) and _differs(attributes, entry.seen):
                self._look_at_ancestors(entry)
                self._start_task(entry, span, found=True)
            return
        events = span.events
        newest_event = events[-1].timestamp if events else 0
        # What names an agent or its conversation may have any name, and comes with few others.
        more = entry.has_role and len(attributes) != len(entry.seen)
        if newest_event > entry.event_time or more or _differs(attributes, entry.seen):
            self._tracker.observed(entry, _read(span, entry.opted))
            entry.seen = attributes
            entry.event_time = max(entry.event_time, newest_event)

    def _tend(self) -> None:
        due = self._tracker.tick()
        if due is None and not self._notes:
            self._alone_waiting = False
        dues = [due, *(source.tick(time.time_ns()) for source in list(self._sources.values()))]
        self._tracker_due = min((due for due in dues if due is not None), default=None)

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

    # -- life --------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
        until = Deadline.after(timeout)
        if not self._work_off(wait=True, timeout=timeout):
            return False
        with suppress_tracing():
            return self.desk.flush(until)

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
        until = Deadline(began + budget * _FOR_DELIVERY)
        try:
            with suppress_tracing():
                self._closed = last
                if last or (handle.live and not any(other.live for other in self._handles)):
                    self._end_open_tasks(budget, sources=last)
                else:
                    self._work_off(wait=True, timeout=budget)
                if not last:
                    return self.desk.flush(until)
                self._stopped = True
                self._ring()
                return self.desk.close(until)
        finally:
            self._left_at = time.monotonic()
            self._budget_used += self._left_at - began

    def _end_open_tasks(self, timeout: float, *, sources: bool = True) -> None:
        if not self._tracker_lock.acquire(timeout=timeout):
            return
        try:
            self._drain()
            self._poll()
            self._guarded(lambda: self._tracker.shutdown(self._open.snapshot()))
            if sources:
                for source in self._sources.values():
                    self._guarded(source.shutdown)
        finally:
            self._tracker_lock.release()

    def at_process_end(self) -> None:
        """A child of multiprocessing is about to exit, perhaps without shutting its provider down."""
        until = Deadline.after(self.settings.shutdown_timeout)
        with suppress_tracing():
            others = [t for t in threading.enumerate() if not t.daemon and t is not threading.current_thread()]
            if others:  # multiprocessing waits for these afterwards, and they may end their tasks well
                self._work_off(wait=True, timeout=self.settings.shutdown_timeout)
            else:
                self._end_open_tasks(self.settings.shutdown_timeout)
            if not self.desk.flush(until):
                _logger.warning("not every report was delivered before this child process ended")

    def stats(self) -> dict[str, Any]:
        """Counts of what became of reports; see `LettaSpanExporter.stats`."""
        return {
            **self._stats.snapshot(),
            "open_spans": len(self._open),
            "open_tasks": self._tracker.open_tasks + sum(each.open_tasks for each in self._sources.values()),
            "evicted": self._tracker.evicted,
            **self.desk.stats(),
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


def _read(span: ReadableSpan, opted: str | None) -> SpanFacts:
    facts = SpanFacts.read(span)
    if opted:
        facts.attributes[semconv.OPTED_IN] = opted
    return facts


def _differs(attributes: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """By identity, so that comparing runs no code of the values."""
    return any(attributes.get(name) is not seen.get(name) for name in semconv.NOTED)


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

    def add_source(self, source: _S) -> _S:
        """Add a source of reports; return the one of its type that the pipeline has already, if there is one."""
        return self.pipeline.add_source(source)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the pipeline's thread call a source's method; nothing happens once the pipeline is closed."""
        self.pipeline.call(function, *arguments)

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
    metrics: Metrics | None = None,
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


fork.in_child(_after_fork_in_child)
