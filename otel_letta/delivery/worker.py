"""A thread that exists only while there is something to do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import suppress_tracing

_logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0
"""Seconds that a thread without work waits for some before it ends."""

Job = Callable[[Deadline], None]
"""Something to do, which gives up at the deadline."""


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
        self.dismissed = False
        self.until = Deadline(cancelled=lambda: self.dismissed)
        """For jobs on the workers' own threads: no limit but the dismissal."""

    def dismiss(self) -> None:
        """Have all jobs give up that wait for their turn. A request that is on its way is not cut off."""
        self.dismissed = True
        self.until.wake()

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


class Worker:
    """A worker that does one job after another on a daemon thread of its own.

    Subclasses choose the next job (`_next_job`) and know whether something is left to deliver (`has_pending`). Both
    are called with the lock held. Jobs run without it.

    Args:
        name: of the thread.
        crew: whose lock is held by whoever puts work in.
    """

    def __init__(self, name: str, crew: Crew) -> None:
        self._name = name
        self._crew = crew
        self._lock = crew.lock
        self._clock = crew.clock
        self._wake = threading.Condition(crew.lock)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.busy = False

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
        """Clean up: the thread ends for want of work. Lock held."""

    # -- for the owner, with the lock held ---------------------------------------------------------------------------

    @property
    def has_thread(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive()

    def wake(self) -> None:
        """Make sure that a thread checks for work: there may be some."""
        if not self.has_thread and not self.busy:
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

    # -- on a thread -------------------------------------------------------------------------------------------------

    def run_here(self, until: Deadline) -> None:
        """Do the work on the calling thread, until nothing is due or the time is over. Lock not held."""
        while not until.passed:
            with self._lock:
                if self.busy:
                    return
                job, delay = self._next_job(self._clock())
                if job is None:
                    if delay is None or not self.has_pending(self._clock()):
                        return
                    self._wake.wait(until.left(delay))
                    continue
                self.busy = True
            # Without a limit of time a hanging call would block shutdown.
            self._do(job, Deadline(until.at, lambda: until.cancelled, within=self._crew.until))

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
                        self.on_idle()
                        self._crew.settled.notify_all()
                        return
                    continue
                self.busy = True
            self._do(job, self._crew.until)

    def _do(self, job: Job, until: Deadline) -> None:
        try:
            with suppress_tracing():
                job(until)
        except Exception:
            _logger.exception("unexpected error in %s", self._name)
        finally:
            with self._lock:
                self.busy = False
                self._crew.settled.notify_all()
