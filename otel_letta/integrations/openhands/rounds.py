"""More runs of a conversation, because the supervising Letta agent asked for them in its answer to the last one's end.

There is no loop to fall into: a round begins with an instruction for this very run, in the answer to the report that it
has ended, or waits to be confirmed, and there are no more rounds than its program allows. What the agent answers to
anything else begins none.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from time import monotonic
from typing import TYPE_CHECKING, Any, get_args

from otel_letta.delivery.stats import Throttle
from otel_letta.instruction import Action, Instruction, quoted
from otel_letta.settings import Delivery

if TYPE_CHECKING:
    from otel_letta.integrations.openhands.callbacks import Callback
    from otel_letta.pipeline.instructions import Expected

_logger = logging.getLogger(__name__)
_log = Throttle(_logger)

_MOST_ROUNDS = 100
_REGISTERED = 10.0
"""Seconds in which the pipeline's thread must have found the run."""
_DONE = {
    "continue": "goes on as its supervising agent asks",
    "accept": "its supervising agent has accepted what waited",
    "reject": "its supervising agent has rejected what waited",
}
_POSSIBLE: dict[str, frozenset[str]] = {
    "finished": frozenset({"continue"}),
    "stuck": frozenset({"continue"}),
    "error": frozenset({"continue"}),
    # A message would not do here: OpenHands takes the next run for a confirmation, whatever was sent before it.
    "waiting_for_confirmation": frozenset({"accept", "reject"}),
}
"""What can be asked for, by the execution status that a run has left (openhands-sdk 1.58). Nothing of a paused one."""


class Rounds:
    """The rounds of one `reporting` block.

    Args:
        most: rounds at most.
        patience: seconds to wait for each answer.
        within: seconds after the first run's end in which rounds may begin.
        allow: the actions that are carried out.

    Raises:
        ValueError: a number is no bound, or there is no such action.
    """

    def __init__(
        self, reporter: Callback, *, most: int, patience: float, within: float, allow: Collection[str]
    ) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= _MOST_ROUNDS:
            raise ValueError(f"rounds is {most!r}, not a whole number from 1 to {_MOST_ROUNDS}")
        if not patience > 0 or not within > 0:
            raise ValueError("patience and within are seconds, more than 0")
        unknown = set(allow) - set(get_args(Action)) if not isinstance(allow, str) else {allow}
        if unknown:
            raise ValueError(
                f"allow names what is no action: {sorted(unknown)}; there are {', '.join(get_args(Action))}"
            )
        self._most = most
        self._patience = patience
        self._within = within
        self._allow = frozenset(allow)
        self._callback = reporter
        self._done = 0
        self._until: float | None = None
        self._expecting: Future[Expected | None] | None = None

    def expect(self) -> None:
        """Have the run's end asked about, once it is under way and before it can end."""
        share = self._callback._share
        settings = share.settings
        if not share.active or settings is None:
            return  # it has logged why
        if settings.delivery is Delivery.BOARD:
            _log.log(logging.ERROR, "board", "no run is followed up: OTEL_LETTA_DELIVERY is board, so no agent answers")
            return
        if self._done < self._most:
            self._expecting = share.expect(self._callback._conversation_id or "")

    def asked(self, status: str) -> Instruction | None:
        """Wait for what the agent asks for after a run that left this execution status; None for nothing more."""
        with self._answering(status) as (expected, seconds, possible):
            while expected is not None and (found := expected.wait(seconds)) is not None:
                if self._may(found, possible):
                    return found
        return None

    async def asked_async(self, status: str) -> Instruction | None:
        """`asked` for an event loop."""
        with self._answering(status) as (expected, seconds, possible):
            while expected is not None and (found := await expected.wait_async(seconds)) is not None:
                if self._may(found, possible):
                    return found
        return None

    @contextlib.contextmanager
    def _answering(self, status: str) -> Iterator[tuple[Expected | None, float, frozenset[str]]]:
        """Give what is expected, for how many seconds, and which actions can be carried out."""
        now = monotonic()
        self._until = now + self._within if self._until is None else self._until
        seconds = min(self._patience, self._until - now)
        possible = _POSSIBLE.get(status, frozenset()) & self._allow
        expected = self._expected()
        try:
            yield expected if possible and seconds > 0 else None, seconds, possible
        finally:
            if expected is not None:
                self._callback._share.leave(expected)

    def _expected(self) -> Expected | None:
        future, self._expecting = self._expecting, None
        if future is None:
            return None
        with contextlib.suppress(NotInTime):
            future.result(_REGISTERED)
        return None if future.cancel() else future.result()

    def _may(self, found: Instruction, possible: frozenset[str]) -> bool:
        if found.action in possible:
            return True
        why = "that is not possible now" if found.action in self._allow else "its program does not allow that"
        _log.log(
            logging.WARNING,
            f"{found.action} {why}",
            "the agent asks to %s the run %s: ignored, %s",
            found.action,
            found.task_id,
            why,
        )
        return False

    def begin(self, instruction: Instruction) -> str:
        """Count a round. Return the line that reports it."""
        self._done += 1
        return f"round {self._done} of {self._most}: {_DONE[instruction.action]}"

    def carry_out(self, conversation: Any, instruction: Instruction) -> None:
        """Put an instruction into the conversation, which is to be run afterwards."""
        settings = self._callback._share.settings
        words = quoted(instruction, settings.agent_id if settings is not None else "")
        if instruction.action == "continue":
            conversation.send_message(words)
        elif instruction.action == "reject":
            conversation.reject_pending_actions(words)
        # The next run is the confirmation.
