"""What agents answer, given to whoever asked for it: on a thread of its own, that delivery never waits for."""

from __future__ import annotations

import contextvars
import inspect
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from otel_letta.answer import Answer, OnAnswer
from otel_letta.delivery.loop import Loop
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.errors import LettaError
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.text import clean_error

if TYPE_CHECKING:
    from otel_letta.delivery.parcel import Parcel
    from otel_letta.delivery.visit import Attempt, Request
    from otel_letta.letta.transport import Lane, Transport

_logger = logging.getLogger(__name__)

_C = TypeVar("_C")

_MOST_WAITING = 200
"""Answers that wait for slow callbacks. Each holds up to 100,000 characters."""
_LOOKED_UP = 10.0
"""Seconds that a lost answer may be looked for, while the lane's next reports wait."""


class Turn(NamedTuple):
    """One request with reports: a turn of the agent's, or a failure."""

    lane: Lane
    reports: Sequence[ProgressReport]
    began: int
    """Unix nanoseconds."""
    ended: int
    answer: Answer | None
    error: LettaError | None


OnTurn: TypeAlias = Callable[[Turn], object]


class Callbacks:
    """Whoever asked for answers. Outlives a fork: the child's reports are answered to the same ones.

    Any thread may add and remove at any time: each is a single step of the interpreter.
    """

    def __init__(self) -> None:
        self._at_once: dict[object, OnAnswer] = {}
        self._on_answer: dict[object, OnAnswer] = {}
        self._on_turn: dict[object, OnTurn] = {}

    def add(self, callback: OnAnswer) -> Callable[[], object]:
        """Have it called with every answer from now on. Return a function that takes that back."""
        # What an awaitable needs is imported now, and not on a thread.
        import asyncio  # noqa: F401

        return _added(self._on_answer, callback)

    def add_turn(self, callback: OnTurn) -> Callable[[], object]:
        """Have it called with every request that carries reports, as telemetry wants them; else as `add`."""
        return _added(self._on_turn, callback)

    def add_at_once(self, callback: OnAnswer) -> Callable[[], object]:
        """Have it called first, on the thread that delivers: it must not wait, and what it returns is not awaited."""
        return _added(self._at_once, callback)

    @property
    def at_once(self) -> list[OnAnswer]:
        """Those that wait behind no other."""
        return list(self._at_once.values())

    @property
    def on_answer(self) -> list[OnAnswer]:
        """Each once, in the order in which they came. Two that are equal are one."""
        return _distinct(self._on_answer)

    @property
    def on_turn(self) -> list[OnTurn]:
        """The same."""
        return _distinct(self._on_turn)


def _added(callbacks: dict[object, _C], callback: _C) -> Callable[[], object]:
    key = object()
    callbacks[key] = callback
    return partial(callbacks.pop, key, None)


def _distinct(callbacks: dict[object, _C]) -> list[_C]:
    found: list[_C] = []
    for callback in list(callbacks.values()):
        if callback not in found:
            found.append(callback)
    return found


class _Entry(NamedTuple):
    reports: Sequence[ProgressReport]
    answer: Answer


