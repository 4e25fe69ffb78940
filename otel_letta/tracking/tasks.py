"""Tasks that are under way: what is known of each, whoever said it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.trace import format_span_id, format_trace_id

from otel_letta.report import TaskStatus
from otel_letta.text import pattern
from otel_letta.tracking.reading import SpanKey
from otel_letta.tracking.values import id_of

if TYPE_CHECKING:
    from otel_letta.tracking.nodes import Followed, Node


trace_id_of = functools.lru_cache(maxsize=512)(format_trace_id)
span_id_of = functools.lru_cache(maxsize=512)(format_span_id)
"""Ids as they are shown. Each report of a task bears the same ones."""


class Inbound(NamedTuple):
    """Chat and message id in the context that a span started in."""

    chat_id: str | None = None
    message_id: str | None = None

    @classmethod
    def of(cls, raw: tuple[object, object]) -> Inbound:
        return cls(id_of(raw[0]), id_of(raw[1]))


NO_IDS = Inbound()
Place = str | SpanKey | tuple[str, str | SpanKey]
"""What a task is known by among all: the id that was given, or its span's key; beside the agent, if one is named."""
_AUTOMATIC_ID = pattern(r"([0-9a-f]{32})(?:-(?!0{16})([0-9a-f]{16}))?")


class Task:
    """A task that is under way. A span declared it.

    What every task sets has a slot, what few set is a default of the class: a program may have 100,000 of them open.
    """

    __slots__ = (
        "__dict__",
        "chat_id",
        "content",
        "ended_at",
        "given_id",
        "key",
        "message_id",
        "name",
        "owners",
        "progress",
        "reported_at",
        "sequence",
        "service",
        "started",
        "status",
    )

    agent_id: str | None = None
    """The agent that is to hear of it; None for the configured one."""
    root_content: str | None = None
    """The last content of the task's own spans."""
    result: str | None = None
    has_own_result = False
    """The result is the task's own, not a step's."""
    failed_steps = 0
    run = 1
    questions: Mapping[Followed, str] = MappingProxyType({})
    """Open spans of it, steps included, that say that it waits, and for what; the latest last."""
    asked: frozenset[str] = frozenset()
    """What it was reported to wait for, and still does: that is worth waking an agent once."""
    waits = False
    """Its own span says that it pauses."""
    parked_at = 0
    """The time since which it waits."""
    retries = False
    """It will be tried again."""
    inferred = False
    """Nobody declared it: short successes of it are not worth waking an agent."""
    mirrored = False
    """Somebody else reports the same, so its end is not worth that either."""

    def __init__(self, given_id: str | None, agent_id: str | None, key: SpanKey | None, started: int) -> None:
        self.given_id = given_id
        """The id that somebody gave; None for a task that goes by its span's."""
        if agent_id is not None:
            self.agent_id = agent_id
        self.key = key
        """The span that it is known by; None for a task that has no spans."""
        self.started = started
        self.name = ""
        self.chat_id: str | None = None
        self.message_id: str | None = None
        self.service: str | None = None
        self.content: str | None = None
        """The last content of any of its spans, a step included."""
        self.progress: float | None = None
        """None as long as no span gave a number."""
        self.status: TaskStatus | None = None
        """The status that its own spans gave."""
        self.owners = 0
        """Open spans that are the task's own, not steps."""
        self.sequence = 0
        self.reported_at = 0
        """The latest time that a report of it bears, Unix nanoseconds."""
        self.ended_at: float | None = None
        """None while it is under way; infinity if nobody knows when it ended."""

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    def reach(self, progress: float | None) -> bool:
        """Take over how far a span says it is; it never goes backwards. Return True if that is news."""
        if progress is None or (self.progress is not None and progress <= self.progress):
            return False
        self.progress = progress
        return True

    def end(self) -> None:
        """Note that it has ended, or goes on in another one if it does."""
        if self.ended_at is None:
            self.ended_at = math.inf

    @property
    def id(self) -> str:
        """What it goes by. An automatic one is made when it is asked for: kept, it takes as much room as a record."""
        return self.given_id if self.given_id is not None else self.automatic_id

    @property
    def automatic_id(self) -> str:
        """The id that it goes by as long as nobody gives one."""
        return "" if self.key is None else automatic_id(self.key)

    @property
    def known_as(self) -> Place:
        """What it is known by: `place_of` its agent and id."""
        if self.given_id is not None or self.key is None:
            return place_of(self.agent_id, self.id)
        return self.key if self.agent_id is None else (self.agent_id, self.key)

    @property
    def span_id(self) -> int:
        """The span that it is shown with; 0 for none."""
        return 0 if self.key is None else self.key[1]

    def had_ended(self, at: int) -> bool:
        """Return True if it had ended before a time: what starts then is no step of it."""
        return self.ended_at is not None and self.ended_at < at


