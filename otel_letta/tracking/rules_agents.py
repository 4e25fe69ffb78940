"""Rules for inferred tasks: agents whose spans follow a convention of agent tracing.

A span with a role and no other above it is the root of a task, if it is an agent or a step of one. Whatever has a role
and hangs below no known root counts as the work of one task of its trace, until the root shows better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from otel_letta.report import TaskStatus
from otel_letta.text import pattern
from otel_letta.tracking import wording
from otel_letta.tracking.conventions import AGENT, LLM, STEP, TOOL
from otel_letta.tracking.conventions.facts import NO_EXTRAS, AgentFacts
from otel_letta.tracking.declared import Declaration
from otel_letta.tracking.endings import Endings
from otel_letta.tracking.ledger import Ledger, seconds_between, standing
from otel_letta.tracking.merging import merge_declaration
from otel_letta.tracking.nodes import Fate, Node, Trace
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.rules_subagents import SubAgents
from otel_letta.tracking.tasks import NO_IDS, Inbound, InferredTask, automatic_id
from otel_letta.tracking.tree import Tree

_CODE = pattern(r"[\w$<>-]+(?:\.[\w$<>-]+)+")
_ANY_AGENTS = ("agent", "invoke_agent")
_MOST_HOPS = 100
_MOST_UNTOLD = 256
"""Spans of a trace that may be held back."""
_ROOT_ROLES = (AGENT, STEP)


class AgentRules:
    """Finds the task of each span with a role, and reports what the span says about it.

    Args:
        grace: nanoseconds from a root's end to the verdict.
        idle: nanoseconds without news after which a task is quiet.
    """

    def __init__(self, tree: Tree, ledger: Ledger, now: Callable[[], int], grace: int, idle: int) -> None:
        self._tree = tree
        self._ledger = ledger
        self._now = now
        self._grace = grace
        self.see_agent: Callable[[tuple[str, str]], object] = lambda conversation: None
        self.take_lone: Callable[[Trace, Node], object] = lambda trace, node: None
        self._subagents = SubAgents(tree, self.apply)
        self.endings = Endings(tree, ledger, now, self.apply, self.catch_up, self._subagents, idle)

    def apply(
        self,
        trace: Trace,
        node: Node,
        reading: Reading | None = None,
        facts: AgentFacts | None = None,
        declaration: Declaration | None = None,
        inbound: Inbound = NO_IDS,
    ) -> None:
        """Report what is new about a span that changed, or has found its place."""
        if node.key not in trace.nodes:
            return
        task, fresh = trace.task_of(node), False
        if task is None:
            task, fresh = self._new_task_of(trace, node)
        if task is None or task.ended_at is not None:
            return
        is_root = node is task.root
        if is_root:
            if node.kept is not None:
                facts, declaration = facts or node.kept[0], declaration or node.kept[1]
                node.kept = None
        elif (
            node.missing is not None
            and node.role in _ROOT_ROLES
            and (declaration is not None or (facts and facts.extras))
        ):
            node.kept = facts, declaration
        if fresh:
            self._open(trace, task, reading or trace.sample, declaration, inbound)
        if reading is not None or is_root or not _has_said_all(node, task):
            self._merge(task, node, facts)
            if task.chat is not None and (task.place is None or task.place[2] is not task.chat[2]):
                self.endings.background.note(task)
            if is_root and node.links:
                self._note_caller(task, node)
            if task.session is not None:
                self._ledger.ask_for_claim(task)
        news = declaration is not None and merge_declaration(task, declaration, own=is_root)
        task.is_early = not (task.begun or task.due) and self._is_early(trace, task, node)
        if task.is_early or (trace.away and self._is_behind_a_run(trace, task, node)):
            node.held = facts if facts is not None and (facts.extras or facts.plan is not None) else node.held
            return
        if task.held_until is not None:
            self.catch_up(trace, task)
        self._go_on(trace, task, node, facts, news)
        if node.kept is None:
            node.extras = NO_EXTRAS  # they were told

    def apply_below(self, trace: Trace, node: Node, arrived: Sequence[Node]) -> None:
        """Apply the rules to spans that have found their place because one arrived, which they were applied to."""
        task = trace.task_of(node)
        early = task if task is not None and task.is_early else None
        for child in arrived:
            # Most come while their task is held back. They are reported when it is, and until then say nothing new.
            if early is None or child.above is not node or child.live or not _has_said_all(child, early):
                self.apply(trace, child)

    def _open(
        self,
        trace: Trace,
        task: InferredTask,
        source: Reading | None,
        declaration: Declaration | None,
        inbound: Inbound,
    ) -> None:
        """Fill in who a new task is for, and what came before anything showed it. ``source``: a span of its trace."""
        if source is not None:
            self._ledger.address(task, source, declaration, inbound)
            for early in trace.early:
                self._merge(task, early, None)
            trace.early.clear()

    def _go_on(self, trace: Trace, task: InferredTask, node: Node, facts: AgentFacts | None, news: bool) -> None:
        """Report what a span of a task that is held back no longer has to say. ``news``: where the task stands."""
        facts, node.held = facts or node.held, None
        if facts is not None and facts.plan is not None:
            task.reach(min(facts.plan, wording.ALMOST_DONE))
        if not task.begun and self._ledger.may_resume(task):
            work = [step for step in trace.steps_of(task) if step.role in (TOOL, LLM)]
            first = min(work, key=lambda step: step.start, default=None)
            self._ledger.resume(task, first.name if first is not None and first.role is TOOL else "")
            is_open = first is None and task.root is not None and task.root.end is None
            if not task.resumed and (
                (task.root is None and task.chat is None)  # it may be the one that waited, and its root will show that
                or (is_open and self._ledger.may_be_allowed(task))  # and here its first tool
            ):
                task.is_untold, node.held = True, facts
                return
        if not task.begun and task.resumed:
            task.begun = True
            self.report(task, wording.goes_on(self._ledger.name_of(task)))
        if not task.begun:
            task.begun = True
            if task.id == automatic_id((trace.id, 0)):  # another one may have ended under the trace's id since
                self._ledger.count_run(task)
            self.report(task, wording.agent_started(self._ledger.name_of(task)) + _quoted(facts, "prompt"))
        if task.is_untold:
            task.is_untold = False
            self._tell_steps(trace, task, node)
        if news:
            self.report(task, task.content or standing(task))
        if node.end is None:
            self._start_of_tool(task, node, facts)
            return
        if not node.reported and node is not task.root:
            self._end_of_step(task, node, facts)
        if task.deadline is None:
            self._set_deadline(trace, task)
        if node in trace.away:
            self._tree.remind(trace, node.patience)
        if task.root is not None and task.root.live:
            self.endings.judge_if_complete(trace, task)

    def _note_caller(self, task: InferredTask, root: Node) -> None:
        """Remember a task as work of the agents to whose tools its root links."""
        for link in root.links:
            tool = self._tree.node(link)
            caller = self._tree.traces[link[0]].task_of(tool) if tool is not None else None
            if caller is not None and caller is not task and task not in caller.linked:
                caller.linked = (*caller.linked, task)

    def _set_deadline(self, trace: Trace, task: InferredTask) -> None:
        if task.root is not None and task.root.end is not None and task.deadline is None:
            # Of what bounds a run, most of the time may have gone by before its place was known.
            since = task.root.seen_at if task.root.ambient else self._now()
            task.deadline = max(self._now(), since + self._grace)
            self._tree.remind(trace, task.deadline)

    def _is_early(self, trace: Trace, task: InferredTask, node: Node) -> bool:
        """Return True as long as an agent that came when it had ended may turn out to be another one's sub-agent, or
        the root of ended spans may come yet. Requests in any order within the grace make the same reports thus."""
        root = task.root
        if root is None and task.awaits is None and not node.live:
            if task.held_until is None:
                task.held_until = self._now() + self._grace + 1  # what comes just then is in time
                self._tree.remind(trace, task.held_until)
        elif root is None or root.end is None or root.live or root.role is not AGENT:
            return False
        else:
            task.held_until = None
            self._subagents.note(trace, task)
            self._set_deadline(trace, task)
        if len(trace.nodes) > _MOST_UNTOLD:
            self.catch_up(trace, task)
        return not task.due

    def _is_behind_a_run(self, trace: Trace, task: InferredTask, node: Node) -> bool:
        """Return True for work that began after what may be a run of its own had ended, as long as that is not clear:
        it may be the next run's."""
        if not task.is_unplaced or node.role in _ROOT_ROLES:
            return False
        start = node.top.start
        return any(run.ambient and not run.is_part and run.end and run.end <= start for run in trace.away)

    def catch_up(self, trace: Trace, task: InferredTask) -> None:
        """Report what happened in a task that was held back until it was clear that it is no other one's work."""
        task.due, task.held_until = True, None
        steps = trace.steps_of(task)
        if task.root is not None:
            self.apply(trace, task.root)
        for node in sorted(steps, key=_end):
            self.apply(trace, node)

    def _tell_steps(self, trace: Trace, task: InferredTask, last: Node) -> None:
        """Report what happened before ``last`` in a task that might have been one that waited."""
        for node in sorted(trace.steps_of(task), key=_end):
            if node is not last and node.end is None:
                self._start_of_tool(task, node, node.held)
            elif node is not last and not node.reported:
                self._end_of_step(task, node, node.held)

    def _new_task_of(self, trace: Trace, node: Node) -> tuple[InferredTask | None, bool]:
        """Return the task that a span becomes part of, and whether that is new; None for a span that is part of
        none."""
        top = node.top
        task: InferredTask | None
        if top.missing is not None:
            if self._comes_too_late(top):
                trace.unwait(top)
                self._tree.remove(trace, node, Fate.OVER)
                return None, False
            if node.role is LLM or node.guessed:
                trace.early.append(node)
                return None, False
            task = self._task_without_root(top, top.missing)
        elif top.role not in _ROOT_ROLES:
            beside = self._agent_beside(trace, top)
            if beside is not None:
                self._tree.hang(top, beside)
                return trace.task_of(node), False
            if node.end is not None and self._tree.remove(trace, node, Fate.DISMISSED):
                self._tree.links.setdefault(node.key, (node.parent, node.remote))
                if node is top:
                    self.take_lone(trace, node)
            return None, False
        else:
            awaiting = (t for t in trace.tasks if t.root is None and t.awaits in (top.key, top.under or top.key))
            task = next(awaiting, None) or trace.rootless
            fresh = task is None
            if task is None:
                task = InferredTask(top.key, top.start)
            task.root, top.task = top, task
            task.started = top.start
            if not task.begun:
                task.rename(top.key)
            if not fresh:
                return task, False
        if task.is_unplaced:
            self._ledger.count_run(task)
        elif self._ledger.was(task):  # its id is that of a span above, which bounded another task of the trace
            task.rename(top.key)
        trace.tasks.append(task)
        return task, True

    def _agent_beside(self, trace: Trace, top: Node) -> Node | None:
        """Return the agent that a tool or a model works for that hangs below the same span, within the agent's time."""
        roots = (task.root for task in trace.tasks)
        found = [root for root in roots if root is not None and top.parent is not None and root.parent == top.parent]
        found = [root for root in found if root.start <= top.start and (top.end or 0) <= (root.end or top.end or 0)]
        return found[0] if len(found) == 1 and found[0].role is AGENT and top.end is not None else None

    def _task_without_root(self, top: Node, missing: SpanKey) -> InferredTask:
        task = InferredTask(top.under or (missing[0], 0), top.start)
        if top.under is not None:
            task.awaits = top.under
            task.name, task.started = self._tree.candidates.get(top.under) or ("", top.start)
        return task

    def _comes_too_late(self, top: Node) -> bool:
        """Return True for work of a task that is over, or of a declared one."""
        tree, missing = self._tree, top.missing
        if missing is not None and (tree.is_over(missing) or tree.fate(missing) is Fate.TASK):
            return True
        if top.under is not None:
            return tree.is_over(top.under)
        over_since = self.endings.over_since.get(top.key[0])
        return over_since is not None and top.start <= over_since

    def _merge(self, task: InferredTask, node: Node, facts: AgentFacts | None) -> None:
        """Take over the facts of a span about its task."""
        root, node.merged = task.root, task
        is_root, chat = node is root, node.chat
        if root is None and 0 < node.start < task.started:
            task.started = node.start
        if chat is not None and task.takes_chat(chat[0], -1 if is_root else 0) and not _may_be_anothers(task, node):
            task.offer_chat(chat[0], -1 if is_root else node.agents_above, chat[1])
        if is_root and is_human(node):
            task.name = node.name
        elif not task.name:
            task.name = node.hint
        if facts is None:
            return
        if not node.foreign:
            task.session = task.session or facts.session
            task.message_id = facts.message_id or task.message_id
        if facts.extras:
            if is_root:
                task.prompt = facts.extras.get("prompt", task.prompt)
            if (is_root or node.finishes) and "answer" in facts.extras and not task.has_own_result:
                task.result = facts.extras["answer"]

    def _start_of_tool(self, task: InferredTask, node: Node, facts: AgentFacts | None) -> None:
        if node.role is TOOL and not node.announced and not node.finishes:
            node.announced = True
            self._report_step(task, wording.using_tool(node.name or "without a name") + _quoted(facts, "arguments"))

    def _end_of_step(self, task: InferredTask, node: Node, facts: AgentFacts | None) -> None:
        if node.role is AGENT:
            self._end_of_sub_agent(task, node)
            return
        node.reported = True
        if node.role is STEP or node.twin or node.finishes:
            return
        if node.denied:
            task.tools += 1
            self._report_step(task, wording.tool_denied(node.name or "without a name"))
            return
        failed = node.failed and node.waits_for is None
        task.problems += failed
        if node.role is TOOL:
            task.tools += 1
            reason = str(node.reason) if failed else None
            took = seconds_between(node.start, node.end or 0)
            text = wording.tool_used(node.name or "without a name", took, reason)
            if node.waits_for is not None:
                text += f", it {wording.waits_for(node.waits_for)}"
            self._report_step(task, text + _quoted(facts, "arguments") + _quoted(facts, "results"))

    def _end_of_sub_agent(self, task: InferredTask, node: Node) -> None:
        if node.above is None:
            return  # it may be the root yet
        node.reported = True
        above: Node | None = node.above
        while above is not None and above.role is not AGENT:
            above = above.above
        root_name = task.root.name if task.root is not None else ""
        if node.name and node.name not in (above.name if above is not None else "", root_name):
            self._report_step(task, wording.sub_agent(node.name, str(node.reason) if node.failed else None))

    def _report_step(self, task: InferredTask, text: str) -> None:
        if task.progress is None and task.tools:
            text = f"{text.rstrip('.')}; {wording.tools_used(task.tools)}"
        self.report(task, text)

    def report(self, task: InferredTask, text: str) -> None:
        self._ledger.report_inferred(task, TaskStatus.IN_PROGRESS, text, self._now())


