"""`LettaSampler`: every task is reported, however few traces the tracing backend is meant to get."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from otel_letta import semconv
from otel_letta.tracking.conventions import ASKED

_MARKS = semconv.DECLARING | ASKED | {semconv.BARE_PROGRESS, semconv.BARE_CHAT_ID}


class LettaSampler(Sampler):
    """Asks another sampler, and records what that one would drop if it is a task or a part of one.

    Such spans are recorded but not sampled (``RECORD_ONLY``): `LettaSpanProcessor` sees them, and the processors of
    tracing backends leave them out::

        provider = TracerProvider(sampler=LettaSampler(ParentBasedTraceIdRatio(0.01)))

    A task has to be known as one when it starts: by an attribute of ours, by one of the conventions that agent
    frameworks follow, or by ``record``. The trace that it belongs to stays unsampled for other services as well, so
    their own tasks need a sampler like this one there.

    Args:
        sampler: decides what is sampled; what it samples is left alone.
        record: further spans to record, by name and attributes at their start. An exception counts as no.
    """

    def __init__(self, sampler: Sampler, *, record: Callable[[str, Attributes], bool] | None = None) -> None:
        self._sampler = sampler
        self._record = record

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """The other sampler's answer, with ``DROP`` made ``RECORD_ONLY`` for tasks and what is in them."""
        result = self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not Decision.DROP:
            return result
        if self._is_task(name, attributes) or _is_recorded(parent_context):
            # A span starts with the attributes of this answer, and an answer that says DROP holds none.
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        """``LettaSampler{…}`` around the other sampler's description."""
        return f"LettaSampler{{{self._sampler.get_description()}}}"

    def _is_task(self, name: str, attributes: Attributes) -> bool:
        if attributes and not _MARKS.isdisjoint(attributes):
            return True
        if self._record is None:
            return False
        try:
            return bool(self._record(name, attributes))
        except Exception:  # noqa: BLE001 - it would surface in whatever line of the program starts a span
            return False


def _is_recorded(parent_context: Context | None) -> bool:
    """True below a span that is recorded here. A parent-based sampler drops its children, since it is not sampled."""
    parent = trace.get_current_span(parent_context)
    # Not `is_recording`, which says no once the span has ended: children may start later.
    return not isinstance(parent, NonRecordingSpan) and parent.get_span_context().is_valid


def from_environment(argument: str | None) -> LettaSampler:
    """For ``OTEL_TRACES_SAMPLER=letta``: ``OTEL_TRACES_SAMPLER_ARG`` is the share of traces to sample, 0.0 to 1.0.

    Without it, or with what is no such number, all are sampled, as OpenTelemetry's own ratio samplers do.
    """
    try:
        ratio = float(argument) if argument else 1.0
    except ValueError:
        ratio = 1.0
    return LettaSampler(ParentBasedTraceIdRatio(ratio if 0.0 <= ratio <= 1.0 else 1.0))
