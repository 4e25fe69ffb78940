"""Everything that the in-memory server keeps: agents, their messages and blocks, runs, and the requests that came."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

_DEFAULT_BLOCK_LIMIT = 100_000
_SYSTEM_PROMPT = "You are an agent without a model: every turn ends with an acknowledgement."

UUID4 = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
# Prefix of an identifier by the name of the path parameter; other parameters (labels) are free text.


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request as it arrived, whether it was then answered, refused or dropped."""

    method: str
    path: str
    """Without the query, as it was sent (not unquoted)."""
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case; credentials are masked."""
    body: Any
    """The decoded JSON, the text if it was none, or None."""
    time: float
    """Arrival in seconds on the clock of `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that a client sent and the server stored."""

    role: str
    content: str
    """Text parts are joined."""
    otid: str | None
    conversation_id: str | None


# -- what the server keeps ----------------------------------------------------------------------------------------


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4()}"


def now() -> datetime:
    return datetime.now(timezone.utc)


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(slots=True)
class Message:
    role: str
    content: str | list[dict[str, Any]]
    otid: str | None = None
    name: str | None = None
    sender_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    conversation_id: str | None = None
    received: bool = False
    fields: dict[str, Any] | None = None
    """What a row has instead of content, if it is not of a message but of a tool call or of reasoning."""
    id: str = field(default_factory=lambda: new_id("message"))
    date: str = field(default_factory=lambda: now().isoformat(timespec="seconds"))

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content)

    def row(self) -> dict[str, Any]:
        """Show the message as listings and answers have it."""
        return {
            "id": self.id,
            "date": self.date,
            "name": self.name,
            "message_type": f"{self.role}_message",
            "otid": self.otid,
            "sender_id": self.sender_id,
            "step_id": self.step_id,
            "is_err": None,
            "seq_id": None,
            "run_id": self.run_id,
            **({"content": self.content} if self.fields is None else self.fields),
        }


@dataclass(slots=True)
class Block:
    label: str
    value: str = ""
    limit: int = _DEFAULT_BLOCK_LIMIT
    description: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    read_only: bool = False
    id: str = field(default_factory=lambda: new_id("block"))

    def row(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "limit": self.limit,
            "label": self.label,
            "read_only": self.read_only,
            "description": self.description,
            "metadata": copy.deepcopy(self.metadata),
            "hidden": None,
            "tags": [],
            "id": self.id,
        }

    def prompt(self) -> str:
        """Show the block inside the system prompt: its value goes in raw, nothing is escaped there."""
        return (
            f"<{self.label}>\n<description>{self.description or ''}</description>\n"
            f"<metadata>chars_current={len(self.value)} chars_limit={self.limit}</metadata>\n"
            f"<value>{self.value}</value>\n</{self.label}>"
        )


@dataclass(slots=True)
class Run:
    agent_id: str
    conversation_id: str | None
    status: str = "created"
    run_type: str = "send_message"
    stop_reason: str | None = None
    id: str = field(default_factory=lambda: new_id("run"))
    created: datetime = field(default_factory=now)
    completed: datetime | None = None

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "status": self.status,
            "agent_id": self.agent_id,
            "conversation_id": self.conversation_id,
            "created_at": _iso(self.created),
            "completed_at": _iso(self.completed) if self.completed else None,
            "background": None,
            "metadata": {"run_type": self.run_type},
            "stop_reason": self.stop_reason,
        }


@dataclass(slots=True)
class Context:
    """An in-context list: which messages the next prompt will hold. ``conversation_id`` None: the agent's own."""

    conversation_id: str | None
    messages: list[Message]
    compacts: bool = False
    """Whether the next turn compacts it at its end."""

    def compact(self, agent: Agent, run_id: str | None = None) -> None:
        """Replace everything by a summary, as Letta 0.16.8 does in its mode "all"."""
        summary = Message(
            "user",
            '{"type": "system_alert", "message": "Note: prior messages have been hidden from view"}',
            run_id=run_id,
            conversation_id=self.conversation_id,
        )
        agent.history.append(summary)
        self.messages = [self.messages[0], summary]


@dataclass(slots=True)
class Conversation:
    id: str
    agent: Agent
    context: Context
    summary: str | None = None
    created: datetime = field(default_factory=now)

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "agent_id": self.agent.id,
            "summary": self.summary,
            "created_at": _iso(self.created),
            "in_context_message_ids": [message.id for message in self.context.messages],
        }


@dataclass(slots=True)
class Agent:
    id: str
    name: str
    context: Context
    history: list[Message] = field(default_factory=list)
    """Every message that was ever stored, conversations included."""
    blocks: list[Block] = field(default_factory=list)
    prompts: list[list[str]] = field(default_factory=list)
    in_flight: int = 0
    in_flight_max: int = 0
    created: datetime = field(default_factory=now)

    def block(self, label: str) -> Block | None:
        return next((block for block in self.blocks if block.label == label), None)

    def prompt(self, messages: Iterable[Message]) -> list[str]:
        """List what the LLM is shown: the system prompt with the blocks as they are now, then the other messages."""
        system = "\n\n".join([_SYSTEM_PROMPT, *(block.prompt() for block in self.blocks)])
        _, *others = messages
        return [system, *(message.text for message in others)]

    def row(self) -> dict[str, Any]:
        blocks = [block.row() for block in self.blocks]
        return {
            "id": self.id,
            "name": self.name,
            "agent_type": "letta_v1_agent",
            "system": _SYSTEM_PROMPT,
            "message_ids": [message.id for message in self.context.messages],
            "memory": {"agent_type": "letta_v1_agent", "blocks": blocks, "file_blocks": []},
            "blocks": blocks,
            "tools": [],
            "sources": [],
            "tags": [],
            "created_at": _iso(self.created),
        }


class World:
    """Everything the server knows. ``changed`` guards all of it and announces each change."""

    def __init__(self, password: str | None, turn_seconds: float, run_delay: float = 0.0) -> None:
        # Re-entrant, so that the predicate of a wait may ask the server whatever a test may ask it.
        self.changed = threading.Condition()
        self.password = password
        self.turn_seconds = turn_seconds
        self.run_delay = run_delay
        self.closed = False
        self.turns = 0
        self.requests: list[Request] = []
        self.agents: dict[str, Agent] = {}
        self.conversations: dict[str, Conversation] = {}
        self.blocks: dict[str, Block] = {}
        self.runs: dict[str, Run] = {}

    def new_agent(self, name: str, agent_id: str | None = None) -> Agent:
        system = Message("system", _SYSTEM_PROMPT)
        agent = Agent(agent_id or new_id("agent"), name, Context(None, [system]), history=[system])
        self.agents[agent.id] = agent
        return agent

    def new_conversation(self, agent: Agent, summary: str | None) -> Conversation:
        conversation_id = new_id("conv")
        system = Message("system", _SYSTEM_PROMPT, conversation_id=conversation_id)
        conversation = Conversation(conversation_id, agent, Context(conversation_id, [system]), summary)
        agent.history.append(system)
        self.conversations[conversation_id] = conversation
        return conversation

    def new_run(self, agent: Agent, conversation_id: str | None) -> Run:
        run = Run(agent.id, conversation_id)
        self.runs[run.id] = run
        return run

    def known_agent(self, agent_id: str) -> Agent:
        """Find an agent for the observation API: a wrong id there is a mistake in the test, not a 404."""
        try:
            return self.agents[agent_id]
        except KeyError:
            raise LookupError(f"this InMemoryLetta has no agent {agent_id!r}") from None
