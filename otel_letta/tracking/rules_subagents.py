"""Rules for sub-agents that no span above them shows: in a trace of their own, or beside the agent that called them.

An agent's root within another agent's time is its sub-agent, if both are of one service, and of one trace or
conversation. One that links to a tool's span of another agent is that one's, whenever it runs.
"""

from __future__ import annotations

from collections.abc import Callable

from otel_letta.tracking.conventions import AGENT, TOOL
from otel_letta.tracking.nodes import Fate, Node, Trace, family
from otel_letta.tracking.tasks import InferredTask
from otel_letta.tracking.tree import Tree

_MOST_BESIDE = 16
"""Tasks of one trace or conversation that are compared with one."""


class SubAgents:
    """Finds the agents that others called.

    Args:
        apply: applies the rules to a span whose place is known now.
    """

    def __init__(self, tree: Tree, apply: Callable[[Trace, Node], object]) -> None:
        self._tree = tree
        self._apply = apply
        self.over: Callable[[InferredTask], object] = lambda task: None
        """Brought each task that turns out to be none of its own."""
        self._by_chat: dict[tuple[str | None, str], dict[InferredTask, Trace]] = {}

    def note(self, trace: Trace, task: InferredTask) -> None:
        """Take in a task whose root has ended."""
        if task.chat is not None and task.noted is None:
            task.noted = task.service, task.chat[2]
            self._by_chat.setdefault(task.noted, {})[task] = trace

    def forget(self, task: InferredTask) -> None:
        """Take in that a task is over."""
        beside = self._by_chat.get(task.noted) if task.noted is not None else None
        if beside is not None and task.noted is not None:
            beside.pop(task, None)
            if not beside:
                del self._by_chat[task.noted]

    def place(self, trace: Trace, task: InferredTask) -> bool:
        """Make a task, before anything of it was reported, the work of the one that called it, if there is such a one.

        Returns:
            True if it is no task of its own.
        """
        if task.sequence or task.root is None or task.root.role is not AGENT:
            return False
        for link in task.root.links:
            tool = self._tree.node(link)
            if tool is not None and tool.role is TOOL:
                above = self._tree.traces[link[0]]
                caller = above.task_of(tool)
                if caller is not None and caller is not task:
                    self._move(trace, task, above, tool)
                    return True
            elif self._tree.is_over(link):
                self._drop(trace, task)
                return True
        callers = [beside for beside in self._beside(trace, task) if _encloses(beside[0], task)]
        if not callers:
            return False
        # Agents that ran side by side have one caller: the longest.
        caller, where = max(callers, key=lambda beside: _length(beside[0]))
        assert caller.root is not None
        self._move(trace, task, where, caller.root)
        return True

    def gather(self, trace: Trace, task: InferredTask) -> None:
        """Make the agents within a task's time its work, before it is judged."""
        for other, where in self._beside(trace, task):
            if _encloses(task, other) and not other.sequence and task.root is not None:
                self._move(where, other, trace, task.root)

    def _beside(self, trace: Trace, task: InferredTask) -> list[tuple[InferredTask, Trace]]:
        found = dict.fromkeys(trace.tasks[:_MOST_BESIDE], trace)
        if task.noted is not None:
            found.update(list(self._by_chat.get(task.noted, {}).items())[:_MOST_BESIDE])
        return [(other, where) for other, where in found.items() if other is not task and not other.ended]

    def _move(self, trace: Trace, task: InferredTask, above_trace: Trace, above: Node) -> None:
        root = task.root
        assert root is not None
        self.drop(trace, task)
        nodes = family(root)
        for node in nodes:
            if trace is not above_trace:
                trace.unwait(node)
                trace.nodes.pop(node.key, None)
                above_trace.nodes[node.key] = node
                self._tree.end(node.key, Fate.OVER)
        self._tree.hang(root, above)
        for node in sorted(nodes, key=lambda node: node.end or 0):
            self._apply(above_trace, node)
        if trace is not above_trace:
            self._tree.keep_order(trace)

    def _drop(self, trace: Trace, task: InferredTask) -> None:
        root = task.root
        assert root is not None
        self.drop(trace, task)
        for node in family(root):
            self._tree.remove(trace, node, Fate.OVER)

    def drop(self, trace: Trace, task: InferredTask) -> None:
        """Forget a task of which nothing was reported; what it was made of stays."""
        self.forget(task)
        self.over(task)
        task.end()
        task.deadline = None
        if task.root is not None:
            task.root.task = None
        if task in trace.tasks:
            trace.tasks.remove(task)


def _length(task: InferredTask) -> int:
    return 0 if task.root is None else (task.root.end or 0) - task.root.start


def _encloses(outer: InferredTask, inner: InferredTask) -> bool:
    """Return True if one agent worked within another one's time."""
    one, other = outer.root, inner.root
    if one is None or other is None or one.end is None or other.end is None:
        return False
    if one.role is not AGENT or other.role is not AGENT or one.ambient or other.ambient:
        return False
    if outer.service != inner.service or outer.agent_id != inner.agent_id:
        return False
    return one.start <= other.start and other.end <= one.end and one.end - one.start > other.end - other.start
