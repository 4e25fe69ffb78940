"""The entries of the tree: spans with a role, declarations in doubt, open spans that are followed, and traces."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from otel_letta import semconv
from otel_letta.report import TaskStatus
from otel_letta.tracking.conventions import AGENT
from otel_letta.tracking.conventions.facts import AgentFacts
from otel_letta.tracking.conventions.reasons import Reason
from otel_letta.tracking.declared import Declaration
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tasks import InferredTask, Task

MOST_SPANS_OF_A_TRACE = 4_096
_HOPS = range(10_000)
"""Made-up parents can go in circles."""


class Fate(enum.Enum):
    """The end that a span came to."""

    DECLARED = "part of a declared task that was followed from its start"
    DOUBT = "it declared something, seen only when it had ended: a task, or a step, or not known yet"
    TASK = "it was declared as a task, and agents below it are its steps"
    STEP = "it declared something about the agent's task that it ran in"
    OVER = "part of an agent's task that is over"
    GIVEN_UP = "it was open and had no role when the agent's task that waited for it was over"
    DISMISSED = "it had a role and was part of no task"
    OUTSIDE = "a tool call beside the run that it was made in"

    __hash__ = object.__hash__  # until Python 3.12 that of an enum is a function in Python


class Followed:
    """An open span that has a role, or is part of a declared task."""

    __slots__ = ("content", "event_time", "owner", "task")

    has_role = False

    def __init__(self) -> None:
        self.task: Task | None = None
        self.owner = False
        """True if the task is the span's own, False if the span is a step of it."""
        self.content: str | None = None
        """The content that the span gave last."""
        self.event_time = 0
        """The time of the last progress event that was read."""


class WithRole(Followed):
    """One that has a role."""

    __slots__ = ()

    has_role = True


class Node(AgentFacts):
    """A span with a role: its facts, as they were read last, and its place, as soon as it has one."""

    __slots__ = (
        *("above", "ambient", "announced", "children", "depth", "end", "foreign", "guessed", "held", "is_part", "kept"),
        *("key", "links", "live", "merged", "missing", "ok", "parent", "patience", "remote", "reported", "seen_at"),
        *("shortcut", "start", "supposed", "task", "twin", "under"),
    )

    # As they were read last: `AgentTracker` sets these before anybody looks.
    end: int | None
    ok: bool
    links: Sequence[SpanKey]

    def enter(self, key: SpanKey, parent: SpanKey | None, remote: bool, start: int, live: bool) -> None:
        """Become an entry of the tree."""
        self.key = key
        self.parent = parent
        self.remote = remote
        """The parent is in another process."""
        self.start = start
        self.live = live
        """It is open in this process, which will notice its end."""
        self.above: Node | None = None
        """The nearest span above that has a role."""
        self.children: dict[Node, None] | None = None
        """Those that it is the nearest one above of; None for none, as most have."""
        self.shortcut: Node | None = None
        """A span further up, None for one at the top."""
        self.missing: SpanKey | None = None
        """The span above that has to arrive before the next one with a role is known."""
        self.under: SpanKey | None = None
        """The topmost of the open spans above that had no role yet when this one was first read."""
        self.patience = 0
        """The time until which that is waited for, if it is in another process and may never arrive here."""
        self.foreign = False
        """Work that another process did when it was called."""
        self.ambient = False
        """It has no role of its own, and bounds a run: the nearest span over its tools and model calls."""
        self.supposed = False
        """No span shows it: log events do, or calls that only a conversation's id joins."""
        self.guessed = False
        """It is open here, and nothing above it has a role: it shows a run only when one of those has ended."""
        self.is_part = False
        """It bounds a run, and an agent framework made it as a part of something."""
        self.seen_at = 0
        """The time when it arrived, if it bounds a run."""
        self.twin = False
        """A second instrumentation reports the same tool call."""
        self.held: AgentFacts | None = None
        """Its facts, while nothing of its task is reported; kept for the content that the settings ask for."""
        self.kept: tuple[AgentFacts | None, Declaration | None] | None = None
        """What it said, if it may turn out to be a root: only a root's statements count as the task's own."""
        self.announced = False
        """Its start was reported."""
        self.reported = False
        """Its end was reported, or needs no report."""
        self.task: InferredTask | None = None
        """The task that it is the root of."""
        self.merged: InferredTask | None = None
        """The task that has taken over what it says."""
        self.depth = 0
        """The number of spans with a role above it, from the top that it was judged under."""

    def take(self, facts: AgentFacts) -> None:
        """Take over facts that were read anew."""
        self.role, self.name, self.hint = facts.role, facts.name or self.name, facts.hint
        self.chat, self.conversation = facts.chat or self.chat, facts.conversation
        self.answered, self.records_answers = facts.answered, facts.records_answers
        self.finish, self.finish_word, self.waits_for = facts.finish, facts.finish_word, facts.waits_for
        self.cancelled, self.timed_out, self.raised = facts.cancelled, facts.timed_out, facts.raised
        self.denied, self.call_id, self.named = facts.denied, facts.call_id, facts.named
        self.no_result, self.tool_names = facts.no_result, facts.tool_names
        self.is_run, self.finishes = facts.is_run, facts.finishes
        self.failed, self.reason = facts.failed, facts.reason

    @property
    def top(self) -> Node:
        """The last span with a role on the way up, as far as that is known."""
        node, above = self, self.shortcut
        if above is None:
            return self
        for _ in _HOPS:
            if above.shortcut is not None:
                node.shortcut = above.shortcut
            node, above = above, above.shortcut
            if above is None:
                break
        return node

    def is_turn(self, trace: Trace) -> bool:
        """Return True for an agent that may be one turn of a run that the span above bounds."""
        return trace.has_turns and self.role is AGENT and self.conversation is not None

    @property
    def agents_above(self) -> int:
        number, above = 0, self.above
        for _ in _HOPS:
            if above is None:
                break
            number += above.role is AGENT
            above = above.above
        return number

    @property
    def is_spent(self) -> bool:
        """True for an ended step that was reported and carries nothing that is still to be placed."""
        if self.end is None or not self.reported:
            return False
        return self.above is not None or (self.missing is not None and not self.children)

    def let_go(self) -> None:
        """Forget all others: a circle of spans that refer to each other stays until a collector of memory comes."""
        self.above = self.shortcut = self.children = self.task = self.merged = None


