"""An App Server's agents, their conversations, and the messages in those.

What the comments call measured was measured on 0.34.12.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from otel_letta.errors import LettaServerError
from otel_letta.letta.answers import moment, rows
from otel_letta.letta.app_server.failures import no_conversation, not_found
from otel_letta.letta.app_server.socket import Session
from otel_letta.letta.app_server.turns import DEFAULT_CONVERSATION
from otel_letta.letta.configured import another_agents
from otel_letta.letta.transport import Lane, Message
from otel_letta.recent import Recent

_logger = logging.getLogger(__name__)

_NEWEST = 100
"""Messages, or conversations, that are asked for at once."""
_MOST_PAGES = 200
"""Pages that are read in search of a message."""
_CLOCKS = timedelta(seconds=60)
"""The time by which a message may seem older than its input."""
MOST_DETOURS = 2
_DETOUR_LASTS = 1_800.0
"""Seconds until the blocked conversation is tried again. Only a restart of the server frees it, which may go unseen."""
_DETOUR_TITLE = "Task reports (otel_letta)"


def retrieve_agent(session: Session, agent_id: str) -> dict[str, Any]:
    """Return the server's record of the agent; raise what is wrong with it."""
    answer = session.request("agent_retrieve", {"agent_id": agent_id})
    agent = answer.get("agent")
    if answer.get("success") is not True or not isinstance(agent, dict):
        raise not_found(session, answer.get("error")) or LettaServerError(
            "The App Server does not show the agent", detail=session.words(answer.get("error"))
        )
    return agent


