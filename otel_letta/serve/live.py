"""Spans that are open in other programs, as far as log records speak of them.

A span reaches a receiver only when it is over. What comes before is told by log records: the heartbeats of partial span
processors, whose body is the span as it is now, and events named ``letta.task.progress``. From the first of them on the
span stands in the pipeline's registry of open spans, like one of this process; its end is the span itself when it
arrives, or what ``stop`` brought if it does not. A span whose heartbeats stop is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_letta import semconv
from otel_letta.otlp.batch import LogRecord
from otel_letta.otlp.json import read_request
from otel_letta.text import as_text
from otel_letta.tracking.reading import NOTED, Reading, SpanKey, key_of

if TYPE_CHECKING:
    from otel_letta.pipeline.watcher import Watcher

STOP = "stop"
_FREQUENCY, _BODY_TYPE = "partial.frequency", "partial.body.type"
_FREQUENCY_FORM = re.compile(r"(\d{1,12})(ms|s|m)")
_UNITS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_MISSED = 4
"""Heartbeats that may stay away; batches, retries and a restart of what is between take their time."""
_SHORTEST_SILENCE = 60 * 10**9
_PATIENCE = 15 * 10**9
"""Nanoseconds for which the span itself is waited for after its ``stop``: it says the same, and comes behind its parts.
Exporters batch spans for five seconds."""
_BASE64_ID = "AAAAAAAAAAAAAAAAAAAAAA=="
_MOST_OPEN = 50_000
_MOST_ENDED = 50_000
"""Ended spans that are remembered at least; up to twice as many are."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class HeldSpan(ReadableSpan):
    """An open span of another program, as it was when last heard of. It is gone when nobody holds it any more."""

    def __init__(self, newest: ReadableSpan) -> None:
        self._ids: SpanContext = newest.context
        self.newest = newest
        self.said: dict[str, Any] = {}
        """What progress events said since; the span's own attributes may never hold it."""

    @property
    def name(self) -> str:
        return self.newest.name

    def get_span_context(self) -> SpanContext:
        return self._ids

    @property
    def context(self) -> SpanContext:
        return self._ids

    @property
    def kind(self) -> SpanKind:
        return self.newest.kind

    @property
    def parent(self) -> SpanContext | None:
        return self.newest.parent

    @property
    def start_time(self) -> int | None:
        return self.newest.start_time

    @property
    def end_time(self) -> None:
        return None

    @property
    def status(self) -> Status:
        return self.newest.status

    @property
    def attributes(self) -> Mapping[str, Any]:
        own = self.newest.attributes or {}
        return {**own, **self.said} if self.said else own

    @property
    def events(self) -> Sequence[Event]:
        return self.newest.events

    @property
    def links(self) -> Sequence[Link]:
        return self.newest.links

    @property
    def resource(self) -> Resource:
        return self.newest.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope | None:
        return self.newest.instrumentation_scope

    @property
    def dropped_attributes(self) -> int:
        return 0


class _Held:
    __slots__ = ("ended", "heartbeats", "span", "until", "version")

    def __init__(self, span: HeldSpan) -> None:
        self.span = span
        self.until = 0
        """Wall clock, Unix nanoseconds: lost then, or over if it has ended."""
        self.heartbeats = False
        self.ended: ReadableSpan | None = None
        """The span as its ``stop`` brought it."""
        self.version = 0


