"""Letta's App Server over its WebSocket as a `Transport`.

The server queues what arrives while the agent is busy, merges what waits into one turn, and stores a message before
the LLM is asked. So nothing is erased here, as it is by a REST server, and a turn that fails has still delivered.
Its own traps are others, all measured on 0.34.12 with the local backend:

- Closing the only socket in the middle of a turn leaves the run active until the server restarts, and every later
  message to the conversation fails. So a socket stays open until its turn has finished, and `leave` ends turns first.
- The default conversations of all agents share one such run: a turn of another agent's makes ours fail for as long
  as it lasts, with the very words of the first trap.
- It remembers for an hour the id of each input, which is that of its first message, and drops a whole input that it
  knows, with what is new in it. So the id that it sees is made from all messages of the input.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaConflictError,
    LettaConnectionError,
    LettaConversationNotFoundError,
    LettaError,
    LettaModelError,
    LettaRateLimitError,
    LettaServerError,
    LettaTimeoutError,
    LettaUnsupportedError,
)
from otel_letta.letta.app_server.socket import Frame, Session
from otel_letta.letta.app_server.turns import DEFAULT_CONVERSATION, Turn
from otel_letta.letta.flavour import ServerInfo
from otel_letta.letta.http import rows
from otel_letta.letta.transport import (
    APP_SERVER_CONVERSATION,
    REST_CONVERSATION,
    Block,
    Lane,
    Message,
    Run,
)
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings, http_url

__all__ = ["AppServerTransport"]

_logger = logging.getLogger(__name__)

_NEWEST = 100
"""How many of a conversation's newest messages are looked at."""
_ANSWER_AT_MOST = 50
"""Messages of the agent's answer that are given back."""
_STEP = 0.2
"""Seconds between two looks whether the program is about to end."""
_GLANCE = 3.0
"""Seconds without any news of an input until the server is asked about it."""
_LONGEST_GLANCE = 30.0
_SHARED_RUN_PATIENCE = 20.0
"""Seconds to wait for another agent's turn that occupies the default conversation. It looks like one that will never
end, and a report that arrives in another conversation is better than one that waits."""
_DETOURS = 2
_DETOUR_LASTS = 1_800.0
"""Seconds until the blocked conversation is tried again. Only a restart of the server frees it, which may go unseen."""
_LOOKS_AFTER_TURN = 0.5
"""Seconds after a turn within which the server looks whether the agent's memory is committed."""
_ABORT_TAKES = 0.6
"""Seconds kept for stopping a turn. What matters is that the server has read the word before the socket closes; the
turn itself ends when the LLM's answer comes (measured), and nobody has to be there for that."""
_LINGER_AT_MOST = 900.0
"""Seconds. A socket is not kept any longer for a turn that nobody waits for."""
_DETOUR_TITLE = "Task reports (otel_letta)"
_NAMESPACE = uuid.UUID("0d0d92a4-5a53-4c0c-8a5c-2a1d3a1b6f1e")
_MOST_REMEMBERED = 1_000
_STATUS = re.compile(r"[45][0-9]{2}: ")
_MARK = "otel_letta "
"""Begins the subject of each commit of a board, before what the board's keeper notes about it."""
_HISTORY = 500


_instances: weakref.WeakSet[AppServerTransport] = weakref.WeakSet()
_inherited: list[Session] = []
"""A forked child's copies of its parent's sockets: kept, since losing the last reference would close them, and the
library would say goodbye to the server in the parent's name."""


fork.in_child_each(_instances, lambda transport: transport._begin_in_child())


class _Watch:
    """Reads a session for news of one input, and asks when there are none.

    A slow LLM is as silent as an input that the server knew already and gives no turn. The question is sent, and its
    answer read, among all other frames: a server that does not answer it must not make us close the socket.
    """

    def __init__(self, session: Session, turn: Turn) -> None:
        self._session = session
        self._turn = turn
        self._heard = time.monotonic()
        self._patience = _GLANCE
        self._asked = ""
        self._stalled = False

    def step(self) -> bool:
        """Read one frame, or wait a short time for it. True if the server says that nothing runs or waits."""
        turn = self._turn
        frame = self._session.receive(_STEP)
        now = time.monotonic()
        if frame is not None:
            if turn.see(frame):
                self._heard = now
            if self._asked and frame.get("request_id") == self._asked:
                self._asked = ""
                self._heard = now
                if not turn.over and turn.loop_idle:
                    # A queue on an idle loop is a moment between two turns, or what a restart has left (measured).
                    # A turn that was seen to run, and no more is, has just ended: its last frames are on their way.
                    if self._stalled or not (turn.queued or turn.began):
                        return True
                    self._stalled = True
                    return False
                self._stalled = False
                self._patience = min(self._patience * 2, _LONGEST_GLANCE)
        if not self._asked and turn.accepted and now - self._heard >= self._patience:
            self._asked = self._session.send("sync", {"runtime": _runtime(turn), "recover_approvals": False})
        return False


