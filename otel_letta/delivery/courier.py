"""Carries reports to their lanes as messages: one request at a time and lane, lanes side by side."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from otel_letta.delivery.envelope import render, render_losses
from otel_letta.delivery.gate import exchange, settle
from otel_letta.delivery.mailbox import Capacity, Mailbox, Parcel
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.delivery.worker import Retry, Worker
from otel_letta.errors import (
    LettaConversationNotFoundError,
    LettaError,
    LettaModelError,
    LettaRequestError,
)
from otel_letta.letta.transport import Lane, Message, Transport
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings

__all__ = ["Courier"]

_logger = logging.getLogger(__name__)

_HOUR = 3_600.0
_REFUSALS = 3
"""How often an end that the server's LLM refuses is tried alone, if the LLM takes others meanwhile."""
_MOST_REFUSALS = 60
"""The same if it takes no others, so that the fault may be the LLM's: about an hour."""
_MOST_GONE = 1_000


class Courier:
    """All lanes of one pipeline.

    Args:
        transport: the server.
        settings: pacing, patience and bounds.
        stats: counts what happens.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        stats: Stats,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self.settings = settings
        self.stats = stats
        self.clock = clock
        self.log = Throttle(_logger, clock=clock)
        # Reentrant: the garbage collector can run a hook, and so our code, inside any of these blocks.
        self.lock = threading.RLock()
        self.settled = threading.Condition(self.lock)
        self.capacity = Capacity(settings.max_pending_tasks)
        self.closing = False
        self._give_up = threading.Event()
        self._lanes: dict[Lane, _LaneWorker] = {}
        self._wakes: dict[str, deque[float]] = {}
        self._gone: dict[Lane, None] = {}
        self._last_lane: dict[str, Lane] = {}
        """Of the open tasks."""

    def put(self, report: ProgressReport) -> None:
        """Accept a report; never waits for the network."""
        with self.lock:
            lane = self.transport.lane(report.agent_id, report.chat_id)
            if lane in self._gone:
                lane = _default_lane(lane)
            before = self._last_lane.pop(report.key, lane)
            if before != lane and before in self._lanes:
                # The chat was named late: what waits for the other conversation would be told after the end.
                self._lanes[before].mailbox.forget(report.key)
            if not report.status.is_terminal:
                self._last_lane[report.key] = lane
            self._worker(lane).accept(Parcel(report, ""))

    def _worker(self, lane: Lane) -> _LaneWorker:
        worker = self._lanes.get(lane)
        if worker is None:
            worker = self._lanes[lane] = _LaneWorker(self, lane)
        return worker

    def reroute(self, parcels: list[Parcel], lane: Lane) -> None:
        """What waited for another lane goes to this one. Lock held."""
        for parcel in parcels:
            self._worker(lane).accept(parcel)

    def conversation_is_gone(self, lane: Lane) -> None:
        """Its reports go to the agent's default conversation from now on. Lock held."""
        self._gone[lane] = None
        for oldest in list(self._gone)[:-_MOST_GONE]:
            del self._gone[oldest]

    def flush(self, deadline: float) -> bool:
        """Wait until every end and every due report is delivered.

        Returns:
            False if that did not happen before ``deadline`` (on ``clock``), or if an end was given up meanwhile.
        """
        lost = self._lost_ends()
        while True:
            with self.lock:
                now = self.clock()
                pending = [worker for worker in self._lanes.values() if worker.unsettled(now)]
                if not pending:
                    return self._lost_ends() == lost
                if now >= deadline or all(worker.next_try(now) >= deadline for worker in pending):
                    return False  # waiting longer could not help: a parked lane is tried once a minute
                unstaffed = [worker for worker in pending if not worker.staffed and not worker.busy]
                if not unstaffed:
                    self.settled.wait(min(deadline - now, 1.0))
            for worker in unstaffed:
                worker.run_here(deadline)

    def begin_closing(self, deadline: float) -> None:
        """Try at once what waits for a better time; give up what is only progress. ``deadline``: when it has to end,
        on `time.monotonic`."""
        self.transport.ending.bring_forward(deadline)
        with self.lock:
            self.closing = True
            now = self.clock()
            for worker in self._lanes.values():
                dropped = worker.mailbox.drop_progress()
                if dropped:
                    self.stats.drop("in_progress at shutdown", dropped)
                worker.retry.hurry(now)
                if worker.unsettled(now):
                    worker.wake()

    def finish(self) -> None:
        """Stop, and say what was not delivered."""
        self._give_up.set()
        with self.lock:
            for worker in self._lanes.values():
                worker.stop()
                left = worker.mailbox.ends_waiting
                if left or worker.busy:
                    self._say_what_is_left(worker, left)
        self.close_if_last()

    def close_if_last(self) -> None:
        """After the shutdown, whoever is the last to need the connections closes them."""
        if self._give_up.is_set():
            with self.lock:
                in_use = any(worker.in_flight for worker in self._lanes.values())
            if not in_use:
                self.transport.close()

    def _say_what_is_left(self, worker: _LaneWorker, left: int) -> None:
        if worker.in_flight:
            _logger.warning(
                "%s: shut down while the agent was still answering %d report(s); it has them, unconfirmed",
                worker.mailbox.lane,
                len(worker.in_flight),
            )
        if left:
            self.stats.drop("end not delivered before shutdown", left)
            reason = worker.last_error or "no time left; OTEL_LETTA_SHUTDOWN_TIMEOUT allows more"
            _logger.error("%s: %d task end(s) not delivered before shutdown: %s", worker.mailbox.lane, left, reason)

    def wait(self, seconds: float) -> bool:
        """Interruptible sleep of the lanes' threads; True when they have to give up."""
        return self._give_up.wait(seconds)

    def budget_free_at(self, agent_id: str, now: float) -> float:
        """When the agent may be woken again, in monotonic seconds. Lock held."""
        wakes = self._wakes.get(agent_id)
        if wakes is None or self.closing:
            return -math.inf
        while wakes and wakes[0] <= now - _HOUR:
            wakes.popleft()
        return wakes[0] + _HOUR if len(wakes) >= self.settings.wake_budget else -math.inf

    def count_wake(self, agent_id: str) -> None:
        self.stats.count("requests")
        with self.lock:
            self._wakes.setdefault(agent_id, deque()).append(self.clock())

    def lanes(self) -> dict[str, dict[str, object]]:
        """For statistics: what waits for each lane, and what is wrong with it."""
        with self.lock:
            return {
                str(lane): {
                    "waiting": worker.mailbox.waiting,
                    "in_flight": len(worker.in_flight),
                    "parked": str(worker.retry.parked) if worker.retry.parked else None,
                    "last_error": str(worker.last_error) if worker.last_error else None,
                }
                for lane, worker in self._lanes.items()
            }

    def _lost_ends(self) -> int:
        dropped = self.stats.snapshot()["dropped"]
        return sum(number for reason, number in dropped.items() if reason.startswith("end "))


