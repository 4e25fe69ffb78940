"""Recorded traces of real agents, played to a `Tracker` as they arrived, or as they happened."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, Status, StatusCode

from otel_letta.otlp.batch import Batch
from otel_letta.otlp.json import read_batches
from otel_letta.report import ProgressReport
from otel_letta.tracking import Reading, Tracker
from tests.support.tracked import Clock, Live

__all__ = ["TRACES", "Played", "batches", "content_values", "play", "play_live", "traces"]

TRACES = Path(__file__).parent.parent / "data" / "traces"


def traces() -> list[str]:
    return sorted(path.name.removesuffix(".otlp.jsonl.gz") for path in TRACES.glob("*.gz"))


def batches(name: str) -> list[Batch]:
    """The export requests of a trace, in the order of their arrival."""
    with gzip.open(TRACES / f"{name}.otlp.jsonl.gz") as lines:
        found = list(read_batches(lines))
    assert not any(batch.broken for batch in found)
    return found


class Played:
    """A tracker, its clock, and what it told."""

    def __init__(self, **options: Any) -> None:
        self.reports: list[ProgressReport] = []
        self.clock = Clock()
        self.tracker = Tracker(emit=self.reports.append, now=self.clock, **options)

    def arrive(self, spans: Iterable[ReadableSpan]) -> None:
        """A request arrives, as soon as the last of its spans has ended."""
        spans = list(spans)
        self.clock.now = max([self.clock.now, *(span.end_time or 0 for span in spans)])
        self.tracker.tick()
        for span in spans:
            self.tracker.ended_alone(Reading.of(span))
        self.tracker.tick()

    def pass_seconds(self, seconds: float) -> None:
        self.clock.pass_seconds(seconds)
        self.tracker.tick()

    @property
    def ends(self) -> list[ProgressReport]:
        return [report for report in self.reports if report.status.is_terminal]


def play(name: str, **options: Any) -> Played:
    """Feed a trace request by request, with the clock at its spans' ends; then wait until all is decided."""
    played = Played(**options)
    played.clock.now = 0
    for batch in batches(name):
        played.arrive(batch.spans)
    played.pass_seconds(3)
    played.pass_seconds(1_000)
    played.pass_seconds(8_000)
    return played


def play_live(name: str, *, chance: random.Random | None = None, **options: Any) -> Live:
    """Play a trace again in this process, each span from its start to its end, through a real SDK.

    Args:
        chance: orders the ends of one moment; without, they are in the order in which they were recorded.
    """
    recorded = [span for batch in batches(name) for span in batch.spans]
    service = recorded[0].resource.attributes["service.name"]  # it names agents without a name of their own
    live = Live(**{"resource": {"service.name": service}, **options})
    live.clock.now = 0
    opened: dict[int, Span] = {}
    moments = [(span.end_time or 0, 1, index, span) for index, span in enumerate(recorded)]
    moments += [(span.start_time or 0, 0, index, span) for index, span in enumerate(recorded)]
    if chance is not None:
        # A parent starts before its children.
        moments = [(at, ends, index if not ends else chance.random(), span) for at, ends, index, span in moments]
    for at, ends, _, span in sorted(moments, key=lambda moment: moment[:3]):
        live.clock.now = at
        if not ends:
            above = opened.get(span.parent.span_id) if span.parent is not None else None
            opened[span.context.span_id] = live.tracer.start_span(
                span.name,
                context=trace.set_span_in_context(above) if above is not None else None,
                kind=span.kind,
                attributes=dict(span.attributes or {}),
                start_time=at,
            )
            continue
        current = opened[span.context.span_id]
        for event in span.events:
            current.add_event(event.name, dict(event.attributes or {}), event.timestamp)
        if span.status.status_code is not StatusCode.UNSET:
            current.set_status(Status(span.status.status_code, span.status.description))
        current.end(at)
    return live


_CONTENT = re.compile(
    r"gen_ai\.(?:input|output)\.messages|gen_ai\.system_instructions|gen_ai\.tool\.(?:call\..*|definitions|description)"
    r"|gen_ai\.tool\.json_schema|gen_ai\.agent\.tools|input\.value|output\.value|llm\.(?:input|output)_messages\..*"
    r"|llm\.invocation_parameters|llm\.tools\..*|tool\.(?:parameters|description|description_updated)|crew_.*"
    r"|pydantic_ai\.all_messages|final_result|model_request_parameters|user_prompt|user\.id|metadata|logfire\.msg"
    r"|http\.url|http\.target|db\.statement|error|smolagents\..*|traceloop\..*|exception\.stacktrace"
    r"|gen_ai\.(?:user|assistant|tool|system)\.message .*|gen_ai\.choice .*"
)
"""Attributes, and attributes of events behind the event's name, that hold what people, models and tools said."""

_NAMES = ("gen_ai.tool.name", "tool.name", "gen_ai.agent.name", "gen_ai.workflow.name", "gen_ai.conversation.id")
_MORE_THAN_A_WORD = re.compile(r"\S+ \S+.*|\S*[@/]\S*|\S*\.(?:pdf|com|py)\S*", re.DOTALL)
"""A single word of a prompt may as well be the name of a tool, or of an exception's type."""


def content_values(name: str) -> set[str]:
    """Every text in a trace that is content: as a whole, its lines, its sentences, and the strings in its JSON. Not
    those that are no more than a name or an id which other attributes of the trace give."""
    names: set[Any] = set()
    found: set[str] = set()
    for batch in batches(name):
        for span in batch.spans:
            attributes = span.attributes or {}
            names |= {attributes.get(key) for key in _NAMES}
            holders = [("", attributes), *((f"{event.name} ", event.attributes or {}) for event in span.events)]
            for prefix, values in holders:
                for key, value in values.items():
                    if _CONTENT.fullmatch(key) or _CONTENT.fullmatch(prefix + key):
                        found.update(text.strip() for text in _texts(value))
    return {text for text in found if len(text) > 5 and text not in names and _MORE_THAN_A_WORD.fullmatch(text)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item)
            yield from _texts(key)
    elif isinstance(value, str):
        yield value
        yield from re.split(r"\\n|\n|(?<=[.:!?;]) ", value)
        if value[:1] in "[{":
            try:
                yield from _texts(json.loads(value))
            except ValueError:
                yield from re.findall(r"[\"']((?:[^\"'\\]|\\.)+)[\"']", value)
