"""The requests of one sender while it holds a lane: check that nobody is at it, post, and check what stayed."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from otel_letta.delivery.runs import contention, is_worth_waiting_for, outages, waited_out
from otel_letta.errors import LettaError, LettaModelError, LettaRequestError, LettaServerError, LettaTimeoutError
from otel_letta.letta.transport import Lane, Message, Posting, Run, Transport
from otel_letta.runtime.deadline import Deadline

_logger = logging.getLogger(__name__)

_RESENDS = 4
"""Times that a message is sent again, one after another, that a turn at the same time has erased."""
_CHANCE, _LONGEST_CHANCE = 0.25, 8.0
"""Seconds of which a random part is waited where others wait for the same moment; twice as many after a collision."""
_SETTLING = 1.0
"""Seconds after a turn until every turn is seen that began before its end, where others send to the agent. Letta reads
the agent's context first, and then makes the run that others can see."""
_SLOWER = 4
"""How many times as long as our own turn another one may take to become visible. On two cores that eight processes
wanted, ours took 0.3 to 1.2 s, with turns of 0.6 to 2 s (measured): a whole turn fits into a somewhat longer time."""
_SEEN_AT_ONCE, _LONGEST_UNSEEN = 0.02, 1.0
"""Seconds: where ours needed less than the first, the server is not busy; more than the second is not believed, since a
slow answer counts as well."""
_CLOSING = 1.0
"""Seconds that a program which ends needs for everything else."""
_PAUSE = 0.25
"""Seconds after which a cancellation is noticed."""
_LONGEST_LOOK = 10.0
"""Seconds that a look at the runs takes at most, unless this process stands still."""
_CLOCKS = 1.5
"""Seconds by which a run's age may be wrong: the server's ``Date`` has no fractions."""


class Request(NamedTuple):
    """One request with messages, that is over."""

    otids: tuple[str, ...]
    began: int
    """Unix nanoseconds."""
    ended: int
    answer: dict[str, Any] | None
    """What the server answered, if that was a success."""
    error: LettaError | None = None


class Attempt:
    """How far one exchange has come, for who cannot wait for its end. Written by the sender alone.

    Args:
        on_request: called after each request with messages, answered or not.
    """

    def __init__(self, on_request: Callable[[Request], None] = lambda request: None) -> None:
        self.posting = Posting()
        self.waits_for = "no time was left to begin"
        """What it waits for before it can send, or why it does not, for people."""
        self.missing: frozenset[str] = frozenset()
        """Otids of messages that were answered, but that the agent did not have when its context was last seen."""
        self.otids: frozenset[str] = frozenset()
        """What it is to send."""
        self.withdrawn: Callable[[], Collection[str]] = frozenset
        """Returns the otids of what does not hold any more; asked after each wait for the agent, which may be long."""
        self.unsent: frozenset[str] = frozenset()
        """Otids of messages that were not sent for that reason."""
        self._on_request = on_request
        self.answers: dict[str, dict[str, Any]] = {}
        """What the server answered to each message, by otid. Of one that was erased and sent again, the last."""
        self.unanswered = False
        """True while a request is on its way."""
        self.counted = False
        """True if that request is counted as a turn already, since nobody waits for its answer any more."""
        self.unsure = False
        """True while a turn at the same time may still erase what was answered."""

    def note(self, request: Request) -> None:
        """Note that a request with messages is over."""
        if request.answer is not None:
            self.answers.update(dict.fromkeys(request.otids, request.answer))
        self._on_request(request)

    def holding(self, messages: Sequence[Message]) -> list[Message]:
        """Return those of the messages that still hold; the others are not sent."""
        withdrawn = self.withdrawn()
        self.unsent = frozenset(message.otid for message in messages if message.otid in withdrawn)
        return [message for message in messages if message.otid not in withdrawn]

    def wait_for(self, what: str) -> None:
        """Note what it waits for now, for people."""
        self.waits_for = what


