"""One request in flight per lane, and never into a running turn.

Letta answers 200 to concurrent messages for one agent and then keeps only the last writer's in the agent's context
(measured on 0.16.8: seven of eight vanish), and a report that lands in the middle of a person's turn can erase that
person's message. So whoever sends, courier or reporter, goes through `exchange`:

1. a lock per lane among the threads and event loops of this process,
2. a file lock per lane among the processes of this host,
3. a look at the agent's active runs, waiting a bounded time for them to end,
4. the request itself, and
5. for messages that must not be lost, a look at what is in the agent's context afterwards.

What remains: another host, or a client that does not look, can still start a turn between 3 and 4. Step 5 notices
when it erased our message, and sends it again; it cannot notice when ours erased theirs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from otel_letta.errors import LettaError, LettaModelError, LettaRequestError, LettaServerError, LettaTimeoutError
from otel_letta.letta.transport import Lane, Message, Run, Transport
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import HostLock

__all__ = ["Waiter", "exchange", "hold", "settle"]

_logger = logging.getLogger(__name__)

Waiter = Callable[[float], bool]
"""Sleeps at most that many seconds; True when the caller has to give up now."""

_RESENDS = 1
"""How often a message is sent again that is stored but not in the context. More could chase a compaction for ever."""

_TURN_AT_MOST = 900.0
"""Seconds. An older active run is taken for one that Letta left behind: it marks non-streaming conversation messages
``created`` and never updates them (measured)."""


class _Recently:
    """The newest thousand ids of runs that outlasted somebody's patience: nobody waits for them again."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._ids

    def update(self, run_ids: Iterable[str]) -> None:
        self._ids.update(dict.fromkeys(run_ids))
        for stale in list(self._ids)[:-1_000]:
            self._ids.pop(stale, None)


_waited_out = _Recently()


class _Outages:
    """When servers went away. A turn dies with its server, but its run stays ``created`` for ever (measured)."""

    _CLOCKS = 1.0
    """Seconds by which a run may seem younger than it is: the server's ``Date`` has no fractions."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._going_on: set[str] = set()

    def note(self, server: str, error: LettaError | None) -> None:
        """The server answered (None), or a short request to it failed."""
        if error is None:
            self._going_on.discard(server)
        elif server not in self._going_on and _shows_that_nobody_listens(error):
            self._going_on.add(server)
            self._began[server] = time.monotonic()

    def took(self, server: str, run: Run) -> bool:
        began = self._began.get(server)
        return began is not None and run.age is not None and time.monotonic() - run.age <= began + self._CLOCKS


def _shows_that_nobody_listens(error: LettaError) -> bool:
    """Unlike a name that is not found, or a network that is down: behind those the server may go on."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None or error.status == 502  # 502: a proxy's word for the same


_outages = _Outages()


class _LaneLock:
    def __init__(self, lane: Lane) -> None:
        self.thread = threading.Lock()
        self.host = HostLock(f"lane {lane.server} {lane.agent_id} {lane.conversation_id or ''}")
        self.waited_out = _waited_out


_lanes: weakref.WeakValueDictionary[Lane, _LaneLock] = weakref.WeakValueDictionary()
_lanes_lock = threading.Lock()


def _lock_of(lane: Lane) -> _LaneLock:
    with _lanes_lock:
        found = _lanes.get(lane)
        if found is None:
            found = _lanes[lane] = _LaneLock(lane)
        return found


def _forget_in_child() -> None:
    # Threads that held these locks do not exist in a forked child.
    global _lanes, _lanes_lock
    _lanes, _lanes_lock = weakref.WeakValueDictionary(), threading.Lock()


fork.in_child(_forget_in_child)


