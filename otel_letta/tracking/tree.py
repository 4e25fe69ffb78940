"""The tree: which span is above which, which one waits for which, and until when.

Spans come in any order: live ones when they start, exported ones when they have ended, children before their parents.
So each is placed as far as the spans above it are known, and placed further when one of those arrives. Three kinds of
spans have an entry: those with a role in an agent's work (`Node`), ended ones that declare something and whose place
is in doubt (`Doubt`), and open ones that are followed (`Followed`). Of all others at most the parent is remembered.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter

from otel_letta.recent import Recent
from otel_letta.tracking.conventions import LLM, TOOL
from otel_letta.tracking.nodes import Doubt, Fate, Followed, Node, Plain, Trace
from otel_letta.tracking.reading import SpanKey
from otel_letta.tracking.tasks import InferredTask, Task

REMEMBERED = 10_000
"""The number of ended spans and tasks that are remembered, so that nothing is reported twice."""
_MOST_SPANS = 100_000
_MOST_PLAIN = 2_000
_HOPS = range(10_000)
"""Made-up parents can go in circles."""

_WORK = (TOOL, LLM)
_start = attrgetter("start")
_OPAQUE = frozenset({Fate.DOUBT, Fate.TASK, Fate.OVER, Fate.OUTSIDE})
"""Spans that are not looked through to what is above them."""
_OF_DECLARED = frozenset({Fate.DECLARED, Fate.DOUBT, Fate.TASK, Fate.STEP})
_OF_AGENTS = frozenset({Fate.OVER, Fate.DISMISSED, Fate.OUTSIDE})
_IS_OVER = frozenset({Fate.OVER, Fate.GIVEN_UP})
_HAS_ENDED = _OF_AGENTS | _IS_OVER


class Tree:
    """The one tree of all spans that matter.

    Args:
        now: the wall clock, Unix nanoseconds.
        grace: nanoseconds that a span in another process is waited for.
        most_traces: traces that are tracked at once.
    """

    def __init__(self, now: Callable[[], int], grace: int, most_traces: int) -> None:
        self._now = now
        self._grace = grace
        self._most_traces = most_traces
        self.open: dict[SpanKey, Followed] = {}
        self.awaited: dict[SpanKey, str] = {}
        """Open spans without a role, and the scope of the spans below that wait to learn whether they get one."""
        self.traces: dict[int, Trace] = {}
        self.busy: OrderedDict[int, None] = OrderedDict()
        """Traces with tasks, the one with the oldest news first."""
        self.faint: OrderedDict[int, None] = OrderedDict()
        """The same for traces that have shown no task yet."""
        self.doubts: dict[SpanKey, Doubt] = {}
        self.doubts_below: dict[SpanKey, list[Doubt]] = {}
        """By the span that they wait for."""
        self.links: Recent[SpanKey, tuple[SpanKey | None, bool]] = Recent(2 * REMEMBERED)
        """Parents of ended spans, and whether they are in another process."""
        self.ended: Recent[SpanKey, Fate] = Recent(4 * REMEMBERED)
        """Ended spans that were more than looked through."""
        self.tasks: Recent[SpanKey, Task] = Recent(REMEMBERED)
        """The declared tasks that ended spans were part of. A task takes far more room than a fate does."""
        self.candidates: Recent[SpanKey, tuple[str, int] | None] = Recent(REMEMBERED)
        """Open spans of this process that may get a role yet; name and start of those that may be roots."""
        self.plain: Recent[SpanKey, Plain] = Recent(_MOST_PLAIN)
        """Ended spans without a role that may bound a run."""
        self._alarms: list[tuple[int, int, Doubt | Trace]] = []
        self._count = itertools.count()
        self.size = 0
        """The number of nodes in all traces."""

    # -- open spans --------------------------------------------------------------------------------------------------

    def follow(self, key: SpanKey) -> Followed:
        followed = self.open.get(key)
        if followed is None:
            followed = self.open[key] = Followed()
        return followed

    def close(self, key: SpanKey) -> None:
        """Follow a span no longer."""
        followed = self.open.pop(key, None)
        self.awaited.pop(key, None)
        if followed is not None and followed.task is not None and key not in self.ended:
            self.end(key, Fate.DECLARED, followed.task)

    def standing(self, key: SpanKey) -> tuple[Task | None, bool]:
        """Return the declared task that a span, open or ended, is part of, and whether it has a role."""
        followed = self.open.get(key)
        if followed is not None:
            return followed.task, followed.has_role
        return self.tasks.get(key), self.ended.get(key) in _OF_AGENTS or self.node(key) is not None

    # -- ended spans -------------------------------------------------------------------------------------------------

    def end(self, key: SpanKey, fate: Fate, task: Task | None = None) -> None:
        """Remember an ended span."""
        self.ended.put(key, fate)
        if task is not None:
            self.tasks.put(key, task)
        elif self.tasks:
            self.tasks.pop(key, None)

    def assign(self, key: SpanKey, task: Task) -> None:
        """Remember the declared task that an ended span is part of."""
        self.end(key, self.fate(key) or Fate.DOUBT, task)

    def fate(self, key: SpanKey) -> Fate | None:
        return self.ended.get(key)

    def is_over(self, key: SpanKey) -> bool:
        """Return True for a span of an agent's task that is over."""
        return self.ended.get(key) in _IS_OVER

    def has_declared(self, key: SpanKey) -> bool:
        """Return True for an ended span that declared something, or was a step of a declared task."""
        return self.ended.get(key) in _OF_DECLARED

    def knows_end(self, key: SpanKey, node: Node | None) -> bool:
        """Return True for a span with a role whose end was read. ``node``: its entry."""
        return (node is not None and node.end is not None) or self.ended.get(key) in _HAS_ENDED

    def node(self, key: SpanKey) -> Node | None:
        trace = self.traces.get(key[0])
        return trace.nodes.get(key) if trace is not None else None

    # -- placing spans with a role -----------------------------------------------------------------------------------

    def trace(self, trace_id: int) -> Trace:
        return self.traces.get(trace_id) or self.traces.setdefault(trace_id, Trace(trace_id))

    def arrived(self, trace: Trace, key: SpanKey) -> Sequence[Node]:
        """Place the spans that waited for this one; returns them in the order of their starts."""
        group = trace.waiting.pop(key, None)
        if group is None:
            return ()
        nodes, above = sorted(group, key=_start) if len(group) > 1 else list(group), trace.nodes.get(key)
        if trace.away:
            trace.away.difference_update(nodes)
        for node in nodes:
            if above is None or node.ambient:
                self.place(trace, node)
            else:
                node.missing = None
                self.hang(node, above)
        return nodes

    def place(self, trace: Trace, node: Node) -> None:
        """Find the nearest span above that has a role, as far as the spans between have arrived."""
        # From where it stopped the last time: many may hang below a long line of spans that come one by one.
        key, remote = (node.parent, node.remote) if node.missing is None else (node.missing, False)
        node.missing = None
        for _ in _HOPS:
            if key is None:
                return
            if remote:
                node.foreign = True
            above = trace.nodes.get(key)
            if above is not None:
                if node.ambient:
                    self.look_through(trace, node, above)
                else:
                    self.hang(node, above)
                return
            if key in self.plain and (node.ambient or node.role in _WORK or node.is_turn(trace)):
                self._hold(trace, node, key)
                return
            link = self.links.get(key)
            if link is None or self.ended.get(key) in _OPAQUE:
                if node.live and not remote and not self._may_come(key):
                    if node.under is None or node.under in self.links:
                        return
                    key = node.under
                    continue
                node.missing = key
                if remote or node.ambient:
                    node.patience = self._now() + self._grace
                    trace.away.add(node)
                trace.waiting.setdefault(key, {})[node] = None
                return
            key, remote = link

    def highest(self, key: SpanKey | None) -> SpanKey | None:
        """Return the span at or above this one that has not arrived; None if all have."""
        for _ in _HOPS:
            link = None if key is None else self.links.get(key)
            if link is None:
                return key
            key = link[0]
        return None

    def hang(self, node: Node, above: Node) -> None:
        """Make a span the child of another one; parents that go in a circle have no top."""
        if above is node or (node.children and above.top is node):
            return
        node.above = node.shortcut = above
        if above.children is None:
            above.children = {}
        above.children[node] = None
        if node.role is TOOL and above.role is TOOL:
            if node.name == above.name:
                above.twin = True
            elif node.call_id is not None and node.call_id == above.call_id:
                (above if node.named and not above.named else node).twin = True

    def _hold(self, trace: Trace, node: Node, key: SpanKey) -> None:
        """Let a span wait at one without a role that has ended, until that is known to bound a run, or not to."""
        node.missing = key
        trace.waiting.setdefault(key, {})[node] = None
        trace.held[key] = max(self.plain[key].until, self._now())
        self.remind(trace, trace.held[key])

    def _may_come(self, key: SpanKey) -> bool:
        """Return False for a span above a live one that nothing is known of: all open spans of this process are."""
        return key in self.candidates or self.is_over(key) or self.fate(key) is Fate.TASK

    def awaits_root(self, trace: Trace, task: InferredTask) -> bool:
        """Return True as long as the span is open, and without a role, that may be a task's root."""
        key = task.awaits
        if key is None or task.root is not None:
            return False
        return key not in self.links and key not in trace.nodes and not self.is_over(key)

    def is_left_over(self, trace: Trace, key: SpanKey, parent: SpanKey | None) -> bool:
        """Return True for a span that is a task of its own, inside a task that is over."""
        if parent is None or self.ended.get(parent) not in _IS_OVER:
            return False
        return any(task.awaits == key for task in trace.tasks)

    def look_through(self, trace: Trace, node: Node, above: Node | None = None) -> None:
        """Hang what is below a span that seemed to bound a run below one with a role, or let it wait for that."""
        trace.unwait(node)
        node.shortcut = above
        children, node.children = node.children or {}, None
        for child in children:
            child.above = above
            if above is None:
                child.shortcut, child.missing = None, node.missing
        if above is not None:
            above.children = {**(above.children or {}), **children}
        elif node.missing is not None and children:
            trace.waiting.setdefault(node.missing, {}).update(children)
        del trace.nodes[node.key]
        self.size -= 1

    def discard(self, trace: Trace, node: Node) -> None:
        """Forget a span for its trace's sake; its children hang below the one above it from then on."""
        above = node.above
        if above is not None and above.children is not None and node.children:
            for child in node.children:
                child.above = above
            above.children |= node.children
            node.children = None
        trace.unwait(node)
        self.remove(trace, node, Fate.OVER)

    def remove(self, trace: Trace, node: Node, fate: Fate) -> bool:
        """Forget a span but for its fate; False if it was forgotten before."""
        if trace.nodes.pop(node.key, None) is None:
            return False
        self.size -= 1
        self.ended.put(node.key, fate)
        if self.tasks:
            self.tasks.pop(node.key, None)
        # The one above a dismissed span may turn out to be an agent yet, and is judged by what was below it, too.
        if fate is not Fate.DISMISSED and node.above is not None and node.above.children is not None:
            node.above.children.pop(node, None)
        return True

    def remove_all(self, trace: Trace, nodes: Iterable[Node], fate: Fate) -> None:
        """Forget the spans of a task that is over, wherever they wait; what is above comes before what is below."""
        for node in nodes:
            if node.missing is not None:
                trace.unwait(node)
            self.remove(trace, node, fate)
            node.let_go()

    def drop(self, trace: Trace) -> None:
        """Forget a trace."""
        self.remove_all(trace, list(trace.nodes.values()), Fate.OVER)
        trace.waiting.clear()
        self.traces.pop(trace.id, None)
        if trace.among is not None:
            del trace.among[trace.id]
            trace.among = None

    def keep_order(self, trace: Trace) -> bool:
        """Put a trace behind all others, or forget it if it is empty. True if more is kept than should be."""
        among = self.busy if trace.tasks else self.faint if trace.nodes else None
        if among is not None and among is trace.among:
            among.move_to_end(trace.id)
        else:
            if trace.among is not None:
                del trace.among[trace.id]
            trace.among = among
            if among is None:
                self.traces.pop(trace.id, None)
            else:
                among[trace.id] = None
        return len(self.traces) > self._most_traces or self.size > _MOST_SPANS

    def too_much(self) -> Trace | None:
        """Return the trace to give up, the one with the oldest news; None if few enough are kept."""
        if len(self.traces) > self._most_traces or self.size > _MOST_SPANS:
            return self.traces[next(iter(self.faint or self.busy))]
        return None

    # -- doubtful declarations ---------------------------------------------------------------------------------------

    def parent_of(self, key: SpanKey) -> tuple[bool, SpanKey | None]:
        """Return whether a span has arrived, and its parent in the same process."""
        link = self.links.get(key)
        return (False, None) if link is None else (True, None if link[1] else link[0])

    def wait(self, doubt: Doubt, above: SpanKey) -> None:
        """Let a declaration wait for a span above it."""
        doubt.awaits = above
        self.doubts_below.setdefault(above, []).append(doubt)
        self.doubts[doubt.key] = doubt

    def take_doubts(self, key: SpanKey) -> list[Doubt]:
        """Take out the declarations that waited for a span."""
        waiting = self.doubts_below.pop(key, [])
        for doubt in waiting:
            self.doubts.pop(doubt.key, None)
        return waiting

    def take_doubt(self, doubt: Doubt) -> None:
        self.doubts.pop(doubt.key, None)
        siblings = self.doubts_below.get(doubt.awaits) if doubt.awaits is not None else None
        if siblings is not None and doubt.awaits is not None:
            siblings.remove(doubt)
            if not siblings:
                del self.doubts_below[doubt.awaits]

    # -- time --------------------------------------------------------------------------------------------------------

    def remind(self, who: Doubt | Trace, at: int) -> None:
        """Set the alarm for a declaration, or an earlier one for a trace."""
        if isinstance(who, Trace):
            if who.alarm is not None and at >= who.alarm:
                return
            who.alarm = at
        heapq.heappush(self._alarms, (at, next(self._count), who))

    def due(self, now: int) -> Iterator[Doubt | Trace]:
        """Yield what is due: declarations first, since agents may be steps of theirs, then traces."""
        if self.doubts:
            yield from self._due_doubts(now)
        while self._alarms:
            at, _, who = alarm = self._alarms[0]
            is_set = self._is_set(alarm)
            if is_set and at > now:
                break
            heapq.heappop(self._alarms)
            if is_set:
                if isinstance(who, Trace):
                    who.alarm = None
                yield who
        if len(self._alarms) > 2 * (len(self.doubts) + len(self.traces)) + 1_000:  # most of them need not wait any more
            self._alarms = [alarm for alarm in self._alarms if self._is_set(alarm)]
            heapq.heapify(self._alarms)

    def _due_doubts(self, now: int) -> Iterator[Doubt]:
        of_traces = []
        while self._alarms and self._alarms[0][0] <= now:
            alarm = heapq.heappop(self._alarms)
            if isinstance(alarm[2], Trace):
                of_traces.append(alarm)
            elif self._is_set(alarm):
                yield alarm[2]
        for alarm in of_traces:
            heapq.heappush(self._alarms, alarm)
        crowd = len(self.doubts) - REMEMBERED
        if crowd > 0:
            yield from heapq.nsmallest(crowd, self.doubts.values(), key=lambda doubt: doubt.deadline)

    @property
    def alarms(self) -> int:
        """The number of alarms that are kept."""
        return len(self._alarms)

    @property
    def next_alarm(self) -> int | None:
        return self._alarms[0][0] if self._alarms else None

    def _is_set(self, alarm: tuple[int, int, Doubt | Trace]) -> bool:
        at, _, who = alarm
        if isinstance(who, Trace):
            return who.alarm == at and self.traces.get(who.id) is who
        return self.doubts.get(who.key) is who
