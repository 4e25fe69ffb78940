"""The spans that are open now, kept so that a span which nobody reads costs next to nothing.

Every recorded span of the program gets a `Record`. While it is young, the record holds the span itself: most spans end
before anybody observes them. Observing one makes an `OpenSpan` of it, which holds it weakly.

Nothing here takes a lock: a hook can run inside the garbage collector, in the middle of whatever the same thread was
doing, and would deadlock on one. Each change is a single operation of a dict, list or deque, which Python makes atomic
with and without the GIL; `OpenSpans.observe` explains the one race that is left to be settled.
"""

from __future__ import annotations

import operator
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_letta.pipeline.kept import restore
from otel_letta.tracking.reading import NOTED, Reading, SpanKey, key_of, name_of_scope

Record = list[Any]
"""What is kept of a span: ``[span, record of its parent]``, and third its `OpenSpan` once it was observed.

The span is there while it is young; then it is None. So a record of two with None in front is of a span that ended
without ever being observed: the way up from a child leads through it. If it ended so and may be a task, what
was `Kept` of it comes third, until the inbox's thread makes an `OpenSpan` of that.
"""


class OpenSpan(weakref.ref[ReadableSpan]):
    """An open span that was observed: a weak reference with room for what is known about it, and the tracker's
    `Ancestor` of the spans below.

    One object instead of two. What few spans need is a default of the class until it is set; what every task's span
    needs has a slot: a dictionary for two values takes 300 bytes.
    """

    __slots__ = ("__dict__", "followed", "key", "over", "seen")

    key: SpanKey
    over: bool | ReadableSpan
    """True once its end has come to a hook; the ended span itself until the tracker has that."""
    missed: bool = False
    """It was over before a hook could note that here. Apart from `over`, which a hook may set at the same time."""
    followed: bool
    """It is part of a task or of an agent's work: the tracker needs its changes and its end."""
    awaited: bool = False
    """Spans below wait for its end even if nothing makes it a task."""
    start_exception: int = 0
    """id() of the exception being handled when the span started, 0 if none that matters."""
    inbound: tuple[object, object] = (None, None)
    """Chat and message id as the baggage of the span's context had them, if the settings want that."""
    noted: bool = False
    """A call that reads the span is in the inbox."""
    spoken: bool = False
    """A log event, a setting or a filter has spoken for the span: its end matters whatever it carries."""
    opted: str | None = None
    """The task's name, if a setting or a filter makes a task of the span."""
    ignored: bool = False
    """Started where instrumentation is suppressed: nothing of it is reported."""
    seen: tuple[Any, ...]
    """What is remembered of it as it was last read, see `noted_in`; empty if it was not."""

    @property
    def scope(self) -> str | None:
        """Its instrumentation scope; None if it is ignored, or cannot be read any more."""
        span = self.span
        return None if span is None or self.ignored else name_of_scope(span.instrumentation_scope)

    @property
    def is_over(self) -> bool:
        return self.over is not False or self.missed

    @property
    def ended(self) -> ReadableSpan | None:
        """The ended span, until the tracker has it."""
        over = self.over
        return None if over is True or over is False else over

    @property
    def span(self) -> ReadableSpan | None:
        """The span; None if it cannot be read any more."""
        return self.ended or self()

    def read(self) -> Reading | None:
        """Read it as it is now; None if it cannot be read any more."""
        span = self.span
        return None if span is None else Reading.of(span, self.opted)

    def await_end(self) -> bool:
        """Have its end brought to the tracker even if nothing makes it a task; False if it has ended already."""
        self.awaited = True  # before asking whether it is over, so that the one thread or the other notices
        return not self.is_over or self.ended is not None


