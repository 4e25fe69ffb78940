"""Tasks that nobody declared: agents whose spans follow a convention of agent tracing.

Spans come in any order: live ones when they start, exported ones when they have ended, children before their parents.
So each is placed as far as the spans above it are known, and placed further when one of those arrives. Whatever has
a role and hangs below no known root counts as the work of one task of its trace, until the root says better.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from otel_letta.report import TaskStatus
from otel_letta.text import clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.conventions import AgentFacts, Reason, Role, early_name, progress_event, read_agent, role_of
from otel_letta.tracking.roles import Declaration, SpanFacts, SpanKey
from otel_letta.tracking.state import REMEMBERED, Recent, Task, automatic_id, seconds_between
from otel_letta.tracking.verdicts import Verdict, judge, judge_orphans, judge_unended

__all__ = ["AgentTask", "AgentTracker"]

_MOST_SPANS_OF_A_TRACE = 4_096
_MOST_SPANS = 100_000
_MOST_HOPS = 10_000
"""Made-up parents can go in circles."""
_ALMOST_DONE = 0.99
"""As far as a plan goes before the task has ended: its last point may be followed by a new plan."""
_ROOT_ROLES = (Role.AGENT, Role.STEP)
_NAMELESS = "agent"
_LOST = "its span was never ended (lost)"


class AgentTask(Task):
    """A task that was inferred from spans with a role."""

    __slots__ = (
        "awaits",
        "begun",
        "chat",
        "claimed",
        "deadline",
        "declared_name",
        "default_chat",
        "forgotten",
        "inbound_chat",
        "problems",
        "prompt",
        "root",
        "session",
        "tools",
    )

    def __init__(self, key: SpanKey, started: int) -> None:
        super().__init__(automatic_id(key), None, key, started)
        self.quiet = True
        self.root: _Node | None = None
        """None as long as it has not arrived."""
        self.awaits: SpanKey | None = None
        """The open span that is its root if it gets a role."""
        self.begun = False
        self.tools = 0
        self.problems = 0
        self.forgotten = (0, 0)
        """Tools and problems among spans that are not kept any more."""
        self.deadline: int | None = None
        """When the verdict is due, once the root has ended."""
        self.chat: tuple[int, int, str] | None = None
        """The rank of the attribute, how far below the root it stood, and the id."""
        self.inbound_chat: str | None = None
        """What the context of its start says."""
        self.default_chat: str | None = None
        """What the resource says."""
        self.declared_name: str | None = None
        self.prompt = ""
        self.session: str | None = None
        """What OpenHands calls its conversation."""
        self.claimed = False
        """Somebody else tells of it."""


class _Node:
    """A span with a role."""

    __slots__ = (
        "above",
        "announced",
        "answered",
        "chat",
        "children",
        "depth",
        "end",
        "failed",
        "finishes",
        "foreign",
        "hint",
        "is_run",
        "kept",
        "key",
        "live",
        "missing",
        "name",
        "parent",
        "patience",
        "reason",
        "remote",
        "role",
        "start",
        "task",
        "told",
        "top",
        "twin",
        "under",
    )

    def __init__(self, key: SpanKey, parent: SpanKey | None, remote: bool, start: int, live: bool, role: Role) -> None:
        self.key = key
        self.parent = parent
        self.remote = remote
        """The parent is in another process."""
        self.start = start
        self.end: int | None = None
        self.live = live
        """It is open in this process, which will tell of its end."""
        self.role = role
        self.name = ""
        self.hint = ""
        self.failed = False
        self.reason = Reason()
        self.answered = False
        self.is_run = False
        self.finishes = False
        self.chat: tuple[int, str] | None = None
        self.above: _Node | None = None
        """The nearest span above that has a role."""
        self.children: dict[_Node, None] | None = None
        """Those that it is the nearest one above of; None for none, as most have."""
        self.top: _Node | None = None
        """A shortcut upwards, None for who is at the top."""
        self.missing: SpanKey | None = None
        """The span above that has to arrive before the next one with a role is known."""
        self.under: SpanKey | None = None
        """The topmost of the open spans above that had no role yet when this one was first heard of."""
        self.patience = 0
        """Until when that is waited for, if it is in another process and may never arrive here."""
        self.foreign = False
        """Work that another process did when it was called."""
        self.twin = False
        """A second instrumentation tells the same tool call."""
        self.kept: tuple[AgentFacts | None, Declaration | None] | None = None
        """What it said, if it may turn out to be a root: only a root's word counts as the task's own."""
        self.announced = False
        """That it is under way was told."""
        self.told = False
        """That it ended was told."""
        self.task: AgentTask | None = None
        self.depth = 0
        """Spans with a role above it, from the top that it was judged under."""


def _top(node: _Node) -> _Node:
    for _ in range(_MOST_HOPS):
        above = node.top
        if above is None:
            break
        if above.top is not None:
            node.top = above.top
        node = above
    return node


def _family(top: _Node) -> list[_Node]:
    """A span and all that hang below it; counts their depths on the way."""
    top.depth = 0
    found = [top]
    for node in found:
        for child in node.children or ():
            child.depth = node.depth + 1
            found.append(child)
    return found


class _Trace:
    """What is known of a trace that has spans with a role."""

    __slots__ = ("alarm", "away", "heard", "id", "nodes", "sample", "silent", "tasks", "waiting")

    def __init__(self, trace_id: int) -> None:
        self.id = trace_id
        self.nodes: dict[SpanKey, _Node] = {}
        self.waiting: dict[SpanKey, dict[_Node, None]] = {}
        """By the missing span above them."""
        self.away: set[_Node] = set()
        """What waits for a span of another process."""
        self.sample: SpanFacts | None = None
        """A span of it without its attributes: where the trace comes from."""
        self.tasks: list[AgentTask] = []
        self.heard = 0
        self.silent = False
        """It was said that there is no news."""
        self.alarm: int | None = None

    @property
    def rootless(self) -> AgentTask | None:
        return next((task for task in self.tasks if task.root is None and task.awaits is None), None)

    @property
    def orphans(self) -> list[_Node]:
        """Spans whose next one above has not arrived."""
        return [node for group in self.waiting.values() for node in group]

    def orphans_of(self, task: AgentTask) -> list[_Node]:
        """Those that count as a task's work."""
        return [node for node in self.orphans if node.under == task.awaits]


