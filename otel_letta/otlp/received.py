"""Ended spans as they were received: what few of them are asked for is read when somebody asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
UNSET, OK = Status(StatusCode.UNSET), Status(StatusCode.OK)
Of = tuple[Resource, InstrumentationScope]
"""Whose a span is."""
_KINDS = (SpanKind.INTERNAL, *SpanKind)
"""By number; the first is "unspecified"."""


def kind_of(number: int) -> SpanKind:
    """Return the kind with that number in OTLP; an unknown one is internal."""
    return _KINDS[number] if 0 <= number < len(_KINDS) else SpanKind.INTERNAL


def status_of(code: int, message: str | None) -> Status:
    """Return the status with that code in OTLP; an unknown one is unset."""
    if code == 2:
        return Status(StatusCode.ERROR, message or None)
    return OK if code == 1 else UNSET


def bytes_by_owner(spans: Iterable[ReadableSpan]) -> dict[int, list[bytes]]:
    """Return the bytes of received spans by the identity of whose they are, which all spans of a group share."""
    found: dict[int, list[bytes]] = defaultdict(list)
    for span in spans:
        assert isinstance(span, ReceivedSpan)
        found[id(span.of)].append(span.raw)
    return found


class ReceivedSpan(ReadableSpan):
    """What all of them have. The rest stays in the bytes that came, and is parsed when somebody asks: thousands of
    spans may wait for the tracker, and each pass of the garbage collector would go through all that they are parsed
    into.

    Args:
        raw: the bytes, which can be parsed.
        key: ids of the trace and the span.
        above: id of the parent; 0 for none.
        away: the parent is in another process.
        start, end: Unix nanoseconds.
        of: whose it is.
    """

    __slots__ = (
        "_above", "_away", "_end", "_message", "_own_context", "_parent_id", "_start", "_values", "key", "of", "raw"
    )  # fmt: skip

    def __init__(self, raw: bytes, key: tuple[int, int], above: int, away: bool, start: int, end: int, of: Of) -> None:
        self.raw = raw
        self.key = key
        """Ids of the trace and the span; `context` takes 25 times as long, since it looks whether they are any."""
        self._parent_id = above
        self._away = away
        self._start = start
        self._end = end
        self.of = of
        # Made when somebody asks: each takes longer than all of the above.
        self._own_context: SpanContext | None = None
        self._above: SpanContext | None = None
        self._message: Any = None
        self._values: Any = None
        """The attributes, for subclasses."""

    _parse: Callable[[bytes], Any]
    """A static method."""

    @property
    def _parsed(self) -> Any:
        """The span's message."""
        if self._message is None:
            self._message = self._parse(self.raw)
        return self._message

    def get_span_context(self) -> SpanContext:
        return self.context

    @property
    def context(self) -> SpanContext:
        if self._own_context is None:
            self._own_context = SpanContext(*self.key, False, SAMPLED)
        return self._own_context

    @property
    def parent(self) -> SpanContext | None:
        if self._above is None and self._parent_id:
            self._above = SpanContext(self.key[0], self._parent_id, self._away, SAMPLED)
        return self._above

    @property
    def start_time(self) -> int:
        return self._start

    @property
    def end_time(self) -> int:
        return self._end

    @property
    def resource(self) -> Resource:
        return self.of[0]

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self.of[1]
