"""The seam to the tracker that is about to be replaced: the new one's interface over the old one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta import semconv
from otel_letta.pipeline.open_spans import OpenSpan
from otel_letta.tracking.roles import SpanFacts, SpanKey, scope_of
from otel_letta.tracking.state import REMEMBERED, Recent
from otel_letta.tracking.tasks import TaskTracker


def read_span(span: ReadableSpan, opted: str | None = None, more: Mapping[str, Any] | None = None) -> SpanFacts:
    facts = SpanFacts.read(span)
    if opted:
        facts.attributes[semconv.OPTED_IN] = opted
    if more:
        facts.attributes = {**facts.attributes, **more}
    return facts


class _Node:
    task: Any = None
    has_role = False
    owner = False
    said: str | None = None
    event_time = 0
    inbound: Any = (None, None)
    outside: Any = None
    parent: Any = None
    entry: OpenSpan | None = None
    _awaited: str | None = None

    def __init__(self, key: SpanKey) -> None:
        self.key = key
        self.over = False

    def __call__(self) -> ReadableSpan | None:
        return None if self.entry is None else self.entry.ended or self.entry()

    @property
    def ignored(self) -> bool:
        return self.entry is not None and self.entry.ignored

    @property
    def awaited(self) -> str | None:
        return self._awaited

    @awaited.setter
    def awaited(self, scope: str) -> None:
        self._awaited = scope
        if self.entry is not None:
            self.entry.awaited = True
            self.over = self.over or (self.entry.over and self.entry.ended is None)

    @property
    def followed(self) -> bool:
        return self.task is not None or self.has_role


class Tracker:
    def __init__(self, old: TaskTracker) -> None:
        self._old = old
        self._nodes: Recent[SpanKey, _Node] = Recent(REMEMBERED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._old, name)

    def _node(self, key: SpanKey, above: Sequence[OpenSpan], outside: Any, inbound: Any = (None, None)) -> Any:
        chain = [self._get(key), *(self._get(entry.key) for entry in above)]
        for node, parent in zip(chain, [*chain[1:], None], strict=True):
            node.parent = parent
        for node, entry in zip(chain[1:], above, strict=True):
            node.entry = entry
        chain[-1].outside = outside
        chain[0].inbound = inbound
        return chain[0]

    def _get(self, key: SpanKey) -> _Node:
        node = self._nodes.get(key)
        if node is None:
            node = _Node(key)
            self._nodes.put(key, node)
        return node

    def started(self, facts: SpanFacts, above: Any, outside: Any, inbound: Any) -> bool:
        node = self._node(facts.key, above, outside, inbound)
        self._old.started(node, facts)
        return bool(node.followed)

    def changed(self, facts: SpanFacts, above: Any, outside: Any, inbound: Any) -> bool:
        node = self._node(facts.key, above, outside, inbound)
        self._old.observed(node, facts)
        return bool(node.followed)

    def ended(self, facts: SpanFacts, above: Any, outside: Any, inbound: Any, aborted: str | None) -> bool:
        node = self._node(facts.key, above, outside, inbound)
        self._old.ended(node, facts, aborted)
        return bool(node.followed)

    def ended_plain(self, key: SpanKey, above: Any, outside: Any) -> None:
        self._old.ended_plain(self._node(key, above, outside))

    def lost(self, key: SpanKey, above: Any, outside: Any) -> None:
        self._old.lost(self._node(key, above, outside))

    def ended_alone(self, facts: SpanFacts, above: Any = ()) -> None:
        self._old.ended_alone(facts, self._node(above[0].key, above[1:], None) if above else None)

    def tick(self) -> int | None:
        return self._old.tick()

    def shutdown(self) -> None:
        nodes: Any = self._nodes._entries.values()
        self._old.shutdown(list(nodes))


__all__ = ["Tracker", "read_span", "scope_of"]
