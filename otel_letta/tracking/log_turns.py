"""Turns of agents that log events tell of. They stand in the same tree as spans: a turn is the root of a task, as an
agent's span would be, and its tools hang below it.

Spans of the same run join the turn: those of its trace, and those of its conversation that began while it ran. The
agent's own span takes the turn's place, and the run is judged by the spans then. Otherwise, since some programs log no
end, a turn ends when its last word was an answer, or trouble with the model, and nothing followed for a while.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection

from otel_letta import semconv
from otel_letta.recent import Recent
from otel_letta.report import TaskStatus
from otel_letta.tracking import wording
from otel_letta.tracking.agents import AgentTracker
from otel_letta.tracking.conventions import AGENT, LLM, STEP, TOOL
from otel_letta.tracking.early_events import EarlyEvents
from otel_letta.tracking.ledger import Ledger
from otel_letta.tracking.log_events import Happened, LogEvent
from otel_letta.tracking.nodes import Fate, Node, Trace, family
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.rootless import RootlessRuns
from otel_letta.tracking.tree import Tree
from otel_letta.tracking.turn_index import TurnIndex
from otel_letta.tracking.turn_tools import TurnTools, observe
from otel_letta.tracking.turns import NEAR, ToolCall, Turn, began_with, is_of, made_up, service_of
from otel_letta.tracking.verdicts import Verdict

_MODEL = (Happened.ASKED, Happened.REPLIED, Happened.ANSWERED, Happened.WANTED, Happened.TROUBLED)


class LogTurns:
    """Turns log events into nodes of the tree, and lets the spans of the same run join them.

    Args:
        answer_timeout: seconds without news after an answer, or trouble with the model, that end a turn.
        opted: see `RootlessRuns`.
        grace, idle_timeout: see `AgentTracker`.
    """

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        agents: AgentTracker,
        now: Callable[[], int],
        answer_timeout: float,
        opted: Callable[[str], bool],
        *,
        grace: float = 2.0,
        idle_timeout: float = 900.0,
        **of_spans: object,
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._agents = agents
        self._now = now
        self._grace = int(grace * 1e9)
        self._idle = int(idle_timeout * 1e9)
        self._answer_timeout = int(answer_timeout * 1e9)
        self._index = TurnIndex(self._is_open)
        self.turn_of = self._index.of_span  # the turn of an ended span
        self._tools = TurnTools(tree, agents)
        self._early = EarlyEvents()
        self._answering: Recent[tuple[str, str], None] = Recent()
        """Services and scopes that say when an answer is complete."""
        self._rootless = RootlessRuns(
            tree,
            agents,
            now,
            grace=self._grace,
            answer_timeout=self._answer_timeout,
            idle=self._idle,
            opted=opted,
            begin=self._begin,
            turn_at=self._index.at,
            adopt=self._adopt,
            remind=self._remind,
        )
        self._alarms: list[tuple[int, int, Turn]] = []
        self._count = itertools.count()

    # -- events ------------------------------------------------------------------------------------------------------

    def take(self, event: LogEvent) -> None:
        """Take in a log event."""
        if not (event.conversation or event.trace_id) or service_of(event.resource) == semconv.LETTA_SERVER_SERVICE:
            return
        if event.happened is Happened.PROMPTED:
            self._begin(event)
            return
        if event.happened is Happened.ANSWERED:
            self._answering.put((service_of(event.resource), event.scope), None)
        turn = self._index.of_event(event)
        if turn is None:
            self._early.keep(event, self._now())
        else:
            self._go_on(turn, event)

    def _begin(self, event: LogEvent) -> Turn | None:
        conversation = service_of(event.resource), event.conversation
        own_trace = bool(event.trace_id and event.span_id)
        key = (event.trace_id, event.span_id)
        if not own_trace:
            key = made_up(("turn", *conversation, event.turn, str(event.time)))
        others = self._index.others(conversation)
        if key in self._index.turns or any(self._is_open(turn) and self._continues(turn, event) for turn in others):
            return None  # sent again, or more of the same
        calls = [node for node in self._rootless.take_lone(conversation) if node.start >= event.time - NEAR]
        for other in others:
            if other.began <= event.time:
                calls += self._begun_after(other, event.time)
                self._conclude(other)
        root = self._root_for(key, event, own_trace)
        turn = Turn(root or key, event, own_trace)
        self._index.add(key, turn)
        turn.known_by_spans = root is None
        if root is not None:
            self._index.by_trace.put(root[0], turn)
            self._take_over(turn)
            self._adopt(turn, [*calls, *self._unplaced(turn)])
        self._catch_up(turn, event)
        return turn

    def _continues(self, turn: Turn, event: LogEvent) -> bool:
        """Return True for a further prompt of a turn: one that says so, or came into its trace while it was at work."""
        if event.turn and event.turn == turn.id:
            return True
        return turn.own_trace and event.trace_id == turn.root[0] and self._verdict(turn).stopped

    def _root_for(self, key: SpanKey, event: LogEvent, own_trace: bool) -> SpanKey | None:
        """Return the span that is to be a turn's root: the prompt's own, or that of the task by which spans have told
        of the turn until now. None if spans have told of all of it."""
        tree, node = self._tree, self._tree.node(key)
        task, has_role = tree.standing(key)
        if node is None and (task is not None or has_role):
            return None
        if node is not None and node.role is AGENT:
            return None if node.live else key
        own = key if node is None else made_up(("turn", *map(str, key)))
        conversation = service_of(event.resource), event.conversation
        runs = [run for run in self._index.others(conversation) if run.is_rootless and run.latest >= event.time]
        if runs and self._is_open(runs[0]):
            return runs[0].root  # of this very turn: those before it are over
        seen = self._index.spans_of(conversation)
        traces = {span[0]: None for span, _ in seen} | ({key[0]: None} if own_trace else {})
        for trace_id in [*traces, *tree.busy]:
            trace = tree.traces.get(trace_id)
            for found in trace.tasks if trace is not None else ():
                if (trace_id in traces or is_of(found, event)) and began_with(found, event):
                    if found.root is not None:
                        return None if found.root.live else found.root.key
                    if found.begun or trace_id == key[0]:  # it gets one
                        return trace_id, own[1]
        reported = runs or any(start >= event.time - NEAR and tree.is_over(span) for span, start in seen)
        return None if reported else (key[0], own[1])

    def _take_over(self, turn: Turn) -> None:
        """Make the turn the root of what its trace has shown until now."""
        tree, root = self._tree, turn.root
        trace = tree.traces.get(root[0])
        for node in list(trace.nodes.values()) if trace is not None else ():
            turn.has_spans = turn.own_trace
            if node.role is TOOL:
                turn.add(ToolCall(node.key, node.name, node.call_id or "", node.start, node.end, by_span=True))
        turn.root_is_over = tree.links.get(root) == (None, False)
        if tree.node(root) is not None:
            turn.has_root = True
        else:
            observe(self._agents, turn.reading(root, None, {semconv.GEN_AI_OPERATION: "invoke_agent"}, turn.began))
            if (supposed := tree.node(root)) is not None:
                supposed.supposed = True
            if turn.root_is_over:
                self._remind(turn, self._now() + self._grace)

    def _begun_after(self, turn: Turn, time: int) -> list[Node]:
        """Take out what joined a turn before the next one was known, and is that one's."""
        root = self._tree.node(turn.root)
        if root is None or turn.own_trace or turn.has_root:
            return []
        trace = self._tree.traces[root.key[0]]
        tops = [*(root.children or ()), *trace.orphans]
        found = [node for node in tops if node.start >= time]
        turn.give_away({node.key for node in found})
        for node in found:
            self._take_out(trace, node)
        if turn.is_rootless:
            turn.latest = max((node.end or 0 for node in tops if node.start < time), default=turn.began)
        return found

    def _unplaced(self, turn: Turn) -> list[Node]:
        """Take out the calls of its conversation, in other traces, that nothing was reported of until now."""
        found, tree = [], self._tree
        seen = self._index.spans_of((turn.service, turn.conversation))
        for trace_id in {span[0]: None for span, start in seen if start >= turn.began - NEAR}:
            trace = tree.traces.get(trace_id) if trace_id != turn.root[0] else None
            if trace is None or any(task.begun or task.root is not None for task in trace.tasks):
                continue
            self._index.joined.put(trace_id, turn)
            for node in [node for node in trace.orphans if node.role in (TOOL, LLM)]:
                self._take_out(trace, node)
                found.append(node)
        return found

    def _take_out(self, trace: Trace, node: Node) -> None:
        trace.unhang(node)
        for each in family(node):
            self._tree.remove(trace, each, Fate.DISMISSED)

    def _adopt(self, turn: Turn, nodes: Collection[Node]) -> None:
        """Make calls whose spans came before the turn was known its work."""
        found = []
        turn.traces |= {each.key[0] for node in nodes for each in family(node)}
        for node in nodes:
            for each in family(node):
                each.key = turn.root[0], each.key[1]
            if node.role is TOOL and self._tools.take_node(turn, node):
                continue
            turn.models_by_spans = turn.models_by_spans or node.role is LLM
            found.append(node)
            if turn.is_rootless:
                self._rootless.go_on(turn, node.end or 0)
        self._agents.adopt(turn.root, found)

    def _catch_up(self, turn: Turn, event: LogEvent) -> None:
        """Take in what came before the turn's beginning did."""
        for one in self._early.take(event, turn.id):
            self._go_on(turn, one)

    def _go_on(self, turn: Turn, event: LogEvent) -> None:
        if not self._is_open(turn):
            return
        turn.latest = max(turn.latest, event.time)
        self._tree.traces[turn.root[0]].active_at = self._now()
        if event.happened is Happened.ENDED:
            self._conclude(turn)
            return
        if event.happened in _MODEL:
            self._model(turn, event)
        else:
            self._tools.take_event(turn, event)
        if self._is_open(turn) and not turn.has_root:
            self._set_alarm(turn)

    def _model(self, turn: Turn, event: LogEvent) -> None:
        troubled = turn.model_spoke(event) and turn.model is Happened.TROUBLED
        if troubled and turn.trouble is None and not turn.models_by_spans and not turn.has_root:
            key = turn.trouble = turn.root[0], made_up(("model", *map(str, turn.root), str(event.time)))[1]
            turn.models.append(key)
            attributes = {semconv.GEN_AI_OPERATION: "chat"}
            observe(self._agents, turn.reading(key, turn.root, attributes, event.began, event.time, str(turn.reason)))
            self._note(turn, wording.model_trouble(str(turn.reason)))

    def _note(self, turn: Turn, text: str) -> None:
        if (node := self._tree.node(turn.root)) is not None and node.task is not None:
            self._ledger.report_inferred(node.task, TaskStatus.IN_PROGRESS, text, self._now())

    def _is_open(self, turn: Turn) -> bool:
        return not turn.known_by_spans and self._tree.node(turn.root) is not None

    # -- spans of the same run ---------------------------------------------------------------------------------------

    def join(self, reading: Reading, turn: Turn) -> bool:
        """Give an ended span its place in the turn that it is part of. True if nothing is left to do for it."""
        if turn.is_rootless and reading.role in (AGENT, STEP) and not turn.is_within(reading):
            self._conclude(turn)
            return False
        if turn.is_rootless:
            self._rootless.go_on(turn, reading.end or 0)
        if reading.key[0] != turn.root[0]:
            self._index.joined.put(reading.key[0], turn)
            self._move(reading, turn)
        elif reading.role is not None and turn.own_trace:
            turn.has_spans = True
        role = reading.role
        if reading.key == turn.root:
            if role in (LLM, TOOL):
                return True
            if role is None:
                if reading.parent is not None:
                    return False
                # Nothing in a process goes on when its local root has ended: this is the turn's span, without a role.
                reading.role = AGENT
            self._take_place(turn, reading)
        elif role is AGENT and not turn.has_root and turn.is_within(reading):
            self._agents.passed(reading.key, turn.root)
            reading.key = turn.root
            self._take_place(turn, reading)
        elif role is TOOL:
            return self._tools.take_span(turn, reading)
        elif role is LLM:
            turn.models_by_spans = True
            self._forget_models(turn)
        return False

    def root_above(self, key: SpanKey) -> SpanKey | None:
        """Return the root of an open turn in the trace of a live span without anything above."""
        turn = self._index.by_trace.get(key[0])
        return turn.root if turn is not None and turn.root != key and self._is_open(turn) else None

    def _move(self, reading: Reading, turn: Turn) -> None:
        """Let a span of another trace be one of the turn's."""
        turn.traces |= {reading.key[0]}
        above, reading.key = reading.parent, (turn.root[0], reading.key[1])
        reading.parent, reading.remote = turn.root if above is None else (turn.root[0], above[1]), None

    def _take_place(self, turn: Turn, reading: Reading) -> None:
        turn.has_root = turn.has_spans = True
        node = self._tree.node(turn.root)
        if node is not None and node.task is not None:
            node.start = node.task.started = reading.start  # the prompt was noted a moment after that
        self._forget_models(turn)
        self._remind(turn, self._now() + self._grace)

    def _forget_models(self, turn: Turn) -> None:
        """Spans tell of the same calls, and more."""
        for key in turn.models:
            if (node := self._tree.node(key)) is not None:
                self._tree.discard(self._tree.traces[key[0]], node)
        turn.models.clear()

    def under_way(self) -> tuple[set[int], set[tuple[str, str]]]:
        """Return the traces, and the conversations by service, of which there is an open turn, or one may begin yet."""
        traces, conversations = self._index.under_way()
        since = self._now() - self._idle
        for conversation, its_traces in self._early.since(since):
            conversations.add(conversation)
            traces |= its_traces
        traces.update(self._rootless.lone_since(since))
        return traces, conversations

    # -- time --------------------------------------------------------------------------------------------------------

    def _set_alarm(self, turn: Turn) -> None:
        if turn.root_is_over:
            return
        turn.deadline = None
        if self._verdict(turn).stopped:
            return  # it is at work
        # Where spans tell of the run as well, the agent's own says when it is over.
        self._remind(turn, self._now() + (self._idle if turn.has_spans else self._answer_timeout))

    def _remind(self, turn: Turn, at: int) -> None:
        turn.deadline = at
        heapq.heappush(self._alarms, (at, next(self._count), turn))

    def tick(self, now: int) -> int | None:
        """Do what is due. Returns when to come again, Unix nanoseconds; None for never."""
        next_run = self._rootless.tick(now)
        while self._alarms:
            at, _, turn = self._alarms[0]
            if turn.deadline == at:
                if at > now:
                    return min(at, next_run or at)
                turn.deadline = None
                due = self._rootless.due(turn) if turn.is_rootless and self._is_open(turn) else at
                if due is not None and due > at:
                    self._remind(turn, due)
                elif due is not None:
                    self._conclude(turn)
            heapq.heappop(self._alarms)
        return next_run

    def settle(self) -> None:
        """End the tools of turns whose agent's span has come: they are judged now."""
        self._rootless.tick(None)
        for turn in {id(turn): turn for _, _, turn in self._alarms if turn.has_root}.values():
            self._tools.stop(turn)

    def conclude_all(self) -> None:
        """End all turns: nothing more will come."""
        self._rootless.tick(None)
        for turn in list(self._index.turns.values()):
            self._conclude(turn)

    def conclude_answered(self) -> None:
        """End the turns that have come to an end as far as anybody knows: the program shuts down."""
        self._rootless.tick(None)
        for turn in list(self._index.turns.values()):
            if self._is_open(turn) and not self._verdict(turn).stopped:
                self._conclude(turn)

    def _verdict(self, turn: Turn) -> Verdict:
        if turn.is_rootless and turn.model is None:
            return self._rootless.verdict(turn)
        return turn.verdict((turn.service, turn.scope) in self._answering)

    def _conclude(self, turn: Turn) -> None:
        if not self._is_open(turn):
            return
        verdict = self._verdict(turn)
        if turn.model is Happened.TROUBLED and not verdict.stopped:
            verdict = verdict._replace(reason=self._rootless.reason(turn) or turn.reason)  # a span says more
        self._tools.stop(turn)
        if not turn.has_root:
            self._agents.end_turn(turn.root, verdict, turn.latest)
