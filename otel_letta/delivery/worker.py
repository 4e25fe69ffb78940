"""Workers, each with one job after another, and the few threads that do the jobs of all of them."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from otel_letta.delivery.retry import Circuits
from otel_letta.delivery.stats import Throttle
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import suppress_tracing

_logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0
"""Seconds that a thread without work waits for some before it ends."""
_MOST_THREADS = 16
"""Threads for lanes. A request lasts as long as the agent's turn: so many conversations can be in one at once."""
_MOST_BOARD_THREADS = 2
"""Threads for boards, whose requests are short, and must not wait behind turns."""

_FEW_ALARMS = 16
"""Alarms that are kept without asking which of them still count."""

Job = Callable[[Deadline], None]
"""Something to do, which gives up at the deadline."""


class Crew:
    """The lock, the clock, the threads and the flush that all workers of one desk share.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Reentrant: the garbage collector can run a hook, and so our code, while this thread holds the lock.
        self.lock = threading.RLock()
        self.settled = threading.Condition(self.lock)
        """Notified after each job."""
        self.clock = clock
        self.circuits = Circuits()
        self.log = Throttle(_logger, clock=clock)
        """For causes that many workers meet at once."""
        self.dismissed = False
        self.until = Deadline(cancelled=lambda: self.dismissed)
        """For jobs on the pools' threads: no limit but the dismissal."""
        self.lanes = Pool(self, _MOST_THREADS)
        self.boards = Pool(self, _MOST_BOARD_THREADS)
        self.disk = Pool(self, 1)

    def dismiss(self) -> None:
        """Have all jobs give up that wait for their turn. A request that is on its way is not cut off."""
        self.dismissed = True
        self.until.wake()
        with self.lock:
            self.lanes.disband()
            self.boards.disband()
            self.disk.disband()

    def flush(self, workers: Callable[[], Sequence[Worker]], until: Deadline) -> bool:
        """Wait until no worker has anything left to deliver. Return False if that did not happen in time.

        Args:
            workers: called again and again with the lock held, since the work of one may be handed to another.
            until: when to give up.
        """
        while True:
            with self.lock:
                now = self.clock()
                pending = [worker for worker in workers() if worker.has_pending(now)]
                if not pending:
                    return True
                left = until.left()
                if until.passed or all(worker.next_try(now) - now >= left for worker in pending):
                    return False  # waiting longer could not help: a parked lane is tried once a minute
                alone = [worker for worker in pending if not worker.has_thread and not worker.busy]
                if not alone:
                    self.settled.wait(min(left, 1.0))
            for worker in alone:
                worker.run_here(until)


class Pool:
    """A few daemon threads for any number of workers, which exist only while there is something to do.

    A worker has one job done at a time, and then goes to the back of the queue. All methods: lock held.
    """

    def __init__(self, crew: Crew, most: int) -> None:
        self._crew = crew
        self._most = most
        self._bell = threading.Condition(crew.lock)
        self._ready: deque[Worker] = deque()
        self._alarms: list[tuple[float, int, Worker]] = []
        self._most_alarms = _FEW_ALARMS
        """The number of alarms from which on those are sorted out that were moved since."""
        self._tick = itertools.count()
        self._threads: set[threading.Thread] = set()
        self._waiting = 0
        """Threads that wait for work."""

    @property
    def has_thread(self) -> bool:
        """True if there is a thread, so that what is enqueued gets done."""
        return any(thread.is_alive() for thread in self._threads)

    def enqueue(self, worker: Worker) -> None:
        """Have a thread ask the worker for a job."""
        if worker.busy:
            return  # after its job it is asked in any case
        if not worker.queued:
            worker.queued = True
            self._ready.append(worker)
        elif self._threads:
            return
        if self._waiting >= len(self._ready):
            self._bell.notify()
        elif len(self._threads) < self._most:
            self._start_thread()
        else:
            self._threads = {thread for thread in self._threads if thread.is_alive()}

    def requeue(self, worker: Worker) -> None:
        """Ask the worker again, after the others: for a thread of the pool that is about to ask for work."""
        if not worker.queued:
            worker.queued = True
            self._ready.append(worker)

    def disband(self) -> None:
        """Have those threads end that have nothing to do; the others follow."""
        self._bell.notify_all()

    def set_alarm(self, worker: Worker, at: float) -> None:
        """Have a thread ask the worker for a job at that time of the crew's clock."""
        if worker.alarm is not None and worker.alarm <= at:
            return
        worker.alarm = at
        heapq.heappush(self._alarms, (at, next(self._tick), worker))
        if len(self._alarms) > self._most_alarms:
            # One that was moved would stay until its time comes, which may be an hour later.
            self._alarms = [alarm for alarm in self._alarms if alarm[2].alarm == alarm[0]]
            heapq.heapify(self._alarms)
            self._most_alarms = 2 * len(self._alarms) + _FEW_ALARMS
        if self._alarms[0][2] is worker:
            self._bell.notify()  # whoever sleeps until the next alarm has to wake up earlier

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="otel_letta", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is shutting down (Python 3.12 starts no thread then), or the machine is out of threads:
            # `Worker.run_here` does the work.
            return
        self._threads.add(thread)

    # -- on a thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        me = threading.current_thread()
        try:
            with suppress_tracing():
                while self._serve(me):
                    pass
        finally:
            with self._crew.lock:
                self._threads.discard(me)
                self._crew.settled.notify_all()  # a flush may have to do the work itself now

    def _serve(self, me: threading.Thread) -> bool:
        """Do the next job. Return False if there was none for so long that the thread can end."""
        with self._crew.lock:
            worker = self._next()
            if worker is None:
                self._threads.discard(me)
                return False
            job = worker.next_job()
        if job is not None:
            me.name = worker.name
            worker.do(job, self._crew.until, self.requeue)
        return True

    def _next(self) -> Worker | None:
        while True:
            self._ring()
            if self._ready:
                worker = self._ready.popleft()
                worker.queued = False
                if worker.busy:  # on the thread of who flushes
                    continue
                return worker
            if self._crew.dismissed:
                return None
            pause = _IDLE_SECONDS
            if self._alarms:
                pause = min(max(self._alarms[0][0] - self._crew.clock(), 0.0), threading.TIMEOUT_MAX)
            self._waiting += 1
            try:
                woken = self._bell.wait(pause)
            finally:
                self._waiting -= 1
            # One has to stay for the next alarm.
            if not woken and not self._ready and (self._waiting or not self._alarms):
                return None

    def _ring(self) -> None:
        """Put those into the queue whose time has come."""
        now = self._crew.clock()
        while self._alarms:
            at, _, worker = self._alarms[0]
            if worker.alarm == at and not worker.stopping:
                if at > now:
                    return
                worker.alarm = None
                if not worker.queued and not worker.busy:
                    worker.queued = True
                    self._ready.append(worker)
            heapq.heappop(self._alarms)


