"""Ended spans as they were received: what few of them are asked for is read when somebody asks."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
UNSET, OK = Status(StatusCode.UNSET), Status(StatusCode.OK)
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


class ReceivedSpan(ReadableSpan):
    """What all of them have. The rest is in a message, which subclasses read.

    Args:
        ids: of the trace and the span.
        above: id of the parent; 0 for none.
        away: the parent is in another process.
        times: start and end, Unix nanoseconds.
        resource, scope: whose it is.
    """

    def __init__(
        self,
        ids: tuple[int, int],
        above: int,
        away: bool,
        times: tuple[int, int],
        resource: Resource,
        scope: InstrumentationScope,
    ) -> None:
        self._ids = ids
        self._parent_id = above
        self._away = away
        self._times = times
        self._of = resource, scope
        # Made when somebody asks: each takes longer than all of the above.
        self._own_context: SpanContext | None = None
        self._above: SpanContext | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Ids of the trace and the span; `context` takes 25 times as long, since it looks whether they are any."""
        return self._ids

    def get_span_context(self) -> SpanContext:
        return self.context

    @property
    def context(self) -> SpanContext:
        if self._own_context is None:
            self._own_context = SpanContext(*self._ids, False, SAMPLED)
        return self._own_context

    @property
    def parent(self) -> SpanContext | None:
        if self._above is None and self._parent_id:
            self._above = SpanContext(self._ids[0], self._parent_id, self._away, SAMPLED)
        return self._above

    @property
    def start_time(self) -> int:
        return self._times[0]

    @property
    def end_time(self) -> int:
        return self._times[1]

    @property
    def resource(self) -> Resource:
        return self._of[0]

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._of[1]
