"""What is kept of an ended span until the inbox's thread reads it: all that it says, and none of the rest."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Link, SpanKind, StatusCode

from otel_letta.pipeline.kept import keep, restore

SAID = (
    "name",
    "context",
    "parent",
    "resource",
    "attributes",
    "events",
    "links",
    "kind",
    "status",
    "start_time",
    "end_time",
    "instrumentation_scope",
)


class Ended(SpanProcessor):
    """The ended spans as a hook gets them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def ended() -> list[ReadableSpan]:
    """A span that says nothing but its name, and a child of it that says all that a span can."""
    processor = Ended()
    provider = TracerProvider(resource=Resource({"service.name": "worker"}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("scope", "1.0")
    with tracer.start_as_current_span("parent") as parent:
        links = [Link(parent.get_span_context(), {"why": "because"})]
        with tracer.start_as_current_span("child", kind=SpanKind.CLIENT, links=links) as span:
            span.set_attribute("letta.task.progress", 0.5)
            span.add_event("halfway", {"files": 5})
            span.set_status(StatusCode.ERROR, "bad row")
    return processor.spans


def test_a_span_says_the_same_after_it_was_kept(ended: list[ReadableSpan]) -> None:
    for span in ended:
        kept = keep(span)
        assert type(kept) is tuple
        restored = restore(kept)
        for what in SAID:
            assert getattr(restored, what) == getattr(span, what), what
        assert restored.to_json() == span.to_json()


def test_a_kept_span_holds_nothing_of_the_sdks_but_values(ended: list[ReadableSpan]) -> None:
    span, bounded = weakref.ref(ended[1]), weakref.ref(ended[1]._attributes)  # type: ignore[arg-type]
    kept = keep(ended.pop())
    assert span() is None
    assert bounded() is None
    assert restore(kept).name == "parent"


def test_a_span_of_another_kind_is_kept_itself(ended: list[ReadableSpan]) -> None:
    class Redacted(ReadableSpan):
        @property
        def name(self) -> str:
            return "***"

    span = Redacted("secret", attributes=ended[0]._attributes, events=ended[0]._events, links=ended[0]._links)
    assert restore(keep(span)) is span


@pytest.mark.parametrize("other", [{"attributes": {"k": "v"}}, {"events": ()}, {"links": ()}])
def test_a_span_whose_private_fields_are_others_is_kept_itself(
    ended: list[ReadableSpan], other: dict[str, Any]
) -> None:
    sdk = {"attributes": ended[0]._attributes, "events": ended[0]._events, "links": ended[0]._links}
    span = ReadableSpan("made by hand", **(sdk | other))
    assert restore(keep(span)) is span