class _Held:
    """A lock that is done without if it cannot be had soon: a long turn must not keep the board from its readers."""

    _SOON = 3.0
    """Seconds."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._mine = False

    def __enter__(self) -> _Held:
        self._mine = self._lock.acquire(timeout=self._SOON)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            self._lock.release()


class AppServerTransport:
    """Speaks to one App Server. See `Transport` for what each call means."""

    queues_messages = True

    def __init__(self, settings: Settings, info: ServerInfo | None = None, *, ending: Deadline | None = None) -> None:
        self._settings = settings
        self.ending = Deadline() if ending is None else ending
        self._backend = info.backend if info is not None else ""
        self._server = http_url(settings.base_url)
        self._lock = threading.Lock()
        self._open: set[Session] = set()
        self._begin()
        _instances.add(self)

    def _begin_in_child(self) -> None:
        self.ending.renew()  # it was the parent's
        self._begin()

    def _begin(self) -> None:
        """Everything that belongs to one process."""
        _inherited.extend(self._open)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open = set()
        self._detours: dict[tuple[str, str], tuple[str, float]] = {}
        """Agent and blocked conversation → the one to use instead, and until when (on `time.monotonic`)."""
        self._owners: OrderedDict[str, str] = OrderedDict()
        """Conversation → the agent that it was seen to belong to."""
        self._memory = threading.Lock()
        """Held while the board is written, and during our turns: the server looks right after each turn, and tells the
        agent to see to a file that is not committed by then (measured)."""
        self._turn_ended = -math.inf
        self._unsettled: OrderedDict[tuple[str, ...], list[Message]] = OrderedDict()
        """Inputs without an answer, as they were sent: the same one again is the one thing that cannot double them."""
        self._attempts: OrderedDict[tuple[str, ...], int] = OrderedDict()
        """How many ids were used up for the same messages in the same conversation."""

    # -- lanes -------------------------------------------------------------------------------------------------------

    def lane(self, agent_id: str | None, chat_id: str | None) -> Lane:
        """A ``chat_id`` that has the form of a conversation's id names the conversation, any other is only told."""
        local = self._backend in ("", "local")
        named = chat_id and (APP_SERVER_CONVERSATION.match(chat_id) or (not local and REST_CONVERSATION.match(chat_id)))
        return Lane(self._server, agent_id or self._settings.agent_id, chat_id if named else None)

    # -- messages ----------------------------------------------------------------------------------------------------

    def send(self, lane: Lane, messages: Sequence[Message], *, until: Deadline | None = None) -> dict[str, Any]:
        """Hand over the messages as one input, and wait until a turn that held them has finished.

        Returns:
            ``messages`` (what the agent said and did afterwards, each with ``id``, ``message_type``, ``content``…),
            ``stop_reason``, ``usage`` (tokens and ``step_count``), ``run_id``, ``turn_id`` and ``conversation_id``.
            ``stop_reason`` is empty if the server had the messages already, and ``cancelled`` if somebody stopped
            the turn: the agent has the messages all the same.
        """
        deadline = Deadline.after(self._settings.read_timeout, within=until)
        with self._towards(lane, until) as (session, conversation):
            answer: dict[str, Any] = {}
            rest = list(messages)
            for earlier in self._unsettled_with(conversation, messages):
                answer = self._settle(session, lane, conversation, earlier, deadline)
                settled = {message.otid for message in earlier}
                rest = [message for message in rest if message.otid not in settled]
            return self._settle(session, lane, conversation, rest, deadline) if rest else answer

    def _unsettled_with(self, conversation: str, messages: Sequence[Message]) -> list[list[Message]]:
        """Inputs that were sent before and held one of these messages, whatever else they held."""
        asked = {message.otid for message in messages}
        return [
            list(batch)
            for (where, *otids), batch in list(self._unsettled.items())
            if where == conversation and not asked.isdisjoint(otids)
        ]

    def _settle(
        self, session: Session, lane: Lane, conversation: str, messages: Sequence[Message], deadline: Deadline
    ) -> dict[str, Any]:
        key = _key(conversation, messages)
        try:
            answer = self._deliver(session, lane, conversation, messages, deadline)
        except LettaError as error:
            if error.may_have_landed and not isinstance(error, LettaModelError):
                self._unsettled[key] = list(messages)
                while len(self._unsettled) > _MOST_REMEMBERED:
                    self._unsettled.popitem(last=False)
            else:
                self._unsettled.pop(key, None)
            raise
        self._unsettled.pop(key, None)
        return answer

    def _deliver(
        self, session: Session, lane: Lane, conversation: str, messages: Sequence[Message], deadline: Deadline
    ) -> dict[str, Any]:
        pending = list(messages)
        patience = time.monotonic() + min(_SHARED_RUN_PATIENCE, self._settings.busy_timeout)
        pause = 0.5
        detours = 0
        while True:
            turn, pending = self._run(session, lane.agent_id, conversation, pending, deadline)
            if not turn.over:
                if not pending:
                    return self._answer(session, turn, messages)
                # The server knew the input and has lost it.
                self._use_up(conversation, pending)
                continue
            if not _is_occupied(turn):
                failure = _failure(session, turn)
                if failure is not None:
                    raise failure
                return self._answer(session, turn, messages)
            self._use_up(conversation, pending)
            shared = conversation == DEFAULT_CONVERSATION
            ends = self.ending.at < math.inf
            if shared and not ends and time.monotonic() < patience and not deadline.passed:
                _logger.debug("%s: held, the default conversation is occupied", lane)
                self.ending.wait(deadline.left(pause))
                pause = min(pause * 2, 4.0)
                continue
            if detours == _DETOURS:
                raise LettaConflictError("Every conversation for reports is blocked", hint="restart the App Server")
            conversation = self._detour(session, lane, conversation)
            detours += 1

    def _run(
        self, session: Session, agent_id: str, conversation: str, messages: Sequence[Message], deadline: Deadline
    ) -> tuple[Turn, list[Message]]:
        """Send one input and follow it.

        Returns:
            The turn, and the messages that the server has not stored. The turn is not ``over`` if the server took the
            input for one that it knew, and nothing runs.
        """
        if self.ending.passed:
            raise LettaTimeoutError("The program ends: too late to begin a turn")
        if deadline.passed:
            raise self._took_too_long(may_have_landed=False)
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
        with _Held(self._memory):
            turn.request_id = session.send(
                "input",
                {"runtime": _runtime(turn), "terminal_consumer_id": turn.consumer, "payload": payload},
            )
            try:
                missing = self._follow(session, turn, messages, deadline)
            except LettaError:
                raise
            except BaseException:  # Ctrl-C
                self._linger(session, turn)
                raise
            finally:
                self._turn_ended = time.monotonic()
        return turn, [message for message in messages if message.otid in missing]

    def _follow(self, session: Session, turn: Turn, messages: Sequence[Message], deadline: Deadline) -> set[str]:
        """Until the turn is over, or nothing runs. Returns the otids that are not stored."""
        watch = _Watch(session, turn)
        missing = {message.otid for message in messages}
        woken = False
        while not turn.over:
            nothing_runs = watch.step()
            if turn.accepted is False:
                raise _not_accepted(session, turn)
            if self.ending.is_near(_ABORT_TAKES):
                self._stop(session, turn, self.ending.at)
                raise LettaTimeoutError(
                    "The program ended before the agent's turn did; the agent has the report", may_have_landed=True
                )
            if deadline.passed:
                self._linger(session, turn)
                raise self._took_too_long(may_have_landed=True)
            if nothing_runs:
                missing -= self._stored(session, turn.agent_id, turn.conversation_id, messages).keys()
                if woken or not missing:
                    break
                # After a restart the server holds what it had accepted until somebody starts the conversation.
                # Without a ``mode``, which would be everybody's.
                session.request("runtime_start", _runtime(turn), meanwhile=turn.see)
                woken = True
        return missing

    def _took_too_long(self, *, may_have_landed: bool) -> LettaTimeoutError:
        return LettaTimeoutError(
            f"The agent's turn took longer than {self._settings.read_timeout:g} s",
            hint="it goes on; OTEL_LETTA_READ_TIMEOUT allows more" if may_have_landed else "",
            may_have_landed=may_have_landed,
        )

    def _stop(self, session: Session, turn: Turn, until: float) -> None:
        """Leave the conversation usable for others, as far as the time allows."""
        try:
            while turn.accepted is None and time.monotonic() < until:
                turn.see(session.receive(_STEP) or {})
            # What runs for others as well is theirs to stop, and their socket keeps it alive.
            if turn.over or turn.with_others or turn.queued:
                return
            session.send("abort_message", {"runtime": _runtime(turn)})
            while not turn.over and time.monotonic() < until:
                turn.see(session.receive(_STEP) or {})
        except LettaError as error:
            _logger.warning(
                "left %s in the middle of a turn, which may block this conversation until the App Server restarts: %s",
                session.words(turn.conversation_id),
                error,
            )

    def _linger(self, session: Session, turn: Turn) -> None:
        """Nobody waits any more, but closing the socket would stop the turn and block the conversation."""
        until = time.monotonic() + _LINGER_AT_MOST

        def work() -> None:
            watch = _Watch(session, turn)
            try:
                while not turn.over and not watch.step() and time.monotonic() < until:
                    if self.ending.is_near(_ABORT_TAKES):
                        self._stop(session, turn, self.ending.at)
                        return
            except LettaError as error:
                _logger.debug("lost a turn that nobody waited for: %s", error)
            finally:
                self._done_with(session)

        self._keep(session)
        try:
            threading.Thread(target=work, name="otel_letta turn", daemon=True).start()
        except RuntimeError:
            # The interpreter is shutting down (Python 3.12 starts no thread then): as long as an abort takes.
            self._stop(session, turn, time.monotonic() + _ABORT_TAKES)
            self._done_with(session)

    def _answer(self, session: Session, turn: Turn, messages: Sequence[Message]) -> dict[str, Any]:
        try:
            said = self._said_after(session, turn, {message.otid for message in messages})
        except LettaError as error:
            _logger.debug("could not read the agent's answer: %s", error)
            said = []
        return {
            "messages": said,
            "stop_reason": turn.stop_reason,
            "usage": turn.usage,
            "run_id": turn.run_id,
            "turn_id": turn.turn_id,
            "conversation_id": turn.conversation_id,
        }

    def _said_after(self, session: Session, turn: Turn, otids: set[str]) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        for row in self._messages(session, turn.agent_id, turn.conversation_id):
            otid = row.get("otid")
            if isinstance(otid, str) and otid in otids:
                return said[::-1][-_ANSWER_AT_MOST:]
            if row.get("message_type") != "user_message":
                said.append(row)
        return []  # none of ours is among the newest, so whose answer this is cannot be told

    # -- where to ----------------------------------------------------------------------------------------------------

    def _conversation(self, session: Session, lane: Lane) -> str:
        """The conversation for a lane's messages: the named one, the one for reports, or the agent's default."""
        agent_id = lane.agent_id
        if lane.conversation_id:
            self._check_owner(session, agent_id, lane.conversation_id)
            conversation = lane.conversation_id
        elif self._settings.conversation:
            # Looked up each time: people archive conversations, and delete them.
            conversation = self._titled(session, agent_id, self._settings.conversation)
        else:
            conversation = DEFAULT_CONVERSATION
        return self._around(agent_id, conversation)

    def _around(self, agent_id: str, conversation: str) -> str:
        for _ in range(_DETOURS):
            to, until = self._detours.get((agent_id, conversation), ("", 0.0))
            if not to or time.monotonic() >= until:
                break
            conversation = to
        return conversation

    def _check_owner(self, session: Session, agent_id: str, conversation: str) -> None:
        """The server would run a message for one agent in another agent's conversation, as that one (measured)."""
        owner = self._owners.get(conversation)
        if owner is None:
            answer = session.request("conversation_retrieve", {"conversation_id": conversation})
            found = answer.get("conversation")
            if answer.get("success") is not True or not isinstance(found, dict):
                raise _no_conversation()
            owner = str(found.get("agent_id"))
            self._owners[conversation] = owner
            while len(self._owners) > _MOST_REMEMBERED:
                self._owners.popitem(last=False)
        if owner != agent_id:
            raise _no_conversation()

    def _titled(self, session: Session, agent_id: str, title: str, *, not_in: Sequence[str] = ()) -> str:
        """The agent's oldest conversation of that title, which is made if there is none: the same for all machines."""
        self._check_agent(session, agent_id)
        known = self._of_title(session, agent_id, title, not_in)
        if not known:
            answer = session.request("conversation_create", {"body": {"agent_id": agent_id, "summary": title}})
            if answer.get("success") is not True:
                raise LettaServerError("Could not make a conversation", detail=session.words(answer.get("error")))
            _logger.info("made the conversation %r for reports to %s", title, agent_id)
            # Another machine may have done the same at the same time: both take the older one.
            known = self._of_title(session, agent_id, title, not_in)
        if not known:
            raise LettaServerError("The App Server does not list a conversation that it has just made")
        return known[0]

    def _of_title(self, session: Session, agent_id: str, title: str, not_in: Sequence[str]) -> list[str]:
        # The server lists the newest first, so the oldest is among the listed only if there are not too many. Its
        # search finds parts of titles (measured).
        query = {"agent_id": agent_id, "limit": _NEWEST, "summary_search": title}
        answer = session.request("conversation_list", {"query": query})
        found = [
            (str(row.get("created_at")), row["id"])
            for row in rows(answer.get("conversations"))
            if row.get("summary") == title
            and not row.get("archived")
            and row.get("agent_id") == agent_id
            and isinstance(row.get("id"), str)
            and row["id"] not in not_in
        ]
        return [identifier for _, identifier in sorted(found)]

    def _detour(self, session: Session, lane: Lane, blocked: str) -> str:
        """A conversation that nobody has blocked: a process that was killed in the middle of a turn may have."""
        agent_id = lane.agent_id
        title = self._settings.conversation or _DETOUR_TITLE
        stuck = [blocked, *(origin for agent, origin in list(self._detours) if agent == agent_id)]
        conversation = self._titled(session, agent_id, title, not_in=stuck)
        self._detours[(agent_id, blocked)] = conversation, time.monotonic() + _DETOUR_LASTS
        _logger.warning(
            "%s: conversation %s is blocked by a turn that does not end, until the App Server restarts: reports go to "
            "its conversation %s (%r); one that was under way may arrive twice",
            lane,
            session.words(blocked),
            session.words(conversation),
            title,
        )
        return conversation

    # -- looking -----------------------------------------------------------------------------------------------------

    def active_runs(self, lane: Lane, *, until: Deadline | None = None) -> list[Run]:
        with self._towards(lane, until) as (session, conversation):
            turn = Turn(lane.agent_id, conversation, "", ())
            session.request("sync", {"runtime": _runtime(turn), "recover_approvals": False}, meanwhile=turn.see)
            # What is queued does not count: after a restart it stays there until somebody's next input (measured).
            return [Run(conversation, None)] if turn.loop_idle is False else []

    def landed(self, lane: Lane, otids: Sequence[str], *, until: Deadline | None = None) -> dict[str, str]:
        wanted = [Message("", otid) for otid in otids]
        with self._towards(lane, until) as (session, conversation):
            found = self._stored(session, lane.agent_id, conversation, wanted)
            # The same report may have gone there before the detour was taken.
            for (agent, origin), (to, _) in list(self._detours.items()):
                if agent == lane.agent_id and to == conversation:
                    found = {**self._stored(session, lane.agent_id, origin, wanted), **found}
            return found

    def in_context(self, lane: Lane, message_ids: Sequence[str], *, until: Deadline | None = None) -> set[str]:
        # What is stored is in the next prompt: turns go one after another, and none replaces another's context.
        return set(message_ids)

    def _stored(
        self, session: Session, agent_id: str, conversation: str, messages: Sequence[Message]
    ) -> dict[str, str]:
        wanted = {message.otid for message in messages}
        found = ((row.get("otid"), row.get("id")) for row in self._messages(session, agent_id, conversation))
        return {otid: str(stored) for otid, stored in found if isinstance(otid, str) and otid in wanted}

    def _messages(self, session: Session, agent_id: str, conversation: str) -> list[dict[str, Any]]:
        """The newest first. The default conversation needs its agent in the query, where others need none."""
        answer = session.request(
            "conversation_messages_list",
            {
                "conversation_id": conversation,
                "query": {"agent_id": agent_id, "limit": _NEWEST, "order": "desc"},
            },
        )
        if answer.get("success") is not True:
            raise _from_words(session, answer.get("error")) or LettaServerError(
                "The App Server does not list messages", detail=session.words(answer.get("error")), may_have_landed=True
            )
        return rows(answer.get("messages"))

    def probe(self, lane: Lane, *, until: Deadline | None = None) -> None:
        with self._session(until) as session:
            self._check_agent(session, lane.agent_id)

    def describe(self, agent_id: str, *, until: Deadline | None = None) -> dict[str, Any]:
        with self._session(until) as session:
            return _described(self._check_agent(session, agent_id))

    def agents(self, limit: int, *, until: Deadline | None = None) -> list[dict[str, Any]]:
        with self._session(until) as session:
            answer = session.request("agent_list", {"query": {"limit": limit}})
            return [_described(row) for row in rows(answer.get("agents"))[:limit]]

    def _check_agent(self, session: Session, agent_id: str) -> dict[str, Any]:
        answer = session.request("agent_retrieve", {"agent_id": agent_id})
        agent = answer.get("agent")
        if answer.get("success") is not True or not isinstance(agent, dict):
            raise _from_words(session, answer.get("error")) or LettaServerError(
                "The App Server does not show the agent", detail=session.words(answer.get("error"))
            )
        return agent

    # -- the board: a file in the agent's memory ---------------------------------------------------------------------

    def blocks(self, agent_id: str, *, until: Deadline | None = None) -> list[Block]:
        with self._session(until) as session:
            # Of an agent that does not exist the server lists an empty memory, and makes it (measured).
            self._check_agent(session, agent_id)
            found = []
            marks: dict[str, dict[str, Any]] | None = None
            for entry in self._files(session, agent_id):
                label = _label_of(entry.get("relative_path"))
                if label is None:
                    continue
                metadata: dict[str, Any] = {}
                if label.startswith(self._settings.board_label):
                    marks = self._marks(session, agent_id) if marks is None else marks
                    metadata = marks.get(label, {})
                value = entry.get("content")
                found.append(_block(agent_id, label, value if isinstance(value, str) else "", metadata))
            return found

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
            self._check_agent(session, agent_id)
            if any(_label_of(entry.get("relative_path")) == label for entry in self._files(session, agent_id)):
                raise LettaConflictError(f"The agent already has a memory file {label!r}", status=409)
            self._write_file(session, agent_id, label, _file(label, description, value), metadata, before=None)
            return _block(agent_id, label, value, metadata)

    def write_block(self, block: Block, value: str, metadata: dict[str, Any], *, until: Deadline | None = None) -> None:
        agent_id, _, _ = block.id.partition("/")
        with self._session(until) as session:
            answer = session.request("read_memory_file", {"agent_id": agent_id, "path": _path(block.label)})
            before = answer.get("content")
            if answer.get("success") is not True or not isinstance(before, str):
                self._check_agent(session, agent_id)
                raise LettaConflictError(
                    f"The memory file {block.label!r} was deleted", status=404, hint="it is made again"
                )
            head, description = _head(before)
            if head and before == head + _body(value):
                return  # each write is a commit
            fresh = _file(block.label, description, value)
            self._write_file(session, agent_id, block.label, fresh, metadata, before=before)

    def _write_file(
        self, session: Session, agent_id: str, label: str, content: str, metadata: dict[str, Any], before: str | None
    ) -> None:
        path = _path(label)
        mark = _MARK + json.dumps({"label": label, **metadata}, separators=(",", ":"), sort_keys=True)
        body = {"agent_id": agent_id, "path": path, "content": content, "commit_message": mark}
        with _Held(self._memory):
            time.sleep(min(max(self._turn_ended + _LOOKS_AFTER_TURN - time.monotonic(), 0.0), _LOOKS_AFTER_TURN))
            answer = session.request("write_memory_file", body)
        if answer.get("success") is True:
            return
        # A refused file stays behind, uncommitted, and the agent is told with every turn to see to it (measured).
        if before is not None:
            undo = session.request("write_memory_file", {**body, "content": before})
        else:
            undo = session.request("delete_memory_file", {"agent_id": agent_id, "path": path})
        _logger.debug("took back the refused memory file: %s", undo.get("success"))
        if "lock" in str(answer.get("error")):
            # Two writes at once, of whatever files: git has one lock for them all (measured).
            raise LettaConflictError("The agent's memory was written at the same time", status=409)
        raise LettaConflictError(
            "The App Server refused the memory file of the board",
            detail=session.words(answer.get("error")),
            hint="its check covers the whole memory of the agent: mend what it names",
            parks=True,
        )

    def _files(self, session: Session, agent_id: str) -> list[dict[str, Any]]:
        def merge(parts: Frame, more: Frame) -> Frame:
            return {**more, "entries": [*rows(parts.get("entries")), *rows(more.get("entries"))]}

        answer = session.request("list_memory", {"agent_id": agent_id}, merge=merge)
        if answer.get("success") is not True or answer.get("memfs_enabled") is False:
            raise LettaUnsupportedError(
                "This agent's memory is not kept in files", detail=session.words(answer.get("error"))
            )
        return rows(answer.get("entries"))

    def _marks(self, session: Session, agent_id: str) -> dict[str, dict[str, Any]]:
        """What the boards' keepers noted: it is in the commits, as a file's own head takes no keys but two."""
        answer = session.request("memory_history", {"agent_id": agent_id, "limit": _HISTORY})
        marks: dict[str, dict[str, Any]] = {}
        for commit in rows(answer.get("commits")):
            message = commit.get("message")
            if not isinstance(message, str) or not message.startswith(_MARK):
                continue
            try:
                noted = json.loads(message[len(_MARK) :])
            except (ValueError, RecursionError):
                continue
            if isinstance(noted, dict) and isinstance(noted.get("label"), str):
                marks.setdefault(noted.pop("label"), noted)  # the newest commit comes first
        return marks

    # -- life --------------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        fresh = self._settings.refresh()
        if fresh.identity() == self._settings.identity():
            return
        _logger.info("Letta settings changed: using the new ones")
        self._settings = fresh
        self._server = http_url(fresh.base_url)
        self._forget_server()

    def close(self, *, until: Deadline | None = None) -> None:
        """Nothing is open between calls, and a call under way ends by itself: there is only this to wait for."""
        if until is not None:
            with self._idle:
                while self._open and not until.passed:
                    self._idle.wait(until.left(threading.TIMEOUT_MAX))

    def _forget_server(self) -> None:
        """Another server, or the same after a restart: that frees every conversation."""
        self._detours.clear()
        self._owners.clear()

    @contextmanager
    def _towards(self, lane: Lane, until: Deadline | None) -> Iterator[tuple[Session, str]]:
        """A session, and the conversation that the lane's messages go to now."""
        try:
            with self._session(until) as session:
                yield session, self._conversation(session, lane)
            return
        except LettaConversationNotFoundError as error:
            self._forget_server()
            if lane.conversation_id:
                raise
            detail = error.detail
        except LettaTimeoutError:
            raise
        except LettaConnectionError:
            self._forget_server()
            raise
        # Not the same error: a lane that names no conversation has no other one to be sent to instead.
        raise LettaServerError("The conversation for reports is gone", detail=detail, hint="it is looked up again")

    @contextmanager
    def _session(self, until: Deadline | None = None) -> Iterator[Session]:
        session = Session(self._settings, until)
        self._keep(session)
        try:
            yield session
        finally:
            self._done_with(session)

    def _keep(self, session: Session) -> None:
        with self._lock:
            session.users += 1
            self._open.add(session)

    def _done_with(self, session: Session) -> None:
        with self._lock:
            session.users -= 1
            # Not in a forked child that goes on in the middle of a call: the socket is its parent's.
            last = not session.users and session in self._open
        if last:
            session.close()
            with self._idle:
                self._open.discard(session)
                self._idle.notify_all()

    def _use_up(self, conversation: str, messages: Sequence[Message]) -> None:
        key = _key(conversation, messages)
        self._attempts[key] = self._attempts.pop(key, 0) + 1
        while len(self._attempts) > _MOST_REMEMBERED:
            self._attempts.popitem(last=False)


