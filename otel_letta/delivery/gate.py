"""One request in flight per lane, and never into a running turn.

Letta answers 200 to concurrent messages for one agent and then keeps only the last writer's in the agent's context
(measured on 0.16.8: seven of eight vanish), and a report that lands in the middle of a person's turn can erase that
person's message. So every sender, courier or reporter, goes through `exchange`:

1. a lock per lane among the threads and event loops of this process,
2. a file lock per lane among the processes of this host, both in the order of arrival,
3. a check of the agent's active runs, waiting a bounded time for them to end,
4. the request itself, and
5. for messages that must not be lost, a check afterwards of what is in the agent's context.

What remains: another host, or a client that does not check, can still start a turn between 3 and 4. Step 5 notices
when it erased our message, and sends it again; it cannot notice when ours erased theirs. Hosts that report to one
agent meet in step 3 only, and leave it to chance who goes first; who loses is erased, and goes again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from otel_letta.delivery.journal import LaneLock
from otel_letta.delivery.runs import contention
from otel_letta.delivery.visit import Attempt, Visit
from otel_letta.errors import LettaError, LettaTimeoutError
from otel_letta.letta.transport import Lane, Message, Transport
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import FairLock, HostLock

_logger = logging.getLogger(__name__)


def exchange(
    transport: Transport,
    lane: Lane,
    messages: Sequence[Message],
    *,
    until: Deadline,
    patience: float,
    busy_patience: float,
    must_stay: Collection[str] = (),
    check_landed_first: bool = False,
    age: float = 0.0,
    on_turn_used: Callable[[], None] = lambda: None,
    between_hosts: LaneLock | None = None,
    attempt: Attempt | None = None,
) -> dict[str, Any]:
    """Send the messages as one request, when nobody else sends, and make sure that they stay.

    Args:
        transport: the server.
        lane: the destination.
        messages: in order.
        until: when to give up. A request that is on its way is cut off by its time, but not by its cancellation.
        patience: seconds to wait for the lane.
        busy_patience: seconds to wait for a turn that somebody else started.
        must_stay: otids of messages that must be in the agent's context afterwards.
        check_landed_first: an earlier attempt may have landed; send only what the agent does not have.
        age: seconds since that attempt.
        on_turn_used: called after each request that may have cost the agent a turn, answered or not.
        between_hosts: the lane's lock between hosts, if there is one.
        attempt: is kept up to date; afterwards its ``missing`` holds the otids that must stay and did not, and its
            ``unsent`` those that did not hold any more when everything else was ready.

    Returns:
        The server's answer; empty when nothing was left to be sent.

    Raises:
        LettaError: with ``may_have_landed`` True when a later call should use ``check_landed_first``.
    """
    attempt = attempt or Attempt()
    with hold(lane, until, patience, between_hosts, attempt):
        visit = Visit(transport, lane, until, busy_patience, on_turn_used, attempt)
        queues = transport.queues_messages
        pending = list(messages)
        attempt.wait_for("the server did not answer yet")
        if check_landed_first:
            # What an earlier attempt left in the queue of a server that has one is not visible yet.
            arrived = visit.arrived(pending, age)
            pending = [m for m in pending if m.otid not in arrived]
            if not pending:
                return {}
        if not queues and (
            not check_landed_first or contention.is_likely(lane)
        ):  # where messages queue, one is as well off behind a running turn as after it
            visit.wait_for_gap()
        if until.passed:
            # The caller was cancelled or shut down while it stood in the queue, and has no use for an answer now.
            raise LettaTimeoutError(f"Gave up before the report to {lane} was sent")
        pending = attempt.holding(pending)
        if not pending:
            return {}
        answer = visit.post(pending)
        if queues:
            return answer
        try:
            visit.confirm([m for m in pending if m.otid in must_stay])
        except LettaError as error:
            # The turn was answered: the messages are delivered, unless another turn was seen that can erase them.
            _logger.debug("could not check the context of %s: %s", lane, error)
            if attempt.unsure:
                attempt.missing |= {m.otid for m in pending if m.otid in must_stay}
        return answer


def settle(
    transport: Transport,
    lane: Lane,
    otids: Sequence[str],
    *,
    until: Deadline,
    busy_patience: float,
    age: float = 0.0,
    between_hosts: LaneLock | None = None,
) -> set[str]:
    """Wait after a request without an answer until no turn runs, and return which messages the agent has.

    The stored message appears only when its turn ends (measured), so an earlier check would miss it.
    """
    with hold(lane, until, busy_patience, between_hosts):
        return Visit(transport, lane, until, busy_patience).arrived([Message("", otid) for otid in otids], age)


# -- the lane's locks --------------------------------------------------------------------------------------------------


class _LaneLock:
    def __init__(self, lane: Lane) -> None:
        self.thread = FairLock()
        self.host = HostLock(f"lane {lane.server} {lane.agent_id} {lane.conversation_id or ''}")


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
def hold(
    lane: Lane,
    until: Deadline,
    patience: float,
    between_hosts: LaneLock | None = None,
    attempt: Attempt | None = None,
) -> Iterator[None]:
    """Hold the lane alone, in this process and on this host. Whoever asked first gets it first.

    ``between_hosts`` keeps other hosts out as well. ``attempt`` is kept up to date.

    Raises:
        LettaTimeoutError: it was not free within ``patience`` seconds, or before ``until``.
    """
    attempt = attempt or Attempt()
    lock = _lock_of(lane)
    limit = Deadline.after(patience, within=until)
    if not lock.thread.acquire(limit, lambda: attempt.wait_for("another report to the agent was still being answered")):
        raise LettaTimeoutError(f"Another report to {lane} is still being answered")
    try:
        if not lock.host.acquire(limit, lambda: attempt.wait_for("another process on this host was sending to it")):
            raise LettaTimeoutError(f"Another process on this host is sending to {lane}")
        try:
            if between_hosts is not None:
                attempt.wait_for("another host was sending to the agent")
            if between_hosts is not None and not between_hosts.acquire(limit):
                raise LettaTimeoutError(f"Another host is sending to {lane}")
            try:
                yield
            finally:
                if between_hosts is not None:
                    between_hosts.release()
        finally:
            lock.host.release()
    finally:
        lock.thread.release()