class _LaneWorker(Worker):
    """One lane: takes a request's worth of reports, sends them, and decides what a failure means."""

    def __init__(self, courier: Courier, lane: Lane) -> None:
        super().__init__(f"otel_letta {lane.agent_id}", courier.lock, courier.settled, courier.clock)
        self._courier = courier
        self.mailbox = Mailbox(lane, courier.settings.message_interval, courier.capacity, courier.stats)
        self.retry = Retry(courier.settings.probe_interval)
        self.in_flight: list[Parcel] = []
        self.last_error: LettaError | None = None
        self.successes = 0

    def accept(self, parcel: Parcel) -> None:
        now = self._clock()
        report = parcel.report
        collapsed = self.mailbox.collapsed
        due = self.mailbox.adopt(parcel, now)
        if self.mailbox.collapsed > collapsed:
            self._courier.log.log(
                logging.ERROR,
                f"{self.mailbox.lane} collapsed",
                "reports to %s: more than OTEL_LETTA_MAX_PENDING_TASKS wait, the oldest ends are only counted now",
                self.mailbox.lane,
            )
        if due is math.inf:
            self._courier.stats.count("held")
            _logger.debug("report %s #%d held: nothing worth a turn yet", report.task_id, report.sequence)
        else:
            _logger.debug(
                "report %s #%d (%s) is due in %.1f s", report.task_id, report.sequence, report.status, max(due - now, 0)
            )
            # Woken for what is due later too: the thread may be waiting for something that is later still.
            self.wake()

    def _rest(self) -> None:
        # A program that talks in ever new conversations would otherwise remember each of them for ever.
        lanes, lane = self._courier._lanes, self.mailbox.lane
        if lane.conversation_id and self.mailbox.idle and not self._stopping and lanes.get(lane) is self:
            del lanes[lane]

    def next_try(self, now: float) -> float:
        return -math.inf if self.busy else max(self.retry.not_before, self._budget(now))

    def _budget(self, now: float) -> float:
        return self._courier.budget_free_at(self.mailbox.lane.agent_id, now)

    def unsettled(self, now: float) -> bool:
        if self.busy:
            return True
        due = self.mailbox.next_due(now)
        return due is not None and due <= now

    def _next_job(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        due = self.mailbox.next_due(now)
        if due is None:
            return None, None
        at = max(due, self.next_try(now))
        if at > now:
            return None, at - now
        parcels = self.mailbox.take(now, self._weigh)
        self.in_flight = parcels
        return lambda: self._carry(parcels), None

    # -- one request's worth -----------------------------------------------------------------------------------------

    def _text(self, parcel: Parcel) -> str:
        if parcel.losses is not None:
            return render_losses(*parcel.losses)
        settings = self._courier.settings
        return render(parcel.report, content_cap=settings.content_cap, trace_link=settings.trace_link)

    def _weigh(self, report: ProgressReport) -> int:
        return len(self._text(Parcel(report, "")).encode("utf-8"))

    def _carry(self, parcels: list[Parcel]) -> None:
        try:
            if self.retry.parked is not None:
                # A person may have mended it: read the settings again, and ask cheaply before risking a turn.
                self._courier.transport.reload()
            if self._moved(parcels):
                return
            if self.retry.parked is not None:
                self._courier.transport.probe(self.mailbox.lane, until=self.until)
            self._send(parcels)
        except LettaError as error:
            self._failed([p for p in parcels if p in self.in_flight], error)
        except Exception as error:  # a bug in a transport must not lose ends
            _logger.exception("unexpected error while sending to %s", self.mailbox.lane)
            self._failed([p for p in parcels if p in self.in_flight], LettaError(type(error).__name__))
        finally:
            with self._lock:
                self.in_flight = []
            self._courier.close_if_last()

    def _moved(self, parcels: list[Parcel]) -> bool:
        """Move everything to the server and agent that the settings name now. Return False if those are this lane's.

        Another lane may have had the settings read again, so this is asked before each request.
        """
        courier, lane = self._courier, self.mailbox.lane
        report = next((parcel.report for parcel in parcels if parcel.losses is None), None)
        # What stands for lost ends names no agent: they stay with the lane's.
        now = courier.transport.lane(lane.agent_id if report is None else report.agent_id, None)
        moved = Lane(now.server, now.agent_id, lane.conversation_id)
        if moved == lane:
            return False
        _logger.warning("reports to %s go to %s now", lane, moved)
        with self._lock:
            courier.reroute([*parcels, *self.mailbox.take_all()], moved)
            self.retry.succeeded()
            self.last_error = None
        return True

    def _send(self, parcels: list[Parcel]) -> None:
        """Send; a request that is refused as bad is halved until the refused report stands alone."""
        courier = self._courier
        lane = self.mailbox.lane
        try:
            exchange(
                courier.transport,
                lane,
                [Message(self._text(parcel), parcel.otid) for parcel in parcels],
                wait=courier.wait,
                patience=courier.settings.read_timeout,
                busy_patience=courier.settings.busy_timeout,
                confirm={parcel.otid for parcel in parcels if parcel.is_end},
                look_first=any(parcel.maybe_landed for parcel in parcels),
                woke=lambda: courier.count_wake(lane.agent_id),
                until=self.until,
            )
        except LettaError as error:
            if not _is_refusal(error):
                raise
            if len(parcels) > 1:
                middle = len(parcels) // 2
                courier.log.log(
                    logging.WARNING, "halved", "%s refused %d reports at once: halving (%s)", lane, len(parcels), error
                )
                self._send(parcels[:middle])
                self._send(parcels[middle:])
                return
            self._refused(parcels[0], error)
            return
        self._delivered(parcels)

    def _delivered(self, parcels: list[Parcel]) -> None:
        with self._lock:
            self.mailbox.told(parcels, self._clock())
            self.successes += 1
            self._settle(parcels)
            self.retry.succeeded()
            self.last_error = None
        self._courier.stats.count("sent", len(parcels))
        for parcel in parcels:
            report = parcel.report
            _logger.debug("report %s #%d (%s) sent", report.task_id, report.sequence, report.status)

    def _settle(self, parcels: list[Parcel]) -> None:
        self.in_flight = [parcel for parcel in self.in_flight if parcel not in parcels]

    def _refused(self, parcel: Parcel, error: LettaError) -> None:
        if not parcel.refusals:
            parcel.successes_then = self.successes
        parcel.refusals += 1
        if isinstance(error, LettaModelError) and parcel.is_end:
            # The LLM may refuse everything just now. An end is given up only when the others pass.
            most = _REFUSALS if self.successes > parcel.successes_then else _MOST_REFUSALS
            if parcel.refusals < most:
                raise error
        with self._lock:
            self.mailbox.told([parcel] if parcel.is_end else [], self._clock())
            self._settle([parcel])
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

    def _failed(self, parcels: list[Parcel], error: LettaError) -> None:
        courier = self._courier
        lane = self.mailbox.lane
        if isinstance(error, LettaConversationNotFoundError) and lane.conversation_id:
            _logger.warning("%s does not exist: its reports go to the agent's default conversation", lane)
            with self._lock:
                courier.conversation_is_gone(lane)
                courier.reroute([*parcels, *self.mailbox.take_all()], _default_lane(lane))
            return
        if error.may_have_landed:
            parcels = self._look_whether_landed(parcels)
        with self._lock:
            # Progress costs the server several LLM calls a try while its LLM is down, and may have landed after a
            # timeout; ends are worth both.
            keep_progress = not (isinstance(error, LettaModelError) or error.may_have_landed)
            self.mailbox.put_back(parcels, progress=keep_progress, now=self._clock())
            delay = self.retry.failed(error, self._clock())
            if courier.closing and not error.parks:
                self.retry.not_before = min(self.retry.not_before, self._clock() + 0.5)
            self.last_error = error
        courier.stats.count("retries")
        courier.log.log(
            logging.ERROR,
            f"{lane} {type(error).__name__} {error.status}",
            "reports to %s: %s (%s, next try in %.0f s)",
            lane,
            error,
            "parked" if error.parks else "ends are kept",
            delay,
        )

    def _look_whether_landed(self, parcels: list[Parcel]) -> list[Parcel]:
        """After silence: which ends does the server have? The rest is to be sent again."""
        ends = [parcel for parcel in parcels if parcel.is_end]
        for parcel in ends:
            parcel.maybe_landed = True
        progress = [parcel for parcel in parcels if not parcel.is_end]
        if not ends:
            return progress
        courier = self._courier
        try:
            stored = settle(
                courier.transport,
                self.mailbox.lane,
                [parcel.otid for parcel in ends],
                courier.wait,
                courier.settings.busy_timeout,
                self.until,
            )
        except LettaError as error:
            _logger.debug("%s: cannot tell yet whether %d report(s) landed: %s", self.mailbox.lane, len(ends), error)
            return parcels
        there = [parcel for parcel in ends if parcel.otid in stored]
        if there:
            self._delivered(there)
        return [parcel for parcel in ends if parcel.otid not in stored] + progress


def _default_lane(lane: Lane) -> Lane:
    return Lane(lane.server, lane.agent_id)


def _is_refusal(error: LettaError) -> bool:
    """Bad for this request, not for the lane: others may pass."""
    return isinstance(error, LettaRequestError) or (
        isinstance(error, LettaModelError) and error.status == 400 and not error.parks
    )