# -- small things ------------------------------------------------------------------------------------------------------


def _runtime(turn: Turn) -> dict[str, str]:
    return {"agent_id": turn.agent_id, "conversation_id": turn.conversation_id}


def _key(conversation: str, messages: Sequence[Message]) -> tuple[str, ...]:
    return (conversation, *(message.otid for message in messages))


def _is_occupied(turn: Turn) -> bool:
    return "already has an active run" in turn.error


def _failure(session: Session, turn: Turn) -> LettaError | None:
    """What was wrong with a turn that is over. Not raised here, where the server's own words are local variables."""
    if turn.stop_reason == "cancelled" or not (turn.error or turn.stop_reason in ("error", "llm_api_error")):
        return None
    known = _from_words(session, turn.error)
    if known is not None:
        return known
    said = session.words(_innermost(turn.error))
    # The message was stored before the LLM was asked, and is in the agent's next prompt (measured).
    # A request that the LLM refuses as bad (400) is a "local_backend_error" that begins with its status (measured).
    if turn.stop_reason == "llm_api_error" or "llm_error" in turn.error or _STATUS.match(said):
        return LettaModelError(
            detail=said,
            hint="check the LLM that the agent uses on the App Server; your own settings are fine",
            may_have_landed=True,
        )
    return LettaServerError("The agent's turn failed", detail=said, may_have_landed=True)


