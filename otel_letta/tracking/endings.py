"""Endings of inferred tasks: judged when their root has ended, or given up when nothing more will come."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from otel_letta.recent import Recent
from otel_letta.report import TaskStatus
from otel_letta.text import clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.background import Background
from otel_letta.tracking.conventions import AGENT, LLM, TOOL
from otel_letta.tracking.conventions.reasons import Reason
from otel_letta.tracking.ledger import Ledger, seconds_between
from otel_letta.tracking.nodes import MOST_SPANS_OF_A_TRACE, Fate, Node, Trace, family
from otel_letta.tracking.reading import SpanKey
from otel_letta.tracking.rules_subagents import SubAgents
from otel_letta.tracking.tasks import InferredTask
from otel_letta.tracking.tree import REMEMBERED, Tree
from otel_letta.tracking.verdicts import Verdict, judge, judge_orphans, judge_unended

_WORK = (TOOL, LLM)
_LOST_AFTER = 8
"""Idle times after which a task is lost of which nothing says how it ended."""


class Endings:
    """Ends inferred tasks, and remembers when.

    Args:
        apply: applies the rules to a span whose place is known now.
        catch_up: reports what was held back of a task.
        idle: nanoseconds without news after which a task is quiet.
    """

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        now: Callable[[], int],
        apply: Callable[[Trace, Node], object],
        catch_up: Callable[[Trace, InferredTask], object],
        subagents: SubAgents,
        idle: int,
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._now = now
        self._idle = idle
        self._apply = apply
        self._catch_up = catch_up
        self._subagents = subagents
        self.background = Background(self._wake)
        subagents.over = self.background.forget
        self.over_since: Recent[int, int] = Recent(REMEMBERED)
        """The end of the last task of a trace."""
        self.outside: Recent[int, int] = Recent()
        """The start of the last tool call beside a run, by trace."""

    def judge_if_complete(self, trace: Trace, task: InferredTask) -> None:
        """Judge a task of this process at once if nothing more can come: its root has ended and nothing below is
        open."""
        root = task.root
        if root is None or root.end is None or not root.live or task.ended:
            return
        if not any(node.end is None for node in family(root)):
            self.judge(trace, task, patient=True)

    def judge(self, trace: Trace, task: InferredTask, *, patient: bool = False) -> None:
        """Judge a task whose root has ended. ``patient``: it stays open for its work in the background."""
        root = task.root
        if root is None or task.ended:
            return
        if self._subagents.place(trace, task):
            return
        self._subagents.gather(trace, task)
        if not task.begun:
            self._catch_up(trace, task)
            if task.ended:
                return
        below, torn = family(root)[1:], 0
        for orphan in trace.orphans_of(task):
            if task.awaits is not None or (root.start <= orphan.start <= (root.end or 0) and not orphan.ambient):
                below += family(orphan)
                if not orphan.live and orphan not in trace.away:
                    torn = max(torn, orphan.start)
        verdict = judge(root, below, self.outside.get(trace.id) or 0, torn=torn)
        if patient and verdict.status is TaskStatus.COMPLETED and self._stays_open(trace, task, below):
            return
        self.conclude(trace, task, verdict, root.end or self._now(), [root, *below])

    def _stays_open(self, trace: Trace, task: InferredTask, below: Sequence[Node]) -> bool:
        until = task.background_until or self._now() + _LOST_AFTER * self._idle
        work = self.background.work_of(task, below) if until > self._now() else None
        if work is None:
            return False
        if task.background_until is None:
            task.background_until = until
            content = wording.background(self._ledger.name_of(task), work)
            self._ledger.report_inferred(task, TaskStatus.IN_PROGRESS, content, self._now())
        task.deadline = until
        self._tree.remind(trace, until)
        return True

    def _wake(self, task: InferredTask) -> None:
        """Have a task judged that stayed open."""
        trace = self._tree.traces.get(task.root.key[0]) if task.root is not None else None
        if trace is not None and task.background_until is not None:
            task.deadline = self._now()
            self._tree.remind(trace, task.deadline)

    def end_turn(self, trace: Trace, root: SpanKey, verdict: Verdict, at: int) -> None:
        """End the task of a root that only log events tell of."""
        node = trace.nodes.get(root)
        if node is None or node.task is None or node.task.ended:
            return
        node.end = at
        orphans = [orphan for orphan in trace.orphans_of(node.task) if node.start <= orphan.start <= at]
        nodes = [*family(node), *(each for orphan in orphans for each in family(orphan))]
        self.conclude(trace, node.task, verdict, at, nodes)

    def promote(self, trace: Trace, now: int | None) -> None:
        """Make roots of spans whose parent is in another process and has not come. ``now``: None waits no longer."""
        if not trace.away:
            return
        due = [node for node in trace.away if node.end is not None and (now is None or node.patience <= now)]
        # A run whose last step is a tool goes on: its next model call is in the next span of its kind, as some
        # frameworks make one for each turn, or what is above it has not ended.
        runs = [node for node in due if node.ambient and not node.remote]
        unsettled = {node for node in runs if node.is_part or not _is_settled(node)}
        trace.away -= unsettled
        self._make_roots(trace, [node for node in due if node not in unsettled])

    def _make_roots(self, trace: Trace, tops: Collection[Node]) -> None:
        for node in sorted(tops, key=lambda node: node.start):
            trace.unwait(node)
            node.missing = None
            self._apply(trace, node)
        if any(node.ambient for node in tops):
            for node in [node for orphan in trace.orphans for node in family(orphan)]:
                self._apply(trace, node)  # what was held back behind those

    def end_what_was_none(self, trace: Trace) -> None:
        """End tasks that turned out to be no agent's work: a lone tool, say, inside a request."""
        for task in trace.tasks:
            # One without a root, of which the spans wait for one above, is what most traces have at most times.
            if task.root is None and (task.awaits is not None or not trace.waiting):
                break
        else:
            return
        rootless = [task for task in trace.tasks if task.root is None]
        for task in rootless if not trace.waiting else ():
            if task.awaits is None and not any(node.top.task for node in trace.nodes.values()):
                self.dismiss(trace, task)
                break
        for task in rootless:
            if task.awaits is None or self._tree.awaits_root(trace, task):
                continue
            # The same, if the open span that it waited for got no role, or is no root.
            if not trace.orphans_of(task):
                self.dismiss(trace, task)

    def idle(self, trace: Trace) -> None:
        """Give up what is quiet for too long, or report that it is quiet."""
        idle = self._idle
        is_open = any(node.live and node.end is None for node in trace.nodes.values())
        is_open = is_open or any(self._tree.awaits_root(trace, task) for task in trace.tasks)
        is_open = is_open or any((task.background_until or 0) > self._now() for task in trace.tasks)
        patience = idle if self.has_evidence(trace) else _LOST_AFTER * idle
        if not is_open and trace.active_at + patience <= self._now():
            self.give_up_all(trace, wording.lost(patience / 1e9))
        elif not trace.silent:
            # It may wait for a person, or for a long answer: a span arrives when it has ended.
            trace.silent = True
            for task in trace.tasks:
                content = wording.silent(self._ledger.name_of(task), idle / 1e9)
                self._ledger.report_inferred(task, TaskStatus.IN_PROGRESS, content, self._now())

    def has_evidence(self, trace: Trace) -> bool:
        """Return True if something says how the tasks of a quiet trace ended, or there are none."""
        last = max(
            (node for node in trace.orphans if node.end is not None), key=lambda node: node.end or 0, default=None
        )
        ended = last is not None and (last.failed or last.role is AGENT or last.waits_for is not None)
        return ended or not trace.tasks or any(_is_seen(task.root) for task in trace.tasks)

    def give_up_all(self, trace: Trace, reason: str) -> None:
        """End all tasks of a trace of which nothing more will come."""
        turns = [node for node in trace.orphans if node.ambient]
        if len(turns) > 1:  # parts of one run, then, whose root never came
            for turn in turns:
                self._tree.look_through(trace, turn)
        ended = [node for node in trace.orphans if node.end is not None]
        last = max(ended, key=lambda node: node.end or 0, default=None)
        if last is not None and last.role is AGENT:
            # Whatever is around these was not over, or nobody traces it. They are, each for itself.
            self._make_roots(trace, [node for node in ended if node.role is AGENT])
        for task in list(trace.tasks):
            if task.deadline is not None:
                self.judge(trace, task)
        for task in list(trace.tasks):
            self.give_up(trace, task, reason)
        self._tree.drop(trace)

    def thin_out(self, trace: Trace) -> None:
        """Forget the oldest steps of a long task. What came last decides how it ended."""
        share = MOST_SPANS_OF_A_TRACE // 4
        for node in [node for node in trace.nodes.values() if node.is_spent][:share]:
            task = trace.task_of(node)
            if task is not None:
                tools, problems = counted([node])
                task.forgotten = (task.forgotten[0] + tools, task.forgotten[1] + problems)
            self._tree.discard(trace, node)
        if len(trace.nodes) > MOST_SPANS_OF_A_TRACE:
            for node in [node for node in trace.nodes.values() if node.task is None][:share]:
                self._tree.discard(trace, node)

    def dismiss(self, trace: Trace, task: InferredTask) -> None:
        """End a task that turned out to be no agent's work. What was not reported needs no end."""
        if task.begun:
            self.conclude(trace, task, Verdict(TaskStatus.COMPLETED), self._now(), ())
        else:
            self._subagents.drop(trace, task)

    def give_up(self, trace: Trace, task: InferredTask, reason: str) -> None:
        """End a task of which no more will come, and whose root did not come, or did not end."""
        if task.held_until is not None:
            self._catch_up(trace, task)
            if task.ended:
                return
        if task.root is not None:
            below = family(task.root)[1:]
            verdict, at, nodes = judge_unended(task.root, below), self._now(), [task.root, *below]
        else:
            tops = trace.orphans_of(task)
            nodes = [node for top in tops for node in family(top)]
            agents = {node.name: None for node in nodes if node.role is AGENT and node.name}
            named = next((node.name for node in tops if node.role is AGENT), "")
            task.name = task.name or named or (next(iter(agents)) if len(agents) == 1 else "")
            verdict = judge_orphans(tops, [node for node in nodes if node.missing is None])
            at = max((node.end or 0 for node in nodes), default=0) or self._now()
        if verdict is None:
            self.fail(trace, task, reason)
        else:
            self.conclude(trace, task, verdict, at, nodes)

    def conclude(self, trace: Trace, task: InferredTask, verdict: Verdict, at: int, nodes: Sequence[Node]) -> None:
        """End a task by a verdict. ``nodes``: its spans."""
        name, reason, status = self._ledger.name_of(task), verdict.reason, verdict.status
        # Counted again: what was reported before the root came may have been another task's, or one call twice.
        task.tools, task.problems = (a + b for a, b in zip(counted(nodes), task.forgotten, strict=True))
        if verdict.waits_for is not None:
            waiting = (node for node in nodes if node.waits_for is not None and node.role is TOOL)
            last = max(waiting, key=lambda node: node.start, default=None)
            task.waiting_tool = last.name if last is not None else ""
            self._end(trace, task, status, wording.waits_for(verdict.waits_for), at, None, nodes)
            return
        if task.status is not None and task.status.is_terminal:
            status = task.status
        if status is TaskStatus.COMPLETED:
            task.problems += verdict.cut
            task.progress = 1.0
            took = seconds_between(task.started, at)
            content = wording.agent_finished(name, took, task.tools, task.problems)
            if verdict.spoke:
                content += f"; {wording.ended_with_message()}"
        elif verdict.cancelled:
            content, reason = wording.agent_cancelled(name, str(reason)), reason or Reason("", "cancelled")
        elif verdict.timed_out:
            content = wording.agent_timed_out(name, str(reason))
        elif verdict.stopped:
            why = str(reason) or wording.NO_ANSWER
            content, reason = wording.agent_stopped(name, why), Reason("", f"stopped: {why}")
        else:
            content = wording.agent_failed(name, str(reason))
        if task.root_content is not None:
            content = task.root_content
        elif task.prompt:
            content += f"; asked: {task.prompt}"
        error = clean_line(reason.full, 200) or None if status is TaskStatus.FAILED else None
        self._end(trace, task, status, content, at, error, nodes)

    def fail(self, trace: Trace, task: InferredTask, reason: str) -> None:
        """End a task that nobody can judge. It failed, unless it has said itself how it ended."""
        nodes = [] if task.root is None else family(task.root)
        if task.awaits is not None or (trace.tasks and task is trace.tasks[-1]):
            # What has no place yet counts as its work.
            nodes += [node for orphan in trace.orphans_of(task) for node in family(orphan)]
        content = wording.agent_failed(self._ledger.name_of(task), reason)
        if task.status is not None and task.status.is_terminal:
            self._end(trace, task, task.status, task.root_content or content, self._now(), None, nodes)
        else:
            self._end(trace, task, TaskStatus.FAILED, content, self._now(), reason, nodes)

    def _end(
        self,
        trace: Trace,
        task: InferredTask,
        status: TaskStatus,
        content: str,
        at: int,
        error: str | None,
        nodes: Sequence[Node],
    ) -> None:
        task.deadline = None
        self._subagents.forget(task)
        self.background.forget(task)
        if status is TaskStatus.IN_PROGRESS:
            self._ledger.park(task, content, at)
        else:
            self._ledger.report_inferred(task, status, content, at, error=error)
            self._ledger.remember(task)
        task.end()
        if task in trace.tasks:
            trace.tasks.remove(task)
        if task.root is None and task.awaits is not None:
            self._tree.end(task.awaits, Fate.GIVEN_UP)  # its root may come, and be too late
        self.over_since.put(trace.id, max(at, self.over_since.get(trace.id) or 0))
        self._tree.remove_all(trace, nodes, Fate.OVER)


def _is_seen(root: Node | None) -> bool:
    return root is not None and (not root.supposed or root.end is not None)


def _is_settled(run: Node) -> bool:
    return not judge(run, family(run)[1:]).stopped


def _is_told_above(node: Node) -> bool:
    """Return True for a call of a model inside another one's span that failed with it: they are one call."""
    return node.role is LLM and node.above is not None and node.above.role is LLM and node.above.failed


def counted(nodes: Sequence[Node]) -> tuple[int, int]:
    """Count tool calls, and failures of tools and models."""
    tools = problems = 0
    for node in nodes:
        if node.reported and node.role in _WORK and not (node.twin or node.finishes):
            tools += node.role is TOOL
            problems += node.failed and node.waits_for is None and not _is_told_above(node)
    return tools, problems