class _Report(Protocol):
    def __call__(
        self,
        task: Task,
        status: TaskStatus,
        content: str,
        at: int,
        *,
        error: str | None = None,
        name: str | None = None,
    ) -> None: ...


class _Address(Protocol):
    def __call__(
        self, task: AgentTask, facts: SpanFacts, said: Declaration | None, inbound: tuple[object, object]
    ) -> None: ...


class AgentTracker:
    """Turns spans with a role into tasks. Part of a `TaskTracker`, which owns its clock and makes its reports.

    Args:
        report: makes a report of a task.
        address: fills in whom a new task is for: agent, message, service, and its chat if no span says one.
        remember: is told of each task that ended: whoever goes by its id later is another run of it.
        now: the wall clock, Unix nanoseconds.
        grace: seconds from a root's end to the verdict. Children may end after their root, and parents in another
            process may arrive after their children.
        idle_timeout: seconds without any news after which a task whose root never came is lost.
        chat_attributes: further attributes that may name the conversation.
        content: fields of `otel_letta.tracking.conventions.CONTENT_FIELDS` that may be told.
        claimed: True for an OpenHands conversation, by its id, that somebody else tells of. Its runs are followed in
            silence. One that was told of before it was claimed gets an end that wakes nobody.
        most_tasks: traces that are tracked at once; past it the ones with the oldest news are given up.
    """

    def __init__(
        self,
        *,
        report: _Report,
        address: _Address,
        remember: Callable[[Task], None],
        now: Callable[[], int],
        grace: float = 2.0,
        idle_timeout: float = 900.0,
        chat_attributes: Sequence[str] = (),
        content: Collection[str] = (),
        claimed: Callable[[str], bool] = lambda session: False,
        most_tasks: int = 10_000,
    ) -> None:
        self._report = report
        self._address = address
        self._remember = remember
        self._now = now
        self._grace = int(grace * 1e9)
        self._idle = int(idle_timeout * 1e9)
        self._chat_attributes = tuple(chat_attributes)
        self._content = tuple(content)
        self._claimed = claimed
        self._most = most_tasks
        self._traces: dict[int, _Trace] = {}
        self._busy: OrderedDict[int, None] = OrderedDict()
        """Traces with tasks, the one with the oldest news first."""
        self._faint: OrderedDict[int, None] = OrderedDict()
        """The same for traces that have shown no task yet."""
        self._size = 0
        self._links: Recent[SpanKey, tuple[SpanKey | None, bool]] = Recent(REMEMBERED)
        """Parents of spans without a role, which are looked through."""
        self._unsure: Recent[SpanKey, None] = Recent(REMEMBERED)
        """Open spans of this process that may get a role yet."""
        self._roots: Recent[SpanKey, tuple[str, int]] = Recent(1_000)
        """Name and start of those of them that may be roots."""
        self._explicit: Recent[SpanKey, None] = Recent(REMEMBERED)
        self._over: Recent[SpanKey, None] = Recent(2 * REMEMBERED)
        """Spans of tasks that are over."""
        self._dismissed: Recent[SpanKey, None] = Recent(REMEMBERED)
        """Spans with a role that ended and are part of no task."""
        self._settled: Recent[int, int] = Recent(REMEMBERED)
        """When the last task of a trace ended."""
        self._failures: Recent[SpanKey, Reason] = Recent(1_000)
        """Failed parts of tool calls, by the tool's span."""
        self._outside: Recent[int, int] = Recent(1_000)
        """When the last tool call beside a run started, by trace."""
        self._alarms: list[tuple[int, int, _Trace]] = []
        self._count = itertools.count()
        self.evicted = 0
        """Traces given up because there were too many, or had too many spans."""

    @property
    def open_tasks(self) -> int:
        return sum(not task.claimed for trace_id in self._busy for task in self._traces[trace_id].tasks)

    def read(self, facts: SpanFacts) -> AgentFacts | None:
        """What a span says by its convention; None for one without a role."""
        role = role_of(facts)
        if role is None:
            return None
        seen = read_agent(facts, role, chat_attributes=self._chat_attributes, content=self._content)
        for event in facts.events:
            share = progress_event(event.attributes)
            if share is not None:
                seen.plan = max(seen.plan or 0.0, share)
        return seen

    def knows(self, key: SpanKey) -> bool:
        """True for a span whose end was told."""
        if key in self._over or key in self._dismissed:
            return True
        trace = self._traces.get(key[0])
        node = trace.nodes.get(key) if trace is not None else None
        return node is not None and node.end is not None

    # -- news --------------------------------------------------------------------------------------------------------

    def observe(
        self,
        facts: SpanFacts,
        seen: AgentFacts,
        *,
        parent: SpanKey | None,
        remote: bool = False,
        live: bool = False,
        said: Declaration | None = None,
        inbound: tuple[object, object] = (None, None),
        aborted: str | None = None,
        under: SpanFacts | None = None,
    ) -> bool:
        """A span with a role started, changed or ended; False if it is part of no task.

        Args:
            facts: the span as it is now; ``end`` says whether it ended.
            seen: what `read` made of it.
            parent: the span above it, or the next one above that is worth asking.
            remote: that one is in another process.
            live: the span's start was seen in this process, so everything above it is known.
            said: what it says in attributes of ours.
            inbound: chat and message id from the context that it started in.
            aborted: why it ended, if an exception stopped it that OpenTelemetry does not record.
            under: the topmost open span above it, if ``parent`` is an open span too, and both may get a role yet.
        """
        key = facts.key
        if self.knows(key):
            return True
        if seen.outside:
            self._outside.put(key[0], facts.start)
            if facts.end is not None:
                self._dismissed.put(key, None)
            return False
        if seen.is_run:
            parent, remote = None, False
        trace = self._traces.get(key[0])
        if trace is None:
            trace = self._traces[key[0]] = _Trace(key[0])
        if self._is_left_over(trace, key, parent):
            parent, remote = None, False
        node = trace.nodes.get(key)
        arrived: list[_Node] = []
        known = node is not None
        if node is None:
            node = _Node(key, parent, remote, facts.start, live, seen.role)
            if under is not None and parent is not None:
                node.under = under.key
                self._unsure.put(parent, None)
                self._unsure.put(under.key, None)
                if self._roots.get(under.key) is None:
                    self._roots.put(under.key, (early_name(under, facts.attributes), under.start))
        self._update(node, facts, seen, aborted)
        if not known:
            self._insert(trace, node)
            arrived = self._arrived(trace, key)
        trace.heard, trace.silent = self._now(), False
        if trace.sample is None:
            trace.sample = replace(facts, attributes={}, events=[], described="", exception=("", ""))
        ours = self._tell(trace, node, facts, seen, said, inbound)
        for child in arrived:
            self._tell(trace, child)
        self._tidy(trace)
        return ours

    def pending(self, facts: SpanFacts, seen: AgentFacts | None, key: SpanKey, parent: SpanKey | None) -> None:
        """Another span announces that the span ``key`` below ``parent`` has started."""
        if seen is None:
            self.passed(key, parent)
            return
        facts.key, facts.parent, facts.remote, facts.end = key, parent, None, None
        self.observe(facts, seen, parent=parent)

    def passed(self, key: SpanKey, parent: SpanKey | None, remote: bool = False, *, awaits: bool = False) -> None:
        """A span without a role: what is below it hangs below its parent. ``awaits``: that one may get a role yet."""
        trace = self._traces.get(key[0])
        if trace is not None and self._is_left_over(trace, key, parent):
            parent, remote = None, False
        self._links.put(key, (parent, remote))
        if awaits and parent is not None:
            self._unsure.put(parent, None)
        if trace is not None:
            for node in self._arrived(trace, key):
                self._tell(trace, node)
            self._tidy(trace)

    def part_failed(self, tool: SpanKey, reason: Reason) -> None:
        """A part of what may be a tool call failed, though the tool's own span may not say so."""
        if tool[0] in self._traces:
            self._failures.put(tool, reason)

    def lost(self, key: SpanKey) -> None:
        """An open span was garbage-collected: nobody can end it any more."""
        trace = self._traces.get(key[0])
        node = trace.nodes.get(key) if trace is not None else None
        if trace is None or node is None or node.end is not None:
            return
        task = self._known_task(trace, node)
        if task is not None and task.root is node:
            self._give_up(trace, task, _LOST)
        else:
            node.end = self._now()
            node.told = True
            node.answered = False
            if task is not None:
                self._settle_if_complete(trace, task)
        self._tidy(trace)

    def lost_plain(self, key: SpanKey, parent: SpanKey | None, *, awaits: bool = False) -> None:
        """The same for an open span that has shown no role."""
        trace = self._traces.get(key[0])
        if trace is not None:
            for task in [task for task in trace.tasks if task.root is None and task.awaits == key]:
                self._give_up(trace, task, _LOST)
        self.passed(key, parent, awaits=awaits)

    def absorb(self, key: SpanKey) -> AgentTask | None:
        """The span ``key`` turned out to be a declared task: agents below it are its steps.

        Returns:
            The inferred task that was told of these until now, if there is one: whoever goes on with it keeps its
            place.
        """
        self._explicit.put(key, None)
        trace = self._traces.get(key[0])
        if trace is None:
            return None
        tops = trace.waiting.pop(key, {})
        if not tops:
            return None
        trace.away -= tops.keys()
        for top in tops:
            for node in _family(top):
                self._forget(trace, node)
        task = trace.rootless
        if task is not None and not trace.waiting:
            trace.tasks.remove(task)
            task.ended = True
        else:
            task = None
        self._tidy(trace)
        return task

    def expect(self, key: SpanKey, until: int) -> None:
        """The span ``key`` is a declared task if no span above it is. Agents below it are not given up before that is
        known: one of them would be told as a task of its own, and then again as a step."""
        trace = self._traces.get(key[0])
        if trace is not None and key in trace.waiting:
            trace.heard = max(trace.heard, until + self._grace - self._idle)

    def hear_step(self, above: SpanKey, said: Declaration) -> bool:
        """A span without a role declares something, somewhere below the span ``above``.

        Returns:
            False if that is part of no agent's task, or the declared one is a task of its own.
        """
        trace = self._traces.get(above[0])
        node = trace.nodes.get(above) if trace is not None else None
        if trace is None or node is None:
            return above in self._over
        task = self._known_task(trace, node)
        if task is None:
            return False
        if said.chat_id is not None:
            if task.chat is not None and task.chat[0] == 0 and task.chat[2] != said.chat_id:
                return False
            self._hear_chat(task, (0, _agents_above(node) + 1, said.chat_id))
        if self._hear_declared(task, node, said, own=False):
            self._say_declared(task)
        return True

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self) -> int | None:
        """Do what is due. Returns when to come again (Unix ns), None for never."""
        now = self._now()
        while self._alarms:
            at, _, trace = self._alarms[0]
            current = trace.alarm == at and self._is_kept(trace)
            if current and at > now:
                break
            heapq.heappop(self._alarms)
            if current:
                trace.alarm = None
                self._due(trace, now)
                self._tidy(trace)
        if len(self._alarms) > 2 * len(self._traces) + 1_000:  # most are of traces that are over
            self._alarms = [entry for entry in self._alarms if entry[2].alarm == entry[0] and self._is_kept(entry[2])]
            heapq.heapify(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def _is_kept(self, trace: _Trace) -> bool:
        return self._traces.get(trace.id) is trace

    def settle(self) -> None:
        """Judge what has ended now: somebody flushes, and may not be here when the grace time is over."""
        for trace in list(self._traces.values()):
            for task in list(trace.tasks):
                if task.deadline is not None:
                    self._settle(trace, task)
            self._tidy(trace)

    def shutdown(self) -> None:
        """The program ends: what is not over fails."""
        self._end_all("the program shut down while the task was still open")

    def finish(self) -> None:
        """No more spans will come, as if all idle times had passed."""
        self._end_all(wording.lost(self._idle / 1e9))

    def _end_all(self, reason: str) -> None:
        for trace in list(self._traces.values()):
            self._promote(trace, None)
            self._give_up_all(trace, reason)

    def _due(self, trace: _Trace, now: int) -> None:
        self._promote(trace, now)
        for task in list(trace.tasks):
            if task.deadline is not None and task.deadline <= now:
                self._settle(trace, task)
        if trace.heard + self._idle > now:
            return
        is_open = any(node.live and node.end is None for node in trace.nodes.values())
        if is_open or any(self._awaits(trace, task) for task in trace.tasks):
            # It is open in this process, so it is not lost: it may wait for a person.
            if not trace.silent:
                trace.silent = True
                for task in trace.tasks:
                    self._say(task, wording.silent(self._name(task), self._idle / 1e9))
            return
        self._give_up_all(trace, wording.lost(self._idle / 1e9))

    def _promote(self, trace: _Trace, now: int | None) -> None:
        """Roots whose parent is in another process and has not come are roots. ``now``: None waits no longer."""
        ready = [node for node in trace.away if node.end is not None and (now is None or node.patience <= now)]
        self._make_roots(trace, ready)

    def _make_roots(self, trace: _Trace, tops: Collection[_Node]) -> None:
        """Whoever is above these will not come."""
        for node in sorted(tops, key=lambda node: node.start):
            self._unwait(trace, node)
            node.missing = None
            self._tell(trace, node)

    def _remind(self, trace: _Trace, at: int) -> None:
        if trace.alarm is None or at < trace.alarm:
            trace.alarm = at
            heapq.heappush(self._alarms, (at, next(self._count), trace))

    def _schedule(self, trace: _Trace) -> None:
        deadlines = [task.deadline for task in trace.tasks if task.deadline is not None]
        deadlines += [node.patience for node in trace.away if node.end is not None]
        idle_at = trace.heard + self._idle
        if trace.silent:
            idle_at = self._now() + self._idle
        self._remind(trace, min([idle_at, *deadlines]))

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _update(self, node: _Node, facts: SpanFacts, seen: AgentFacts, aborted: str | None) -> None:
        node.role, node.name, node.hint = seen.role, seen.name or node.name, seen.hint
        node.chat = seen.chat or node.chat
        node.answered = seen.answered
        node.is_run, node.finishes = seen.is_run, seen.finishes
        if aborted is not None and not seen.failed:
            node.failed, node.reason = True, Reason("", aborted)
        else:
            node.failed, node.reason = seen.failed, seen.reason
        node.end = facts.end
        if node.end is not None and node.role is Role.TOOL and not node.failed:
            reason = self._failures.get(node.key)
            if reason is not None:
                node.failed, node.reason = True, reason

    def _insert(self, trace: _Trace, node: _Node) -> None:
        trace.nodes[node.key] = node
        self._size += 1
        self._place(trace, node)
        if len(trace.nodes) > _MOST_SPANS_OF_A_TRACE:
            self._thin_out(trace)

    def _thin_out(self, trace: _Trace) -> None:
        """Forget the oldest steps of a long task. What came last decides how it ended."""
        for node in [node for node in trace.nodes.values() if _is_spent(node)][: _MOST_SPANS_OF_A_TRACE // 4]:
            task = self._known_task(trace, node)
            if task is not None:
                tools, problems = _counted([node])
                task.forgotten = (task.forgotten[0] + tools, task.forgotten[1] + problems)
            self._bridge(node)
            self._unwait(trace, node)
            self._forget(trace, node)
        if len(trace.nodes) > _MOST_SPANS_OF_A_TRACE:
            for node in [n for n in trace.nodes.values() if n.task is None][: _MOST_SPANS_OF_A_TRACE // 4]:
                self._bridge(node)
                self._unwait(trace, node)
                self._forget(trace, node)
        self.evicted += 1

    def _bridge(self, node: _Node) -> None:
        """Hang what is below a span below the one above it: the span is about to be forgotten, and they are not."""
        above = node.above
        if above is not None and above.children is not None and node.children:
            for child in node.children:
                child.above = above
            above.children |= node.children
            node.children = None

    def _place(self, trace: _Trace, node: _Node) -> None:
        """Find the nearest span above that has a role, as far as the spans between have arrived."""
        # From where it stopped the last time: many may hang below a long line of spans that come one by one.
        key, remote = (node.parent, node.remote) if node.missing is None else (node.missing, False)
        node.missing = None
        for _ in range(_MOST_HOPS):
            if key is None:
                return
            node.foreign = node.foreign or remote
            above = trace.nodes.get(key)
            if above is not None:
                if _top(above) is not node:  # parents that go in a circle have no top
                    node.above = node.top = above
                    if above.children is None:
                        above.children = {}
                    above.children[node] = None
                    if node.role is Role.TOOL and above.role is Role.TOOL and node.name == above.name:
                        above.twin = True
                return
            link = self._links.get(key)
            if link is None:
                if node.live and not remote and not self._may_come(key):
                    if node.under is None or node.under in self._links:
                        return
                    key = node.under
                    continue
                node.missing = key
                if remote:
                    node.patience = self._now() + self._grace
                    trace.away.add(node)
                trace.waiting.setdefault(key, {})[node] = None
                return
            key, remote = link

    def _awaits(self, trace: _Trace, task: AgentTask) -> bool:
        """True as long as the span is open, and without a role, that may be a task's root."""
        key = task.awaits
        if key is None or task.root is not None:
            return False
        return key not in self._links and key not in trace.nodes and key not in self._over

    def _is_left_over(self, trace: _Trace, key: SpanKey, parent: SpanKey | None) -> bool:
        """True for a span that is told of as a task of its own, inside a task that is over."""
        return parent is not None and parent in self._over and any(task.awaits == key for task in trace.tasks)

    def _may_come(self, key: SpanKey) -> bool:
        """False for what is above a live span and has not been heard of: whatever is open in this process is known."""
        return key in self._unsure or key in self._explicit or key in self._over

    def _arrived(self, trace: _Trace, key: SpanKey) -> list[_Node]:
        """Place what has waited for this span; returns it in the order of its starts."""
        group = trace.waiting.pop(key, None)
        if group is None:
            return []
        nodes = sorted(group, key=lambda node: node.start)
        trace.away.difference_update(nodes)
        for node in nodes:
            self._place(trace, node)
        return nodes

    def _unwait(self, trace: _Trace, node: _Node) -> None:
        trace.away.discard(node)
        group = trace.waiting.get(node.missing) if node.missing is not None else None
        if group is not None and node.missing is not None:
            group.pop(node, None)
            if not group:
                del trace.waiting[node.missing]

    def _forget(self, trace: _Trace, node: _Node) -> None:
        if trace.nodes.pop(node.key, None) is not None:
            self._size -= 1
            self._over.put(node.key, None)
            if node.above is not None and node.above.children is not None:
                node.above.children.pop(node, None)

    def _known_task(self, trace: _Trace, node: _Node) -> AgentTask | None:
        top = _top(node)
        if top.task is not None:
            return top.task
        if top.missing is None:
            return None
        if top.under is not None:
            return next((task for task in trace.tasks if task.awaits == top.under), None)
        # One that has ended waits for its verdict: what starts meanwhile belongs to the next.
        return next((task for task in reversed(trace.tasks) if not _had_ended(task, top.start)), None)

    def _task_of(self, trace: _Trace, node: _Node) -> tuple[AgentTask | None, bool]:
        """The task that a span is part of, and whether that is new; None for a span that is part of none."""
        task = self._known_task(trace, node)
        if task is not None:
            return task, False
        top = _top(node)
        if top.missing is not None:
            late = self._is_late(top) if top.under is None else top.under in self._over
            if late or top.missing in self._explicit or top.missing in self._over:
                self._unwait(trace, top)
                self._forget(trace, node)
                return None, False
            if not _is_agents_work(node):
                return None, False
            task = AgentTask(top.under or top.missing, top.start)
            if top.under is not None:
                task.awaits = top.under
                task.name, task.started = self._roots.get(top.under) or ("", top.start)
        elif top.role not in _ROOT_ROLES:
            if node.end is not None and trace.nodes.pop(node.key, None) is not None:
                self._size -= 1
                self._dismissed.put(node.key, None)
                self._links.put(node.key, (node.parent, node.remote))
            return None, False
        else:
            awaiting = (t for t in trace.tasks if t.root is None and t.awaits in (top.key, top.under or top.key))
            task = next(awaiting, None) or trace.rootless
            fresh = task is None
            if task is None:
                task = AgentTask(top.key, top.start)
            task.root, top.task = top, task
            task.started = top.start
            if not fresh:
                return task, False
        trace.tasks.append(task)
        return task, True

    def _is_late(self, node: _Node) -> bool:
        """Work of a task that is over, whose parent never came."""
        until = self._settled.get(node.key[0])
        return until is not None and node.start <= until

    # -- what is said ------------------------------------------------------------------------------------------------

    def _tell(
        self,
        trace: _Trace,
        node: _Node,
        facts: SpanFacts | None = None,
        seen: AgentFacts | None = None,
        said: Declaration | None = None,
        inbound: tuple[object, object] = (None, None),
    ) -> bool:
        """Tell what is new about a span that was updated, or has found its place; False if it is part of no task."""
        if node.key not in trace.nodes:
            return True
        task, fresh = self._task_of(trace, node)
        if task is None or task.ended:
            return False
        if node is task.root:
            if node.kept is not None:
                seen, said = seen or node.kept[0], said or node.kept[1]
                node.kept = None
        elif node.missing is not None and node.role in _ROOT_ROLES and (said is not None or (seen and seen.extras)):
            node.kept = seen, said
        source = facts or trace.sample
        if fresh and source is not None:
            self._address(task, source, said, inbound)
        if task.root is None and node.start:
            task.started = min(task.started, node.start)
        self._hear(task, node, seen)
        self._look_for_claim(task)
        news = said is not None and self._hear_declared(task, node, said, own=node is task.root)
        if not task.begun:
            task.begun = True
            self._say(task, wording.agent_started(self._name(task)) + _quoted(seen, "prompt"))
        if news:
            self._say_declared(task)
        if node.end is None:
            if node.role is Role.TOOL and not node.announced and not node.finishes:
                node.announced = True
                self._say_standing(task, wording.using_tool(node.name or "without a name") + _quoted(seen, "arguments"))
            return True
        if not node.told and node is not task.root:
            self._tell_end(task, node, seen)
        if task.root is not None and task.root.end is not None and task.deadline is None:
            task.deadline = self._now() + self._grace
            self._remind(trace, task.deadline)
        if node in trace.away:
            self._remind(trace, node.patience)
        self._settle_if_complete(trace, task)
        return True

    def _tell_end(self, task: AgentTask, node: _Node, seen: AgentFacts | None) -> None:
        """The end of a step."""
        reason = str(node.reason) if node.failed else None
        if node.role is Role.AGENT:
            above = node.above
            while above is not None and above.role is not Role.AGENT:
                above = above.above
            if node.above is None:
                return  # it may be the root yet
            node.told = True
            root_name = task.root.name if task.root is not None else ""
            if node.name and node.name not in (above.name if above is not None else "", root_name):
                self._say_standing(task, wording.sub_agent(node.name, reason))
            return
        node.told = True
        if node.role is Role.STEP or node.twin or node.finishes:
            return
        task.problems += node.failed
        if node.role is Role.TOOL:
            task.tools += 1
            text = wording.tool_used(node.name or "without a name", seconds_between(node.start, node.end or 0), reason)
            self._say_standing(task, text + _quoted(seen, "arguments") + _quoted(seen, "results"))

    def _hear(self, task: AgentTask, node: _Node, seen: AgentFacts | None) -> None:
        """Take over what a span says about its task."""
        if node.chat is not None and not node.foreign:
            self._hear_chat(task, (node.chat[0], -1 if node is task.root else _agents_above(node), node.chat[1]))
        if seen is not None and not node.foreign:
            task.session = task.session or seen.session
            task.message_id = seen.message_id or task.message_id
        if node is task.root and node.name:
            task.name = node.name
        elif not task.name:
            task.name = node.hint
        if seen is not None and seen.plan is not None:
            task.progress = max(task.progress, min(seen.plan, _ALMOST_DONE))
            task.stated = True
        if seen is not None and node is task.root:
            task.prompt = seen.extras.get("prompt", task.prompt)
        speaks = node is task.root or node.finishes
        if seen is not None and speaks and "answer" in seen.extras and not task.own_result:
            task.result = seen.extras["answer"]

    def _hear_chat(self, task: AgentTask, candidate: tuple[int, int, str]) -> None:
        if task.chat is None or candidate[:2] < task.chat[:2]:
            task.chat = candidate

    def _hear_declared(self, task: AgentTask, node: _Node, said: Declaration, *, own: bool) -> bool:
        """Somebody addressed the task in attributes of ours, so its end is wanted, however short it was. True if that
        says something new about where it stands."""
        task.quiet = task.quiet and said.quiet
        news = said.content is not None and said.content != task.content
        if said.content is not None:
            task.content = said.content
        if said.progress is not None and (said.progress > task.progress or not task.stated):
            news = True
        if own or task.declared_name is None:
            task.declared_name = said.name if own and said.name else task.declared_name
        task.message_id = said.message_id or task.message_id
        if said.progress is not None:
            task.progress, task.stated = max(task.progress, said.progress), True
        if said.result is not None and (own or not task.own_result):
            task.result, task.own_result = said.result, own
        if own and said.content is not None:
            task.own_content = said.content
        if own and said.status is not None:
            task.said = said.status
        return news

    def _say_declared(self, task: AgentTask) -> None:
        self._say(task, task.content or wording.in_progress(task.progress if task.stated else None))

    def _name(self, task: AgentTask) -> str:
        return task.declared_name or task.name or clean_line(task.service or "", 80) or _NAMELESS

    def _say_standing(self, task: AgentTask, text: str) -> None:
        if not task.stated and task.tools:
            text = f"{text.rstrip('.')}; {wording.tools_used(task.tools)}"
        self._say(task, text)

    def _say(self, task: AgentTask, text: str) -> None:
        self._send(task, TaskStatus.IN_PROGRESS, text, self._now())

    def _send(self, task: AgentTask, status: TaskStatus, content: str, at: int, *, error: str | None = None) -> None:
        self._look_for_claim(task)
        if task.claimed:
            if not status.is_terminal or not task.sequence:
                return
            task.echoes, task.result, content = True, None, wording.told_elsewhere(self._name(task))
        rank, _, chat = task.chat or (0, 0, None)
        if task.inbound_chat is not None and (chat is None or rank > 0):
            chat = task.inbound_chat  # whoever called said it in our own words, only a span's are nearer
        task.chat_id = chat or task.default_chat or f"{task.key[0]:032x}"
        self._report(task, status, content, at, error=error, name=self._name(task))

    def _look_for_claim(self, task: AgentTask) -> None:
        # For good: who claims it may forget it, and half a story is worse than none.
        task.claimed = task.claimed or (task.session is not None and self._claimed(task.session))

    # -- ends --------------------------------------------------------------------------------------------------------

    def _settle_if_complete(self, trace: _Trace, task: AgentTask) -> None:
        """In this process nothing more can come when the root has ended and nothing below it is open."""
        root = task.root
        if root is None or root.end is None or not root.live or task.ended:
            return
        if not any(node.end is None for node in _family(root)):
            self._settle(trace, task)

    def _settle(self, trace: _Trace, task: AgentTask) -> None:
        root = task.root
        if root is None or task.ended:
            return
        below = _family(root)[1:]
        for orphan in trace.orphans_of(task):
            if task.awaits is not None or root.start <= orphan.start <= (root.end or 0):
                below += _family(orphan)
        verdict = judge(root, below, self._outside.get(trace.id) or 0)
        self._conclude(trace, task, verdict, root.end or self._now(), [root, *below])

    def _give_up_all(self, trace: _Trace, reason: str) -> None:
        """Nothing more of this trace will come."""
        ended = [node for node in trace.orphans if node.end is not None]
        last = max(ended, key=lambda node: node.end or 0, default=None)
        if last is not None and last.role is Role.AGENT:
            # Whatever is around these was not over, or nobody traces it. They are, each for itself.
            self._make_roots(trace, [node for node in ended if node.role is Role.AGENT])
        for task in list(trace.tasks):
            if task.deadline is not None:
                self._settle(trace, task)
        for task in list(trace.tasks):
            self._give_up(trace, task, reason)
        self._drop(trace)

    def _give_up(self, trace: _Trace, task: AgentTask, reason: str) -> None:
        """No more of this task will come, and its root did not, or did not end."""
        if task.root is not None:
            below = _family(task.root)[1:]
            verdict = judge_unended(task.root, below)
            if verdict is None:
                self._fail(trace, task, reason)
            else:
                self._conclude(trace, task, verdict, self._now(), [task.root, *below])
            return
        tops = trace.orphans_of(task)
        nodes = [node for top in tops for node in _family(top)]
        task.name = task.name or next((node.name for node in tops if node.role is Role.AGENT), "")
        verdict = judge_orphans(tops, [node for node in nodes if node.missing is None])
        if verdict is None:
            self._fail(trace, task, reason)
            return
        at = max((node.end or 0 for node in nodes), default=0) or self._now()
        self._conclude(trace, task, verdict, at, nodes)

    def _conclude(self, trace: _Trace, task: AgentTask, verdict: Verdict, at: int, nodes: Sequence[_Node]) -> None:
        name, reason, status = self._name(task), verdict.reason, verdict.status
        # Counted again: what was told before the root came may have been another task's, or one call told twice.
        task.tools, task.problems = (a + b for a, b in zip(_counted(nodes), task.forgotten, strict=True))
        if task.said is not None and task.said.is_terminal:
            status = task.said
        if status is TaskStatus.COMPLETED:
            task.progress = 1.0
            took = seconds_between(task.started, at)
            content = wording.agent_finished(name, took, task.tools, task.problems)
            if verdict.spoke:
                content += f"; {wording.ended_with_message()}"
        elif verdict.stopped:
            content, reason = wording.agent_stopped(name), Reason("", "stopped: it ended without an answer")
        else:
            content = wording.agent_failed(name, str(reason))
        if task.own_content is not None:
            content = task.own_content
        elif task.prompt:
            content += f"; asked: {task.prompt}"
        error = clean_line(reason.full, 200) or None if status is TaskStatus.FAILED else None
        self._end(trace, task, status, content, at, error, nodes)

    def _fail(self, trace: _Trace, task: AgentTask, reason: str) -> None:
        nodes = [] if task.root is None else _family(task.root)
        if task.awaits is not None or (trace.tasks and task is trace.tasks[-1]):
            # What has no place yet counts as its work.
            nodes += [node for orphan in trace.orphans_of(task) for node in _family(orphan)]
        content = wording.agent_failed(self._name(task), reason)
        if task.said is not None and task.said.is_terminal:
            self._end(trace, task, task.said, task.own_content or content, self._now(), None, nodes)
        else:
            self._end(trace, task, TaskStatus.FAILED, content, self._now(), reason, nodes)

    def _end(
        self,
        trace: _Trace,
        task: AgentTask,
        status: TaskStatus,
        content: str,
        at: int,
        error: str | None,
        nodes: Sequence[_Node],
    ) -> None:
        task.deadline = None
        self._send(task, status, content, at, error=error)
        self._remember(task)
        task.ended = True
        if task in trace.tasks:
            trace.tasks.remove(task)
        if task.root is None and task.awaits is not None:
            self._over.put(task.awaits, None)  # its root may come, and be too late
        self._settled.put(trace.id, max(at, self._settled.get(trace.id) or 0))
        for node in nodes:
            self._unwait(trace, node)
            self._forget(trace, node)

    # -- bounds ------------------------------------------------------------------------------------------------------

    def _tidy(self, trace: _Trace) -> None:
        """After any news: keep the order of ages, the bounds and the alarm."""
        self._busy.pop(trace.id, None)
        self._faint.pop(trace.id, None)
        rootless = trace.rootless
        if rootless is not None and not trace.waiting and not any(_top(n).task for n in trace.nodes.values()):
            # What it was inferred from turned out to be no agent's work: a lone tool, say, inside a request.
            self._conclude(trace, rootless, Verdict(TaskStatus.COMPLETED), self._now(), ())
        for task in list(trace.tasks):
            if task.root is not None or task.awaits is None or self._awaits(trace, task):
                continue
            # The same, if the open span that it waited for got no role, or is no root.
            if not trace.orphans_of(task):
                self._conclude(trace, task, Verdict(TaskStatus.COMPLETED), self._now(), ())
        if not trace.nodes and not trace.tasks:
            self._traces.pop(trace.id, None)
            return
        (self._busy if trace.tasks else self._faint)[trace.id] = None
        if trace.alarm is None:
            self._schedule(trace)
        while len(self._traces) > self._most or self._size > _MOST_SPANS:
            oldest = self._traces[next(iter(self._faint or self._busy))]
            self.evicted += 1
            for task in list(oldest.tasks):
                self._fail(oldest, task, "lost, more tasks at once than are kept")
            self._drop(oldest)

    def _drop(self, trace: _Trace) -> None:
        for node in list(trace.nodes.values()):
            self._forget(trace, node)
        trace.waiting.clear()
        self._traces.pop(trace.id, None)
        self._busy.pop(trace.id, None)
        self._faint.pop(trace.id, None)


def _is_agents_work(node: _Node) -> bool:
    """True for a span that shows an agent although its root is yet to come. A call to a model alone does not: programs
    make those without any agent."""
    return node.role is not Role.LLM or bool(node.hint) or node.chat is not None


def _is_spent(node: _Node) -> bool:
    """True for an ended step that is told and carries nothing that is still to be placed."""
    if node.end is None or not node.told:
        return False
    return node.above is not None or (node.missing is not None and not node.children)


def _had_ended(task: AgentTask, at: int) -> bool:
    root = task.root
    return root is not None and root.end is not None and root.end < at


def _counted(nodes: Sequence[_Node]) -> tuple[int, int]:
    """Tool calls, and failures of tools and models."""
    counted = [node for node in nodes if not (node.twin or node.finishes)]
    told = [node for node in counted if node.told and node.role in (Role.TOOL, Role.LLM)]
    return sum(node.role is Role.TOOL for node in told), sum(node.failed for node in told)


def _agents_above(node: _Node) -> int:
    number = 0
    above = node.above
    for _ in range(_MOST_HOPS):
        if above is None:
            break
        number += above.role is Role.AGENT
        above = above.above
    return number


def _quoted(seen: AgentFacts | None, name: str) -> str:
    """Content that the settings ask for, behind its field's name."""
    text = seen.extras.get(name) if seen is not None else None
    return f"; {name}: {text}" if text else ""