def _end(node: Node) -> int:
    return node.end or 0


def _has_said_all(node: Node, task: InferredTask) -> bool:
    """Return True for a step that its task has heard. What a root says counts in another way than a step's words do,
    and so may an agent's, once it is known what is above it."""
    return node.merged is task and node is not task.root and node.role is not AGENT


def _may_be_anothers(task: InferredTask, node: Node) -> bool:
    """Return True for a span whose conversation may be a sub-agent's own: work of another process, or of an agent that
    a tool is, or an agent that nobody knows yet what is above."""
    if node.foreign or (task.root is None and node.role is AGENT and node.missing is not None):
        return True
    above, hops = node.above, 0
    while above is not None and above.role is not TOOL and hops < _MOST_HOPS:
        above, hops = above.above, hops + 1
    return above is not None and above.role is TOOL


def is_human(node: Node) -> bool:
    """Return True for a name that people gave: in an attribute for it, or a span's name that is no dotted code and no
    word for what any agent does."""
    return bool(node.name) and (node.named or not (_CODE.fullmatch(node.name) or node.name in _ANY_AGENTS))


def _quoted(facts: AgentFacts | None, field: str) -> str:
    """Return content that the settings ask for, behind its field's name."""
    text = facts.extras.get(field) if facts is not None else None
    return f"; {field}: {text}" if text else ""
