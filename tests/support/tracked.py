"""A `Tracker` driven by a real SDK provider, one step at a time: no thread, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import Tracer

from otel_letta.pipeline.open_spans import OpenSpan, OpenSpans, Record
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
        parent = span.parent
        record: Record = [span, None if parent is None else self.open.records.get(parent.span_id)]
        self.open.records[span.context.span_id] = record
        entry = self._entry(record)
        entry.followed = self.tracker.started(Reading.of(span), *self.open.above(record), entry.inbound)

    def on_end(self, span: ReadableSpan) -> None:
        record = self.open.records.pop(span.context.span_id)
        entry = self._entry(record)
        entry.over = span  # it can be read as long as the tracker does not know of the end
        aborted = self.aborted(span)
        entry.followed = self.tracker.ended(Reading.of(span), *self.open.above(record), entry.inbound, aborted)
        entry.over = True

    def look(self) -> None:
        """Read all open spans once, and notice lost ones."""
        for record in self.open.all():
            span = self._entry(record)()
            if span is not None:
                self.change(record, Reading.of(span))
        for record in self.open.take_lost():
            entry = self._entry(record)
            entry.over = True
            self.tracker.lost(entry.key, *self.open.above(record))

    def change(self, record: Record, reading: Reading) -> None:
        entry = self._entry(record)
        entry.followed = self.tracker.changed(reading, *self.open.above(record), entry.inbound)

    def stop(self) -> None:
        self.tracker.shutdown()

    def _entry(self, record: Record) -> OpenSpan:
        entry = self.open.observe(record)
        assert entry is not None
        return entry


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
