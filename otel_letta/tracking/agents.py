"""Spans with a role in an agent's work, and the time that passes over them: from the tree to the rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

from otel_letta import semconv
from otel_letta.recent import Recent
from otel_letta.text import as_text
from otel_letta.tracking import wording
from otel_letta.tracking.conventions import AGENT, STEP, TOOL, Role
from otel_letta.tracking.conventions.facts import read_facts
from otel_letta.tracking.conventions.finishes import Finish
from otel_letta.tracking.conventions.names import early_name
from otel_letta.tracking.conventions.reasons import Reason, reason_of
from otel_letta.tracking.declared import Declaration
from otel_letta.tracking.ledger import Ledger, standing
from otel_letta.tracking.merging import merge_declaration
from otel_letta.tracking.nodes import MOST_SPANS_OF_A_TRACE, Fate, Node, Plain, Trace, family
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.rules_agents import AgentRules
from otel_letta.tracking.rules_runs import AmbientRuns
from otel_letta.tracking.tasks import NO_IDS, Inbound, InferredTask
from otel_letta.tracking.tree import Tree
from otel_letta.tracking.verdicts import Verdict


class AgentTracker:
    """Turns spans with a role into tasks.

    Args:
        grace: seconds from a root's end to the verdict. Children may end after their root, and parents in another
            process may arrive after their children.
        idle_timeout: seconds without any news after which a task whose root never came is lost.
        chat_attributes: further attributes that may name the conversation.
        content: fields of `otel_letta.tracking.conventions.CONTENT_FIELDS` that may be reported.
    """

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        now: Callable[[], int],
        *,
        grace: float = 2.0,
        idle_timeout: float = 900.0,
        chat_attributes: Sequence[str] = (),
        content: Collection[str] = (),
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._now = now
        self._grace = int(grace * 1e9)
        self._idle = int(idle_timeout * 1e9)
        self._chat_attributes = tuple(chat_attributes)
        self._content = frozenset(content)
        self._rules = AgentRules(tree, ledger, now, self._grace, self._idle)
        self._endings = self._rules.endings
        self._runs = AmbientRuns(tree, now, self._grace, self._rules.apply, self._bound)
        self._failures: Recent[SpanKey, Reason] = Recent()
        """Failed parts of tool calls, by the tool's span."""
        self.evicted = 0
        """Traces given up because there were too many, or had too many spans."""

    @property
    def open_tasks(self) -> int:
        return sum(not task.claimed for trace_id in self._tree.busy for task in self._tree.traces[trace_id].tasks)

    # -- spans -------------------------------------------------------------------------------------------------------

    def read(self, reading: Reading, role: Role) -> Node:
        """Read the facts of a span that has a role. They become its entry if it gets one."""
        node = Node(role)
        read_facts(node, reading, self._chat_attributes, self._content)
        return node

    def observe(
        self,
        reading: Reading,
        facts: Node,
        declaration: Declaration | None,
        parent: SpanKey | None,
        remote: bool = False,
        *,
        live: bool = False,
        inbound: Inbound = NO_IDS,
        aborted: str | None = None,
        under: Reading | None = None,
        ambient: Plain | None = None,
        guessed: bool = False,
    ) -> None:
        """Take in a span with a role that started, changed or ended.

        Args:
            reading: the span as it is now; ``end`` says whether it ended.
            facts: as `read` made them.
            parent: the span above it, or the next one above that is worth asking.
            remote: that one is in another process.
            live: the span's start was seen in this process, so everything above it is known.
            aborted: why it ended, if an exception stopped it that OpenTelemetry does not record.
            under: the topmost open span above it, if ``parent`` is an open span too, and both may get a role yet.
            ambient: what is known of a span that has no role of its own, and bounds a run.
            guessed: it is open here, and no span above it has a role.
        """
        key, tree = reading.key, self._tree
        trace = tree.traces.get(key[0])
        node = trace.nodes.get(key) if trace is not None else None
        if (node is not None or key in tree.ended) and tree.knows_end(key, node):
            return
        if facts.outside:
            self._endings.outside.put(key[0], reading.start)
            if reading.end is not None:
                tree.end(key, Fate.OUTSIDE)
            return
        arrived, is_new = None, node is None
        if trace is None:
            trace = tree.trace(key[0])
        if node is None:
            if facts.is_run or (trace.tasks and tree.is_left_over(trace, key, parent)):
                parent, remote = None, False
            node = facts
            node.enter(key, parent, remote, reading.start, live)
            node.guessed = guessed
            if ambient is not None or under is not None:
                self._note_place(trace, node, reading, under, ambient)
        else:
            node.take(facts)
        if aborted is not None and trace.is_over_for(node):
            aborted = None
        self._update(node, reading, aborted)
        if is_new:
            trace.nodes[key] = node
            tree.size += 1
            tree.place(trace, node)
            if len(trace.nodes) > MOST_SPANS_OF_A_TRACE:
                self._endings.thin_out(trace)
                self.evicted += 1
            arrived = tree.arrived(trace, key)
        trace.active_at, trace.silent = self._now(), False
        if node.finish is Finish.TOOLS and node.role is AGENT:
            trace.has_turns = True
        if trace.sample is None:
            trace.sample = reading.copy().drop_content()
        self._rules.apply(trace, node, reading, facts, declaration, inbound)
        if arrived:
            self._rules.apply_below(trace, node, arrived)
        if trace.held:
            self._runs.find(trace)
        self._tidy(trace)

    def _note_place(
        self, trace: Trace, node: Node, reading: Reading, under: Reading | None, ambient: Plain | None
    ) -> None:
        """Note what is known of a new span beside what it says; see `observe`."""
        if ambient is not None:
            node.ambient, node.is_part, node.seen_at = True, ambient.is_part, self._now()
            node.under = next((below.under for below in trace.waiting.get(node.key, ()) if below.under), None)
        if under is not None and node.parent is not None:
            self._expect_role(node, node.parent, under, reading)

    def _expect_role(self, node: Node, parent: SpanKey, under: Reading, reading: Reading) -> None:
        """Remember the open spans above that may get a role yet, and what the topmost one is called."""
        node.under = under.key
        candidates = self._tree.candidates
        candidates.put(parent, candidates.get(parent))
        named = candidates.get(under.key) or (early_name(under, reading.attributes), under.start)
        candidates.put(under.key, named)

    def _update(self, node: Node, reading: Reading, aborted: str | None) -> None:
        """Take over what the facts do not hold, or only somebody else knows."""
        node.end, node.ok, node.links = reading.end, reading.ok, reading.links
        if node.conversation and node.role in (AGENT, STEP):
            self._rules.see_agent((as_text(reading.resource.get(semconv.SERVICE_NAME)) or "", node.conversation))
        if aborted is not None and not node.failed:
            node.failed, node.reason = True, Reason("", aborted)
        if node.end is not None and node.role is TOOL and not node.failed:
            reason = self._failures.get(node.key)
            if reason is not None:
                node.failed, node.reason = True, reason

    def pending(self, reading: Reading, key: SpanKey, parent: SpanKey | None) -> None:
        """Take in a span that announces that the span ``key`` below ``parent`` has started."""
        role = reading.role
        if role is None:
            self.passed(key, parent)
            return
        facts = self.read(reading, role)
        reading.key, reading.parent, reading.remote, reading.end = key, parent, None, None
        self.observe(reading, facts, None, parent=parent)

    def passed(
        self,
        key: SpanKey,
        parent: SpanKey | None,
        remote: bool = False,
        *,
        awaits: bool = False,
        reading: Reading | None = None,
        aborted: str | None = None,
    ) -> None:
        """Hang all below a span without a role below its parent.

        Args:
            awaits: that one may get a role yet.
            reading: the span, if it has ended and may bound a run; it is kept, see `AmbientRuns.hold`.
            aborted: why it ended, if an exception stopped it that OpenTelemetry does not record.
        """
        tree = self._tree
        trace = tree.traces.get(key[0])
        if trace is not None and trace.tasks and tree.is_left_over(trace, key, parent):
            parent, remote = None, False
        tree.links.put(key, (parent, remote))
        if awaits and parent is not None:
            tree.candidates.put(parent, tree.candidates.get(parent))
        if reading is not None and reading.end is not None:
            self._runs.hold(trace, reading, aborted)
            if trace is not None:
                self._tidy(trace)
        elif trace is not None:
            for node in tree.arrived(trace, key):
                self._rules.apply(trace, node)
            self._tidy(trace)

    def _bound(self, plain: Plain) -> None:
        """Make an agent of a span without a role that bounds a run."""
        reading = plain.reading
        facts = Node(AGENT)
        facts.failed, facts.reason = plain.failed, plain.reason
        parent, remote = self._tree.links.get(reading.key) or (reading.above, reading.remote is not None)
        self.observe(reading, facts, None, parent=parent, remote=remote, ambient=plain)

    def part_failed(self, tool: SpanKey, part: Reading) -> None:
        """Remember that a part of what may be a tool call failed, though the tool's own span may not say so."""
        if tool[0] in self._tree.traces:
            self._failures.put(tool, reason_of(part))

    def lost(self, key: SpanKey) -> None:
        """Give up an open span with a role that nobody can end any more."""
        trace = self._tree.traces.get(key[0])
        node = trace.nodes.get(key) if trace is not None else None
        if trace is None or node is None or node.end is not None:
            return
        task = trace.task_of(node)
        if task is not None and task.root is node:
            self._endings.give_up(trace, task, wording.NEVER_ENDED)
        else:
            node.end = self._now()
            node.reported = True
            node.answered = False
            if task is not None:
                self._endings.judge_if_complete(trace, task)
        self._tidy(trace)

    def lost_plain(self, key: SpanKey, parent: SpanKey | None, *, awaits: bool = False) -> None:
        """Give up an open span that has shown no role."""
        trace = self._tree.traces.get(key[0])
        if trace is not None:
            for task in [task for task in trace.tasks if task.root is None and task.awaits == key]:
                self._endings.give_up(trace, task, wording.NEVER_ENDED)
        self.passed(key, parent, awaits=awaits)

    def end_turn(self, root: SpanKey, verdict: Verdict, at: int) -> None:
        """End the task of a root that has no span of its own."""
        if (trace := self._tree.traces.get(root[0])) is not None:
            self._endings.end_turn(trace, root, verdict, at)
            self._tidy(trace)

    def watch(self, see_agent: Callable[[tuple[str, str]], object], take_lone: Callable[[Trace, Node], object]) -> None:
        """Have conversations of agents brought, by service and id, and ended calls that nothing is above."""
        self._rules.see_agent, self._rules.take_lone = see_agent, take_lone

    def adopt(self, root: SpanKey, nodes: Collection[Node]) -> None:
        """Make calls that were no task's the work of a root's, whose trace they are in now."""
        tree, trace = self._tree, self._tree.traces[root[0]]
        for top in nodes:
            for node in family(top):
                trace.nodes[node.key] = node
                tree.size += 1
            # What a live one waits for is missing; another parent that is not here never comes.
            above = None if top.live and top.missing is None else tree.highest(top.missing or top.parent)
            top.parent, top.remote, top.missing = root if above is None else (root[0], above[1]), False, None
            tree.place(trace, top)
        for node in sorted(nodes, key=lambda node: node.end or 0):
            self._rules.apply(trace, node)
        self._tidy(trace)

    def release_held(self) -> None:
        """Place what waits for spans that may bound a run."""
        for trace in list(self._tree.traces.values()):
            self._runs.release(trace, None)

    # -- declarations ------------------------------------------------------------------------------------------------

    def absorb(self, key: SpanKey) -> InferredTask | None:
        """Make agents below a span its steps: it turned out to be a declared task.

        Returns:
            The inferred task that was reported for these until now, if there is one: whoever goes on with it keeps its
            place.
        """
        tree = self._tree
        tree.end(key, Fate.TASK, tree.tasks.get(key))
        trace = tree.traces.get(key[0])
        tops = trace.waiting.pop(key, None) if trace is not None else None
        if trace is None or not tops:
            return None
        trace.away -= tops.keys()
        for top in tops:
            for node in family(top):
                tree.remove(trace, node, Fate.OVER)
        task = trace.rootless
        if task is not None and not trace.waiting:
            trace.tasks.remove(task)
            task.end()
            self._endings.background.forget(task)
        if task is not None and not (task.ended and task.begun):
            task = None
        self._tidy(trace)
        return task

    def expect(self, key: SpanKey, until: int) -> None:
        """Give up no agents below a span before it is known whether that is a declared task: one of them would be
        reported as a task of its own, and then again as a step."""
        trace = self._tree.traces.get(key[0])
        if trace is not None and key in trace.waiting:
            trace.active_at = max(trace.active_at, until + self._grace - self._idle)

    def declare_below(self, above: SpanKey, declaration: Declaration) -> bool:
        """Take over the statement of a span without a role, somewhere below the span ``above``, about the agent's task.

        Returns:
            False if that is part of no agent's task, or the declared one is a task of its own.
        """
        trace = self._tree.traces.get(above[0])
        node = trace.nodes.get(above) if trace is not None else None
        if trace is None or node is None:
            return self._tree.is_over(above)
        task = trace.task_of(node)
        if task is None:
            return False
        if declaration.chat_id is not None:
            if task.chat is not None and task.chat[0] == 0 and task.chat[2] != declaration.chat_id:
                return False
            task.offer_chat(0, node.agents_above + 1, declaration.chat_id)
        if merge_declaration(task, declaration, own=False):
            self._rules.report(task, task.content or standing(task))
        return True

    # -- time --------------------------------------------------------------------------------------------------------

    def due(self, trace: Trace) -> None:
        """Do what is due in a trace: judge what has ended, and give up or report what is quiet for too long."""
        now = self._now()
        self._runs.release(trace, now)
        self._endings.promote(trace, now)
        for task in list(trace.tasks):
            if task.held_until is not None and task.held_until <= now:
                self._rules.catch_up(trace, task)
            if task.deadline is not None and task.deadline <= now:
                self._endings.judge(trace, task, patient=True)
        if trace.active_at + self._idle <= now:
            self._endings.idle(trace)
        self._tidy(trace)

    def judge_ended(self) -> None:
        """Judge what has ended now: somebody flushes, and may not be here when the grace time is over."""
        for trace in list(self._tree.traces.values()):
            self._runs.release(trace, None)
            for task in list(trace.tasks):
                if task.held_until is not None:
                    self._rules.catch_up(trace, task)
                if task.deadline is not None:
                    self._endings.judge(trace, task)
            self._tidy(trace)

    def end_all(self, reason: str | None = None, goes_on: Callable[[], bool] = lambda: True) -> None:
        """End everything, while there is time. ``reason``: why; None is as if all idle times had passed."""
        for trace in takewhile(lambda _: goes_on(), list(self._tree.traces.values())):
            self._runs.release(trace, None)
            self._endings.promote(trace, None)
            self._endings.give_up_all(trace, reason or wording.lost(self._idle / 1e9))

    # -- bounds ------------------------------------------------------------------------------------------------------

    def _tidy(self, trace: Trace) -> None:
        """Keep the order of ages, the bounds and the alarm, after any news."""
        tree = self._tree
        if trace.tasks:
            self._endings.end_what_was_none(trace)
        is_crowded = tree.keep_order(trace)
        if trace.alarm is None and (trace.nodes or trace.tasks):
            tree.remind(trace, trace.next_due(self._now(), self._idle))
        while is_crowded and (oldest := tree.too_much()) is not None:
            self.evicted += 1
            for task in list(oldest.tasks):
                self._endings.fail(oldest, task, "lost, more tasks at once than are kept")
            tree.drop(oldest)