@contextlib.contextmanager
def hold(lane: Lane, wait: Waiter, patience: float) -> Iterator[_LaneLock]:
    """Hold the lane alone, in this process and on this host.

    Raises:
        LettaTimeoutError: not ours within ``patience`` seconds, or ``wait`` said to give up.
    """
    lock = _lock_of(lane)
    deadline = time.monotonic() + patience
    pause = 0.0
    # Polled in short steps, since neither lock can be waited for together with the caller's wish to give up.
    while not lock.thread.acquire(timeout=0.1):
        if wait(0.0) or time.monotonic() >= deadline:
            raise LettaTimeoutError(f"Another report to {lane} is still being answered")
    try:
        while not lock.host.try_acquire():
            pause = min(pause + 0.02, 0.25)
            if wait(pause) or time.monotonic() >= deadline:
                raise LettaTimeoutError(f"Another process on this host is sending to {lane}")
        try:
            yield lock
        finally:
            lock.host.release()
    finally:
        lock.thread.release()


def exchange(
    transport: Transport,
    lane: Lane,
    messages: Sequence[Message],
    *,
    wait: Waiter,
    patience: float,
    busy_patience: float,
    confirm: Collection[str] = (),
    look_first: bool = False,
    woke: Callable[[], None] = lambda: None,
    until: Deadline | None = None,
) -> dict[str, Any]:
    """Send the messages as one request, when nobody else is at it, and see that they stay.

    Args:
        transport: the server.
        lane: where to.
        messages: in order.
        wait: the caller's interruptible sleep.
        patience: seconds to wait for the lane.
        busy_patience: seconds to wait for a turn that somebody else started.
        confirm: otids of messages that must be in the agent's context afterwards.
        look_first: an earlier attempt may have landed; send only what the server does not have.
        woke: called after each request that cost the agent a turn, answered or not.
        until: no request takes longer, whatever the settings allow.

    Returns:
        The server's answer; empty when everything had landed before.

    Raises:
        LettaError: with ``may_have_landed`` True when a later call should `look_first`.
    """
    with hold(lane, wait, patience) as lock:
        queues = transport.queues_messages
        # Where messages queue, one is as well off behind a running turn as after it; but what an earlier attempt
        # left in the queue is not to be seen yet.
        quiet = (queues and not look_first) or _wait_for_quiet(
            transport, lane, lock, wait, busy_patience, insist=look_first, until=until
        )
        pending = list(messages)
        if look_first:
            if not quiet:
                raise _cannot_tell_yet(lane)
            stored = _landed(transport, lane, pending, until)
            pending = [m for m in pending if m.otid not in stored]
            if not pending:
                return {}
        if wait(0.0):
            # The caller was cancelled or shut down while it stood in the queue: it does not expect to be heard now.
            raise LettaTimeoutError(f"Gave up before the report to {lane} was sent")
        answer = _post(transport, lane, pending, woke, until)
        if queues:
            return answer
        try:
            _see_that_they_stay(transport, lane, lock, pending, confirm, wait, busy_patience, woke, until)
        except LettaError as error:
            # The turn was answered: whatever is wrong with the look afterwards, the messages are delivered.
            _logger.debug("could not check the context of %s: %s", lane, error)
        return answer


def _post(
    transport: Transport, lane: Lane, messages: Sequence[Message], woke: Callable[[], None], until: Deadline | None
) -> dict[str, Any]:
    try:
        answer = transport.send(lane, messages, until=until)
    except LettaError as error:
        # Other refusals come before the turn begins (measured).
        if error.may_have_landed or isinstance(error, LettaModelError) or error.status == 500:
            woke()
        raise
    woke()
    return answer


def _landed(transport: Transport, lane: Lane, messages: Sequence[Message], until: Deadline | None) -> dict[str, str]:
    try:
        return transport.landed(lane, [m.otid for m in messages], until=until)
    except LettaRequestError as error:
        # It is the look that this server refuses. The messages were not, and must not be taken for bad ones.
        raise LettaServerError(
            "Letta does not list its messages", status=error.status, detail=error.detail, may_have_landed=True
        ) from error


