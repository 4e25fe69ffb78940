"""Runs of agents without a root: calls of models and tools that only a conversation's id joins.

Measured with Gemini CLI 0.61, which makes a trace of each. Such a run is a turn, as log events tell of them: it stands
below a root that no span shows. It needs a tool and a model, since calls of models alone, or a tool alone, are no
agent's run; of a service that the settings name, a model is enough. No span says when it is over: it is when nothing
followed an answer, or trouble with the model, for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from otel_letta import semconv
from otel_letta.recent import Recent
from otel_letta.tracking.agents import AgentTracker
from otel_letta.tracking.conventions import LLM, TOOL, Role
from otel_letta.tracking.conventions.reasons import Reason
from otel_letta.tracking.log_events import LogEvent
from otel_letta.tracking.nodes import Node, Trace, family
from otel_letta.tracking.reading import Reading
from otel_letta.tracking.tree import REMEMBERED, Tree
from otel_letta.tracking.turns import NEAR, Conversation, Turn, service_of
from otel_letta.tracking.verdicts import Verdict, judge

_MOST_LONE, _MOST_ALIKE = 200, 8
"""Spans of a conversation that are kept until they are a run; and of one that has shown only models, or only tools."""
_MOST_CONVERSATIONS = 1_000


class Lone:
    """The spans of a conversation that nothing is above."""

    def __init__(self, sample: Reading, needed: frozenset[Role]) -> None:
        self.sample = sample
        self.needed = needed
        self.nodes: list[Node] = []
        self.at = 0
        """When the last of them came."""

    @property
    def is_run(self) -> bool:
        return self.needed <= {node.role for node in self.nodes}


class RootlessRuns:
    """Makes turns of calls that a conversation's id joins.

    Args:
        grace: nanoseconds that further spans of a run are waited for before it is one.
        opted: returns, for a service's name, whether the settings say that it is an agent.
        begin: makes a turn, as a prompt's log event does; None for one that is known otherwise.
        turn_at: returns the turn of a conversation in which a span started.
        adopt: makes calls the work of a turn.
        remind: sets a turn's alarm.
    """

    def __init__(
        self,
        tree: Tree,
        agents: AgentTracker,
        now: Callable[[], int],
        *,
        grace: int,
        answer_timeout: int,
        idle: int,
        opted: Callable[[str], bool],
        begin: Callable[[LogEvent], Turn | None],
        turn_at: Callable[[Conversation, int], Turn | None],
        adopt: Callable[[Turn, Collection[Node]], None],
        remind: Callable[[Turn, int], None],
    ) -> None:
        self._tree = tree
        self._agents = agents
        self._now = now
        self._grace = grace
        self._answer_timeout = answer_timeout
        self._idle = idle
        self._opted = opted
        self._begin = begin
        self._turn_at = turn_at
        self._adopt = adopt
        self._remind = remind
        self._lone: Recent[Conversation, Lone] = Recent(_MOST_CONVERSATIONS)
        self._runs: Recent[Conversation, Turn] = Recent(REMEMBERED)
        self._due: dict[Conversation, int] = {}
        self._with_agents: Recent[Conversation, None] = Recent(REMEMBERED)
        """Conversations in which agents have spans of their own: calls beside those are no runs."""
        agents.watch(self._see_agent, self._take)

    def _see_agent(self, conversation: Conversation) -> None:
        self._with_agents.put(conversation, None)
        self._lone.pop(conversation, None)
        self._due.pop(conversation, None)

    def _take(self, trace: Trace, node: Node) -> None:
        """Take in an ended call that nothing is above."""
        sample = trace.sample
        if sample is None or not node.conversation:
            return
        conversation = service_of(sample.resource), node.conversation
        turn = self._turn_at(conversation, node.start) or self._runs.get(conversation)
        if turn is not None and self._is_open(turn):
            if node.start >= turn.began - NEAR:
                self._adopt(turn, [node])
            return
        if conversation in self._with_agents:
            return
        lone = self._lone.get(conversation) or Lone(sample, self._needed(conversation[0]))
        near = [other for other in lone.nodes if abs(node.start - other.start) <= self._idle]
        lone.nodes, lone.at = [*near, node][-_MOST_LONE:], self._now()
        if not lone.is_run:
            del lone.nodes[:-_MOST_ALIKE]
        self._lone.put(conversation, lone)
        if lone.is_run and conversation not in self._due:
            self._due[conversation] = self._now() + self._grace

    def _needed(self, service: str) -> frozenset[Role]:
        return frozenset({LLM} if self._opted(service) else {LLM, TOOL})

    def _is_open(self, turn: Turn) -> bool:
        return self._tree.node(turn.root) is not None

    def _make(self, conversation: Conversation) -> None:
        lone = self._lone.pop(conversation, None)
        self._due.pop(conversation, None)
        if lone is None:
            return
        start = min(node.start for node in lone.nodes)
        event = LogEvent.of(
            "user_prompt",
            {semconv.GEN_AI_CONVERSATION: conversation[1]},
            lone.sample.resource,
            time=start,
            scope=lone.sample.scope,
        )
        turn = self._begin(event) if event is not None else None
        self._with_agents.pop(conversation, None)  # that one's root is no span
        if turn is not None and self._is_open(turn):
            turn.is_rootless = not turn.has_root
            self._runs.put(conversation, turn)
            self._adopt(turn, lone.nodes)

    def take_lone(self, conversation: Conversation) -> list[Node]:
        """Take out the calls of a conversation that nothing is above."""
        lone = self._lone.pop(conversation, None)
        self._due.pop(conversation, None)
        return [] if lone is None else lone.nodes

    def lone_since(self, at: int) -> set[int]:
        """Return the traces of calls that may be part of a run yet: those of conversations that had one after a time.

        Args:
            at: Unix nanoseconds.
        """
        found: set[int] = set()
        for lone in self._lone.values():
            if lone.at > at:
                found.update(node.key[0] for node in lone.nodes)
        return found

    def go_on(self, turn: Turn, end: int) -> None:
        """Take in that a call of a run has ended."""
        turn.latest, turn.active_at = max(turn.latest, end), self._now()
        self._remind(turn, turn.active_at + self._answer_timeout)

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: int | None) -> int | None:
        """Make the runs that are due; ``now``: None waits no longer. Returns when to come again."""
        if not self._due:
            return None
        for conversation in [key for key, due in self._due.items() if now is None or due <= now]:
            self._make(conversation)
        return min(self._due.values(), default=None)

    def verdict(self, turn: Turn) -> Verdict:
        """Return how a run has ended, if nothing follows."""
        return judge(*self._nodes(turn))

    def reason(self, turn: Turn) -> Reason:
        """Return why the last call of a model failed, as its span says; empty if it did not."""
        models = [node for node in self._nodes(turn)[1] if node.role is LLM]
        last = max(models, key=lambda node: node.start, default=None)
        return last.reason if last is not None and last.failed else Reason()

    def _nodes(self, turn: Turn) -> tuple[Node, list[Node]]:
        root = self._tree.node(turn.root)
        assert root is not None
        orphans = self._tree.traces[turn.root[0]].orphans
        return root, [*family(root)[1:], *(node for orphan in orphans for node in family(orphan))]

    def due(self, turn: Turn) -> int | None:
        """Return when a run will have ended, if nothing follows; None for one that is at work."""
        verdict = self.verdict(turn)
        if verdict.stopped:
            return None
        # Where no finish reason says that the answer is one, it may be a wish for a tool that takes its time.
        _, below = self._nodes(turn)
        models = [node for node in below if node.role is LLM]
        last = max(models, key=lambda node: node.start)
        sure = last.failed or last.finish is not None
        return turn.active_at + (self._answer_timeout if sure else self._idle)