def _not_accepted(session: Session, turn: Turn) -> LettaError:
    # A full queue, or too many ids to remember: both pass.
    return LettaRateLimitError("The App Server does not take the report now", detail=session.words(turn.refusal))


def _no_conversation() -> LettaError:
    return LettaConversationNotFoundError(hint="the chat id names a conversation that this agent does not have")


def _from_words(session: Session, error: object) -> LettaError | None:
    """The error that the server's sentence stands for: there are no codes."""
    words = session.words(error)
    if words.endswith(" not found"):
        if words.startswith("Agent "):
            return LettaAgentNotFoundError(hint="check LETTA_AGENT_ID")
        if words.startswith("Conversation "):
            return _no_conversation()
    return None


def _innermost(error: str) -> str:
    """The sentence inside the JSON that a failed turn's error is, as far as it is that."""
    try:
        found = json.loads(error)
    except (ValueError, RecursionError):
        return error
    while isinstance(found, dict):
        inner = found.get("error", found.get("message"))
        if isinstance(inner, str) or inner is None:
            return inner or error
        found = inner
    return error


def _described(agent: dict[str, Any]) -> dict[str, Any]:
    return {name: agent[name] for name in ("id", "name", "model") if isinstance(agent.get(name), str)}


# A board is a file in the root of the agent's memory: those are in its prompt, and those in folders, ``system/``
# among them, are not; nor does a file in the root need an index (measured). ``MEMORY.md`` is the root's own index.


