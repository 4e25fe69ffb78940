"""Reports as messages: in each lane one request at a time, and the lanes side by side."""

from __future__ import annotations

import logging
import math
from collections import deque

from otel_letta.answer import Answer
from otel_letta.delivery.answers import Answers, Callbacks
from otel_letta.delivery.capacity import Capacity
from otel_letta.delivery.journal import Journal, NoJournal
from otel_letta.delivery.lane import LaneWorker
from otel_letta.delivery.leaving import Fate, give_up, log_undelivered
from otel_letta.delivery.mailbox import Mailbox
from otel_letta.delivery.parcel import Parcel
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.delivery.visit import Attempt
from otel_letta.delivery.worker import Crew, Worker
from otel_letta.errors import LettaTimeoutError
from otel_letta.letta.transport import Lane, Transport
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from otel_letta.settings.outbox import OutboxExit

_logger = logging.getLogger(__name__)

_HOUR = 3_600.0
_MOST_GONE = 1_000


class Courier:
    """All lanes of one desk.

    Args:
        transport: the server.
        settings: pacing, patience and bounds.
        stats: counts what becomes of the reports.
        crew: what all workers of the desk share.
        journal: what remembers reports beyond the process.
        answers: get what the agents answer.
    """

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        stats: Stats,
        crew: Crew,
        journal: Journal | None = None,
        answers: Answers | None = None,
    ) -> None:
        self.transport = transport
        self.settings = settings
        self.stats = stats
        self.crew = crew
        self.journal: Journal = journal or NoJournal()
        self.answers = answers or Answers(Callbacks(), stats)
        self.clock = crew.clock
        self.lock = crew.lock
        self.log = Throttle(_logger, clock=crew.clock)
        self.capacity = Capacity(settings.max_pending_tasks, self._collapsed)
        crew.circuits.probe_interval = settings.probe_interval
        self.closing = False
        self._finished = False
        self._lanes: dict[Lane, LaneWorker] = {}
        self._wakes: dict[str, deque[float]] = {}
        self._gone: dict[Lane, None] = {}
        self._last_lane: dict[str, Lane] = {}
        """Of the open tasks: those that are not reported to the agent's own conversation."""

    def put(self, report: ProgressReport, maybe_landed: bool = False) -> None:
        """Accept a report, which another process may have sent before; never waits for the network."""
        with self.lock:
            lane = self.transport.lane(report.agent_id, report.chat_id)
            if lane in self._gone:
                lane = Lane(lane.server, lane.agent_id)
            before = self._last_lane.pop(report.key, Lane(lane.server, lane.agent_id))
            if before != lane and before in self._lanes:
                # The chat was named late: what waits for the other conversation would arrive after the end.
                self._lanes[before].mailbox.forget(report.key, "its chat changed")
            if lane.conversation_id and not report.status.is_terminal:
                self._last_lane[report.key] = lane
            if self.journal.put(report, lane, maybe_landed):
                self._worker(lane).accept(Parcel(report, maybe_landed=maybe_landed))

    def withdraw(self, report: ProgressReport, why: str) -> None:
        """Forget what waits of a task: this report of it is worth no message, and what it said before holds no more.

        A task that goes on takes back only that it waits: the board may have handed over this very report meanwhile.
        """
        goes_on = not report.status.is_terminal
        with self.lock:
            lane = self._last_lane.pop(report.key, None) or self.transport.lane(report.agent_id, None)
            if lane in self._lanes:
                worker = self._lanes[lane]
                if not goes_on or worker.mailbox.asks(report.key):
                    worker.mailbox.forget(report.key, why)
                for parcel in worker.in_flight:
                    if parcel.report.key == report.key and (parcel.report.waiting or not goes_on):
                        parcel.withdrawn = True

    def look_up(self, agent_id: str | None, task_id: str, until: Deadline) -> tuple[ProgressReport, Answer] | None:
        """Return a report that a task waits, and what is stored of the answer to it, while its request has none yet.

        Raises:
            LettaError: the server does not say.
        """
        with self.lock:
            asked = [
                (worker.mailbox.lane, parcel)
                for worker in self._lanes.values()
                if worker.attempt.unanswered and worker.attempt.posting.sent
                for parcel in worker.in_flight
                if parcel.report.waiting and (parcel.report.agent_id, parcel.report.task_id) == (agent_id, task_id)
            ]
        for lane, parcel in asked:
            age = 0.0 if parcel.sent_at is None else self.clock() - parcel.sent_at
            response = self.transport.stored_answers(lane, [parcel.otid], age=age, until=until).get(parcel.otid)
            if response is not None:
                return parcel.report, self.transport.answer(lane, response)
        return None

    def put_back(self, report: ProgressReport, lane: Lane, maybe_landed: bool) -> None:
        """Accept what the journal kept, from this process or one before it. Lock held."""
        if lane in self._gone:
            lane = Lane(lane.server, lane.agent_id)
        self._worker(lane).accept(Parcel(report, maybe_landed=maybe_landed))

    def _collapsed(self, box: Mailbox) -> None:
        lane = box.lane
        self.log.log(
            logging.ERROR,
            f"{lane.agent_id} collapsed",
            "reports to %s: more than OTEL_LETTA_MAX_PENDING_TASKS wait, the oldest ends are only counted now",
            lane,
        )
        losses = box.take_losses() if lane.conversation_id else None
        if losses is not None:
            # There may be ever new conversations. The agent is told in its own how many ends are lost.
            self.reroute([losses], Lane(lane.server, lane.agent_id))
            self._lanes[lane].on_idle()

    def _worker(self, lane: Lane) -> LaneWorker:
        worker = self._lanes.get(lane)
        if worker is None:
            worker = self._lanes[lane] = LaneWorker(self, lane)
        return worker

    def reroute(self, parcels: list[Parcel], lane: Lane) -> None:
        """Move what waited for another lane to this one. Lock held."""
        self.journal.moved([parcel.report for parcel in parcels], lane)
        for parcel in parcels:
            self._worker(lane).accept(parcel)

    def conversation_is_gone(self, lane: Lane) -> None:
        """Send its reports to the agent's default conversation from now on. Lock held."""
        self._gone[lane] = None
        for oldest in list(self._gone)[:-_MOST_GONE]:
            del self._gone[oldest]

    def forget(self, worker: LaneWorker) -> None:
        """Drop a conversation's lane that has nothing to do any more. Lock held."""
        # A program that talks in ever new conversations would otherwise remember each of them for ever.
        lane = worker.mailbox.lane
        if lane.conversation_id and self._lanes.get(lane) is worker and not worker.busy:
            del self._lanes[lane]
            worker.alarm = None
            self.crew.circuits.leave(worker)

    def workers(self) -> list[Worker]:
        """Return the lanes. Lock held."""
        return list(self._lanes.values())

    def begin_closing(self, until: Deadline) -> None:
        """Try at once what waits for a better time, and give up what is only progress."""
        self.transport.ending.bring_forward(until.at)
        with self.lock:
            self.closing = True
            now = self.clock()
            self.crew.circuits.bring_forward(now)
            for worker in self._lanes.values():
                dropped = worker.mailbox.drop_progress()
                if dropped:
                    self.stats.drop("in_progress at shutdown", dropped)
                worker.retry.bring_forward(now)
                if worker.has_pending(now):
                    worker.wake()

    def finish(self) -> None:
        """Stop, and log what was not delivered. After `Crew.dismiss`."""
        fates: list[tuple[Lane, Fate]] = []
        place = self.journal.place
        with self.lock:
            if self._finished:
                return
            self._finished = True
            for lane, worker in self._lanes.items():
                worker.stop()
                fate = give_up(worker)
                fates.append((lane, fate))
                if fate.lost and place is None:
                    self.stats.drop("end not delivered before shutdown", fate.lost)
                if worker.in_flight and not worker.attempt.posting.sent:
                    self.journal.failed(worker.in_flight, LettaTimeoutError(worker.attempt.waits_for))
                if worker.attempt.unanswered and worker.attempt.posting.sent:
                    self.count_turn(lane.agent_id, worker.attempt)
                    worker.attempt.counted = True
        log_undelivered(fates, place, wanted=self.settings.outbox_exit is not OutboxExit.DELIVER)
        self.close_if_last()

    def close_if_last(self) -> None:
        """Close the connections after the shutdown, as soon as nobody needs them."""
        if self.crew.dismissed:
            with self.lock:
                in_use = any(worker.in_flight for worker in self._lanes.values())
            if not in_use:
                self.transport.close()

    def budget_free_at(self, agent_id: str, now: float) -> float:
        """Return when the agent may be woken again, in monotonic seconds. Lock held."""
        wakes = self._wakes.get(agent_id)
        if wakes is None or self.closing:
            return -math.inf
        while wakes and wakes[0] <= now - _HOUR:
            wakes.popleft()
        return wakes[0] + _HOUR if len(wakes) >= self.settings.wake_budget else -math.inf

    def count_turn(self, agent_id: str, attempt: Attempt) -> None:
        """Count a request that may have cost the agent a turn against its budget, once."""
        with self.lock:
            if attempt.counted:
                attempt.counted = False
                return
            self.stats.count("requests")
            self._wakes.setdefault(agent_id, deque(maxlen=max(self.settings.wake_budget, 1))).append(self.clock())

    def lanes(self) -> dict[str, dict[str, object]]:
        """Return what waits for each lane and what is wrong with it, for statistics."""
        with self.lock:
            return {
                str(lane): {
                    "waiting": worker.mailbox.waiting,
                    "in_flight": len(worker.in_flight),
                    "parked": str(worker.parked) if worker.parked else None,
                    "last_error": str(worker.last_error) if worker.last_error else None,
                }
                for lane, worker in self._lanes.items()
            }
