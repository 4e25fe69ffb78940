"""A queue of calls and the one thread that makes them, asleep while there are none.

The hooks of a traced program put calls in and return; nothing else of a pipeline runs on the program's threads. The
thread shares the interpreter with the program, so it works in slices and rests in between, and stays awake for a moment
after the last call: then a burst of spans need not wake it for each. Whoever flushes or shuts down makes the calls on
its own thread and waits for no rest.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from otel_letta.runtime import fork
from otel_letta.runtime.suppress import on_own_thread, suppress_tracing

_logger = logging.getLogger(__name__)

_SLICE = 0.0005
"""Seconds of making calls after which the thread rests."""
_REST = 9.0
"""Length of a rest, in times of the processor's time that the slice before it took: where the process was stopped, or
others were busy, the clock says nothing about that. It shrinks as calls pile up."""
_LONGEST_REST = 0.1
"""Seconds. What took so long may have been a pass of the garbage collector."""
_CROWD = 4_000
"""Calls that wait, from which on there is no rest."""
_MOST = 10_000
"""Calls that wait at most. A task that ends costs 1 kB until its calls are made; more of them are only counted. It is
six objects, too, that a full pass of the garbage collector goes through while the program waits."""
_PATIENCE = 0.002
"""Seconds that a hook waits for its turn to help, where it would otherwise lose its call."""
_LINGER = 0.004
"""Seconds for which the thread stays awake after the last call."""
_THREAD_RETRY = 1.0
"""Seconds until a hook tries again to start the thread."""


class Inbox:
    """Calls from any thread, made in order and one at a time. `put` never waits, and an error never leaves a call.

    Args:
        tend: called after the calls, by whoever made them; returns the time of `time.monotonic` when it wants to be
            called again, infinity for after the next call.
        complain: takes what a call or ``tend`` raised.
        on_thread: called when the thread has started.
    """

    backlog = 4_000
    """Calls that wait, from which on a hook makes some of them itself: pure computation, for one slice at most."""

    def __init__(
        self, tend: Callable[[], float], complain: Callable[[str, Exception], None], on_thread: Callable[[], None]
    ) -> None:
        self._tend = tend
        self._complain = complain
        self._on_thread = on_thread
        # Calls are taken out only by who holds the lock, or two takers could change their order. Deque and bell are
        # reentrant: a hook may run in a destructor or a signal handler, in the middle of another append or ring.
        self.must_rest: Callable[[], bool] = lambda: True
        """Asked before each rest: a receiver's process has nothing else to do between requests."""
        self.calls: deque[tuple[Any, ...]] = deque()
        """Functions with their arguments. Always the same object: the hooks hold it, and append themselves."""
        self.restart()

    def restart(self) -> None:
        """Begin anew with nothing in it, in a forked child."""
        self._bell = threading.Lock()
        """Held unless somebody has rung. Not a queue: `queue.SimpleQueue.get` with a timeout of 0 can wait for ever in
        Python 3.10 (measured)."""
        self._bell.acquire()
        self.awake = False
        """The thread will find what is appended now. Whoever appended, and finds this False, calls `attend`."""
        self._asleep = False
        self._due = math.inf
        self._closed = self._stopped = False
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.RLock()
        self._no_thread_before = 0.0
        self.overflowed = 0
        """Calls that were not taken in, because too many waited."""
        self.lock = threading.Lock()
        """Held by whoever makes the calls."""
        self.calls.clear()  # last: what it destroys may end spans

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def closed(self) -> bool:
        """True once nothing is taken in any more."""
        return self._closed

    @property
    def has_thread(self) -> bool:
        """False while no thread was needed or none could be started: then flush and shutdown make the calls."""
        return self._thread is not None

    def put(self, function: Callable[..., None], *arguments: Any) -> None:
        """Enqueue a call; nothing happens once the inbox is closed."""
        fork.check()
        self.put_checked(function, *arguments)

    def put_checked(self, *call: Any) -> None:
        """Do the same where `fork.check` was called just before: a function and its arguments."""
        self.calls.append(call)
        if not self.awake or len(self.calls) > self.backlog:
            self.attend()

    def make(self, calls: Iterable[tuple[Any, ...]]) -> None:
        """Make some calls inside another one: one that fails does not take the others with it."""
        for function, *arguments in calls:
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001
                self._complain("reading spans", error)

    def attend(self) -> None:
        """See to it that a call which was just appended is made: wake the thread, or start it, or help it."""
        if self._closed:
            with contextlib.suppress(IndexError):
                self.calls.pop()
            return
        if self._asleep:
            self._wake()
        elif self._thread is None:
            self._start_thread()
        # Not in a destructor that runs in the middle of our own work, with half of that work done.
        if len(self.calls) > self.backlog and not on_own_thread():
            full = len(self.calls) > _MOST
            self._run(_PATIENCE if full else 0.0, _SLICE, tend=False)
            if full and len(self.calls) > _MOST:
                with contextlib.suppress(IndexError):
                    self.calls.pop()
                    self.overflowed += 1

    def run(self, timeout: float, *then: Callable[[], object]) -> bool:
        """Make all calls now, on this thread, and then those given; False if there was not enough time for all.

        Args:
            timeout: seconds. Those given are made in any case, unless the lock was not free in time.
        """
        until = time.monotonic() + timeout
        if not self.lock.acquire(timeout=timeout):
            return False
        try:
            with suppress_tracing():
                return self._make_calls(until - time.monotonic(), *then)
        finally:
            self.lock.release()

    def close(self) -> None:
        """Take nothing in any more. What is in already can still be `run`."""
        self._closed = True
        self.awake = False

    def stop(self) -> None:
        """End the thread, after the call that it is making."""
        self._stopped = True
        self._wake()

    def _run(self, timeout: float, seconds: float, *, tend: bool) -> None:
        if self.lock.acquire(timeout=timeout):
            try:
                with suppress_tracing():
                    self._make_calls(seconds, tend=tend)
            finally:
                self.lock.release()

    def _make_calls(self, seconds: float, *then: Callable[[], object], tend: bool = True) -> bool:
        """Make the calls that wait, for so many seconds, and then those given. Return False if some are left of them.

        ``tend``: a hook leaves that to others, since it can take long.
        """
        in_time = True
        until = time.perf_counter() + seconds
        for _ in range(len(self.calls)):
            try:
                function, *arguments = self.calls.popleft()
            except IndexError:  # a hook that ran in the middle of this has helped
                break
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001 - one bad span must not take the others with it
                self._complain("reading spans", error)
            if time.perf_counter() > until:
                in_time = not self.calls
                break
        for call in then:
            self._guarded(call)
        if tend:
            self._due = math.inf  # in case it raises: it is called again after the next call
            self._guarded(self._call_tend)
            if self._asleep and self._due != math.inf:
                self._wake()  # somebody else made the calls, and the thread knows of nothing that will be due
        return in_time

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            self._complain("reading spans", error)

    def _call_tend(self) -> None:
        self._due = self._tend()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        with self._thread_lock:
            if self._thread is not None or self._closed or time.monotonic() < self._no_thread_before:
                return
            thread = threading.Thread(target=self._work, name="otel_letta", daemon=True)
            self._thread = thread
            # Not after its start: when that returns, on a busy machine, it may have made the calls and be asleep again.
            self.awake = not self._closed
            try:
                thread.start()
            except RuntimeError:
                # At interpreter shutdown Python 3.12 starts no thread any more. Or the machine is out of threads, and
                # will have some again.
                self._thread, self.awake = None, False
                self._no_thread_before = time.monotonic() + _THREAD_RETRY
                _logger.debug("no thread can be started: reports go out at flush or shutdown")
                return
            self._on_thread()

    def _wake(self) -> None:
        self._asleep = False
        self.awake = not self._closed
        with contextlib.suppress(RuntimeError):  # somebody else has rung
            self._bell.release()

    def _work(self) -> None:
        with suppress_tracing():
            while not self._stopped:
                self._sleep()
                self._work_until_idle()

    def _sleep(self) -> None:
        """Wait until there are calls, or something is due."""
        self._bell.acquire(blocking=False)  # rung when already awake
        self._asleep, self.awake = True, False
        if not self.calls and not self._stopped:
            pause = self._pause()
            self._bell.acquire(timeout=-1 if pause is None else pause)
        self._asleep, self.awake = False, not self._closed

    def _pause(self) -> float | None:
        """Return the seconds until something is due; None, and so no wake-ups at all, if nothing is."""
        due = self._due  # once: another thread may be making calls
        return None if due == math.inf else min(max(due - time.monotonic(), 0.0), threading.TIMEOUT_MAX)

    def _work_until_idle(self) -> None:
        while not self._stopped:
            began = time.thread_time()
            with self.lock:
                self._make_calls(_SLICE)
            if self.calls:
                rest = min((time.thread_time() - began) * _REST, _LONGEST_REST)
                free = max(1.0 - len(self.calls) / _CROWD, 0.0)
                time.sleep(rest * free if self.must_rest() else 0.0)
            else:
                time.sleep(_LINGER)
                if not self.calls:
                    return
