"""Tool calls of turns. A log event and a span may tell of the same one, in any order: they are two accounts of it."""

from __future__ import annotations

from otel_letta import semconv
from otel_letta.tracking import wording
from otel_letta.tracking.agents import AgentTracker
from otel_letta.tracking.conventions import TOOL
from otel_letta.tracking.conventions.facts import AgentFacts
from otel_letta.tracking.log_events import Happened, LogEvent
from otel_letta.tracking.nodes import Node
from otel_letta.tracking.reading import Reading
from otel_letta.tracking.tree import Tree
from otel_letta.tracking.turns import ToolCall, Turn, made_up, of_tool


class TurnTools:
    """Gives each tool call of a turn one place in the tree, whoever tells of it first."""

    def __init__(self, tree: Tree, agents: AgentTracker) -> None:
        self._tree = tree
        self._agents = agents

    def take_event(self, turn: Turn, event: LogEvent) -> None:
        """Take in what a log event tells of a call."""
        key = (
            turn.root[0],
            made_up(("tool", *map(str, turn.root), event.call or f"{event.tool} {event.began} {event.time}"))[1],
        )
        reading = turn.reading(key, turn.root, of_tool(event.tool, event.call), event.began)
        name = self._agents.read(reading, TOOL).name
        tool = turn.logged(name, event)
        begins = event.happened is Happened.DECIDED
        if tool is not None and begins:
            return
        if tool is None:
            tool = ToolCall(key, name, event.call, event.began, None, by_span=False)
            turn.add(tool)
        if begins:
            observe(self._agents, reading)
        elif event.happened is Happened.DENIED:
            self._end(turn, tool, event.time, wording.DENIED, decision="reject")
        else:
            kind = {semconv.ERROR_TYPE: event.error} if event.failed and event.error else {}
            self._end(turn, tool, event.time, "" if event.failed else None, **kind)

    def take_span(self, turn: Turn, reading: Reading) -> bool:
        """Take in the ended span of a call. True if a log event had told all of it."""
        facts = self._agents.read(reading, TOOL)
        name, call = facts.name, facts.call_id or ""
        end = reading.end or reading.start
        tool = turn.spanned(reading.key, name, call, reading.start, end)
        if tool is None:
            turn.add(ToolCall(reading.key, name, call, reading.start, end, by_span=True))
        if tool is None or tool.is_span:
            return False  # the tree knows what to do with several spans of one call
        tool.wrapper = reading.parent
        self._agents.passed(reading.key, tool.key)
        if tool.end is not None:
            self._amend(tool, facts)
            return True
        tool.end = end
        reading.carry(of_tool(tool.name, tool.call))
        reading.key, reading.parent, reading.remote = tool.key, turn.root, None
        return False

    def take_node(self, turn: Turn, node: Node) -> bool:
        """Take in a call whose span came before its turn was known. True if a log event had told of it."""
        key, end = node.key, node.end or node.start
        tool = turn.spanned(key, node.name, node.call_id or "", node.start, end)
        if tool is None:
            turn.add(ToolCall(key, node.name, node.call_id or "", node.start, end, by_span=True))
        if tool is None or tool.is_span:
            return False
        tool.wrapper = None if node.parent is None else (key[0], node.parent[1])
        self._agents.passed(key, tool.key)
        if tool.end is None:
            self._end(turn, tool, end, str(node.reason) if node.failed else None)
        elif node.failed:
            self._amend(tool, node)
        return True

    def stop(self, turn: Turn) -> None:
        """End the calls that nobody has told the end of."""
        node = self._tree.node(turn.root)
        at = max(turn.latest, (node.end if node is not None else None) or 0)
        for tool in turn.open_tools:
            self._end(turn, tool, at, wording.STOPPED_MIDWAY)

    def _end(self, turn: Turn, tool: ToolCall, at: int, error: str | None, **more: str) -> None:
        told, tool.end = tool.end is not None, tool.end or max(at, tool.began)
        attributes = {**of_tool(tool.name, tool.call), **more}
        reading = turn.reading(tool.key, turn.root, attributes, tool.began, tool.end, error)
        if told:
            self._amend(tool, self._agents.read(reading, TOOL))
        else:
            observe(self._agents, reading)

    def _amend(self, tool: ToolCall, account: Node | AgentFacts) -> None:
        """Let a call have failed of which the first account said nothing like that: programs put it into one of their
        two (measured: Gemini CLI 0.61 and a denied tool of Claude Code 2.1 only into logs)."""
        node = self._tree.node(tool.key)
        if node is not None and account.failed and not node.failed:
            node.failed, node.denied, node.reason = True, account.denied, account.reason


def observe(agents: AgentTracker, reading: Reading) -> None:
    """Take in a span that its program does not make."""
    if (role := reading.role) is not None:
        agents.observe(reading, agents.read(reading, role), None, parent=reading.parent)