class InferredTask(Task):
    """A task that was inferred from spans with a role."""

    __slots__ = (
        *("awaits", "begun", "chat", "claimed", "deadline", "due", "held_until", "is_early", "place", "problems"),
        *("root", "session", "tools"),
    )

    inferred = True
    key: SpanKey
    linked: tuple[InferredTask, ...] = ()
    """Tasks whose roots link to a tool of it."""
    background_until: int | None = None
    """The time until which it stays open for work in the background."""
    noted: tuple[str | None, str] | None = None
    """Its service and conversation, as sub-agents are looked for by these."""
    waiting_tool = ""
    """The tool that it waited for when it was parked."""
    resumed_span = 0
    """The span that it was shown with before it waited."""
    resumed = False
    """It goes on after it has waited."""
    is_untold = False
    """Something of it was held back, since it might have been one that waited."""
    forgotten = (0, 0)
    """Tools and problems among spans that are not kept any more."""
    inbound_chat: str | None = None
    """The chat id in the context of its start."""
    default_chat: str | None = None
    """The chat id of the resource."""
    default_message: str | None = None
    """The message id of the resource."""
    declared_name: str | None = None
    program = ""
    """The name of the executable, where the service has none."""
    prompt = ""

    def __init__(self, key: SpanKey, started: int) -> None:
        super().__init__(None, None, key, started)
        self.root: Node | None = None
        """None as long as it has not arrived."""
        self.awaits: SpanKey | None = None
        """The open span that is its root if it gets a role."""
        self.begun = False
        self.due = False
        """Its root came when it had ended, and now it is clear that nobody called it; or the time for its root to come
        is over."""
        self.is_early = False
        """All of it is held back, as the span that was last applied to it has shown."""
        self.held_until: int | None = None
        """The time until which nothing of it is reported, since its root may come yet."""
        self.deadline: int | None = None
        """The time of the verdict, once the root has ended."""
        self.place: tuple[str | None, str | None, str] | None = None
        """Its service, its agent and its conversation, as background work is looked for by these."""
        self.chat: tuple[int, int, str] | None = None
        """The rank of the attribute, how far below the root it stood, and the id."""
        self.tools = 0
        self.problems = 0
        self.session: str | None = None
        """OpenHands' id of its conversation."""
        self.claimed = False
        """Somebody else reports it."""

    @property
    def is_unplaced(self) -> bool:
        """True for one whose root has not arrived, and is none of this process."""
        return self.root is None and self.awaits is None

    @property
    def span_id(self) -> int:
        """The span that it is shown with: the root, as soon as that is known; 0 for none."""
        return self.key[1] or self.resumed_span or (self.root.key[1] if self.root is not None else 0)

    def rename(self, key: SpanKey) -> None:
        """Know it by another span."""
        self.key, self.given_id = key, None
        self.run, self.sequence = 1, 0

    def had_ended(self, at: int) -> bool:
        """Return True if its root had ended before a time: work that starts then belongs to the next task."""
        return self.root is not None and self.root.end is not None and self.root.end < at

    def offer_chat(self, rank: int, depth: int, chat: str) -> None:
        """Take a chat id, unless a better attribute or a span nearer to the root gave one."""
        if self.takes_chat(rank, depth):
            self.chat = rank, depth, chat

    def takes_chat(self, rank: int, depth: int) -> bool:
        """Return True if a chat id of this rank and depth would be better than the one it has."""
        if self.chat is None:
            return True
        held, at, _ = self.chat
        return rank < held or (rank == held and depth < at)


@functools.lru_cache(maxsize=512)
def automatic_id(key: SpanKey) -> str:
    """Return the id of a task whose author gave none: its root's, or its trace's where nobody knows the root."""
    return f"{trace_id_of(key[0])}-{span_id_of(key[1])}" if key[1] else trace_id_of(key[0])


def place_of(agent: str | None, task_id: str) -> Place:
    """Return what a task is known by, with the configured agent or another one: of an automatic id, the span's key."""
    found = _AUTOMATIC_ID.fullmatch(task_id)
    what = task_id if found is None else (int(found[1], 16), int(found[2] or "0", 16))
    return what if agent is None else (agent, what)
