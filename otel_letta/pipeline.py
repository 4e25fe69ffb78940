"""Puts tracking, delivery and a transport together, and owns their life: sharing, fork, flush, shutdown.

An exporter and a processor that are configured alike share one pipeline, so that a span seen by both is told once.
Hooks run on the traced program's threads: they note what happened in a queue and return. One thread of the pipeline
reads the queue, looks at open spans a few times a second while there are any, and hands reports to delivery.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import StatusCode

from otel_letta import semconv
from otel_letta.delivery.board import BoardKeeper
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.delivery.worker import suppressed
from otel_letta.errors import LettaConfigurationError
from otel_letta.letta.transport import Transport
from otel_letta.report import ProgressReport
from otel_letta.settings import Delivery, Settings
from otel_letta.text import as_text
from otel_letta.tracking.open_spans import OpenSpan, OpenSpans
from otel_letta.tracking.roles import SpanFacts, SpanKey, attributes_of, may_declare
from otel_letta.tracking.tasks import TaskTracker

__all__ = ["Handle", "Pipeline", "join"]

_logger = logging.getLogger(__name__)

_BACKLOG = 10_000
"""Queued notes at which a hook helps to work them off. Reading them is pure computation, so this is not blocking."""
_POLL_SHARE = 20
"""Looking at the open spans may take one part in so many of the time; with very many of them it gets rarer."""

_START, _END, _ALONE, _WAKE, _STOP = range(5)
_Note = tuple[int, Any, Any, Any]


class Pipeline:
    """The way from a provider's spans to one Letta agent. Made by `join`."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self.settings = settings
        self._transport = transport
        self._handles: set[Handle] = set()
        self._foreign: frozenset[SpanKey] = frozenset()
        self._forked_at = 0
        self._errors = Throttle(_logger)
        self._budget_used = 0.0
        self._begin()

    def _begin(self) -> None:
        """Everything that belongs to one process."""
        settings = self.settings
        # Its put() is reentrant: a hook may run in a destructor or a signal handler, in the middle of another put.
        self._notes: queue.SimpleQueue[_Note] = queue.SimpleQueue()
        self._open = OpenSpans()
        self._watching = False
        self._alone_waiting = False
        self._live = False
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.RLock()
        self._tracker_lock = threading.Lock()
        self._inside = threading.local()
        self._closed = False
        self._next_poll = 0.0
        self._poll_interval = settings.poll_interval
        self._stats = Stats()
        self._tracker = TaskTracker(
            emit=self._deliver,
            now=time.time_ns,
            host=socket.gethostname(),
            allowed_agents=(*settings.agent_allow_list, settings.agent_id),
            content_cap=settings.content_cap,
        )
        self._courier = Courier(self._transport, settings, self._stats)
        self._boards: dict[str, BoardKeeper] = {}

    # -- hooks: on the traced program's threads ----------------------------------------------------------------------

    def on_start(self, span: Span) -> None:
        """A recorded span started."""
        context = span.context
        parent = span.parent
        exception = sys.exc_info()[1]
        entry = self._open.add(
            (context.trace_id, context.span_id),
            span,
            None if parent is None or parent.is_remote else (parent.trace_id, parent.span_id),
            0 if exception is None else id(exception),
        )
        if entry is None:
            return
        if may_declare(attributes_of(span)):
            self._note((_START, entry, span, None))
        elif not self._watching:
            # Any span may become a task later, so somebody has to look. Set after the entry is in the registry:
            # the thread clears the flag before it finds the registry empty.
            self._watching = True
            self._note((_WAKE, None, None, None))

    def on_end(self, span: ReadableSpan) -> None:
        """A recorded span ended."""
        context = span.context
        key = (context.trace_id, context.span_id)
        entry = self._open.pop(key)
        declares = may_declare(attributes_of(span))
        if entry is None:
            # Started before the processor was added, or in the process that this one was forked from.
            if declares and key not in self._foreign:
                self._note((_ALONE, span, None, None))
        elif declares or entry.task is not None:
            self._note((_END, entry, span, _why_aborted(span, entry)))
        else:
            entry.over = True

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        """Ended spans from an exporter."""
        for span in spans:
            declares = may_declare(attributes_of(span))
            if not (declares or self._alone_waiting):
                continue
            context = span.context
            key = (context.trace_id, context.span_id)
            # A live processor that watches this span will tell its end, and knows more about it.
            if self._open.get(key) is not None or key in self._foreign:
                continue
            if self._forked_at and (span.start_time or 0) < self._forked_at:
                continue  # started before the fork: the parent process ends and tells it
            if declares:
                # From here on plain spans matter too: one may be what this one waits for to know its task.
                self._alone_waiting = True
            self._note((_ALONE, span, None, None))

    def _note(self, note: _Note) -> None:
        if self._closed:
            return
        self._notes.put(note)
        if self._thread is None:
            self._start_thread()
        if self._notes.qsize() > _BACKLOG and not getattr(self._inside, "busy", False):
            self._work_off(wait=False)

    def _start_thread(self) -> None:
        with self._thread_lock:
            if self._thread is not None or self._closed:
                return
            thread = threading.Thread(target=self._run, name="otel_letta", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:
                # At interpreter shutdown Python 3.12 starts no thread any more: flush and shutdown do the work.
                _logger.debug("no thread can be started: reports go out at flush or shutdown")

    # -- the pipeline's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        notes = self._notes
        with suppressed():
            while True:
                try:
                    note = notes.get(timeout=self._pause())
                except queue.Empty:
                    note = (_WAKE, None, None, None)
                if note[0] == _STOP:
                    return
                self._guarded(lambda note=note: self._turn(note))  # type: ignore[misc]

    def _pause(self) -> float | None:
        """Seconds until the open spans want a look; None (no wake-ups at all) while there are none."""
        waits = []
        if self._watching:
            waits.append(self._next_poll - time.monotonic())
        due = self._tracker_due
        if due is not None:
            waits.append((due - time.time_ns()) / 1e9)
        return max(min(waits), 0.0) if waits else None

    _tracker_due: int | None = None

    def _turn(self, note: _Note) -> None:
        with self._tracker_lock:
            self._inside.busy = True
            try:
                self._handle(note)
                self._drain()
                if self._watching and time.monotonic() >= self._next_poll:
                    self._poll()
                self._tend()
            finally:
                self._inside.busy = False

    def _work_off(self, *, wait: bool, timeout: float = 0.0) -> bool:
        """Read all notes on the calling thread. False if another thread held the tracker for too long."""
        if not (self._tracker_lock.acquire(timeout=timeout) if wait else self._tracker_lock.acquire(blocking=False)):
            return False
        self._inside.busy = True
        try:
            self._drain()
            if wait:
                self._poll()
            self._tend()
        finally:
            self._inside.busy = False
            self._tracker_lock.release()
        return True

    def _drain(self) -> None:
        for _ in range(self._notes.qsize()):
            try:
                note = self._notes.get_nowait()
            except queue.Empty:
                return
            if note[0] == _STOP:
                self._notes.put(note)
                return
            self._handle(note)

    def _handle(self, note: _Note) -> None:
        kind, what, span, aborted = note
        # One bad span must not take the others with it.
        self._guarded(lambda: self._tell_tracker(kind, what, span, aborted))

    def _tell_tracker(self, kind: int, what: Any, span: Any, aborted: str | None) -> None:
        tracker = self._tracker
        if kind == _START:
            if what.task is None:
                self._look_at_ancestors(what)
                tracker.started(what, SpanFacts.read(span))
                self._remember(what, span)
            self._watching = True
        elif kind == _END:
            self._look_at_ancestors(what)
            tracker.ended(what, SpanFacts.read(span), aborted)
            if what.task is not None:
                what.parent = None  # whoever looks up from a child stops at this span's task
        elif kind == _ALONE:
            facts = SpanFacts.read(what)
            parent = self._open.get(facts.parent) if facts.parent is not None else None
            if parent is not None:
                self._look(parent)
            tracker.ended_alone(facts, parent)

    def _look_at_ancestors(self, entry: OpenSpan) -> None:
        """An ancestor may have become a task since the last look; then this span is its step, not a task."""
        parent = entry.parent
        chain = []
        while parent is not None and parent.task is None:
            chain.append(parent)
            parent = parent.parent
        for ancestor in reversed(chain):
            self._look(ancestor)

    def _poll(self) -> None:
        """Look at every open span for what was set since the last time."""
        began = time.monotonic()
        for entry in self._open.snapshot():
            self._guarded(lambda entry=entry: self._look(entry))  # type: ignore[misc]
        for entry in self._open.take_lost():
            self._guarded(lambda entry=entry: self._tracker.lost(entry))  # type: ignore[misc]
        self._watching = False
        if len(self._open):
            self._watching = True
        now = time.monotonic()
        self._next_poll = now + max(self._poll_interval, (now - began) * _POLL_SHARE)

    def _look(self, entry: OpenSpan) -> None:
        span = entry()
        if span is None or span.end_time is not None:
            return
        attributes = attributes_of(span)
        if entry.task is None:
            if may_declare(attributes):
                self._look_at_ancestors(entry)
                self._tracker.started(entry, SpanFacts.read(span))
                self._remember(entry, span)
            return
        seen = entry.seen or {}
        # By identity, so that comparing runs no code of the values.
        changed = any(attributes.get(name) is not seen.get(name) for name in semconv.INTERESTING)
        if not changed:
            events = span.events
            changed = bool(events) and events[-1].timestamp > entry.event_time
        if changed:
            self._tracker.observed(entry, SpanFacts.read(span))
            entry.seen = attributes
            events = span.events
            if events:
                entry.event_time = max(entry.event_time, events[-1].timestamp)

    def _remember(self, entry: OpenSpan, span: Span) -> None:
        entry.seen = attributes_of(span)

    def _tend(self) -> None:
        self._tracker_due = self._tracker.tick()
        if self._tracker_due is None and not self._notes.qsize():
            self._alone_waiting = False

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._errors.log(
                logging.ERROR, type(error).__name__, "unexpected error while reading spans: %s", type(error).__name__
            )
            _logger.debug("unexpected error", exc_info=True)

    # -- reports -----------------------------------------------------------------------------------------------------

    def _deliver(self, report: ProgressReport) -> None:
        self._stats.count("reports")
        mode = self.settings.delivery
        agent = report.agent_id or self.settings.agent_id
        if mode is not Delivery.MESSAGES and not self._on_board(agent, report):
            mode = Delivery.MESSAGES if mode is Delivery.AUTO else mode
        if mode is Delivery.MESSAGES or (mode is Delivery.AUTO and report.status.is_terminal):
            self._courier.put(report)

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
                self._courier.put(report)

    # -- life --------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
        deadline = time.monotonic() + timeout
        if not self._work_off(wait=True, timeout=timeout):
            return False
        return self._flush_delivery(deadline, closing=False)

    def _flush_delivery(self, deadline: float, *, closing: bool) -> bool:
        courier = self._courier
        with courier.lock:
            keepers = list(self._boards.values())
            for keeper in keepers:
                keeper.hurry(closing=closing)
        if closing:
            courier.begin_closing()
        delivered = courier.flush(deadline)
        for keeper in keepers:
            delivered &= self._flush_board(keeper, deadline)
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
        # Two components of one provider must not take the time allowed for one each.
        budget = max(min(timeout, self.settings.shutdown_timeout - self._budget_used), 0.05)
        began = time.monotonic()
        deadline = began + budget
        try:
            self._work_off(wait=True, timeout=budget)
            if handle.live and not any(other.live for other in self._handles):
                self._end_open_tasks(budget)
            if not last:
                return self._flush_delivery(deadline, closing=False)
            self._end_open_tasks(budget)
            self._closed = True
            self._notes.put((_STOP, None, None, None))
            delivered = self._flush_delivery(deadline, closing=True)
            with self._courier.lock:
                for keeper in self._boards.values():
                    keeper.stop()
            return delivered
        finally:
            self._budget_used += time.monotonic() - began

    def _end_open_tasks(self, timeout: float) -> None:
        if not self._tracker_lock.acquire(timeout=timeout):
            return
        self._inside.busy = True
        try:
            self._guarded(lambda: self._tracker.shutdown(self._open.snapshot()))
        finally:
            self._inside.busy = False
            self._tracker_lock.release()

    def stats(self) -> dict[str, Any]:
        """Counts of what became of reports; see `LettaSpanExporter.stats`."""
        with self._courier.lock:
            boards = {agent: keeper.state() for agent, keeper in self._boards.items()}
        return {
            **self._stats.snapshot(),
            "open_spans": len(self._open),
            "open_tasks": self._tracker.open_tasks,
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


def _why_aborted(span: ReadableSpan, entry: OpenSpan) -> str | None:
    """What stopped a span that OpenTelemetry shows as merely UNSET, None if nothing did.

    OpenTelemetry records only `Exception`. The exceptions below it pass through a span without a trace, so they are
    looked for here, while they are still being handled. One that was already being handled when the span started is
    not the span's: cleaning up inside ``except CancelledError`` is innocent.
    """
    exception = sys.exc_info()[1]
    if exception is None or isinstance(exception, Exception) or id(exception) == entry.start_exception:
        return None
    if span.status.status_code is not StatusCode.UNSET or isinstance(exception, GeneratorExit):
        return None
    if isinstance(exception, SystemExit):
        code = exception.code
        if code is None or (isinstance(code, int) and code == 0):
            return None
        return f"the program exited with code {int(code)}" if isinstance(code, int) else "the program exited"
    if isinstance(exception, asyncio.CancelledError):
        return "cancelled or timed out"
    if isinstance(exception, KeyboardInterrupt):
        return "interrupted (Ctrl-C)"
    return f"stopped by {as_text(type(exception).__name__)}"


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


def join(settings: Settings, transport: Transport | None, *, live: bool) -> Handle:
    """A share in the pipeline for these settings, which is made if there is none.

    Two components are alike if their settings are; a transport of one's own makes a pipeline of one's own, shared
    with whoever brings the same one.
    """
    key = (settings.identity(), id(transport) if transport is not None else None)
    with _registry_lock:
        pipeline = _registry.get(key)
        if pipeline is None:
            if transport is None:
                from otel_letta.letta.rest import RestTransport  # imports httpx, which takes its time

                transport = RestTransport(settings)
            settings.warn_once(_logger)
            pipeline = _registry[key] = Pipeline(settings, transport)
            _all.add(pipeline)
        handle = Handle(pipeline, live=live)
        pipeline._handles.add(handle)
        return handle


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

    def __init__(self, kind: str, *, live: bool, transport: Transport | None, options: dict[str, Any]) -> None:
        self._handle: Handle | None = None
        self._errors = Throttle(_logger)
        self._shutdown = False
        settings = options.pop("settings", None)
        try:
            if settings is None:
                settings = Settings.resolve(**options)
            elif options:
                raise LettaConfigurationError(f"settings and {', '.join(sorted(options))} exclude each other")
            if settings.disabled:
                _logger.debug("%s does nothing: OTEL_SDK_DISABLED is set", kind)
                return
            self._handle = join(settings, transport, live=live)
        except LettaConfigurationError as error:
            # Auto-instrumentation builds exporters from the environment; one that raises here takes the program's
            # other exporters and instrumentations with it (measured).
            _logger.error("%s does nothing: %s", kind, error)

    def stats(self) -> dict[str, Any]:
        """Numbers since the start: what was sent, held, conflated, dropped and why, and what is wrong now.

        Returns:
            ``reports``, ``sent``, ``requests`` (agent turns), ``board_writes``, ``conflated``, ``held``,
            ``retries``; ``dropped``: reason → number; ``open_spans``, ``open_tasks``; ``lanes``: name → ``waiting``,
            ``in_flight``, ``parked`` (why, or None), ``last_error``; ``boards``: agent → ``label``, ``open_tasks``,
            ``parked``. Empty for a component without valid settings. Components that are configured alike share a
            pipeline and its numbers.
        """
        return self._handle.pipeline.stats() if self._handle is not None else {}

    def _pipeline(self) -> Pipeline | None:
        handle = self._handle
        return handle.pipeline if handle is not None and not handle.closed else None

    def _flush(self, timeout_millis: float) -> bool:
        pipeline = self._pipeline()
        return pipeline is None or pipeline.flush(max(timeout_millis, 0) / 1e3)

    def _close(self, timeout_millis: float | None) -> None:
        if self._handle is None or self._handle.closed:
            return
        most = self._handle.pipeline.settings.shutdown_timeout
        self._handle.close(most if timeout_millis is None else min(timeout_millis / 1e3, most))

    def _swallow(self, where: str, error: Exception) -> None:
        """A hook's exception would replace the traced program's own, so it ends here."""
        self._errors.log(logging.ERROR, where, "%s: unexpected %s", where, type(error).__name__)


def is_suppressed() -> bool:
    """True on a thread or in a task that OpenTelemetry's own machinery works on."""
    return bool(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY))
