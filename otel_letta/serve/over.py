"""What is over in bodies that stay in the spool for something else that they hold.

A Collector puts the spans of many tasks into one body, and those of one task into many. When a task is over, the bodies
that hold nothing else go. Taken in again after a crash, what the others still hold of it would look like a task of its
own: its root is gone, and so may be the note that its end was reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from otel_letta.tracking.turns import Conversation

KIND = "over"
"""Of the spool's items that say so, which are no bodies."""


class Gone(NamedTuple):
    """What is over in a body."""

    traces: frozenset[int] = frozenset()
    conversations: frozenset[Conversation] = frozenset()


NOTHING = Gone()


class Over:
    """What was over when a process ended, by the bodies of its spool."""

    def __init__(self) -> None:
        self._gone: dict[int, list[Gone]] = {}
        self._items: dict[int, list[int]] = {}

    def restore(self, written: bytes, number: int) -> None:
        """Take over an item, by its id. ValueError, TypeError for what is none."""
        bodies, gone = _read(written)
        self._items[number] = bodies
        for body in bodies:
            self._gone.setdefault(body, []).append(gone)

    def of(self, body: int) -> Gone:
        """Return what is over in a body, by its id."""
        found = self._gone.get(body)
        if found is None:
            return NOTHING
        traces, conversations = (frozenset().union(*parts) for parts in zip(*found, strict=True))
        return Gone(traces, conversations)

    def hand_over(self, take: Callable[[int, Collection[int]], None]) -> None:
        """Hand each item to whoever settles it with its bodies: its id, and theirs."""
        for number, bodies in self._items.items():
            take(number, bodies)


def write(bodies: Iterable[int], gone: Gone) -> bytes:
    """Write down what is over in some bodies."""
    traces = [f"{trace:x}" for trace in gone.traces]
    return json.dumps([list(bodies), traces, list(gone.conversations)]).encode()


def moved(written: bytes, numbers: Mapping[int, int]) -> bytes:
    """Return an item as it is where the bodies have other ids. ValueError, TypeError for what is none."""
    bodies, gone = _read(written)
    return write((numbers[body] for body in bodies if body in numbers), gone)


def _read(written: bytes) -> tuple[list[int], Gone]:
    bodies, traces, conversations = json.loads(written)
    found = frozenset((str(service), str(name)) for service, name in conversations)
    return list(map(int, bodies)), Gone(frozenset(int(trace, 16) for trace in traces), found)
