"""Handing messages to an App Server as inputs, so that none is lost and none arrives twice."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from otel_letta.errors import LettaConflictError, LettaError, LettaModelError, LettaTimeoutError
from otel_letta.letta.app_server.conversations import MOST_DETOURS, Conversations, newest_messages
from otel_letta.letta.app_server.failures import failure_of, took_too_long
from otel_letta.letta.app_server.following import Follower
from otel_letta.letta.app_server.memory import Memory
from otel_letta.letta.app_server.socket import Session, Sessions
from otel_letta.letta.app_server.turns import DEFAULT_CONVERSATION, Turn
from otel_letta.letta.transport import Lane, Message, Posting
from otel_letta.recent import Recent
from otel_letta.runtime.deadline import Deadline

_logger = logging.getLogger(__name__)

_ANSWER_AT_MOST = 50
"""Messages of the agent's answer that are given back."""
_SHARED_RUN_PATIENCE = 20.0
"""Seconds to wait for another agent's turn that occupies the default conversation. It looks like one that will never
end, and a report that arrives in another conversation is better than one that waits."""
_NAMESPACE = uuid.UUID("0d0d92a4-5a53-4c0c-8a5c-2a1d3a1b6f1e")


class Sender:
    """Sends messages, and remembers those of which nobody knows what became of them.

    Args:
        sessions: the owner of the sockets.
        conversations: ways around a blocked one.
        memory: left alone during a turn.
        ending: no turn is begun after it, and none goes on beyond it.
    """

    def __init__(self, sessions: Sessions, conversations: Conversations, memory: Memory, ending: Deadline) -> None:
        self._conversations = conversations
        self._memory = memory
        self._ending = ending
        self._follower = Follower(sessions, ending)
        self._unsettled: Recent[tuple[str, ...], list[Message]] = Recent()
        """Inputs without an answer, as they were sent: the same one again is the one thing that cannot double them."""
        self._attempts: Recent[tuple[str, ...], int] = Recent()
        """How many ids were used up for the same messages in the same conversation."""

    def send(
        self,
        session: Session,
        lane: Lane,
        conversation: str,
        messages: Sequence[Message],
        deadline: Deadline,
        posting: Posting,
    ) -> dict[str, Any]:
        """See `AppServerTransport.send`."""
        answer: dict[str, Any] = {}
        rest = list(messages)
        for earlier in self._unsettled_with(conversation, messages):
            answer = self._settle(session, lane, conversation, earlier, deadline, posting)
            settled = {message.otid for message in earlier}
            rest = [message for message in rest if message.otid not in settled]
        return self._settle(session, lane, conversation, rest, deadline, posting) if rest else answer

    def _unsettled_with(self, conversation: str, messages: Sequence[Message]) -> list[list[Message]]:
        """Return the inputs that were sent before and held one of these messages, whatever else they held."""
        asked = {message.otid for message in messages}
        return [
            list(batch)
            for (where, *otids), batch in list(self._unsettled.items())
            if where == conversation and not asked.isdisjoint(otids)
        ]

    def _settle(
        self,
        session: Session,
        lane: Lane,
        conversation: str,
        messages: Sequence[Message],
        deadline: Deadline,
        posting: Posting,
    ) -> dict[str, Any]:
        key = _key(conversation, messages)
        try:
            answer = self._deliver(session, lane, conversation, messages, deadline, posting)
        except LettaError as error:
            if error.may_have_landed and not isinstance(error, LettaModelError):
                self._unsettled[key] = list(messages)
            else:
                self._unsettled.pop(key, None)
            raise
        self._unsettled.pop(key, None)
        return answer

    def _deliver(
        self,
        session: Session,
        lane: Lane,
        conversation: str,
        messages: Sequence[Message],
        deadline: Deadline,
        posting: Posting,
    ) -> dict[str, Any]:
        """Send the messages until a turn has held them all, in another conversation if this one is blocked."""
        pending = list(messages)
        patience = time.monotonic() + min(_SHARED_RUN_PATIENCE, session.settings.busy_timeout)
        pause = 0.5
        detours = 0
        while True:
            turn, pending = self._run(session, lane.agent_id, conversation, pending, deadline, posting)
            if not turn.over:
                if not pending:
                    return _answer(session, turn, messages)
                # The server knew the input and has lost it.
                self._use_up(conversation, pending)
                continue
            if not turn.is_occupied:
                failure = failure_of(session, turn)
                if failure is not None:
                    raise failure
                return _answer(session, turn, messages)
            self._use_up(conversation, pending)
            may_wait = conversation == DEFAULT_CONVERSATION and self._ending.at == math.inf
            if may_wait and time.monotonic() < patience and not deadline.passed:
                _logger.debug("%s: held, the default conversation is occupied", lane)
                self._ending.wait(deadline.left(pause))
                pause = min(pause * 2, 4.0)
                continue
            if detours == MOST_DETOURS:
                raise LettaConflictError("Every conversation for reports is blocked", hint="restart the App Server")
            conversation = self._conversations.detour(session, lane, conversation)
            detours += 1

    def _run(
        self,
        session: Session,
        agent_id: str,
        conversation: str,
        messages: Sequence[Message],
        deadline: Deadline,
        posting: Posting,
    ) -> tuple[Turn, list[Message]]:
        """Send one input and follow it.

        Returns:
            The turn, and the messages that the server has not stored. The turn is not ``over`` if the server took the
            input for one that it knew, and nothing runs.
        """
        if self._ending.passed:
            raise LettaTimeoutError("The program ends: too late to begin a turn")
        if deadline.passed:
            raise took_too_long(session, may_have_landed=False)
        attempt = self._attempts.get(_key(conversation, messages), 0)
        # As stable as the messages' own ids, so that after silence the same input can be sent again.
        name = "\n".join([conversation, str(attempt), *(message.otid for message in messages)])
        frame_id = str(uuid.uuid5(_NAMESPACE, name))
        ids = [frame_id, *(str(uuid.uuid5(_NAMESPACE, f"{frame_id} {n}")) for n in range(1, len(messages)))]
        turn = Turn(agent_id, conversation, f"otel-letta-{uuid.uuid4()}", ids)
        payload = {
            "kind": "create_message",
            # Nobody is there to answer a question that the agent would ask with such a tool.
            "exclude_interactive_tools": True,
            "messages": [
                {"role": "user", "content": message.content, "otid": message.otid, "client_message_id": identifier}
                for message, identifier in zip(messages, ids, strict=True)
            ],
        }
        body = {"runtime": turn.runtime, "terminal_consumer_id": turn.consumer, "payload": payload}
        with self._memory.during_turn():
            posting.begin()
            turn.request_id = session.send("input", body)
            posting.complete()
            try:
                missing = self._follower.follow(session, turn, messages, deadline)
            except LettaError:
                raise
            except BaseException:  # Ctrl-C
                self._follower.linger(session, turn)
                raise
        return turn, [message for message in messages if message.otid in missing]

    def _use_up(self, conversation: str, messages: Sequence[Message]) -> None:
        key = _key(conversation, messages)
        self._attempts[key] = self._attempts.pop(key, 0) + 1


def _key(conversation: str, messages: Sequence[Message]) -> tuple[str, ...]:
    return (conversation, *(message.otid for message in messages))


def _answer(session: Session, turn: Turn, messages: Sequence[Message]) -> dict[str, Any]:
    try:
        replies = _replies(session, turn, {message.otid for message in messages})
    except LettaError as error:
        _logger.debug("could not read the agent's answer: %s", error)
        replies = []
    return {
        "messages": replies,
        "stop_reason": turn.stop_reason,
        "usage": turn.usage,
        "run_id": turn.run_id,
        "turn_id": turn.turn_id,
        "conversation_id": turn.conversation_id,
    }


def _replies(session: Session, turn: Turn, otids: set[str]) -> list[dict[str, Any]]:
    """Return the agent's messages since the last one of ours."""
    replies: list[dict[str, Any]] = []
    for row in newest_messages(session, turn.agent_id, turn.conversation_id):
        otid = row.get("otid")
        if isinstance(otid, str) and otid in otids:
            return replies[::-1][-_ANSWER_AT_MOST:]
        if row.get("message_type") != "user_message":
            replies.append(row)
    return []  # none of ours is among the newest, so nobody knows whose answer this is