def newest_messages(session: Session, agent_id: str, conversation: str, age: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yield a conversation's messages, the newest first, back to those that are older than ``age`` seconds."""
    since = datetime.now(timezone.utc) - timedelta(seconds=age) - _CLOCKS
    # The default conversation needs its agent in the query, where others need none.
    query = {"agent_id": agent_id, "limit": _NEWEST, "order": "desc"}
    for _ in range(_MOST_PAGES):
        answer = session.request("conversation_messages_list", {"conversation_id": conversation, "query": dict(query)})
        if answer.get("success") is not True:
            raise not_found(session, answer.get("error")) or LettaServerError(
                "The App Server does not list messages", detail=session.words(answer.get("error")), may_have_landed=True
            )
        page = rows(answer.get("messages"))
        yield from page
        # Measured: ``next_before`` is the oldest message of the page, and ``before`` gives those before it.
        before, oldest = answer.get("next_before"), moment(page[-1].get("date")) if page else None
        if answer.get("has_more") is not True or not isinstance(before, str) or before == query.get("before"):
            return
        if oldest is not None and oldest < since:
            return
        query["before"] = before
    _logger.debug("%s: gave up the search in its messages after %d pages", conversation, _MOST_PAGES)


def stored(
    session: Session, agent_id: str, conversation: str, messages: Sequence[Message], age: float = 0.0
) -> dict[str, str]:
    """Return which of the messages the conversation holds: otid → the server's message id.

    ``age``: seconds since the first of them may have been sent.
    """
    wanted = {message.otid for message in messages}
    found: dict[str, str] = {}
    for row in newest_messages(session, agent_id, conversation, age):
        otid = row.get("otid")
        if isinstance(otid, str) and otid in wanted:
            found.setdefault(otid, str(row.get("id")))
            if len(found) == len(wanted):
                break
    return found


def answers_in(newest: Sequence[dict[str, Any]], otids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the answers to messages, each in the form of a turn's: otid → answer.

    Rows do not name their run (measured), but turns go one after another: an answer is what follows the message, up to
    the next one that somebody sends.

    Args:
        newest: a conversation's messages, the newest first, while no turn runs.
        otids: of the messages.
    """
    found: dict[str, dict[str, Any]] = {}
    asked: list[object] = []
    answer: dict[str, Any] | None = None
    for row in reversed(newest):
        if row.get("message_type") == "user_message":
            asked = [row.get("otid")] if answer is not None else [*asked, row.get("otid")]
            answer = None
            continue
        if answer is None:
            answer = {"messages": []}
            found.update((otid, answer) for otid in otids if otid in asked)
        answer["messages"].append(row)
    return found


class Conversations:
    """The conversations that lanes' messages go to, and the ways around those that are blocked."""

    def __init__(self) -> None:
        self.detours: dict[tuple[str, str], tuple[str, float]] = {}
        """Agent and blocked conversation → the one to use instead, and until when (on `time.monotonic`)."""
        self.owners: Recent[str, str] = Recent()
        """Conversation → the agent that it was seen to belong to."""

    def forget(self) -> None:
        """Begin anew: it is another server, or the same after a restart, which frees every conversation."""
        self.detours.clear()
        self.owners.clear()

    def of_lane(self, session: Session, lane: Lane) -> str:
        """Return the conversation for a lane's messages: the named one, the one for reports, or the agent's default."""
        conversation = DEFAULT_CONVERSATION
        if lane.conversation_id:
            self._check_owner(session, lane.agent_id, lane.conversation_id)
            conversation = lane.conversation_id
        elif session.settings.conversation:
            # Looked up each time: people archive conversations, and delete them.
            conversation = _titled(session, lane.agent_id, session.settings.conversation)
        for _ in range(MOST_DETOURS):
            to, until = self.detours.get((lane.agent_id, conversation), ("", 0.0))
            if not to or time.monotonic() >= until:
                break
            conversation = to
        return conversation

    def replaced_by(self, agent_id: str, conversation: str) -> list[str]:
        """Return the blocked conversations that this one is used instead of."""
        detours = list(self.detours.items())
        return [origin for (agent, origin), (to, _) in detours if agent == agent_id and to == conversation]

    def detour(self, session: Session, lane: Lane, blocked: str) -> str:
        """Return a conversation that nobody has blocked: a process that was killed in the middle of a turn may have."""
        agent_id = lane.agent_id
        title = session.settings.conversation or _DETOUR_TITLE
        stuck = [blocked, *(origin for agent, origin in list(self.detours) if agent == agent_id)]
        conversation = _titled(session, agent_id, title, not_in=stuck)
        self.detours[(agent_id, blocked)] = conversation, time.monotonic() + _DETOUR_LASTS
        _logger.warning(
            "%s: conversation %s is blocked by a turn that does not end, until the App Server restarts: reports go to "
            "its conversation %s (%r); one that was under way may arrive twice",
            lane,
            session.words(blocked),
            session.words(conversation),
            title,
        )
        return conversation

    def _check_owner(self, session: Session, agent_id: str, conversation: str) -> None:
        # The server would run a message for one agent in another agent's conversation, as that one (measured).
        owner = self.owners.get(conversation)
        if owner is None:
            answer = session.request("conversation_retrieve", {"conversation_id": conversation})
            found = answer.get("conversation")
            if answer.get("success") is not True or not isinstance(found, dict):
                raise no_conversation()
            owner = self.owners[conversation] = str(found.get("agent_id"))
        if owner != agent_id:
            raise another_agents()


def _titled(session: Session, agent_id: str, title: str, *, not_in: Sequence[str] = ()) -> str:
    """Return the agent's oldest conversation of that title, made if there is none: the same for all machines."""
    retrieve_agent(session, agent_id)
    known = _of_title(session, agent_id, title, not_in)
    if not known:
        answer = session.request("conversation_create", {"body": {"agent_id": agent_id, "summary": title}})
        if answer.get("success") is not True:
            raise LettaServerError("Could not make a conversation", detail=session.words(answer.get("error")))
        _logger.info("made the conversation %r for reports to %s", title, agent_id)
        # Another machine may have done the same at the same time: both take the older one.
        known = _of_title(session, agent_id, title, not_in)
    if not known:
        raise LettaServerError("The App Server does not list a conversation that it has just made")
    return known[0]


def _of_title(session: Session, agent_id: str, title: str, not_in: Sequence[str]) -> list[str]:
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
