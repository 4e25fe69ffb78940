"""Log events that come before the beginning of their turn does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from otel_letta.recent import Recent
from otel_letta.tracking.log_events import LogEvent
from otel_letta.tracking.turns import Conversation, service_of

_MOST_CONVERSATIONS, _MOST_EVENTS = 1_000, 200
"""Of each conversation."""


class _Early(NamedTuple):
    events: list[LogEvent]
    traces: frozenset[int]
    at: int
    """When the last of them came."""


class EarlyEvents:
    """The events of turns whose beginning is still to come, by conversation, or by trace where they name none."""

    def __init__(self) -> None:
        self._kept: Recent[tuple[str, str], _Early] = Recent(_MOST_CONVERSATIONS)

    def keep(self, event: LogEvent, now: int) -> None:
        key = _key_of(event)
        known = self._kept.get(key)
        events = [*(() if known is None else known.events), event][-_MOST_EVENTS:]
        self._kept.put(key, _Early(events, frozenset(one.trace_id for one in events), now))

    def take(self, event: LogEvent, turn: str) -> list[LogEvent]:
        """Take out what belongs to the turn that an event begins, in order."""
        early = self._kept.pop(_key_of(event), None)
        if early is None:
            return []
        mine = [one for one in early.events if one.time >= event.time and one.turn in ("", turn)]
        if rest := [one for one in early.events if one not in mine]:
            self._kept.put(_key_of(event), early._replace(events=rest))
        return sorted(mine, key=lambda one: one.time)

    def since(self, at: int) -> Iterator[tuple[Conversation, frozenset[int]]]:
        """Return the conversations, by service, in which the last one came after a time, and the traces of theirs."""
        for (service, _), early in self._kept.items():
            if early.at > at:
                yield (service, early.events[-1].conversation), early.traces


def _key_of(event: LogEvent) -> tuple[str, str]:
    return service_of(event.resource), event.conversation or f"{event.trace_id:032x}"
