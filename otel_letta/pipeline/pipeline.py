"""The composition of a pipeline, and its life: an inbox, a watcher of open spans, a tracker, a desk, and sources.

Hooks run on the traced program's threads: they put a call into the inbox and return. The inbox's thread makes the
calls, polls the open spans a few times a second while there are any, and hands reports to the desk.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.delivery.answers import Callbacks
from otel_letta.delivery.desk import Desk
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.pipeline import first_report
from otel_letta.pipeline.ended_spans import EndedSpans
from otel_letta.pipeline.inbox import Inbox
from otel_letta.pipeline.instructions import Instructions
from otel_letta.pipeline.trackers import tracker_for
from otel_letta.pipeline.watcher import Watcher
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings.outbox import OutboxExit
from otel_letta.tracking.opt_in import OptIn

if TYPE_CHECKING:
    from otel_letta.delivery.outbox import Outbox
    from otel_letta.letta.transport import Transport
    from otel_letta.pipeline.measured import Metrics
    from otel_letta.pipeline.source import Source
    from otel_letta.report import ProgressReport
    from otel_letta.settings import Settings
    from otel_letta.tracking.log_events import LogEvent
    from otel_letta.tracking.opt_in import TaskFilter
    from otel_letta.tracking.reading import SpanKey
    from otel_letta.tracking.tasks import Task

_logger = logging.getLogger(__name__)

_FOR_DELIVERY = 0.94
"""Share of the exit's time that delivery gets. The rest is for the interpreter, which takes 0.1 s and more to go."""

_FOR_READING = 0.6
"""Share of that in which spans are read and tasks ended, at most."""

_ONE_EXIT = 30.0
"""Seconds. Components that shut down within so long of one another share the time allowed."""

_OUTBOX_PATIENCE = 2.0
"""Seconds that the first spans wait for what an earlier process left in the outbox."""

_S = TypeVar("_S", bound="Source")