class LiveSpans:
    """The open spans of other programs. For one thread at a time.

    Args:
        watcher: of the pipeline; gets starts and ends.
        now: the wall clock, Unix nanoseconds.
        silence: nanoseconds without a word after which a span without heartbeats is lost.
        ended: True for a span that is known elsewhere to be over.
    """

    def __init__(
        self,
        watcher: Watcher,
        now: Callable[[], int],
        silence: int,
        ended: Callable[[SpanKey], bool] = lambda key: False,
    ) -> None:
        self._watcher = watcher
        self._now = now
        self._silence = silence
        self._ended = ended
        self._held: OrderedDict[SpanKey, _Held] = OrderedDict()
        self._over: set[int] = set()
        """Hashes of the keys of ended spans: a third of what the keys themselves would take."""
        self._over_before: set[int] = set()
        """Those of `_over` until it was full: two sets cost less for each span than one that forgets its oldest."""
        self._due: int | None = None

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def version(self, key: SpanKey) -> int:
        """Return a number that is another one after each word about an open span; 0 for one that is not open."""
        held = self._held.get(key)
        return 0 if held is None else held.version

    def take(self, record: LogRecord, gone: Container[int] = ()) -> SpanKey | None:
        """Take in a log record about an open span. Return the span's key; None if there is nothing to remember.

        Args:
            gone: traces that were over already in an earlier process.
        """
        if semconv.PARTIAL_EVENT in record.attributes:
            return self._take_partial(record, gone)
        return self._take_progress(record, gone)

    def end(self, span: ReadableSpan) -> None:
        """Take in the span itself, when it is over."""
        key = key_of(span)
        held = self._held.pop(key, None)
        self.remember([key])
        if held is not None:
            # The end has to say by itself what it is the end of: its start may still be in the inbox.
            said = {name: value for name, value in held.span.attributes.items() if name in NOTED}
            self._watcher.on_end(_Ended(span, said) if said else span)

    def remember(self, keys: Iterable[SpanKey]) -> None:
        """Note that spans are over: log records about them may come later, by a request of their own."""
        self._over.update(map(hash, keys))
        if len(self._over) > _MOST_ENDED:
            self._over, self._over_before = set(), self._over

    def _is_over(self, key: SpanKey, gone: Container[int] = ()) -> bool:
        known = hash(key)
        return key[0] in gone or known in self._over or known in self._over_before or self._ended(key)

    def tick(self) -> int | None:
        """Do what is due. Returns when to come again, Unix nanoseconds; None for never."""
        now = self._now()
        if self._due is None or now < self._due:
            return self._due
        for key, held in list(self._held.items()):
            if held.until <= now:
                if held.ended is not None:
                    self.end(held.ended)
                else:
                    self._give_up(key)
        self._due = min((held.until for held in self._held.values()), default=None)
        return self._due

    def _wait(self, held: _Held, nanoseconds: int) -> None:
        held.until = self._now() + nanoseconds
        self._due = held.until if self._due is None else min(self._due, held.until)

    # -- log records -------------------------------------------------------------------------------------------------

    def _take_partial(self, record: LogRecord, gone: Container[int]) -> SpanKey | None:
        span = _span_in(record)
        if span is None:
            return None
        key = key_of(span)
        if self._is_over(key, gone):
            return None
        if as_text(record.attributes[semconv.PARTIAL_EVENT]) == STOP:
            held = self._held.get(key)
            if held is None:
                return None
            if Reading.of(span).role is None and span.end_time:
                # It is judged by itself. An agent's span is judged by its parts as well, which come with the span.
                self.end(span)
            else:
                held.ended = span if span.end_time else _Ended(span, {}, record.time or self._now())
                held.version += 1
                self._wait(held, _PATIENCE)
            return key
        held = self._hold(key, span)
        if held.ended is None:
            held.heartbeats = True
            self._wait(held, max(_MISSED * _frequency_of(record), _SHORTEST_SILENCE))
        return key

    def _take_progress(self, record: LogRecord, gone: Container[int]) -> SpanKey | None:
        key = (record.trace_id, record.span_id)
        said = {name: value for name, value in record.attributes.items() if name in semconv.INTERESTING}
        if not all(key):
            key = _made_up(record, said)
        if not said or not all(key) or self._is_over(key, gone):
            return None
        held = self._held.get(key)
        if held is None:
            held = self._hold(key, _announced(key, record, said))
        else:
            held.span.said = {**held.span.said, **said}
            held.version += 1
            self._held.move_to_end(key)
        if not held.heartbeats and held.ended is None:
            self._wait(held, self._silence)
            status = as_text(said.get(semconv.TASK_STATUS))
            if status in ("completed", "failed"):
                # Nothing else may ever come: somebody who sends no spans says so.
                held.ended = _Ended(held.span, {}, record.time or self._now(), failed=status == "failed")
                self._wait(held, _PATIENCE)
        return key

    def _hold(self, key: SpanKey, span: ReadableSpan) -> _Held:
        held = self._held.get(key)
        if held is not None:
            held.span.newest = span
            held.version += 1
            self._held.move_to_end(key)
            return held
        held = self._held[key] = _Held(HeldSpan(span))
        held.version = 1
        self._watcher.on_start(held.span)
        if len(self._held) > _MOST_OPEN:
            self._give_up(next(iter(self._held)))
        return held

    def _give_up(self, key: SpanKey) -> None:
        # The registry holds it weakly once it was read, and reports as lost what is gone.
        held = self._held.pop(key, None)
        if held is not None:
            self.remember([key])