def settle(
    transport: Transport,
    lane: Lane,
    otids: Sequence[str],
    wait: Waiter,
    busy_patience: float,
    until: Deadline | None = None,
) -> set[str]:
    """After a request without an answer: wait until no turn runs, then say which messages the server has.

    The stored message appears only when its turn ends (measured), so looking earlier would say no too soon.
    """
    with hold(lane, wait, busy_patience) as lock:
        if not _wait_for_quiet(transport, lane, lock, wait, busy_patience, insist=True, until=until):
            raise _cannot_tell_yet(lane)
        return set(_landed(transport, lane, [Message("", otid) for otid in otids], until))


def _cannot_tell_yet(lane: Lane) -> LettaTimeoutError:
    return LettaTimeoutError(f"The turn that may hold the report to {lane} still runs", may_have_landed=True)


def _wait_for_quiet(
    transport: Transport,
    lane: Lane,
    lock: _LaneLock,
    wait: Waiter,
    patience: float,
    *,
    insist: bool = False,
    until: Deadline | None = None,
) -> bool:
    """Wait until no turn runs; False if one outlasted the patience. ``insist``: do not get used to such a one."""
    deadline = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            active = transport.active_runs(lane, until=until)
        except LettaRequestError as error:
            # This look is a courtesy; a server that refuses it has not refused the message.
            _logger.debug("%s: cannot see whether the agent is busy: %s", lane, error)
            return True
        except LettaError as error:
            _outages.note(lane.server, error)
            raise
        _outages.note(lane.server, None)
        if transport.queues_messages and not insist:
            return True  # known only now: the server was asked what it is
        runs = [run for run in active if _counts(lane, run) and run.id not in lock.waited_out]
        if not runs:
            return True
        if time.monotonic() >= deadline:
            if insist:
                return False
            _logger.warning(
                "%s: %d run(s) still active after %.0f s (%s): sending anyway", lane, len(runs), patience, runs[0].id
            )
            lock.waited_out.update(run.id for run in runs)
            return False
        _logger.debug("%s: held, the agent is busy (%s)", lane, runs[0].id)
        if wait(min(pause, max(deadline - time.monotonic(), 0.0))):
            raise LettaTimeoutError(f"{lane} is busy with another turn")
        pause = min(pause * 1.5, 2.0)


def _counts(lane: Lane, run: Run) -> bool:
    return (run.age is None or run.age < _TURN_AT_MOST) and not _outages.took(lane.server, run)


def _see_that_they_stay(
    transport: Transport,
    lane: Lane,
    lock: _LaneLock,
    messages: Sequence[Message],
    confirm: Collection[str],
    wait: Waiter,
    busy_patience: float,
    woke: Callable[[], None],
    until: Deadline | None,
) -> None:
    wanted = [m for m in messages if m.otid in confirm]
    for attempt in range(_RESENDS + 1):
        if not wanted:
            return
        # A turn that began while ours ran does not know our message, and when it ends its context replaces the one
        # that does (measured). So the verdict needs a quiet agent; that turn's end is worth waiting for.
        _wait_for_quiet(transport, lane, lock, wait, busy_patience, insist=True, until=until)
        wanted = _erased(transport, lane, wanted, until)
        if not wanted:
            return
        _logger.warning(
            "%s: %d report(s) were erased from the agent's context by a turn at the same time%s",
            lane,
            len(wanted),
            ": sending again" if attempt < _RESENDS else "",
        )
        if attempt < _RESENDS:
            try:
                _post(transport, lane, wanted, woke, until)
            except LettaError as error:
                _logger.warning("%s: could not send the erased report(s) again: %s", lane, error)
                return


def _erased(transport: Transport, lane: Lane, messages: Sequence[Message], until: Deadline | None) -> list[Message]:
    """Those of the messages that are stored, but that the agent will not see."""
    if not messages:
        return []
    stored = transport.landed(lane, [m.otid for m in messages], until=until)
    present = transport.in_context(lane, list(stored.values()), until=until)
    # A message that is not even among the newest stored ones was answered in a very long turn: no verdict.
    return [m for m in messages if m.otid in stored and stored[m.otid] not in present]
