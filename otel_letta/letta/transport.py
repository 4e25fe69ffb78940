"""The doorway between delivery and a Letta server: what any flavour of server must be able to do.

Calls that take ``until`` block: for as long as the settings' time-outs allow, and no longer than until that deadline.
All raise nothing but `otel_letta.errors.LettaError`. A transport is safe to use from several threads; whoever calls
`Messages.send` holds the lane's gate (`otel_letta.delivery.gate`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from otel_letta.answer import Answer
from otel_letta.errors import LettaTimeoutError
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.imports import Protocol


class Lane(NamedTuple):
    """One server, agent and conversation (None: the agent's default): messages to it go one after another."""

    server: str
    agent_id: str
    conversation_id: str | None = None

    def __str__(self) -> str:
        where = f"{self.agent_id} at {self.server}"
        return f"{where}, conversation {self.conversation_id}" if self.conversation_id else where


class Message(NamedTuple):
    """One user message. ``otid`` is the client's own id for it, stored by the server and listed with the message."""

    content: str
    otid: str


class Run(NamedTuple):
    """A turn that the server shows. ``age`` in seconds by the server's own creation time, None if unknown."""

    id: str
    age: float | None
    ended: float | None = None
    """Seconds since it ended; None for one that is active."""


class Posting:
    """Whether a request has gone out, for who cannot wait for its answer. Safe to use from several threads.

    The transport calls `begin` before the first byte that could start a turn, and `complete` when the server has all
    that it needs to start one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = False
        self._abandoned = False
        self.sent = False
        """True once the whole request is on the wire: a turn may run, whatever is answered."""

    def begin(self) -> None:
        """Note that the request is about to go out.

        Raises:
            LettaTimeoutError: it was abandoned, and must not.
        """
        with self._lock:
            if self._abandoned:
                raise LettaTimeoutError("Gave up before the report was sent")
            self._begun = True

    def complete(self) -> None:
        """Note that the server has the whole request."""
        self.sent = True

    def abandon(self) -> bool:
        """See to it that the request does not go out. Return False if it is too late for that."""
        with self._lock:
            self._abandoned = True
            return not self._begun


class Block(NamedTuple):
    """A memory block of an agent."""

    id: str
    label: str
    value: str
    limit: int
    metadata: Mapping[str, Any] = MappingProxyType({})


class Server(Protocol):
    """The part of a Letta server that all of its users need."""

    ending: Deadline
    """When the program ends, or this part of it. Without a limit until somebody brings it forward: what is being sent
    then is ended before that time, in a way that does the server no harm."""

    def lane(self, agent_id: str | None, chat_id: str | None) -> Lane:
        """Return the lane of a report; ``agent_id`` None is the configured agent."""

    def reload(self) -> None:
        """Read the settings again: people rotate passwords while a program runs."""

    def close(self, *, until: Deadline | None = None) -> None:
        """Release connections. Later calls may open new ones.

        With ``until``, wait first for what is being ended because of `ending`, until that deadline at most.
        """


class Messages(Server, Protocol):
    """The messages of agents. Each request costs the agent a turn."""

    @property
    def queues_messages(self) -> bool:
        """True if the server itself makes messages wait for a running turn, so that none erases another."""

    def send(
        self,
        lane: Lane,
        messages: Sequence[Message],
        *,
        until: Deadline | None = None,
        posting: Posting | None = None,
    ) -> dict[str, Any]:
        """Post the messages as one request and wait for the agent's turn. Return the server's answer.

        ``posting`` is kept up to date meanwhile.
        """

    def active_runs(self, lane: Lane, *, lately: float | None = None, until: Deadline | None = None) -> list[Run]:
        """Return the turns of the lane's agent that are being computed now.

        With ``lately``, also those that ended within so many seconds, if the server shows them.
        """

    def landed(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, str]:
        """Return which of our messages are stored: otid → the server's message id, the newest if there are several.

        ``age`` is how many seconds ago the first of them may have been sent: so far back is looked.
        """

    def in_context(self, lane: Lane, message_ids: Sequence[str], *, until: Deadline | None = None) -> set[str]:
        """Return which of these messages the agent has: those in its next prompt, and those that were in one until
        somebody compacted or reset its context. The rest was erased by a turn at the same time."""

    def answer(self, lane: Lane, response: Mapping[str, Any]) -> Answer:
        """Return what the agent says in a server's answer, as `send` or `stored_answers` returned it; asks nobody."""

    def stored_answers(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the server's answers to messages of ours as far as they are stored, each in the form that `send`
        returns: otid → answer, the same one for all messages of one turn. ``age`` as in `landed`.

        For who lost the answer itself. One that cannot be told from another turn's is left out.
        """

    def probe(self, lane: Lane, *, until: Deadline | None = None) -> None:
        """Make a cheap authenticated request about the lane's agent, and raise what is wrong with it."""


class Board(Server, Protocol):
    """The memory blocks of agents. Writing one costs no turn."""

    def blocks(self, agent_id: str, *, until: Deadline | None = None) -> list[Block]:
        """Return the memory blocks attached to the agent.

        Raises:
            LettaUnsupportedError: there are none, and another try would find none either.
        """

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
        """Create a block that is read-only for the agent, and attach it."""

    def write_block(
        self, block: Block, value: str, metadata: dict[str, Any], *, until: Deadline | None = None
    ) -> int | None:
        """Replace the block's value. Idempotent. Return the block's limit as the server names it now, if it does."""


class Directory(Protocol):
    """The agents of a server, for people."""

    def describe(self, agent_id: str, *, until: Deadline | None = None) -> dict[str, Any]:
        """Return the agent's ``id``, ``name`` and ``model``, each a str or left out; raise as `Messages.probe` does."""

    def agents(self, limit: int, *, until: Deadline | None = None) -> list[dict[str, Any]]:
        """Return some agents of the server, at most ``limit``, each as in `describe`, for people to choose from."""


class Transport(Messages, Board, Directory, Protocol):
    """A Letta server of any flavour."""