class Answers:
    """The answers that one process gets. Safe to use from several threads; nothing here raises.

    The thread begins with the first answer, and lives until `close`: an event loop of its own belongs to it, and what
    async callbacks keep open belongs to that loop.

    Args:
        callbacks: get what is put here.
        stats: counts what becomes of the answers.
    """

    def __init__(self, callbacks: Callbacks, stats: Stats) -> None:
        self._callbacks = callbacks
        self.renew(stats)

    def renew(self, stats: Stats) -> None:
        """Begin with nothing: also in a forked child, where no thread of the parent's is."""
        self._stats = stats
        self._log = Throttle(_logger)
        self._failures = Throttle(_logger, math.inf)
        # Reentrant: the garbage collector can run a destructor, and so our code, while this thread holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[_Entry | Turn] = deque()
        self._busy = False
        self._closed = False
        self._given_up = False
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> bool:
        """Whether there are answers whose giving this thread could wait for."""
        with self._changed:
            return (bool(self._waiting) or self._busy) and threading.current_thread() is not self._thread

    @property
    def wanted(self) -> bool:
        """Whether anybody asked for answers."""
        return bool(self._callbacks.at_once or self._callbacks.on_answer)

    # -- for delivery --------------------------------------------------------------------------------------------------

    def take(
        self,
        transport: Transport,
        lane: Lane,
        parcels: Sequence[Parcel],
        attempt: Attempt,
        until: Deadline,
        age: float = 0.0,
    ) -> None:
        """Take what the agent answered to reports that it has.

        Of a report that was posted more than once only the last answer counts: the turns before were erased. An
        answer that got lost is looked up, which takes seconds at most.

        Args:
            transport: where the answers came from.
            lane: of the reports.
            parcels: the reports.
            attempt: the last one to send them.
            until: when to give up a search.
            age: seconds since the first of them may have been sent.
        """
        if not self.wanted:
            return
        sent = [parcel for parcel in parcels if parcel.losses is None]
        found = {parcel.otid: attempt.answers[parcel.otid] for parcel in sent if parcel.otid in attempt.answers}
        lost = [parcel.otid for parcel in sent if parcel.otid not in found]
        if lost:
            try:
                limit = Deadline.after(_LOOKED_UP, within=until)
                found |= transport.stored_answers(lane, lost, age=age, until=limit)
            except LettaError as error:
                _logger.debug("%s: an answer got lost: %s", lane, error)
            except Exception as error:  # noqa: BLE001 - the reports are delivered
                self._complain(error)
        for answer in _each_once(found.values()):
            reports = [parcel.report for parcel in sent if found.get(parcel.otid) is answer]
            if reports:
                self.put_response(transport, lane, reports, answer)

    def put_response(
        self, transport: Transport, lane: Lane, reports: Sequence[ProgressReport], response: dict[str, Any]
    ) -> None:
        """Take a server's answer to reports, if anybody asked for answers."""
        if not self.wanted:
            return
        try:
            self.put(reports, transport.answer(lane, response))
        except Exception as error:  # noqa: BLE001 - the reports are delivered, whatever came back
            self._complain(error)

    def take_request(self, transport: Transport, lane: Lane, parcels: Sequence[Parcel], request: Request) -> None:
        """Take a request with reports that is over, however it ended, for telemetry."""
        if self._callbacks.on_turn:
            reports = [parcel.report for parcel in parcels if parcel.otid in request.otids and parcel.losses is None]
            self.put_turn(transport, lane, reports, request)

    def put_turn(self, transport: Transport, lane: Lane, reports: Sequence[ProgressReport], request: Request) -> None:
        """Take a request about these reports, if anybody asked for turns."""
        if not self._callbacks.on_turn:
            return
        try:
            answer = None if request.answer is None else transport.answer(lane, request.answer)
            self._enqueue(Turn(lane, reports, request.began, request.ended, answer, request.error))
        except Exception as error:  # noqa: BLE001 - telemetry; the reports are delivered, whatever came back
            self._complain(error)

    def put(self, reports: Sequence[ProgressReport], answer: Answer) -> None:
        """Have the callbacks called; never waits."""
        for callback in self._callbacks.at_once:
            for report in reports:
                callback(report, answer)
        if self._callbacks.on_answer:
            self._enqueue(_Entry(reports, answer))
        else:
            self._stats.count("answers")

    def _enqueue(self, entry: _Entry | Turn) -> None:
        with self._changed:
            late, full = self._closed, len(self._waiting) >= _MOST_WAITING
            if not late:
                if full:
                    self._waiting.popleft()
                self._waiting.append(entry)
                self._start()
                self._changed.notify_all()
        if late or full:
            self._stats.count("answers_dropped")
        if full and not late:
            self._log.log(logging.WARNING, "full", "on_answer is too slow: the oldest answers are dropped")

    def _complain(self, error: Exception) -> None:
        kind = type(error).__name__
        self._log.log(logging.ERROR, f"bug {kind}", "an answer got lost: unexpected %s", kind)
        _logger.debug("unexpected error", exc_info=error)

    def _start(self) -> None:
        if self._thread is not None:
            return
        # In a context of its own: what suppresses tracing on the threads of delivery is not for callbacks, and some
        # Pythons and instrumentations hand the context down to new threads.
        thread = threading.Thread(
            target=contextvars.Context().run, args=(self._work, Deadline()), name="otel_letta answers", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            return  # the interpreter is shutting down (Python 3.12 starts no thread then): `close` does the work
        self._thread = thread

    # -- the end -----------------------------------------------------------------------------------------------------

    def wait(self, until: Deadline) -> None:
        """Wait until all that was put here has been given, or the time is over.

        A callback that calls this waits for nothing. Where no thread can start, the caller's gives the answers.
        """
        with self._changed:
            alone = self._thread is None
            while not alone and self.pending and not until.passed:
                self._changed.wait(until.left(0.5))
        if alone:
            contextvars.Context().run(self._work, until, stay=False)

    def close(self, until: Deadline) -> None:
        """Take no more answers, and wait until the rest was given. What is not by then is dropped.

        A callback may call this: then nobody waits, and the rest is given when it has returned.
        """
        self.close_soon()
        self.wait(until)
        with self._changed:
            if threading.current_thread() is self._thread:
                return
            left = len(self._waiting)
            self._waiting.clear()
            self._given_up = True
        if left:
            self._stats.count("answers_dropped", left)
            _logger.warning("%d answer(s) were not given to on_answer: no time left", left)

    def close_soon(self) -> None:
        """Take no more answers; the rest is given without anybody waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- on the thread -----------------------------------------------------------------------------------------------

    def _work(self, until: Deadline, stay: bool = True) -> None:
        """Give one answer after another, until the time is over or there are no more.

        ``stay``: wait for more until `close`.
        """
        loop = Loop()
        try:
            while not until.passed:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closed or not stay)
                    if not self._waiting:
                        return
                    entry = self._waiting.popleft()
                    self._busy = True
                try:
                    self._give(entry, loop)
                except Exception as error:  # noqa: BLE001 - a callback's own way to compare, or an error's to be shown
                    self._complain(error)
                finally:
                    with self._changed:
                        self._busy = False
                        self._changed.notify_all()
        finally:
            loop.close()

    def _give(self, entry: _Entry | Turn, loop: Loop) -> None:
        if isinstance(entry, Turn):
            for on_turn in self._callbacks.on_turn:
                try:
                    on_turn(entry)
                except Exception as error:  # noqa: BLE001 - of the program's tracer provider
                    self._complain(error)
            return
        self._stats.count("answers")
        for report in entry.reports:
            for callback in self._callbacks.on_answer:
                if self._given_up:
                    return
                try:
                    result = callback(report, entry.answer)
                    if inspect.isawaitable(result):
                        loop.run(result)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                        raise  # it is not the callback's
                    self._failed(callback, error)  # a SystemExit, or a cancellation, ends nobody's thread either

    def _failed(self, callback: OnAnswer, error: BaseException) -> None:
        kind, name = type(error).__name__, getattr(callback, "__qualname__", type(callback).__name__)
        self._stats.count("answers_failed")
        self._failures.log(
            logging.ERROR,
            f"{name} {kind}",
            "on_answer (%s) raised %s: %s; the same error is not logged again",
            name,
            kind,
            clean_error(str(error)),
        )
        _logger.debug("on_answer raised", exc_info=error)


def _each_once(responses: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {id(response): response for response in responses}
    return list(found.values())