def family(top: Node) -> list[Node]:
    """Return a span and all that hang below it; counts their depths on the way."""
    top.depth = 0
    found = [top]
    for node in found:
        if node.children:
            depth = node.depth + 1
            for child in node.children:
                child.depth = depth
            found += node.children
    return found


class Plain(NamedTuple):
    """An ended span without a role, that may bound a run."""

    reading: Reading
    reason: Reason
    """Why it failed."""
    failed: bool
    is_part: bool
    """An agent framework made it, and gave it no role: what is above it is the agent, if there is anything."""
    until: int
    """The time until which those below it wait there to see that."""


class Place(enum.Enum):
    """The relation of an ended declaration to one above it."""

    STEP = "a step of it"
    OWN = "a task of its own"
    ABOVE = "known only when the task of the one above is"


class Doubt:
    """An ended span that declares something and whose parent is still to come: a task of its own, or a step?"""

    awaits: SpanKey | None = None
    reported: TaskStatus | None = None
    """The status of its end, if that was reported already: it has an id of its own, and waits only lest its parent has
    the same."""
    below: TaskStatus | None = None
    """The status that a step of it was reported with that has the same id."""

    def __init__(self, reading: Reading, declaration: Declaration, deadline: int) -> None:
        self.key = reading.key
        self.reading = reading.copy().drop_content()
        self.declaration = declaration
        self.deadline = deadline
        self.steps: list[Doubt] = []

    @property
    def parts(self) -> list[Doubt]:
        return [self, *self.steps]

    def place_below(self, above: Doubt) -> Place:
        """Return its relation to a declaration above it, whose own place is still in doubt."""
        mine, its = self.declaration, above.declaration
        if mine.task_id is not None:
            return Place.ABOVE if its.task_id is None else Place.STEP if mine.task_id == its.task_id else Place.OWN
        if self.reading.start > (above.reading.end or self.reading.start):
            return Place.OWN  # a job that it left behind
        if mine.chat_id is None:
            return Place.STEP
        if its.is_anonymous:
            return Place.ABOVE
        chat = its.chat_id or above.reading.default(semconv.CHAT_ID)
        return Place.STEP if mine.chat_id == chat else Place.OWN