class _Ended(ReadableSpan):
    """A span that is over, with what was said of it besides."""

    def __init__(
        self, span: ReadableSpan, said: Mapping[str, Any], at: int | None = None, *, failed: bool = False
    ) -> None:
        super().__init__(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes={**said, **(span.attributes or {})},
            events=span.events,
            links=span.links,
            kind=span.kind,
            status=Status(StatusCode.ERROR) if failed else span.status,
            start_time=span.start_time,
            end_time=span.end_time or at,
            instrumentation_scope=span.instrumentation_scope,
        )


def _span_in(record: LogRecord) -> ReadableSpan | None:
    body = record.span
    if body is None:
        return None
    try:
        if (as_text(record.attributes.get(_BODY_TYPE)) or "").startswith("json") and isinstance(body, str):
            batch = read_request(_with_hex_ids(body), "resourceSpans")
        else:
            from otel_letta.otlp.proto import read_traces

            batch = read_traces(body if isinstance(body, bytes) else base64.b64decode(body, validate=True))
    except ValueError:  # none of ours, or half a surrogate pair, or not base64
        return None
    return batch.spans[0] if batch.spans else None


def _with_hex_ids(body: str) -> bytes:
    """Return the body with ids as OTLP has them, where they came in base64, as protobuf's own JSON mapping has them."""
    raw = body.encode()
    try:
        document = json.loads(raw)
        spans = [
            span
            for group in document["resourceSpans"]
            for inner in group["scopeSpans"]
            for span in inner["spans"]
            if len(span["traceId"]) == len(_BASE64_ID)
        ]
        for span in spans:
            for name in ("traceId", "spanId", "parentSpanId"):
                if span.get(name):
                    span[name] = base64.b64decode(span[name], validate=True).hex()
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return raw
    return json.dumps(document).encode() if spans else raw


def _frequency_of(record: LogRecord) -> int:
    found = _FREQUENCY_FORM.fullmatch(as_text(record.attributes.get(_FREQUENCY)) or "")
    return int(found[1]) * _UNITS[found[2]] if found is not None else 0


def _announced(key: SpanKey, record: LogRecord, said: Mapping[str, Any]) -> ReadableSpan:
    """Return a span of which nothing is known but an event's word."""
    service = as_text(record.resource.attributes.get(semconv.SERVICE_NAME))
    return ReadableSpan(
        name=as_text(said.get(semconv.TASK_NAME)) or service or "task",
        context=SpanContext(*key, is_remote=False, trace_flags=_SAMPLED),
        resource=record.resource,
        attributes=dict(said),
        start_time=record.time,
        instrumentation_scope=record.scope,
    )


def _made_up(record: LogRecord, said: Mapping[str, Any]) -> SpanKey:
    """Return a key for the task of an event outside any span, by the id that the event gives; zeros without one."""
    names = [as_text(said.get(name)) or "" for name in (semconv.TASK_ID, semconv.AGENT_ID)]
    if not names[0]:
        return 0, 0
    service = as_text(record.resource.attributes.get(semconv.SERVICE_NAME)) or ""
    found = hashlib.blake2b("\0".join((service, *names)).encode("utf-8", "replace"), digest_size=24).digest()
    return int.from_bytes(found[:16], "big"), int.from_bytes(found[16:], "big")