class Visit:
    """Made for one exchange, by who holds the lane.

    Args:
        transport: the server.
        lane: the destination.
        until: when to give up.
        busy_patience: seconds to wait for a turn that somebody else started.
        on_turn_used: called after each request that may have cost the agent a turn.
        attempt: is kept up to date.
    """

    def __init__(
        self,
        transport: Transport,
        lane: Lane,
        until: Deadline,
        busy_patience: float,
        on_turn_used: Callable[[], None] = lambda: None,
        attempt: Attempt | None = None,
    ) -> None:
        self._transport = transport
        self._lane = lane
        self._until = until
        # Without the caller's cancellation: a request that went out is waited for, since a turn that is cut off can
        # block a conversation.
        self._limit = Deadline(until.at)
        self._busy_patience = busy_patience
        self._on_turn_used = on_turn_used
        self._attempt = attempt or Attempt()
        self._looked_at = 0.0
        """When the newest look at the runs began, here and below of `time.monotonic`."""
        self._idle_at = self._posted_at = self._answered_at = 0.0
        """Of the newest request with messages: when the look began after which it was sent, and so on."""
        self._seen_by: float | None = None
        """When every turn can be seen that may have begun before ours was visible; None while nobody has looked."""
        self._own_runs: set[str] = set()
        self._newest_runs: set[str] = set()
        """Those of them that the newest request started."""
        self._unanswered_at = math.inf
        """When a request of ours was sent whose answer got lost: one of the turns that run may be its."""

    def post(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Send the messages as one request."""
        attempt = self._attempt
        self._posted_at, self._seen_by = time.monotonic(), None
        self._idle_at = self._looked_at or self._posted_at
        attempt.waits_for = "there was no connection to the server yet"
        attempt.unanswered = True
        otids, began = tuple(message.otid for message in messages), time.time_ns()
        try:
            answer = self._transport.send(self._lane, messages, until=self._limit, posting=attempt.posting)
        except LettaError as error:
            attempt.unanswered = False
            attempt.note(Request(otids, began, time.time_ns(), None, error))
            # Other refusals come before the turn begins (measured).
            if error.may_have_landed or isinstance(error, LettaModelError) or error.status == 500:
                self._on_turn_used()
            raise
        self._answered_at = time.monotonic()
        attempt.unanswered = False
        self._on_turn_used()
        self._newest_runs = _runs_of(answer)
        self._own_runs |= self._newest_runs
        attempt.note(Request(otids, began, time.time_ns(), answer))
        return answer

    def arrived(self, messages: Sequence[Message], age: float) -> set[str]:
        """Return the otids of those that the agent has, as soon as no turn may hold some back.

        ``age``: seconds since the first of them may have been sent.
        """
        self._unanswered_at = time.monotonic() - age
        idle = self.wait_until_idle(insist=True)
        self._unanswered_at = math.inf
        if not idle:
            raise LettaTimeoutError(
                f"The turn that may hold the report to {self._lane} still runs", may_have_landed=True
            )
        try:
            stored = self._transport.landed(self._lane, [m.otid for m in messages], age=age, until=self._limit)
        except LettaRequestError as error:
            # This server refuses the check. The messages were not refused, and must not be taken for bad ones.
            raise LettaServerError(
                "Letta does not list its messages", status=error.status, detail=error.detail, may_have_landed=True
            ) from error
        present = self._transport.in_context(self._lane, list(stored.values()), until=self._limit) if stored else set()
        return {otid for otid, stored_as in stored.items() if stored_as in present}

    # -- nobody else's turn ------------------------------------------------------------------------------------------

    def wait_for_gap(self, collisions: int = 0) -> None:
        """Wait until no turn runs. Where others do the same, leave it to chance who begins first.

        All of them see the end of the same turn at about the same moment. ``collisions``: how often that went wrong.
        """
        if not self.wait_until_idle() or self._transport.queues_messages:
            return  # what the server is, is known only now
        chance = min(_CHANCE * 2**collisions, _LONGEST_CHANCE)
        while contention.is_likely(self._lane):
            pause = random.uniform(0.0, chance)  # noqa: S311 - spreads clients, hides nothing
            if self._until.wait(pause):
                raise LettaTimeoutError(f"{self._lane} is busy with other turns")
            if not self._running() or not self.wait_until_idle():
                return

    def wait_until_idle(self, *, insist: bool = False, overlapping: bool = False) -> bool:
        """Wait until no turn runs. Return False if one outlasted the patience.

        ``insist``: also where the server queues messages, and without getting used to a run that does not end.
        ``overlapping``: only turns that may not know what our newest request brought.
        """
        lane = self._lane
        left, looked_at, pause = self._busy_patience, time.monotonic(), 0.1
        while True:
            runs = self._running(overlapping)
            now = time.monotonic()
            # A process that was stopped, or a container that was frozen, did not wait meanwhile: what runs after it is
            # another turn than before.
            left -= min(now - looked_at, pause + _LONGEST_LOOK)
            looked_at = now
            if self._transport.queues_messages and not insist:
                return True  # known only now: the server was asked what it is
            if not runs:
                return True
            self._attempt.waits_for = "the agent was in a turn that somebody else started"
            self._attempt.unsure = overlapping
            if left <= 0:
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
            if self._until.wait(min(pause, left)):
                raise LettaTimeoutError(f"{lane} is busy with another turn")
            pause = min(pause * 1.5, 2.0)

    def _running(self, overlapping: bool = False) -> list[Run]:
        """Return the turns to wait for."""
        self._looked_at = time.monotonic()
        runs = self._active_runs(self._lately if overlapping else None)
        if overlapping:
            runs = self._that_may_erase(runs)
        runs = [run for run in runs if is_worth_waiting_for(self._lane, run)]
        if len(runs) > (1 if self._one_is_ours(runs) else 0):
            contention.note(self._lane)
        return runs

    def _one_is_ours(self, runs: list[Run]) -> bool:
        """Return whether one of these turns is taken for our own, and so for no sign of anybody else.

        One that was taken for somebody else's made every request of the next two minutes wait for a second: 16 ends
        a second instead of 1,000 (measured).
        """
        age = time.monotonic() - self._unanswered_at + _CLOCKS
        return any(age > 0 and (run.age is None or run.age <= age) for run in runs)

    def _that_may_erase(self, runs: list[Run]) -> list[Run]:
        """Return the active ones of others that may have read the context before ours was written.

        The ages are of one moment on the server's clock, so they are compared with our run's. That moment itself is
        seconds behind where the server is busy: its ``Date`` was up to 2.4 s old (measured).
        """
        ours = [run.ended for run in runs if run.id in self._own_runs and run.ended is not None]
        late = max(_SETTLING, (self._seen_by or 0.0) - self._answered_at)
        youngest = min(ours) - late if ours else time.monotonic() - self._answered_at - _CLOCKS
        others = [run for run in runs if run.ended is None and run.id not in self._own_runs]
        return [run for run in others if run.age is None or run.age >= youngest]

    @property
    def _lately(self) -> float:
        """Seconds in which a turn has ended that may have overlapped ours."""
        return time.monotonic() - self._posted_at + _CLOCKS

    def _active_runs(self, lately: float | None) -> list[Run]:
        try:
            active = self._transport.active_runs(self._lane, lately=lately, until=self._limit)
        except LettaRequestError as error:
            # This check is a courtesy; a server that refuses it has not refused the message.
            _logger.debug("%s: cannot see whether the agent is busy: %s", self._lane, error)
            return []
        except LettaError as error:
            outages.note(self._lane.server, error)
            raise
        outages.note(self._lane.server, None)
        return active

    # -- what stayed -------------------------------------------------------------------------------------------------

    def confirm(self, wanted: Sequence[Message]) -> None:
        """See to it that the agent keeps what was answered; send again what a turn at the same time has erased.

        A turn that began before ours ended does not know our message, and when it ends its context replaces the one
        that does (measured). So the verdict needs an agent that is idle, or busy with later turns only. The newest
        turns are not seen at once: it is asked once more after a moment where others send to it too, or where our turn
        was over in a time in which another one may not have become visible.

        What the agent does not have is in ``attempt.missing`` at any time, also when this raises.
        """
        attempt = self._attempt
        resends = 0
        while wanted:
            if not self._was_alone():
                self.wait_until_idle(insist=True, overlapping=True)
            withdrawn = attempt.withdrawn()
            erased = [message for message in self._erased(wanted) if message.otid not in withdrawn]
            attempt.missing = frozenset(message.otid for message in erased)
            if erased:
                contention.note(self._lane)
                self._log_erased(erased, resends < _RESENDS)
                if resends == _RESENDS:
                    attempt.unsure = False  # it was seen what is missing
                    return
                resends += 1
                self.wait_for_gap(resends)
                self.post(erased)
                attempt.missing = frozenset()
                continue
            settling = max(self._answered_at + _SETTLING, self._seen_by or 0.0) - time.monotonic()
            attempt.unsure = contention.is_likely(self._lane) and settling > 0
            if not attempt.unsure:
                return
            if self._until.wait(settling):
                raise LettaTimeoutError(f"No time to see what stays in the context of {self._lane}")

    def _was_alone(self) -> bool:
        """Return True if no turn of anybody else overlapped ours: where one did, there may be more, not seen yet."""
        if self._seen_by is not None and contention.is_likely(self._lane):
            return False
        if not self._saw_nobody():
            return False
        seen_by = self._seen_by or 0.0
        # With no time for a second look, the first one counts.
        return time.monotonic() >= seen_by or not self._can_wait_until(seen_by) or self._saw_nobody()

    def _can_wait_until(self, at: float) -> bool:
        """Wait until then. Return False, as soon as that is known, if there is not so much time."""
        ending = self._transport.ending
        while (left := at - time.monotonic()) > 0:
            if self._until.passed or self._until.left() < left or ending.is_near(left + _CLOSING):
                return False
            ending.wait(min(left, _PAUSE))
        return True

    def _saw_nobody(self) -> bool:
        lately = self._lately
        try:
            runs = self._transport.active_runs(self._lane, lately=lately, until=self._limit)
        except LettaRequestError:
            self._seen_by = self._seen_by or self._answered_at
            return False
        # All ages are of one moment on the server's clock.
        ages = [run.age for run in runs if run.id in self._own_runs and run.age is not None]
        began = max(ages, default=lately)
        if self._seen_by is None:
            self._seen_by = self._when_all_are_seen(runs)
        others = [run for run in runs if run.id not in self._own_runs and is_worth_waiting_for(self._lane, run)]
        if any(run.ended is None or run.ended < began for run in others):
            contention.note(self._lane)
        return not contention.is_likely(self._lane)

    def _when_all_are_seen(self, runs: Sequence[Run]) -> float:
        """Return when every turn can be seen whose sender found the agent idle before ours became visible."""
        ours = [run for run in runs if run.id in self._newest_runs]
        turns = [run.age - (run.ended or 0.0) for run in ours if run.age is not None]
        if not turns:
            return self._answered_at  # who does not see our turn sees no other either: waiting shows nothing
        unseen = self._answered_at - self._idle_at - max(turns)
        if unseen < _SEEN_AT_ONCE:
            return self._answered_at
        return self._idle_at + min(unseen, _LONGEST_UNSEEN) * (1 + _SLOWER)

    def _log_erased(self, erased: Sequence[Message], again: bool) -> None:
        _logger.warning(
            "%s: %d report(s) were erased from the agent's context by a turn at the same time%s",
            self._lane,
            len(erased),
            ": sending again" if again else "",
        )

    def _erased(self, messages: Sequence[Message]) -> list[Message]:
        """Return those of the messages that are stored, but that the agent will not see."""
        stored = self._transport.landed(self._lane, [m.otid for m in messages], until=self._limit)
        present = self._transport.in_context(self._lane, list(stored.values()), until=self._limit)
        # A message that is not even among the newest stored ones was answered in a very long turn: no verdict.
        return [m for m in messages if m.otid in stored and stored[m.otid] not in present]


def _runs_of(answer: dict[str, Any]) -> set[str]:
    """Return the ids of the runs that an answer is of."""
    found = answer.get("messages")
    rows = found if isinstance(found, list) else []
    return {row["run_id"] for row in rows if isinstance(row, dict) and isinstance(row.get("run_id"), str)}