class Pipeline:
    """The way from a provider's spans to one Letta agent. Made by `sharing.join`.

    Args:
        settings: valid ones, with an agent.
        transport: the server; the pipeline closes it.
        metrics: None if nothing is measured.
        task_filter: makes tasks of spans that would be none.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        metrics: Metrics | None = None,
        task_filter: TaskFilter | None = None,
    ) -> None:
        self.settings = settings
        self._metrics = metrics
        self._transport = transport if metrics is None else metrics.timed(transport)
        self._transport = first_report.announced(self._transport, settings)
        self.callbacks = Callbacks()
        """Whoever asked for the agents' answers."""
        self._sources: dict[type[Source], Source] = {}
        self.gate: Callable[[ProgressReport, Callable[[ProgressReport], None]], None] | None = None
        """Gets each report of the tracker and passes on, on the same thread, which of them are to be delivered."""
        self.instructions = Instructions(self.callbacks.add_at_once)
        """What the agents ask for, and the tasks that wait for it."""
        opt_in = self._opt_in = OptIn.wanted(settings.tasks, task_filter)
        self._inbox = Inbox(self._tend, self.complain, self._register_process_end)
        self._ended_spans = EndedSpans(self._inbox, opt_in)
        self.watcher = Watcher(settings, self._inbox, opt_in, self._ended_spans.put, self.complain)
        self._begin(forked=False)

    def _begin(self, *, forked: bool) -> None:
        """Make everything that belongs to one process."""
        self.instructions.renew()
        self._errors = Throttle(_logger)
        self._budget_used = 0.0
        self._left_at = -math.inf
        self._stats = Stats() if self._metrics is None else self._metrics.stats(lambda: self.desk.stats()["lanes"])
        self.desk = Desk(self.settings, self._transport, self._stats, callbacks=self.callbacks)
        self._tracker = tracker_for(self.settings, self._emit, time.time_ns, self.claimed)
        self.watcher.restart(self._tracker, forked=forked)
        self._ended_spans.restart(self._tracker, self.watcher)
        self._restored: list[ProgressReport] = []
        """Reports of tasks that wait since an earlier process and that no span made: a source may come for them."""
        for source in self._sources.values():
            source.start(self.desk.put)
        outbox = self.desk.outbox
        if outbox is not None:
            outbox.estate.on_restored = lambda: self._inbox.put(self._restore, outbox)
            if not forked:  # a child opens it when it has something to report
                outbox.start()
                self._inbox.put(self._wait_for_outbox, outbox)

    def _wait_for_outbox(self, outbox: Outbox) -> None:
        # Before the first span: it may belong to a task that waits since an earlier process.
        outbox.wait_ready(Deadline.after(_OUTBOX_PATIENCE))
        self._restore(outbox)

    def _restore(self, outbox: Outbox) -> None:
        for report in outbox.estate.take_restored():
            if report.trace_id is not None:
                self._tracker.restore(report)
                continue
            self._restored.append(report)
            for source in list(self._sources.values()):
                source.restore(report)

    def _restore_to(self, source: Source) -> None:
        for report in self._restored:
            source.restore(report)

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        """Take over ended spans from an exporter; never waits."""
        self._ended_spans.export(spans)

    def take_ended(self, spans: Sequence[ReadableSpan]) -> None:
        """Do the same for spans that a receiver has got, which leaves the work to the inbox and looks at
        `waiting_calls` before it takes more."""
        self._ended_spans.take(spans)

    @property
    def waiting_calls(self) -> int:
        """The number of calls that wait for the inbox's thread."""
        return len(self._inbox)

    def rest_only_if(self, busy: Callable[[], bool]) -> None:
        """Let the inbox's thread rest between its slices only while somebody else has to do; see `Inbox`."""
        self._inbox.must_rest = busy

    @property
    def names_tasks(self) -> bool:
        """True if a setting or a filter makes tasks of spans that say nothing by themselves."""
        return self._opt_in is not None

    def pass_by(self, links: Sequence[tuple[SpanKey, SpanKey | None, bool]]) -> None:
        """Take over what is known of ended spans that say nothing: each one's parent, and whether that is in another
        process; never waits."""
        self._inbox.put(self._pass_by, links)

    def _pass_by(self, links: Sequence[tuple[SpanKey, SpanKey | None, bool]]) -> None:
        for link in links:
            self._tracker.passed(*link)

    def take_event(self, event: LogEvent) -> None:
        """Take over a log event that tells of an agent's turn; never waits."""
        # The tracker of now: a forked child has another one.
        self._inbox.put(lambda: self._tracker.event(event))

    def _emit(self, report: ProgressReport) -> None:
        if self.gate is None:
            self.desk.put(report)
        else:
            self.gate(report, self.desk.put)

    # -- sources -----------------------------------------------------------------------------------------------------

    def add_source(self, source: _S) -> _S:
        """Add a source; return the one of its type that another component added before, if there is one."""
        source.start(self.desk.put)  # before the thread can see it
        known = self._sources.setdefault(type(source), source)
        assert isinstance(known, type(source))
        if known is source and self.desk.outbox is not None:
            self._inbox.put(self._restore_to, source)
        return known

    def claimed(self, conversation_id: str) -> bool:
        """Return whether a source speaks for the conversation, so that its spans are not reported as well."""
        return any(source.claims(conversation_id) for source in list(self._sources.values()))

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the inbox's thread call a function. Never waits; nothing happens once the pipeline is closed."""
        self._inbox.put(function, *arguments)

    def under_way(self) -> tuple[set[int], set[tuple[str, str]]]:
        """Return what tasks under way depend on: traces, and conversations by service. For the inbox's thread."""
        return self._tracker.under_way()

    # -- on the inbox's thread -----------------------------------------------------------------------------------------

    def task_of(self, key: SpanKey) -> Task | None:
        """Read an open span, and return the declared task that it is part of."""
        self.watcher.read(key)  # it may have become a task just now
        task, _ = self._tracker.tree.standing(key)
        return None if task is None or task.ended else task

    def _tend(self) -> float:
        """Do what is due. Return the time of `time.monotonic` when something will be, infinity for never."""
        next_poll = self.watcher.poll_if_due()
        due = self._tracker.tick()
        if due is None and not self._inbox:
            self._ended_spans.settle()
        dues = [due, *(source.tick(time.time_ns()) for source in list(self._sources.values()))]
        earliest = min((due for due in dues if due is not None), default=None)
        if earliest is None:
            return next_poll
        return min(next_poll, time.monotonic() + (earliest - time.time_ns()) / 1e9)

    def _work_off(self, timeout: float) -> bool:
        """Take in everything that was put into the inbox and onto open spans; False if that took too long."""
        # Somebody flushes, and may not be here when the parents that spans wait for have ended. A span without a chat
        # of its own is more likely a step of what is still open.
        return self._read_all(timeout, partial(self._tracker.release, anonymous=False))

    def catch_up(self, timeout: float) -> bool:
        """Take in what has happened so far, and decide nothing earlier than it is due; False if that took too long."""
        return self._read_all(timeout)

    def _read_all(self, timeout: float, *then: Callable[[], object]) -> bool:
        until = Deadline.after(timeout)
        in_time = True

        def poll() -> None:
            nonlocal in_time
            in_time = self.watcher.poll(lambda: not until.passed)

        return self._inbox.run(timeout, poll, *then) and in_time

    def complain(self, where: str, error: Exception) -> None:
        """Log a bug of ours, at most once a minute for each kind; its text could hold anything: for DEBUG only."""
        kind = type(error).__name__
        self._errors.log(logging.ERROR, f"{where} {kind}", "%s: unexpected %s", where, kind)
        _logger.debug("unexpected error", exc_info=error)

    # -- life --------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
        fork.check()
        until = Deadline.after(timeout)
        if not self._work_off(timeout):
            return False
        with suppress_tracing():
            return self.desk.flush(until)

    def leave(self, timeout: float, *, end_tasks: bool) -> bool:
        """Deliver what is known, since one of several components shuts down; True if everything was delivered.

        Args:
            timeout: seconds, of which those used by others that shut down just before are taken off.
            end_tasks: no component is left that sees spans: the open tasks fail.
        """
        with self._budgeted(timeout) as until:
            if end_tasks:
                self._end_open_tasks(until.left(), sources=False)
            else:
                self._work_off(until.left())
            delivered = self.desk.flush(until)
            self.desk.answers.wait(until)
            return delivered

    def close(self, timeout: float, *, end_tasks: bool = True) -> bool:
        """End what is open, deliver and stop, since the last component shuts down; True if everything was delivered.

        Args:
            timeout: seconds.
            end_tasks: open tasks fail. Not those of a receiver, which go on elsewhere.
        """
        self.instructions.close()
        with self._budgeted(timeout) as until:
            self._inbox.close()
            if end_tasks:
                self._end_open_tasks(until.left())
            else:
                self._work_off(until.left())
            self._inbox.stop()
            unread = self._count_unread(tasks=end_tasks)
            delivered = self.desk.close(until) and not unread
        outbox = self.desk.outbox
        if outbox is not None and outbox.left and self.settings.outbox_exit is OutboxExit.DETACH:
            from otel_letta.pipeline.drain import leave_behind

            leave_behind(self.settings)
        return delivered

    @contextlib.contextmanager
    def _budgeted(self, timeout: float) -> Iterator[Deadline]:
        # Two components of one provider must not take the time allowed for one each. Another provider's end, long
        # ago, is no reason to cut this one short.
        if time.monotonic() - self._left_at > _ONE_EXIT:
            self._budget_used = 0.0
        budget = max(min(timeout, self.settings.shutdown_timeout - self._budget_used), 0.05)
        began = time.monotonic()
        try:
            with suppress_tracing():
                yield Deadline(began + budget * _FOR_DELIVERY)
        finally:
            self._left_at = time.monotonic()
            self._budget_used += self._left_at - began

    def _end_open_tasks(self, timeout: float, *, sources: bool = True) -> None:
        ends = [source.shutdown for source in self._sources.values()] if sources else []
        until = Deadline.after(timeout * _FOR_READING)
        poll, shutdown = (
            partial(work, lambda: not until.passed) for work in (self.watcher.poll, self._tracker.shutdown)
        )
        self._inbox.run(until.left(), poll, shutdown, *ends)

    def _count_unread(self, *, tasks: bool) -> bool:
        """Count and log what there was no time to read, as the program ends. Return True if there is any.

        Args:
            tasks: those that are open should have ended.
        """
        left = {
            "span over the limit of waiting spans": self._inbox.overflowed,
            "span not read before shutdown": len(self._inbox),
            "end of a task that was open at shutdown not reported": self._tracker.open_tasks if tasks else 0,
        }
        for reason, number in left.items():
            if number:
                self._stats.drop(reason, number)
                _logger.error("%d: %s; OTEL_LETTA_SHUTDOWN_TIMEOUT allows more time", number, reason)
        return any(left.values())

    def _register_process_end(self) -> None:
        """Register `at_process_end` in a child of multiprocessing: with fork and forkserver it exits without `atexit`,
        so no provider is shut down there."""
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            from multiprocessing import util

            util.Finalize(None, _at_process_end, args=(weakref.ref(self),), exitpriority=0)

    def at_process_end(self) -> None:
        """Deliver, since a child of multiprocessing is about to exit, perhaps without shutting its provider down."""
        until = Deadline.after(self.settings.shutdown_timeout)
        with suppress_tracing():
            others = [t for t in threading.enumerate() if not t.daemon and t is not threading.current_thread()]
            if others:  # multiprocessing waits for these afterwards, and they may end their tasks well
                self._work_off(self.settings.shutdown_timeout)
            else:
                self._end_open_tasks(self.settings.shutdown_timeout)
            if not self.desk.flush(until):
                _logger.warning("not every report was delivered before this child process ended")
            self.desk.answers.wait(until)

    def stats(self) -> dict[str, Any]:
        """Return counts of what became of reports; see `LettaSpanExporter.stats`."""
        return {
            **self._stats.snapshot(),
            "open_spans": len(self.watcher.open),
            "open_tasks": self._tracker.open_tasks + sum(each.open_tasks for each in list(self._sources.values())),
            "evicted": self._tracker.evicted,
            **self.desk.stats(),
        }

    def after_fork_in_child(self) -> None:
        """Start clean: the parent goes on with its threads, connections, open spans and unsent reports."""
        self._inbox.restart()
        self._begin(forked=True)


def _at_process_end(reference: weakref.ref[Pipeline]) -> None:
    pipeline = reference()
    if pipeline is not None and not pipeline._inbox.closed:
        try:
            pipeline.at_process_end()
        except Exception as error:  # noqa: BLE001
            pipeline.complain("the end of the process", error)