class Trace:
    """All that is known of a trace that has spans with a role."""

    __slots__ = (
        *("active_at", "alarm", "among", "away", "early", "has_turns", "held", "id", "nodes", "sample", "silent"),
        *("tasks", "waiting"),
    )

    def __init__(self, trace_id: int) -> None:
        self.id = trace_id
        self.sample: Reading | None = None
        """A span of it without its content, for the resource that the trace comes from."""
        self.active_at = 0
        """The time of its last news."""
        self.silent = False
        """The lack of news was reported."""
        self.alarm: int | None = None
        self.among: OrderedDict[int, None] | None = None
        """Those of its kind, in the order of their last news; None for an empty trace."""
        self.has_turns = False
        """An agent in it ended by asking for a tool: it may be one turn of a run."""
        self.nodes: dict[SpanKey, Node] = {}
        self.waiting: dict[SpanKey, dict[Node, None]] = {}
        """By the missing span above them."""
        self.away: set[Node] = set()
        """Those that wait for a span of another process."""
        self.tasks: list[InferredTask] = []
        self.early: list[Node] = []
        """Calls of models that came before anything that shows a task: they are none alone."""
        self.held: dict[SpanKey, int] = {}
        """Ended spans without a role at which spans with one wait, until when: such a span may bound a run."""

    @property
    def rootless(self) -> InferredTask | None:
        for task in self.tasks:
            if task.root is None and task.awaits is None:
                return task
        return None

    @property
    def orphans(self) -> list[Node]:
        """Spans whose next one above has not arrived."""
        return [node for group in self.waiting.values() for node in group]

    def orphans_of(self, task: InferredTask) -> list[Node]:
        """Return those that count as a task's work."""
        if not self.waiting:
            return []
        return [node for node in self.orphans if node.under == task.awaits]

    def steps_of(self, task: InferredTask) -> list[Node]:
        """Return the spans of a task below its root."""
        found = [] if task.root is None else family(task.root)[1:]
        return found + [node for orphan in self.orphans_of(task) for node in family(orphan)]

    def task_of(self, node: Node) -> InferredTask | None:
        """Return the task that a span is part of, as far as that is known."""
        top = node.shortcut or node  # most hang right below the top
        if top.shortcut is not None:
            top = node.top
        if top.task is not None:
            return top.task
        if top.missing is None or not self.tasks:
            return None
        if top.under is not None:
            return next((task for task in self.tasks if task.awaits == top.under), None)
        for task in reversed(self.tasks):
            # One that has ended waits for its verdict: work that starts meanwhile belongs to the next.
            if task.root is None or not task.had_ended(top.start):
                return task
        return None

    def is_over_for(self, node: Node) -> bool:
        """Return True for a span that is open although its task's root has ended well. What cuts it off then, such as
        an event loop that closes what nobody read to its end, stops no work."""
        task = self.task_of(node)
        root = task.root if task is not None else None
        return root is not None and root is not node and root.end is not None and root.ok

    def next_due(self, now: int, idle: int) -> int:
        """Return when there will be something to do without further spans. Nanoseconds, ``idle`` too."""
        due = [(now if self.silent else self.active_at) + idle, *self.held.values()]
        due += [task.deadline for task in self.tasks if task.deadline is not None]
        due += [task.held_until for task in self.tasks if task.held_until is not None]
        due += [node.patience for node in self.away if node.end is not None]
        return min(due)

    def unwait(self, node: Node) -> None:
        """Let a span wait no longer."""
        if node.missing is None:
            return
        self.away.discard(node)
        group = self.waiting.get(node.missing)
        if group is not None:
            group.pop(node, None)
            if not group:
                del self.waiting[node.missing]

    def unhang(self, node: Node) -> None:
        """Let a span stand alone, with all below it."""
        self.unwait(node)
        if node.above is not None and node.above.children is not None:
            node.above.children.pop(node, None)
            node.above = node.shortcut = node.parent = None
