"""Rules for runs without an agent's span of their own: common below the span of a web handler or a job.

The nearest span without a role whose nearest descendants with one hold a tool and a model call is the agent. It is
judged by the same rules, and ends by its own end, whatever is above it. What holds calls of models alone is no task.
Some frameworks make an agent of each turn (measured with opencode 1.18 on the AI SDK): of several in one conversation,
where one ended by asking for a tool, the nearest span without a role that is above all of them is the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from otel_letta.tracking.conventions import AGENT, LLM, TOOL, Role
from otel_letta.tracking.conventions.finishes import Finish
from otel_letta.tracking.conventions.reasons import Reason, reason_of
from otel_letta.tracking.nodes import Node, Plain, Trace
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tree import Tree

_MOST_ROUNDS = 1_000
_NO_REASON = Reason()


class AmbientRuns:
    """Finds the spans that bound a run.

    Spans come in any order, and so those with a role wait at an ended span without one until the grace time is over.

    Args:
        grace: nanoseconds from its end.
        apply: applies the rules to a span whose place is known now.
        bound: makes an agent of a span.
    """

    def __init__(
        self,
        tree: Tree,
        now: Callable[[], int],
        grace: int,
        apply: Callable[[Trace, Node], object],
        bound: Callable[[Plain], None],
    ) -> None:
        self._tree = tree
        self._now = now
        self._grace = grace
        self._apply = apply
        self._bound = bound

    def hold(self, trace: Trace | None, reading: Reading, aborted: str | None = None) -> None:
        """Take in an ended span without a role: it may bound a run.

        Args:
            reading: it is kept, without its content; nobody else may need that any more.
            aborted: why it ended, if an exception stopped it that OpenTelemetry does not record.
        """
        key, until = reading.key, self._now() + self._grace
        reason = reason_of(reading) if reading.failed else Reason("", aborted) if aborted else _NO_REASON
        failed = reading.failed or aborted is not None
        is_part = reading.shape.is_marked
        self._tree.plain.put(key, Plain(reading.drop_content(), reason, failed, is_part, until))
        if trace is not None:
            for node in self._tree.arrived(trace, key):
                if node.missing != key:
                    self._apply(trace, node)
            if not trace.held:
                return
            if key in trace.held:  # calls wait here: whose they are is told when they have a place
                for task in trace.tasks:
                    if task.held_until is not None:
                        task.held_until = max(task.held_until, until + 1)
            self.find(trace)

    def find(self, trace: Trace) -> None:
        """Make agents of the spans that bound a run."""
        if not trace.held:
            return
        for key in [key for key in trace.held if _bounds_a_run(trace.waiting.get(key, ()))]:
            trace.held.pop(key, None)
            plain = self._tree.plain.pop(key, None)
            if plain is not None:
                self._bound(plain)

    def release(self, trace: Trace, now: int | None) -> None:
        """Look through those for which the time is up, and that bound no run. ``now``: None waits no longer."""
        for _ in range(_MOST_ROUNDS):
            due = [key for key, until in trace.held.items() if now is None or until <= now]
            if not due:
                break
            self._let_go(trace, due)

    def _let_go(self, trace: Trace, keys: Collection[SpanKey]) -> None:
        for key in sorted(keys, key=self._depth):
            if trace.held.pop(key, None) is None:
                continue
            self._tree.plain.pop(key, None)
            for node in self._tree.arrived(trace, key):
                self._apply(trace, node)
            self.find(trace)

    def _depth(self, key: SpanKey) -> tuple[int, int]:
        """Return what orders spans so that those below come first."""
        plain = self._tree.plain.get(key)
        return (plain.reading.end or 0, -plain.reading.start) if plain is not None else (0, 0)


def _bounds_a_run(nodes: Collection[Node]) -> bool:
    return len(_roles(nodes)) > 1 or (len(nodes) > 1 and _are_turns(nodes))


def _are_turns(nodes: Iterable[Node]) -> bool:
    """Return True for agents of one conversation, one of which asked for a tool and ended."""
    agents = [node for node in nodes if node.role is AGENT and not node.foreign and node.conversation]
    asking = {node.conversation for node in agents if node.finish is Finish.TOOLS}
    return any(sum(node.conversation == one for node in agents) > 1 for one in asking)


def _roles(nodes: Iterable[Node]) -> set[Role]:
    """Return which of the two sorts of work there is."""
    return {node.role for node in nodes if not node.foreign and node.role in (TOOL, LLM)}
