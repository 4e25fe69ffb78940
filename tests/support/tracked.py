"""A `Tracker` driven by a real SDK provider, one step at a time: no thread, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import Tracer

from otel_letta.open_spans import OpenSpan, OpenSpans
from otel_letta.report import ProgressReport
from otel_letta.tracking import Reading, Tracker

__all__ = ["Alone", "Clock", "Live", "hostile_text"]

SECOND = 1_000_000_000


class Clock:
    """The wall clock, Unix nanoseconds; moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class _Driver(SpanProcessor):
    def __init__(self, resource: dict[str, Any] | None = None, **options: Any) -> None:
        self.reports: list[ProgressReport] = []
        self.clock = Clock()
        self.tracker = Tracker(emit=self.reports.append, now=self.clock, **options)
        self.provider = TracerProvider(resource=Resource(resource or {}), shutdown_on_exit=False)
        self.provider.add_span_processor(self)
        self.tracer: Tracer = self.provider.get_tracer("tests")

    @property
    def last(self) -> ProgressReport:
        return self.reports[-1]

    @property
    def ends(self) -> list[ProgressReport]:
        return [report for report in self.reports if report.status.is_terminal]

    def told(self) -> list[tuple[str, str]]:
        """Name and status of each report."""
        return [(report.name, str(report.status)) for report in self.reports]


class Live(_Driver):
    """Sees spans start and end, and open ones when asked to `look`: what the live processor does, without threads."""

    aborted: Callable[[ReadableSpan], str | None] = staticmethod(lambda span: None)

    def __init__(self, resource: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(resource, **options)
        self.open = OpenSpans()

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        entry = self.open.add(span)
        assert entry is not None
        entry.followed = self.tracker.started(Reading.of(span), entry.above, entry.outside, entry.inbound)

    def on_end(self, span: ReadableSpan) -> None:
        entry = self.open.pop((span.context.trace_id, span.context.span_id))
        assert entry is not None
        entry.ended = span  # it can be read as long as the tracker does not know of the end
        reading, aborted = Reading.of(span), self.aborted(span)
        entry.followed = self.tracker.ended(reading, entry.above, entry.outside, entry.inbound, aborted)
        entry.ended = None
        if not entry.followed:
            entry.over = True

    def look(self) -> None:
        """Read all open spans once, and notice lost ones."""
        for entry in self._alive():
            span = entry()
            assert span is not None
            self.change(entry, Reading.of(span))
        for entry in self.open.take_lost():
            self.tracker.lost(entry.key, entry.above, entry.outside)
            if not entry.followed:
                entry.over = True

    def change(self, entry: OpenSpan, reading: Reading) -> None:
        entry.followed = self.tracker.changed(reading, entry.above, entry.outside, entry.inbound)

    def stop(self) -> None:
        self.tracker.shutdown()

    def _alive(self) -> Iterator[OpenSpan]:
        return (entry for entry in self.open.snapshot() if entry() is not None)


class Alone(_Driver):
    """Collects ended spans, as an exporter's batch does, and hands them over in any order."""

    def __init__(self, resource: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(resource, **options)
        self.batch: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.batch.append(span)

    def export(self, *names: str) -> None:
        """Hand over the spans of these names, in the order given; without names all of them, as they ended."""
        for span in [next(s for s in self.batch if s.name == name) for name in names] or self.batch:
            self.tracker.ended_alone(Reading.of(span))


def hostile_text(text: str) -> str:
    """A `str` that raises whatever is done with it, as some lazily translated texts and mocks do."""

    class Hostile(str):
        __slots__ = ()

        def _raise(self, *_: object, **__: object) -> Any:
            raise RuntimeError("hostile")

        __str__ = __repr__ = __format__ = __len__ = __getitem__ = __iter__ = __contains__ = __eq__ = _raise
        __ne__ = __lt__ = __gt__ = __add__ = __mod__ = encode = strip = replace = split = splitlines = _raise
        __hash__ = str.__hash__

    return Hostile(text)
