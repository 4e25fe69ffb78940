"""Letta's App Server over its WebSocket as a `Transport`.

The server queues what arrives while the agent is busy, merges what waits into one turn, and stores a message before
the LLM is asked. So nothing is erased here, as it is by a REST server, and a turn that fails has still delivered.
Its own traps are others, all measured on 0.34.12 with the local backend:

- Closing the only socket in the middle of a turn leaves the run active until the server restarts, and every later
  message to the conversation fails. So a socket stays open until its turn has finished, and is stopped before `ending`.
- The default conversations of all agents share one such run: a turn of another agent's makes ours fail for as long
  as it lasts, with the very words of the first trap.
- It remembers for an hour the id of each input, which is that of its first message, and drops a whole input that it
  knows, with what is new in it. So the id that it sees is made from all messages of the input.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from otel_letta.errors import (
    LettaConnectionError,
    LettaConversationNotFoundError,
    LettaServerError,
    LettaTimeoutError,
)
from otel_letta.ids import APP_SERVER_CONVERSATION, REST_CONVERSATION
from otel_letta.letta.answers import rows
from otel_letta.letta.app_server.conversations import (
    Conversations,
    answers_in,
    newest_messages,
    retrieve_agent,
    stored,
)
from otel_letta.letta.app_server.memory import Memory
from otel_letta.letta.app_server.sending import Sender
from otel_letta.letta.app_server.socket import Session, Sessions
from otel_letta.letta.app_server.turns import Turn
from otel_letta.letta.configured import Configured
from otel_letta.letta.flavour import ServerInfo
from otel_letta.letta.transport import Block, Lane, Message, Posting, Run
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings


class AppServerTransport(Configured):
    """An App Server. See `Transport` for what each call means."""

    queues_messages = True

    def __init__(self, settings: Settings, info: ServerInfo | None = None, *, ending: Deadline | None = None) -> None:
        super().__init__(settings, ending)
        self._backend = info.backend if info is not None else ""
        self._sessions = Sessions()
        self._begin()
        _instances.add(self)

    def _begin(self) -> None:
        """Make what belongs to one process."""
        self._conversations = Conversations()
        self._memory = Memory()
        self._sender = Sender(self._sessions, self._conversations, self._memory, self.ending)

    def _begin_in_child(self) -> None:
        self._sessions.leave_to_parent()
        self.ending.renew()
        self._begin()

    def _is_conversation(self, chat_id: str) -> bool:
        # An App Server whose agents live in Letta Cloud may use the Cloud's ids.
        rest = self._backend not in ("", "local") and REST_CONVERSATION.match(chat_id) is not None
        return rest or APP_SERVER_CONVERSATION.match(chat_id) is not None

    def _settings_changed(self) -> None:
        self._conversations.forget()

    def close(self, *, until: Deadline | None = None) -> None:
        """Nothing is open between calls, and a call under way ends by itself: there is only this to wait for."""
        if until is not None:
            self._sessions.wait(until)

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(
        self,
        lane: Lane,
        messages: Sequence[Message],
        *,
        until: Deadline | None = None,
        posting: Posting | None = None,
    ) -> dict[str, Any]:
        """Hand over the messages as one input, and wait until a turn that held them has finished.

        Returns:
            ``messages`` (the agent's words and actions afterwards, each with ``id``, ``message_type``, ``content``…),
            ``stop_reason``, ``usage`` (tokens and ``step_count``), ``run_id``, ``turn_id`` and ``conversation_id``.
            ``stop_reason`` is empty if the server had the messages already, and ``cancelled`` if somebody stopped
            the turn: the agent has the messages all the same.
        """
        self._check_server(lane)
        deadline = Deadline.after(self._settings.read_timeout, within=until)
        with self._towards(lane, until) as (session, conversation):
            return self._sender.send(session, lane, conversation, messages, deadline, posting or Posting())

    def active_runs(self, lane: Lane, *, lately: float | None = None, until: Deadline | None = None) -> list[Run]:
        with self._towards(lane, until) as (session, conversation):
            turn = Turn(lane.agent_id, conversation, "", ())
            session.request("sync", {"runtime": turn.runtime, "recover_approvals": False}, meanwhile=turn.see)
            # What is queued does not count: after a restart it stays there until somebody's next input (measured).
            return [Run(conversation, None)] if turn.loop_idle is False else []

    def landed(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, str]:
        wanted = [Message("", otid) for otid in otids]
        with self._towards(lane, until) as (session, conversation):
            found = stored(session, lane.agent_id, conversation, wanted, age)
            # The same report may have gone there before the detour was taken.
            for origin in self._conversations.replaced_by(lane.agent_id, conversation):
                found = {**stored(session, lane.agent_id, origin, wanted, age), **found}
            return found

    def in_context(self, lane: Lane, message_ids: Sequence[str], *, until: Deadline | None = None) -> set[str]:
        # What is stored is in the next prompt: turns go one after another, and none replaces another's context.
        return set(message_ids)

    def stored_answers(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, dict[str, Any]]:
        with self._towards(lane, until) as (session, conversation):
            newest = list(newest_messages(session, lane.agent_id, conversation, age))
            return answers_in(newest, otids)

    # -- the directory -----------------------------------------------------------------------------------------------

    def probe(self, lane: Lane, *, until: Deadline | None = None) -> None:
        with self._session(until) as session:
            retrieve_agent(session, lane.agent_id)

    def describe(self, agent_id: str, *, until: Deadline | None = None) -> dict[str, Any]:
        with self._session(until) as session:
            return _described(retrieve_agent(session, agent_id))

    def agents(self, limit: int, *, until: Deadline | None = None) -> list[dict[str, Any]]:
        with self._session(until) as session:
            answer = session.request("agent_list", {"query": {"limit": limit}})
            return [_described(row) for row in rows(answer.get("agents"))[:limit]]

    # -- the board ---------------------------------------------------------------------------------------------------

    def blocks(self, agent_id: str, *, until: Deadline | None = None) -> list[Block]:
        with self._session(until) as session:
            return self._memory.blocks(session, agent_id)

    def create_block(
        self,
        agent_id: str,
        label: str,
        value: str,
        limit: int,
        description: str,
        metadata: dict[str, Any],
        *,
        until: Deadline | None = None,
    ) -> Block:
        with self._session(until) as session:
            return self._memory.create(session, agent_id, label, value, description, metadata)

    def write_block(
        self, block: Block, value: str, metadata: dict[str, Any], *, until: Deadline | None = None
    ) -> int | None:
        with self._session(until) as session:
            self._memory.write(session, block, value, metadata)
        return None

    # -- sockets -----------------------------------------------------------------------------------------------------

    def _session(self, until: Deadline | None = None) -> AbstractContextManager[Session]:
        return self._sessions.opened(self._settings, until)

    @contextmanager
    def _towards(self, lane: Lane, until: Deadline | None) -> Iterator[tuple[Session, str]]:
        """Open a session, and find the conversation that the lane's messages go to now."""
        try:
            with self._session(until) as session:
                yield session, self._conversations.of_lane(session, lane)
            return
        except LettaConversationNotFoundError as error:
            self._conversations.forget()
            if lane.conversation_id:
                raise
            detail = error.detail
        except LettaTimeoutError:
            raise
        except LettaConnectionError:
            self._conversations.forget()
            raise
        # Not the same error: a lane that names no conversation has no other one to be sent to instead.
        raise LettaServerError("The conversation for reports is gone", detail=detail, hint="it is looked up again")


_instances: weakref.WeakSet[AppServerTransport] = weakref.WeakSet()
fork.in_child_each(_instances, AppServerTransport._begin_in_child)


def _described(agent: dict[str, Any]) -> dict[str, Any]:
    return {name: agent[name] for name in ("id", "name", "model") if isinstance(agent.get(name), str)}
