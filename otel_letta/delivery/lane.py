"""One lane: its reports go out one request after another."""

from __future__ import annotations

import logging
import math
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from otel_letta.delivery.envelope import render, render_losses
from otel_letta.delivery.gate import exchange, settle
from otel_letta.delivery.mailbox import MOST_REPORTS, Mailbox
from otel_letta.delivery.parcel import Parcel
from otel_letta.delivery.retry import Circuit, Retry
from otel_letta.delivery.visit import Attempt
from otel_letta.delivery.worker import Job, Worker
from otel_letta.errors import (
    LettaConflictError,
    LettaConversationNotFoundError,
    LettaError,
    LettaModelError,
    LettaRequestError,
)
from otel_letta.letta.transport import Lane, Message
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline

if TYPE_CHECKING:
    from otel_letta.delivery.courier import Courier

_logger = logging.getLogger(__name__)

_REFUSALS = 3
"""Tries, alone, of an end that the server's LLM refuses, if the LLM takes others meanwhile."""
_MOST_REFUSALS = 60
"""The same if it takes no others, so that the fault may be the LLM's: about an hour."""


class LaneWorker(Worker):
    """One lane: takes as many reports as fit into a request, sends them, and decides what a failure means."""

    def __init__(self, courier: Courier, lane: Lane) -> None:
        super().__init__(f"otel_letta {lane.agent_id}", courier.crew)
        self._courier = courier
        self._circuits = courier.crew.circuits
        self.mailbox = Mailbox(lane, courier.settings.message_interval, courier.capacity, courier.stats)
        self.retry = Retry(courier.settings.probe_interval)
        self.in_flight: list[Parcel] = []
        self.attempt = Attempt()
        """The exchange under way, or the last one."""
        self.last_error: LettaError | None = None
        self.successes = 0
        self._most = MOST_REPORTS
        """Reports that the next request may hold: fewer after a proxy refused more."""
        self._rendered: dict[int, str] = {}
        """Texts of reports that were weighed, until they are sent."""

    def accept(self, parcel: Parcel) -> None:
        now = self._clock()
        report = parcel.report
        due = self.mailbox.adopt(parcel, now)
        if due is math.inf:
            self._courier.stats.count("held")
            _logger.debug("report %s #%d held: nothing worth a turn yet", report.task_id, report.sequence)
        else:
            _logger.debug(
                "report %s #%d (%s) is due in %.1f s", report.task_id, report.sequence, report.status, max(due - now, 0)
            )
            # Woken for what is due later too: the thread may be waiting for something that is later still.
            self.wake()

    def on_idle(self) -> None:
        if self.mailbox.idle and not self.stopping:
            self._courier.forget(self)

    @property
    def parked(self) -> LettaError | None:
        """The error that only a person can help against, of the lane, its agent or its server."""
        return self.retry.parked or self._circuits.parked(self.mailbox.lane)

    @property
    def shared_error(self) -> LettaError | None:
        """What is wrong with its server or agent, which another lane may have found out."""
        return self._circuits.error(self.mailbox.lane)

    def next_try(self, now: float) -> float:
        if self.busy:
            return -math.inf
        return max(self.retry.not_before, self._budget(now), self._circuits.try_at(self.mailbox.lane, self))

    def _budget(self, now: float) -> float:
        return self._courier.budget_free_at(self.mailbox.lane.agent_id, now)

    def has_pending(self, now: float) -> bool:
        if self.busy:
            return True
        due = self.mailbox.next_due(now)
        return due is not None and due <= now

    def _next_job(self, now: float) -> tuple[Job | None, float | None]:
        due = self.mailbox.next_due(now)
        if due is None:
            return None, None
        at = max(due, self.next_try(now))
        if at > now:
            return None, None if at == math.inf else at - now
        parcels = self.mailbox.take(now, self._weigh, self._most)
        self.in_flight = parcels
        self.attempt = Attempt()
        self._circuits.begin(self.mailbox.lane, self)
        return lambda until: self._carry(parcels, until), None

    # -- one request -------------------------------------------------------------------------------------------------

    def _text(self, parcel: Parcel) -> str:
        if parcel.losses is not None:
            return render_losses(*parcel.losses)
        return self._rendered.get(id(parcel.report)) or self._render(parcel.report)

    def _render(self, report: ProgressReport) -> str:
        settings = self._courier.settings
        return render(report, content_cap=settings.content_cap, trace_link=settings.trace_link)

    def _weigh(self, report: ProgressReport) -> int:
        text = self._rendered[id(report)] = self._render(report)
        return len(text.encode("utf-8"))

    def _carry(self, parcels: list[Parcel], until: Deadline) -> None:
        try:
            if self.parked is not None:
                # A person may have mended it: read the settings again, and ask cheaply before risking a turn.
                self._courier.transport.reload()
            if self._moved(parcels):
                return
            if self.parked is not None:
                self._courier.transport.probe(self.mailbox.lane, until=until)
            self._send(parcels, until)
        except LettaError as error:
            self._failed([p for p in parcels if p in self.in_flight], error, until)
        except Exception as error:  # a bug in a transport must not lose ends
            _logger.exception("unexpected error while sending to %s", self.mailbox.lane)
            self._failed([p for p in parcels if p in self.in_flight], LettaError(type(error).__name__), until)
        except BaseException as error:  # Ctrl-C in a flush, or a library's SystemExit: the thread ends, the ends stay
            with self._lock:
                kept = [parcel for parcel in parcels if parcel in self.in_flight]
                for parcel in kept:
                    parcel.maybe_landed = True
                self._keep(kept, LettaError(type(error).__name__), progress=False)
            raise
        finally:
            with self._lock:
                self.in_flight = []
                self._rendered.clear()
                self._circuits.end(self)
            self._courier.close_if_last()

    def _moved(self, parcels: list[Parcel]) -> bool:
        """Move everything to the server and agent that the settings name now. Return False if those are this lane's.

        Another lane may have had the settings read again, so this is asked before each request.
        """
        courier, lane = self._courier, self.mailbox.lane
        report = next((parcel.report for parcel in parcels if parcel.losses is None), None)
        # What stands for lost ends names no agent: they stay with the lane's.
        now = courier.transport.lane(lane.agent_id if report is None else report.agent_id, None)
        target = Lane(now.server, now.agent_id, lane.conversation_id)
        if target == lane:
            return False
        _logger.warning("reports to %s go to %s now", lane, target)
        with self._lock:
            courier.reroute([*parcels, *self.mailbox.take_all()], target)
            self.retry.succeeded()
            self.last_error = None
        return True

    def _send(self, parcels: list[Parcel], until: Deadline) -> None:
        """Send; a request that is refused as bad is halved until the refused report stands alone."""
        courier, lane, known = self._courier, self.mailbox.lane, parcels
        parcels = courier.journal.posting([parcel for parcel in parcels if not parcel.withdrawn])
        # Another process of the outbox delivers the others, or they do not hold any more.
        self._remove_from_flight([parcel for parcel in known if parcel not in parcels])
        if not parcels:
            return
        now = self._clock()
        with self._lock:
            attempt = self.attempt = Attempt(partial(courier.answers.take_request, courier.transport, lane, parcels))
            attempt.otids = frozenset(parcel.otid for parcel in parcels)
            attempt.withdrawn = lambda: {parcel.otid for parcel in parcels if parcel.withdrawn and not parcel.is_end}
        for parcel in parcels:
            parcel.sent_at = now if parcel.sent_at is None else parcel.sent_at
        try:
            exchange(
                courier.transport,
                lane,
                [Message(self._text(parcel), parcel.otid) for parcel in parcels],
                until=until,
                patience=courier.settings.read_timeout,
                busy_patience=courier.settings.busy_timeout,
                must_stay={parcel.otid for parcel in parcels if parcel.must_arrive},
                check_landed_first=any(parcel.maybe_landed for parcel in parcels),
                age=self._age(parcels),
                on_turn_used=lambda: courier.count_turn(lane.agent_id, attempt),
                between_hosts=courier.journal.lock_of(lane),
                attempt=attempt,
            )
        except LettaError as error:
            if not _is_refusal(error):
                raise
            if len(parcels) > 1:
                middle = len(parcels) // 2
                courier.log.log(
                    logging.WARNING, "halved", "%s refused %d reports at once: halving (%s)", lane, len(parcels), error
                )
                self._send(parcels[:middle], until)
                self._send(parcels[middle:], until)
                return
            self._refused(parcels[0], error)
            return
        self._remove_from_flight([parcel for parcel in parcels if parcel.otid in attempt.unsent])
        there = [parcel for parcel in parcels if parcel.otid not in attempt.missing | attempt.unsent]
        if there:
            self._delivered(there, until)
        missing = [parcel for parcel in parcels if parcel.otid in attempt.missing]
        if missing:
            self._unsettled(missing, seen=not attempt.unsure)

    def _age(self, parcels: list[Parcel]) -> float:
        """Return how many seconds ago the first of the parcels may have been sent."""
        now, today = self._clock(), datetime.now(timezone.utc)
        ages = [0.0]
        for parcel in parcels:
            if parcel.maybe_landed and parcel.report.timestamp is not None:
                # Another process may have sent it, but not before it was made.
                ages.append((today - parcel.report.timestamp).total_seconds())
            elif parcel.maybe_landed and parcel.sent_at is not None:
                ages.append(now - parcel.sent_at)
        return max(ages)

    def _unsettled(self, parcels: list[Parcel], *, seen: bool) -> None:
        """Keep what was answered for a later try.

        Args:
            seen: others were seen to erase it, again and again; False if there was no time left to see that.
        """
        error = LettaConflictError(
            "Reports are erased from the agent's context by turns at the same time"
            if seen
            else "It could not be seen whether reports stay in the agent's context",
            hint="others send to it as well",
        )
        for parcel in parcels:
            parcel.maybe_landed = True
        with self._lock:
            delay = self._keep(parcels, error, progress=False)
        self._log_failure(error, delay, None)

    def _delivered(self, parcels: list[Parcel], until: Deadline) -> None:
        with self._lock:
            self.mailbox.mark_delivered(parcels, self._clock())
            self.successes += 1
            self._courier.journal.settled([parcel.report for parcel in parcels])
            self._remove_from_flight(parcels)
            self.retry.succeeded()
            self._circuits.succeeded(self.mailbox.lane)
            self._most = min(self._most * 2, MOST_REPORTS)
            self.last_error = None
        self._courier.stats.count("sent", len(parcels))
        for parcel in parcels:
            report = parcel.report
            _logger.debug("report %s #%d (%s) sent", report.task_id, report.sequence, report.status)
        lane, courier = self.mailbox.lane, self._courier
        courier.answers.take(courier.transport, lane, parcels, self.attempt, until, self._age(parcels))

    def _remove_from_flight(self, parcels: list[Parcel]) -> None:
        with self._lock:
            self.in_flight = [parcel for parcel in self.in_flight if parcel not in parcels]

    def _refused(self, parcel: Parcel, error: LettaError) -> None:
        if not parcel.refusals:
            parcel.successes_then = self.successes
        parcel.refusals += 1
        if isinstance(error, LettaModelError) and parcel.must_arrive:
            # The LLM may refuse everything just now. It is given up only when the others pass.
            most = _REFUSALS if self.successes > parcel.successes_then else _MOST_REFUSALS
            if parcel.refusals < most:
                raise error
        with self._lock:
            self._courier.journal.settled([parcel.report], f"refused: {error}")
            self._remove_from_flight([parcel])
        self._courier.stats.drop("end refused by Letta" if parcel.is_end else "in_progress refused")
        self._courier.log.log(
            logging.ERROR,
            f"refused {type(error).__name__}",
            "%s refused the report of task %r and it is dropped: %s",
            self.mailbox.lane,
            parcel.report.name,
            error,
        )

    # -- failures ----------------------------------------------------------------------------------------------------

    def _failed(self, parcels: list[Parcel], error: LettaError, until: Deadline) -> None:
        courier = self._courier
        lane = self.mailbox.lane
        if isinstance(error, LettaConversationNotFoundError) and lane.conversation_id:
            courier.log.log(
                logging.WARNING,
                f"no conversation {lane.agent_id}",
                "%s does not exist, or is another agent's: its reports go to the agent's default conversation",
                lane,
            )
            with self._lock:
                courier.conversation_is_gone(lane)
                courier.reroute([*parcels, *self.mailbox.take_all()], Lane(lane.server, lane.agent_id))
            return
        if error.may_have_landed:
            parcels = self._not_landed(parcels, until)
        with self._lock:
            if error.foreign and error.status is not None and 400 <= error.status < 500:
                self._shrink(parcels, error.status)
            # Progress costs the server several LLM calls a try while its LLM is down, and may have landed after a
            # timeout; ends are worth both.
            keep_progress = not (isinstance(error, LettaModelError) or error.may_have_landed)
            delay = self._keep(parcels, error, progress=keep_progress)
            shared = self._circuits.blamed(lane, error, self)
        self._log_failure(error, delay, shared)

    def _keep(self, parcels: list[Parcel], error: LettaError, *, progress: bool) -> float:
        """Return parcels to the mailbox after a failure. Return the seconds until the next try. Lock held."""
        courier, now = self._courier, self._clock()
        self.mailbox.requeue(parcels, progress=progress, now=now)
        self._remove_from_flight(parcels)
        courier.journal.failed(parcels, error)
        circuit = self._circuits.blamed(self.mailbox.lane, error, self)
        if circuit is None and error.status is not None and not error.foreign:
            self._circuits.succeeded(self.mailbox.lane, agent=False)
        patience = circuit or self.retry
        delay = patience.failed(error, now)
        if courier.closing and not error.parks:
            patience.bring_forward(now + 0.5)
        self.last_error = error
        courier.stats.count("retries")
        return delay

    def _log_failure(self, error: LettaError, delay: float, shared: Circuit | None) -> None:
        log, about = (self._courier.log, self.mailbox.lane) if shared is None else (self._crew.log, shared.about)
        log.log(
            logging.ERROR,
            f"{about} {type(error).__name__} {error.status}",
            "reports to %s: %s (%s, next try in %.0f s)",
            self.mailbox.lane,
            error,
            "parked" if error.parks else "ends are kept",
            delay,
        )

    def _shrink(self, parcels: list[Parcel], status: int) -> None:
        """Send less at once after a proxy's refusal, which may be about what one of the reports says. Lock held."""
        if status in (401, 404, 407, 408, 409, 425, 429):
            return  # about who or when, not about what
        self._most = max(len(parcels) // 2, 1)
        if len(parcels) == 1:
            # What is behind it must not wait for it.
            parcels[0].refusals += 1

    def _not_landed(self, parcels: list[Parcel], until: Deadline) -> list[Parcel]:
        """Find out after silence what the server has of that which must arrive, and return what is to be sent again."""
        wanted = [parcel for parcel in parcels if parcel.must_arrive]
        for parcel in wanted:
            parcel.maybe_landed = True
        progress = [parcel for parcel in parcels if not parcel.must_arrive]
        if not wanted:
            return progress
        courier = self._courier
        try:
            stored = settle(
                courier.transport,
                self.mailbox.lane,
                [parcel.otid for parcel in wanted],
                until=until,
                busy_patience=courier.settings.busy_timeout,
                age=self._age(wanted),
                between_hosts=courier.journal.lock_of(self.mailbox.lane),
            )
        except LettaError as error:
            _logger.debug("%s: cannot tell yet whether %d report(s) landed: %s", self.mailbox.lane, len(wanted), error)
            return parcels
        there = [parcel for parcel in wanted if parcel.otid in stored]
        if there:
            self._delivered(there, until)
        return [parcel for parcel in wanted if parcel.otid not in stored] + progress


def _is_refusal(error: LettaError) -> bool:
    """Return True for an error that is about this request, not about the lane: others may pass."""
    return isinstance(error, LettaRequestError) or (
        isinstance(error, LettaModelError) and error.status == 400 and not error.parks
    )
