"""A thread that exists only while there is something to do, and the patience it has with failures."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence

from otel_letta.errors import LettaError
from otel_letta.letta.transport import call_deadline
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import suppress_tracing

_logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0
"""How long a thread without work waits for some before it ends."""

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0


class Retry:
    """When to try again after failures: jittered exponential backoff, or a probe now and then while parked."""

    def __init__(self, probe_interval: float) -> None:
        self._probe_interval = max(probe_interval, 0.01)
        self.not_before = -math.inf
        """Monotonic seconds."""
        self.failures = 0
        self.parked: LettaError | None = None
        """Why only a person can help; None while trying."""

    def failed(self, error: LettaError, now: float) -> float:
        """Note a failure; returns the seconds until the next try."""
        self.failures += 1
        if error.parks:
            self.parked = error
            delay = self._probe_interval
        else:
            ceiling = min(_FIRST_BACKOFF * 2 ** min(self.failures - 1, 10), _LONGEST_BACKOFF)
            delay = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads clients, hides nothing
        if error.retry_after is not None:
            delay = max(delay, error.retry_after)
        self.not_before = now + delay
        return delay

    def succeeded(self) -> None:
        self.failures = 0
        self.parked = None
        self.not_before = -math.inf

    def hurry(self, now: float) -> None:
        """Try now: the program is about to end."""
        self.not_before = min(self.not_before, now)


class Crew:
    """The lock, the clock and the flush that all workers of one desk share.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Reentrant: the garbage collector can run a hook, and so our code, while this thread holds the lock.
        self.lock = threading.RLock()
        self.settled = threading.Condition(self.lock)
        """Notified after each job."""
        self.clock = clock

    def flush(self, workers: Callable[[], Sequence[Worker]], until: Deadline) -> bool:
        """Wait until no worker has anything left to deliver. Returns False if that did not happen in time.

        Args:
            workers: called again and again with the lock held, since the work of one may be handed to another.
            until: when to give up.
        """
        while True:
            with self.lock:
                now = self.clock()
                pending = [worker for worker in workers() if worker.unsettled(now)]
                if not pending:
                    return True
                left = until.left()
                if until.passed or all(worker.next_try(now) - now >= left for worker in pending):
                    return False  # waiting longer could not help: a parked lane is tried once a minute
                unstaffed = [worker for worker in pending if not worker.staffed and not worker.busy]
                if not unstaffed:
                    self.settled.wait(min(left, 1.0))
            for worker in unstaffed:
                worker.run_here(until)


class Worker:
    """Does one job after another on a daemon thread of its own.

    Subclasses say what the next job is (`_next_job`) and whether something still has to happen (`unsettled`); both
    are called with the lock held. Jobs run without it.

    Args:
        name: of the thread.
        crew: whose lock is held by whoever puts work in.
    """

    def __init__(self, name: str, crew: Crew) -> None:
        self._name = name
        self._lock = crew.lock
        self._clock = crew.clock
        self._settled = crew.settled
        self._wake = threading.Condition(crew.lock)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.busy = False

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _next_job(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        """The job to do now, or None and the seconds until there may be one (None: when woken)."""
        raise NotImplementedError

    def unsettled(self, now: float) -> bool:
        """True while something that should be delivered is not."""
        raise NotImplementedError

    def next_try(self, now: float) -> float:
        """Monotonic seconds before which nothing will be tried."""
        raise NotImplementedError

    def _rest(self) -> None:
        """The thread ends for want of work. Lock held."""

    # -- for the owner, with the lock held ---------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be work: make sure that a thread looks at it."""
        if not self.staffed and not self.busy:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is shutting down (Python 3.12 starts no thread then): `run_here` does the work.
                return
            self._thread = thread
        else:
            self._wake.notify_all()

    def stop(self) -> None:
        """End the thread after its present job."""
        self._stopping = True
        self._wake.notify_all()

    @property
    def staffed(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive()

    def run_here(self, until: Deadline) -> None:
        """Do what is to do on the calling thread, until nothing is due or the time is over. Lock not held."""
        while not until.passed:
            with self._lock:
                if self.busy:
                    return
                job, delay = self._next_job(self._clock())
                if job is None:
                    if delay is None or not self.unsettled(self._clock()):
                        return
                    self._wake.wait(until.left(delay))
                    continue
                self.busy = True
            # Nobody else could end a call that hangs.
            token = call_deadline.set(until.at)
            try:
                self._do(job)
            finally:
                call_deadline.reset(token)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress_tracing():
            self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                job, delay = (None, None) if self._stopping else self._next_job(self._clock())
                if job is None:
                    if self._stopping or (
                        not self._wake.wait(_IDLE_SECONDS if delay is None else delay) and delay is None
                    ):
                        self._thread = None
                        self._rest()
                        self._settled.notify_all()
                        return
                    continue
                self.busy = True
            self._do(job)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            with suppress_tracing():
                job()
        except Exception:
            _logger.exception("unexpected error in %s", self._name)
        finally:
            with self._lock:
                self.busy = False
                self._settled.notify_all()