class OpenSpans:
    """Registry of open spans by span id, which is unique but for accidents: for those there is a second registry."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.twins: dict[SpanKey, Record] = {}
        """Spans whose id an open span of another trace has too."""
        self._lost: deque[OpenSpan] = deque()
        self._suspects: list[OpenSpan] = []
        self._forget = self._lost.append

    def __len__(self) -> int:
        return len(self.records) + len(self.twins)

    def clear(self) -> None:
        """Forget everything, in a forked child. Both registries stay the same objects, since hooks hold them."""
        self.records.clear()
        self.twins.clear()
        self._lost.clear()
        self._suspects.clear()

    def started_since(self, time: int) -> list[Record]:
        """Return the records of the open spans that started at a time or later."""
        return [record for record in self.all() if (_started(record) or 0) >= time]

    def enter(self, records: list[Record]) -> set[SpanKey]:
        """Enter records again, without what is above them if it is none of these; return their keys."""
        kept, keys = set(map(id, records)), set()
        for record in records:
            key = _key(record)
            if key is not None and (self.records.setdefault(key[1], record) is record or self.add_twin(key, record)):
                keys.add(key)
                if id(record[1]) not in kept:
                    record[1] = None
        return keys

    def get(self, key: SpanKey) -> Record | None:
        """Return the record of an open span."""
        record = self.twins.get(key)
        if record is None:
            record = self.records.get(key[1])
        return record if record is not None and _key(record) == key else None

    def add_twin(self, key: SpanKey, record: Record) -> bool:
        """Register a span whose id is taken; False if it is taken by the span itself (a second processor)."""
        return self.get(key) is None and self.twins.setdefault(key, record) is record

    def all(self) -> list[Record]:
        """Return the records of all open spans in the order of their starts."""
        return [*self.records.values(), *self.twins.values()]

    def keys(self) -> set[SpanKey]:
        """Return the keys of all open spans."""
        return {key for key in map(_key, self.all()) if key is not None}

    def observe(self, record: Record) -> OpenSpan | None:
        """Return the `OpenSpan` of a record, made now if there is none; None if its span was over before that.

        Called by the inbox's thread alone, or whoever makes its calls.
        """
        entry = self.observe_open(record)
        if entry is None and len(record) > 2:
            span = restore(record[2])
            entry = record[2] = _made(record, OpenSpan(span), span)
            entry.over = span
        return entry

    def observe_open(self, record: Record) -> OpenSpan | None:
        """Return the same for a span that is open; None for one that has just ended without having been observed.

        Any thread may call this, beside another one that does the same or that ends the span: what comes third into
        the record first stays there. A hook that ends a span takes it out of the registry before it reads the record;
        so one that found nothing there, and noted nothing, is found out here by the registry.
        """
        span = record[0]
        if span is not None and len(record) < 3:
            self.prepare(record, span)
            entry = record[2]
            if type(entry) is OpenSpan and self.get(entry.key) is not record:
                entry.missed = True
        third = record[2] if len(record) > 2 else None
        return third if type(third) is OpenSpan else None

    def prepare(self, record: Record, span: Span) -> None:
        """Make the `OpenSpan` of a record that is not in the registry, or may not be."""
        record.append(_made(record, OpenSpan(span, self._forget), span))
        record[0] = None

    def above(self, record: Record) -> tuple[list[OpenSpan], SpanKey | None]:
        """Return the spans above one that are or were open here, nearest first, and what is above the last of them.

        Returns:
            Second the key of the span that is above the last one, or above this one if there are none: in another
            process, or not open when the processor was added. None if there is none, or it is not known.
        """
        found = []
        top = record
        while top[1] is not None:
            top = top[1]
            entry = self.observe(top)
            if entry is not None:
                found.append(entry)
        entry = self.observe(top)
        span = None if entry is None else entry.span
        parent = None if span is None else span.parent
        return found, None if parent is None else (parent.trace_id, parent.span_id)

    def take_lost(self, *, patient: bool = False) -> Iterator[Record]:
        """Take out spans that were garbage-collected without an end; each is given once.

        Args:
            patient: not before the second call. The collector clears weak references first and runs destructors
                then, and one of those (a generator's ``with`` block, for instance) may still end the span.
        """
        suspects, self._suspects = self._suspects, []
        while self._lost:
            (self._suspects if patient else suspects).append(self._lost.popleft())
        for entry in suspects:
            # An ended span's record left the registry at its end; its later collection means nothing.
            record = self.get(entry.key)
            if record is not None and len(record) > 2 and record[2] is entry:
                if self.twins.pop(entry.key, None) is None:
                    self.records.pop(entry.key[1], None)
                yield record


def _made(record: Record, entry: OpenSpan, span: ReadableSpan) -> OpenSpan:
    entry.key = key = span.context[:2]
    entry.over = entry.followed = False
    entry.seen = ()
    if record[1] is not None:
        parent = span.parent
        if parent is None or parent.is_remote or _trace(record[1], key[0]) != key[0]:
            record[1] = None  # another span, whose id is the same by accident
    return entry


def shorten(above: Record) -> None:
    """Leave out what is over above a record, but for the topmost.

    Spans that hand over to one another for ever (a loop whose every turn starts inside the last one) would otherwise
    make a chain that never ends.
    """
    up = above[1]
    while up is not None and up[1] is not None and _is_plain_and_over(up):
        above[1] = up = up[1]


def _is_plain_and_over(record: Record) -> bool:
    if record[0] is not None:  # asked first: it goes after the third has come
        return False
    if len(record) < 3:
        return True
    entry = record[2]
    return type(entry) is OpenSpan and entry.is_over and not entry.followed and entry.ended is None


def _key(record: Record) -> SpanKey | None:
    known = record[0]
    if known is None:
        if len(record) < 3:
            return None
        known = record[2]
    return known.key if type(known) is OpenSpan else key_of(restore(known))


def _started(record: Record) -> int | None:
    known = record[0]
    if known is None and len(record) > 2:
        known = record[2]() if type(record[2]) is OpenSpan else restore(record[2])
    return None if known is None else known.start_time


def _trace(record: Record, otherwise: int) -> int:
    key = _key(record)
    return otherwise if key is None else key[0]


def noted_in(attributes: Mapping[str, Any], newest: int = 0) -> tuple[Any, ...]:
    """Return what is remembered of a span to notice a change: how many attributes there are, and names and values of
    those that are noted. A copy of all takes three times the room.

    What names an agent or its conversation may have any name, and comes with few others: hence the number.

    Args:
        newest: time of the newest span event, 0 for none. In one number with the other: few spans have events, and a
            place for that takes 16 bytes of each.
    """
    noted: list[Any] = [newest << _BITS | len(attributes)]
    for name, value in attributes.items():
        if name in NOTED:
            noted += (name, value)
    return tuple(noted)


_BITS = 20
"""Of the number of attributes; the SDK keeps 128 unless it is told otherwise."""


def differs(noted: tuple[Any, ...], seen: tuple[Any, ...]) -> bool:
    """By identity, so that comparing runs no code of the values."""
    return len(noted) != len(seen) or noted[:1] != seen[:1] or not all(map(operator.is_, noted[1:], seen[1:]))
