"""Following an input on its socket until a turn that held it has ended, and letting go of it without harm.

What the comments call measured was measured on 0.34.12.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from otel_letta.errors import LettaError, LettaTimeoutError
from otel_letta.letta.app_server.conversations import stored
from otel_letta.letta.app_server.failures import not_accepted, took_too_long
from otel_letta.letta.app_server.socket import Session, Sessions
from otel_letta.letta.app_server.turns import Turn
from otel_letta.letta.transport import Message
from otel_letta.runtime.deadline import Deadline

_logger = logging.getLogger(__name__)

_STEP = 0.2
"""Seconds between two checks whether the program is about to end."""
_SILENCE = 3.0
"""Seconds without a frame about an input until the server is asked about it."""
_LONGEST_SILENCE = 30.0
_ABORT_TAKES = 0.6
"""Seconds kept for stopping a turn. What matters is that the server has read that before the socket closes; the
turn itself ends when the LLM's answer comes (measured), and nobody has to be there for that."""
_LINGER_AT_MOST = 900.0
"""Seconds. A socket is not kept any longer for a turn that nobody waits for."""


class Watch:
    """A reader of a session's frames about one input, which asks when there are none.

    A slow LLM is as silent as an input that the server knew already and gives no turn. The question is sent, and its
    answer read, among all other frames: a server that does not answer it must not make us close the socket.
    """

    def __init__(self, session: Session, turn: Turn) -> None:
        self._session = session
        self._turn = turn
        self._last_frame = time.monotonic()
        self._patience = _SILENCE
        self._asked = ""
        self._stalled = False

    def step(self) -> bool:
        """Read one frame, or wait a short time for it. Return True if the server says that nothing runs or waits."""
        turn = self._turn
        frame = self._session.receive(_STEP)
        now = time.monotonic()
        if frame is not None:
            if turn.see(frame):
                self._last_frame = now
            if self._asked and frame.get("request_id") == self._asked:
                self._asked = ""
                self._last_frame = now
                if not turn.over and turn.loop_idle:
                    # A queue on an idle loop is a moment between two turns, or what a restart has left (measured).
                    # A turn that was seen to run, and no more is, has just ended: its last frames are on their way.
                    if self._stalled or not (turn.queued or turn.began):
                        return True
                    self._stalled = True
                    return False
                self._stalled = False
                self._patience = min(self._patience * 2, _LONGEST_SILENCE)
        if not self._asked and turn.accepted and now - self._last_frame >= self._patience:
            self._asked = self._session.send("sync", {"runtime": turn.runtime, "recover_approvals": False})
        return False


class Follower:
    """Follows inputs to the end of their turns.

    Args:
        sessions: the owner of the sockets.
        ending: turns that do not end before it are stopped in time.
    """

    def __init__(self, sessions: Sessions, ending: Deadline) -> None:
        self._sessions = sessions
        self._ending = ending

    def follow(self, session: Session, turn: Turn, messages: Sequence[Message], deadline: Deadline) -> set[str]:
        """Wait until the turn is over, or nothing runs. Return the otids of messages that are not stored then.

        Raises:
            LettaRateLimitError: the server does not take the input.
            LettaTimeoutError: the deadline, or the program's end, came first.
            LettaConnectionError: the connection broke.
        """
        watch = Watch(session, turn)
        missing = {message.otid for message in messages}
        woken = False
        while not turn.over:
            nothing_runs = watch.step()
            if turn.accepted is False:
                raise not_accepted(session, turn)
            if self._ending.is_near(_ABORT_TAKES):
                self._stop(session, turn, self._ending.at)
                raise LettaTimeoutError(
                    "The program ended before the agent's turn did; the agent has the report", may_have_landed=True
                )
            if deadline.passed:
                self.linger(session, turn)
                raise took_too_long(session, may_have_landed=True)
            if nothing_runs:
                missing -= stored(session, turn.agent_id, turn.conversation_id, messages).keys()
                if woken or not missing:
                    break
                # After a restart the server holds what it had accepted until somebody starts the conversation.
                # Without a ``mode``, which would be everybody's.
                session.request("runtime_start", turn.runtime, meanwhile=turn.see)
                woken = True
        return missing

    def linger(self, session: Session, turn: Turn) -> None:
        """Keep the socket on a thread until the turn is over, for which nobody waits any more.

        Closing the socket would stop the turn and block the conversation.
        """
        until = time.monotonic() + _LINGER_AT_MOST

        def work() -> None:
            watch = Watch(session, turn)
            try:
                while not turn.over and not watch.step() and time.monotonic() < until:
                    if self._ending.is_near(_ABORT_TAKES):
                        self._stop(session, turn, self._ending.at)
                        return
            except LettaError as error:
                _logger.debug("lost a turn that nobody waited for: %s", error)
            finally:
                self._sessions.done_with(session)

        self._sessions.keep(session)
        try:
            threading.Thread(target=work, name="otel_letta turn", daemon=True).start()
        except RuntimeError:
            # The interpreter is shutting down (Python 3.12 starts no thread then): as long as an abort takes.
            self._stop(session, turn, time.monotonic() + _ABORT_TAKES)
            self._sessions.done_with(session)

    def _stop(self, session: Session, turn: Turn, until: float) -> None:
        """Leave the conversation usable for others, as far as the time allows."""
        try:
            while turn.accepted is None and time.monotonic() < until:
                turn.see(session.receive(_STEP) or {})
            # What runs for others as well is theirs to stop, and their socket keeps it alive.
            if turn.over or turn.with_others or turn.queued:
                return
            session.send("abort_message", {"runtime": turn.runtime})
            while not turn.over and time.monotonic() < until:
                turn.see(session.receive(_STEP) or {})
        except LettaError as error:
            _logger.warning(
                "left %s in the middle of a turn, which may block this conversation until the App Server restarts: %s",
                session.words(turn.conversation_id),
                error,
            )