def _path(label: str) -> str:
    return f"{label}.md"


def _label_of(path: object) -> str | None:
    if not isinstance(path, str) or "/" in path or not path.endswith(".md") or path == "MEMORY.md":
        return None
    return path[: -len(".md")]


_LIMIT = 5_000
"""Characters of a board. The server takes files of up to 20,000 and a root of 65,536 in all."""


def _block(agent_id: str, label: str, value: str, metadata: dict[str, Any]) -> Block:
    return Block(id=f"{agent_id}/{label}", label=label, value=value, limit=_LIMIT, metadata=metadata)


def _file(label: str, description: str, value: str) -> str:
    # Each key stands on one line and is taken literally, without quotes; the check knows no other keys (measured).
    return f"---\nname: {label}\ndescription: {' '.join(description.split()) or label}\n---\n{_body(value)}"


def _body(value: str) -> str:
    return f"{value.strip()}\n"


def _head(content: str) -> tuple[str, str]:
    """A file's front matter as it stands, and the description in it; empty if it has none."""
    if not content.startswith("---\n"):
        return "", ""
    end = content.find("\n---\n", 3)
    if end < 0:
        return "", ""
    head = content[: end + len("\n---\n")]
    for line in head.splitlines():
        if line.startswith("description:"):
            return head, line.removeprefix("description:").strip()
    return head, ""
