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
when it erased our message, and sends it again; it cannot notice when ours erased theirs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from otel_letta.delivery.journal import LaneLock
from otel_letta.delivery.runs import is_worth_waiting_for, outages, waited_out
from otel_letta.errors import LettaError, LettaModelError, LettaRequestError, LettaServerError, LettaTimeoutError
from otel_letta.letta.transport import Lane, Message, Run, Transport
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import FairLock, HostLock

_logger = logging.getLogger(__name__)

_RESENDS = 1
"""Times that a message is sent again that is stored but not in the context. More could chase a compaction for ever."""


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
    on_turn_used: Callable[[], None] = lambda: None,
    between_hosts: LaneLock | None = None,
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
        check_landed_first: an earlier attempt may have landed; send only what the server does not have.
        on_turn_used: called after each request that cost the agent a turn, answered or not.
        between_hosts: the lane's lock between hosts, if there is one.

    Returns:
        The server's answer; empty when everything had landed before.

    Raises:
        LettaError: with ``may_have_landed`` True when a later call should use ``check_landed_first``.
    """
    with hold(lane, until, patience, between_hosts):
        visit = _Visit(transport, lane, until, busy_patience, on_turn_used)
        queues = transport.queues_messages
        pending = list(messages)
        if check_landed_first:
            # What an earlier attempt left in the queue of a server that has one is not visible yet.
            stored = visit.landed_when_idle(pending)
            pending = [m for m in pending if m.otid not in stored]
            if not pending:
                return {}
        elif not queues:  # where messages queue, one is as well off behind a running turn as after it
            visit.wait_until_idle()
        if until.passed:
            # The caller was cancelled or shut down while it stood in the queue, and has no use for an answer now.
            raise LettaTimeoutError(f"Gave up before the report to {lane} was sent")
        answer = visit.post(pending)
        if queues:
            return answer
        try:
            visit.confirm_in_context([m for m in pending if m.otid in must_stay])
        except LettaError as error:
            # The turn was answered: whatever is wrong with the check afterwards, the messages are delivered.
            _logger.debug("could not check the context of %s: %s", lane, error)
        return answer


def settle(
    transport: Transport,
    lane: Lane,
    otids: Sequence[str],
    *,
    until: Deadline,
    busy_patience: float,
    between_hosts: LaneLock | None = None,
) -> set[str]:
    """Wait after a request without an answer until no turn runs, and return which messages the server has.

    The stored message appears only when its turn ends (measured), so an earlier check would miss it.
    """
    with hold(lane, until, busy_patience, between_hosts):
        visit = _Visit(transport, lane, until, busy_patience)
        return set(visit.landed_when_idle([Message("", otid) for otid in otids]))


class _Visit:
    """The requests of one sender while it holds the lane."""

    def __init__(
        self,
        transport: Transport,
        lane: Lane,
        until: Deadline,
        busy_patience: float,
        on_turn_used: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport = transport
        self._lane = lane
        self._until = until
        # Without the caller's cancellation: a request that went out is waited for, since a turn that is cut off can
        # block a conversation.
        self._limit = Deadline(until.at)
        self._busy_patience = busy_patience
        self._on_turn_used = on_turn_used

    def post(self, messages: Sequence[Message]) -> dict[str, Any]:
        try:
            answer = self._transport.send(self._lane, messages, until=self._limit)
        except LettaError as error:
            # Other refusals come before the turn begins (measured).
            if error.may_have_landed or isinstance(error, LettaModelError) or error.status == 500:
                self._on_turn_used()
            raise
        self._on_turn_used()
        return answer

    def landed_when_idle(self, messages: Sequence[Message]) -> dict[str, str]:
        """Return which messages the server has stored (otid → its id), as soon as no turn may hold some back."""
        if not self.wait_until_idle(insist=True):
            raise LettaTimeoutError(
                f"The turn that may hold the report to {self._lane} still runs", may_have_landed=True
            )
        try:
            return self._transport.landed(self._lane, [m.otid for m in messages], until=self._limit)
        except LettaRequestError as error:
            # This server refuses the check. The messages were not refused, and must not be taken for bad ones.
            raise LettaServerError(
                "Letta does not list its messages", status=error.status, detail=error.detail, may_have_landed=True
            ) from error

    def wait_until_idle(self, *, insist: bool = False) -> bool:
        """Wait until no turn runs. Return False if one outlasted the patience.

        ``insist``: also where the server queues messages, and without getting used to a run that does not end.
        """
        lane = self._lane
        patience = Deadline.after(self._busy_patience)
        pause = 0.1
        while True:
            active = self._active_runs()
            if self._transport.queues_messages and not insist:
                return True  # known only now: the server was asked what it is
            runs = [run for run in active if is_worth_waiting_for(lane, run)]
            if not runs:
                return True
            if patience.passed:
                if insist:
                    return False
                _logger.warning(
                    "%s: %d run(s) still active after %.0f s (%s): sending anyway",
                    lane,
                    len(runs),
                    self._busy_patience,
                    runs[0].id,
                )
                waited_out.update(run.id for run in runs)
                return False
            _logger.debug("%s: held, the agent is busy (%s)", lane, runs[0].id)
            if self._until.wait(patience.left(pause)):
                raise LettaTimeoutError(f"{lane} is busy with another turn")
            pause = min(pause * 1.5, 2.0)

    def _active_runs(self) -> list[Run]:
        try:
            active = self._transport.active_runs(self._lane, until=self._limit)
        except LettaRequestError as error:
            # This check is a courtesy; a server that refuses it has not refused the message.
            _logger.debug("%s: cannot see whether the agent is busy: %s", self._lane, error)
            return []
        except LettaError as error:
            outages.note(self._lane.server, error)
            raise
        outages.note(self._lane.server, None)
        return active

    def confirm_in_context(self, wanted: Sequence[Message]) -> None:
        """Send again what a turn at the same time has erased from the agent's context."""
        for attempt in range(_RESENDS + 1):
            if not wanted:
                return
            # A turn that began while ours ran does not know our message, and when it ends its context replaces the
            # one that does (measured). So the verdict needs an idle agent; that turn's end is worth waiting for.
            self.wait_until_idle(insist=True)
            wanted = self._erased(wanted)
            if not wanted:
                return
            _logger.warning(
                "%s: %d report(s) were erased from the agent's context by a turn at the same time%s",
                self._lane,
                len(wanted),
                ": sending again" if attempt < _RESENDS else "",
            )
            if attempt < _RESENDS:
                try:
                    self.post(wanted)
                except LettaError as error:
                    _logger.warning("%s: could not send the erased report(s) again: %s", self._lane, error)
                    return

    def _erased(self, messages: Sequence[Message]) -> list[Message]:
        """Return those of the messages that are stored, but that the agent will not see."""
        stored = self._transport.landed(self._lane, [m.otid for m in messages], until=self._limit)
        present = self._transport.in_context(self._lane, list(stored.values()), until=self._limit)
        # A message that is not even among the newest stored ones was answered in a very long turn: no verdict.
        return [m for m in messages if m.otid in stored and stored[m.otid] not in present]


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
def hold(lane: Lane, until: Deadline, patience: float, between_hosts: LaneLock | None = None) -> Iterator[None]:
    """Hold the lane alone, in this process and on this host. Whoever asked first gets it first.

    ``between_hosts`` keeps other hosts out as well.

    Raises:
        LettaTimeoutError: it was not free within ``patience`` seconds, or before ``until``.
    """
    lock = _lock_of(lane)
    limit = Deadline.after(patience, within=until)
    if not lock.thread.acquire(limit):
        raise LettaTimeoutError(f"Another report to {lane} is still being answered")
    try:
        if not lock.host.acquire(limit):
            raise LettaTimeoutError(f"Another process on this host is sending to {lane}")
        try:
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
