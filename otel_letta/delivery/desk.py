"""The doorway of delivery: takes reports, and delivers them on a board or as messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from otel_letta.answer import Answer
from otel_letta.delivery.answers import Answers, Callbacks
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.keeper import BoardKeeper
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew, Worker
from otel_letta.letta.transport import Transport
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Delivery, Settings
from otel_letta.settings.outbox import OutboxExit

if TYPE_CHECKING:
    from otel_letta.delivery.outbox import Outbox


_LAST_BOARD = 1.0
"""Seconds that an exit which waits for no delivery gives to the boards."""


class Desk:
    """Delivery for one pipeline: a courier for messages, and a keeper for each agent's board.

    Safe to use from several threads. Its own threads exist only while there is something to deliver.

    Args:
        settings: mode of delivery, pacing, patience and bounds.
        transport: the server; closed by `close`.
        stats: counts what becomes of the reports.
        callbacks: whoever asked for the agents' answers.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        stats: Stats,
        *,
        callbacks: Callbacks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._stats = stats
        self._crew = Crew(clock)
        self._keepers: dict[str, BoardKeeper] = {}
        # Who sends no messages has none to keep, and must not take over those of others.
        wanted = settings.outbox is not None and settings.delivery is not Delivery.BOARD
        self.outbox: Outbox | None = self._make_outbox() if wanted else None
        """Keeps what is not delivered beyond this process."""
        self.elsewhere = False
        """The tasks run in other programs: that this process dies ends none of them."""
        self.reported_until: datetime | None = None
        """Another process may have reported the ends of until then: they are looked for before they are sent."""
        self.answers = Answers(callbacks or Callbacks(), stats)
        self._courier = Courier(transport, settings, stats, self._crew, self.outbox, self.answers)

    def put(self, report: ProgressReport) -> None:
        """Accept a report; never waits for the network."""
        self._stats.count("reports")
        mode = self._settings.delivery
        if mode is not Delivery.MESSAGES and not self._put_on_board(report) and mode is Delivery.AUTO:
            mode = Delivery.MESSAGES
        if mode is Delivery.MESSAGES or (mode is Delivery.AUTO and (report.status.is_terminal or report.waiting)):
            if report.wakes:
                self._courier.put(report, self._may_have_been_reported(report))
            else:
                if report.status.is_terminal:
                    self._courier.withdraw(report, "its end came")
                if mode is Delivery.MESSAGES:
                    self._stats.count("held")
        elif mode is Delivery.AUTO:
            self._courier.withdraw(report, "it goes on")  # that it waits is not true any more
        if self.outbox is not None and (report.status.is_terminal or report.waiting or not self.elsewhere):
            self.outbox.note(report)  # after its entry: an end takes the place of its task's standing

    def _may_have_been_reported(self, report: ProgressReport) -> bool:
        until = self.reported_until
        return until is not None and report.status.is_terminal and (report.timestamp or until) <= until

    def look_up(self, agent_id: str | None, task_id: str, until: Deadline) -> tuple[ProgressReport, Answer] | None:
        """See `Courier.look_up`."""
        return self._courier.look_up(agent_id, task_id, until)

    def flush(self, until: Deadline) -> bool:
        """Deliver every end, every report that is due and every change of a board.

        Returns:
            False if that did not happen in time, or if an end was given up meanwhile.
        """
        return self._flush(until, closing=False)

    def close(self, until: Deadline) -> bool:
        """Deliver what can be delivered in time, report what cannot, and stop. Returns the same as `flush`."""
        self._courier.begin_closing(until)
        delivered = self._flush(until, closing=True) if self._waits_for_delivery else self._leave(until)
        self._crew.dismiss()
        if self.outbox is not None:
            self.outbox.save()
        self._courier.finish()
        if self.outbox is not None:
            self.outbox.close()
            delivered = delivered and not self.outbox.left
        with self._crew.lock:
            for keeper in self._keepers.values():
                keeper.stop()
        self.answers.close(until)
        return delivered

    @property
    def _waits_for_delivery(self) -> bool:
        """Return False if the exit may leave to others what the outbox holds."""
        return self.outbox is None or not self.outbox.usable or self._settings.outbox_exit is OutboxExit.DELIVER

    def _leave(self, until: Deadline) -> bool:
        """Write the boards and the outbox, and leave the ends that it holds to the next process."""
        assert self.outbox is not None
        with self._crew.lock:
            for keeper in self._keepers.values():
                keeper.flush_soon(closing=True)
        self.outbox.save()
        return self._crew.flush(lambda: list(self._keepers.values()), Deadline.after(_LAST_BOARD, within=until))

    def stats(self) -> dict[str, Any]:
        """Return what waits and what is wrong now.

        Returns:
            ``lanes``: name → ``waiting``, ``in_flight``, ``parked`` (why, or None), ``last_error``; ``boards``:
            agent → ``label``, ``open_tasks``, ``parked``; with an outbox, ``outbox``: ``place``, ``usable``,
            ``in_memory`` (ends that memory holds of it), ``error``.
        """
        with self._crew.lock:
            return {
                "lanes": self._courier.lanes(),
                "boards": {agent: keeper.state() for agent, keeper in self._keepers.items()},
                **({} if self.outbox is None else {"outbox": self.outbox.state()}),
            }

    def _flush(self, until: Deadline, *, closing: bool) -> bool:
        lost = self._stats.lost_ends
        with self._crew.lock:
            for keeper in self._keepers.values():
                keeper.flush_soon(closing=closing)
        return self._crew.flush(self._workers, until) and self._stats.lost_ends == lost

    def _workers(self) -> list[Worker]:
        outbox = [] if self.outbox is None else [self.outbox]
        return [*outbox, *self._courier.workers(), *self._keepers.values()]

    def _make_outbox(self) -> Outbox:
        from otel_letta.delivery.outbox import Outbox
        from otel_letta.store.choose import open_store

        settings, transport = self._settings, self._transport
        address = settings.outbox
        assert address is not None
        return Outbox(
            lambda: open_store(
                address.reveal(),
                address.shown,
                fsync=settings.outbox_fsync,
                most_bytes=settings.outbox_max_size * 1_000_000,
            ),
            self._crew,
            self._stats,
            lane_of=lambda report: (
                transport.lane(None, None) if report is None else transport.lane(report.agent_id, report.chat_id)
            ),
            put_back=lambda report, lane, maybe_landed: self._courier.put_back(report, lane, maybe_landed),
            most=max(settings.max_pending_tasks // 2, 1),
            max_age=settings.outbox_max_age,
        )

    def _put_on_board(self, report: ProgressReport) -> bool:
        """Put the report on its agent's board. Return False if the server has no boards."""
        agent = report.agent_id or self._settings.agent_id
        with self._crew.lock:
            keeper = self._keepers.get(agent)
            if keeper is None:
                keeper = self._keepers[agent] = BoardKeeper(
                    agent, self._transport, self._settings, self._stats, self._crew, self._without_board
                )
            if keeper.unsupported:
                return False
            keeper.put(report)
            return True

    def _without_board(self, open_reports: list[ProgressReport]) -> None:
        """Send as messages what was to be on a board. Lock held."""
        if self._settings.delivery is Delivery.AUTO:
            for report in open_reports:
                if report.wakes:
                    self._courier.put(report)
