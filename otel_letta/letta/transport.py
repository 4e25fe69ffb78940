"""The doorway between delivery and a Letta server: what any flavour of server must be able to do.

All calls block and raise nothing but `otel_letta.errors.LettaError`. A transport is safe to use from several
threads; whoever calls `send` holds the lane's gate (`letta.gate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from otel_letta.ids import APP_SERVER_CONVERSATION, REST_CONVERSATION

__all__ = [
    "APP_SERVER_CONVERSATION",
    "REST_CONVERSATION",
    "Block",
    "Lane",
    "Message",
    "Run",
    "Transport",
    "call_deadline",
]

call_deadline: ContextVar[float | None] = ContextVar("otel_letta_call_deadline", default=None)
"""Seconds of `time.monotonic` after which a call has to give up, whatever the settings allow: somebody waits."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Where messages go one after another: one server, one agent, one conversation (None: the agent's default)."""

    server: str
    agent_id: str
    conversation_id: str | None = None

    def __str__(self) -> str:
        where = f"{self.agent_id} at {self.server}"
        return f"{where}, conversation {self.conversation_id}" if self.conversation_id else where


@dataclass(frozen=True, slots=True)
class Message:
    """One user message. ``otid`` is the client's own id for it, stored by the server and listed with the message."""

    content: str
    otid: str


@dataclass(frozen=True, slots=True)
class Run:
    """A turn that the server calls active. ``age`` in seconds by the server's own creation time, None if unknown."""

    id: str
    age: float | None


@dataclass(frozen=True, slots=True)
class Block:
    """A memory block of an agent."""

    id: str
    label: str
    value: str
    limit: int
    metadata: dict[str, Any] = field(default_factory=dict)


class Transport(Protocol):
    """What delivery asks of a Letta server."""

    @property
    def queues_messages(self) -> bool:
        """True if the server itself makes messages wait for a running turn, so that none erases another."""

    def lane(self, agent_id: str | None, chat_id: str | None) -> Lane:
        """The lane of a report; ``agent_id`` None is the configured agent."""

    def send(self, lane: Lane, messages: Sequence[Message]) -> dict[str, Any]:
        """Post the messages as one request and wait for the agent's turn. Returns the server's answer."""

    def active_runs(self, lane: Lane) -> list[Run]:
        """Turns of the lane's agent that are being computed now."""

    def landed(self, lane: Lane, otids: Sequence[str]) -> dict[str, str]:
        """Which of our messages are stored: otid → the server's message id."""

    def in_context(self, lane: Lane, message_ids: Sequence[str]) -> set[str]:
        """Which of these messages the agent will see in its next prompt."""

    def probe(self, lane: Lane) -> None:
        """A cheap authenticated request about the lane's agent; raises what is wrong with it."""

    def describe(self, agent_id: str) -> dict[str, Any]:
        """What the server says about the agent, for people: ``id``, ``name``, ``model``, each a str or left out.

        Raises what is wrong, as `probe` does.
        """

    def agents(self, limit: int) -> list[dict[str, Any]]:
        """Some agents of the server, at most ``limit``, each as in `describe`, for people to choose from."""

    def reload(self) -> None:
        """Read the settings again: people rotate passwords while a program runs."""

    def blocks(self, agent_id: str) -> list[Block]:
        """Memory blocks attached to the agent."""

    def create_block(
        self, agent_id: str, label: str, value: str, limit: int, description: str, metadata: dict[str, Any]
    ) -> Block:
        """Create a block that is read-only for the agent, and attach it."""

    def write_block(self, block: Block, value: str, metadata: dict[str, Any]) -> None:
        """Replace the block's value. Idempotent."""

    def close(self) -> None:
        """Release connections. Later calls may open new ones."""

    def leave(self, deadline: float, *, wait: bool = False) -> None:
        """The process ends at ``deadline`` (on `time.monotonic`): end what is being sent before that, in a way that
        does the server no harm. ``wait``: block until that is done, or the deadline."""