class Worker:
    """A worker that has one job after another done by the threads of a pool.

    Subclasses choose the next job (`_next_job`) and know whether something is left to deliver (`has_pending`). Both
    are called with the lock held. Jobs run without it.

    Args:
        name: of a thread that does its jobs.
        crew: whose lock is held by whoever puts work in.
        pool: the threads; those for lanes if it is not given.
    """

    def __init__(self, name: str, crew: Crew, pool: Pool | None = None) -> None:
        self.name = name
        self._crew = crew
        self._pool = pool or crew.lanes
        self._lock = crew.lock
        self._clock = crew.clock
        self.stopping = False
        self.busy = False
        self.queued = False
        """True while it stands in the pool's queue."""
        self.alarm: float | None = None
        """When the pool asks it again."""

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _next_job(self, now: float) -> tuple[Job | None, float | None]:
        """Return the job to do now, or None and the seconds until there may be one (None: when woken)."""
        raise NotImplementedError

    def has_pending(self, now: float) -> bool:
        """Return True while something that should be delivered is not."""
        raise NotImplementedError

    def next_try(self, now: float) -> float:
        """Return the monotonic seconds before which nothing will be tried."""
        raise NotImplementedError

    def on_idle(self) -> None:
        """Clean up: there is nothing to do. Lock held."""

    # -- for the owner, with the lock held ---------------------------------------------------------------------------

    @property
    def has_thread(self) -> bool:
        """True if its jobs get done without help."""
        return self._pool.has_thread

    def wake(self) -> None:
        """Make sure that a thread asks for work: there may be some."""
        self._pool.enqueue(self)

    def stop(self) -> None:
        """Do nothing after the present job."""
        self.stopping = True
        self.wake()

    # -- on a thread -------------------------------------------------------------------------------------------------

    def next_job(self) -> Job | None:
        """Begin the next job, if there is one; it goes to `do` without the lock. Lock held."""
        job, delay = (None, None) if self.stopping else self._next_job(self._clock())
        if job is not None:
            self.busy = True
        elif delay is None:
            self.on_idle()
        else:
            self._pool.set_alarm(self, self._clock() + delay)
        return job

    def run_here(self, until: Deadline) -> None:
        """Do the work on the calling thread, until nothing is due or the time is over. Lock not held."""
        while not until.passed:
            with self._lock:
                if self.busy or self.stopping:
                    return
                job, delay = self._next_job(self._clock())
                if job is None:
                    if delay is None or not self.has_pending(self._clock()):
                        return
                    self._crew.settled.wait(until.left(delay))
                    continue
                self.busy = True
            # Without a limit of time a hanging call would block shutdown.
            limit = Deadline(until.at, lambda: until.cancelled, within=self._crew.until)
            self.do(job, limit, self._pool.enqueue)

    def do(self, job: Job, until: Deadline, then: Callable[[Worker], None]) -> None:
        """Do a job that was begun, and have the worker asked for another one."""
        try:
            with suppress_tracing():
                job(until)
        except Exception:
            _logger.exception("unexpected error in %s", self.name)
        finally:
            with self._lock:
                self.busy = False
                then(self)
                self._crew.settled.notify_all()
