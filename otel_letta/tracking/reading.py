"""Readings: a span, or a log event of it, read once into one object. Everything else of tracking reads that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_letta import semconv
from otel_letta.text import as_text, clean_error, pattern
from otel_letta.tracking.conventions import ASKED, EVENTS, Role, denies, role_of, shape_of
from otel_letta.tracking.conventions.shapes import Shape
from otel_letta.tracking.declared import Declaration, declaration_of, is_progress_event
from otel_letta.tracking.values import ID_CAP, LATEST, id_of, nanoseconds_of

SpanKey = tuple[int, int]
"""Trace id and span id."""

NOTED = semconv.INTERESTING | ASKED
"""A span without any of these is no task, no step, and has no role, unless a setting or a filter says so."""

_ERROR, _OK = StatusCode.ERROR, StatusCode.OK
_ERROR_CAP = 16_384
_MOST_LINKS = 16
_IS_REMOTE = 2
"""Its place in a span's context, which is a tuple."""
_NO_EXCEPTION = ("", "")
_AT_END = 100_000_000
"""Nanoseconds before a span's end in which an exception is what ended it."""


class Reading:
    """A span as it was when it was read. Times are Unix nanoseconds, 0 or None if the span holds something else."""

    key: SpanKey
    name: str
    parent: SpanKey | None
    """None for a root, and for a child of another process: nobody here will ever see that parent."""
    remote: SpanKey | None
    """The parent, if that is in another process. Spans of both may still arrive here, through a Collector."""
    attributes: Mapping[str, Any]
    shape: Shape
    """What the names of the attributes say."""
    resource: Mapping[str, Any]
    start: int
    end: int | None
    failed: bool
    kind: SpanKind
    scope: str
    events: Sequence[tuple[int, Mapping[str, Any]]] = ()
    """Time and attributes of each span event that reports progress."""
    links: Sequence[SpanKey] = ()
    """The spans that it links to."""
    described = ""
    """The status's own words, as they came."""
    ok: bool
    """Its status says that it went well. Most instrumentations never say so."""
    signals: Sequence[tuple[str, Mapping[str, Any]]] = ()
    """Name and allowed attributes of each span event that a convention knows."""
    exception: tuple[str, str] = _NO_EXCEPTION
    """Type and message of the last exception that the span recorded, as they came."""
    is_group = False
    """That exception was the first of a group."""
    raised_at = 0
    """The time of that exception; 0 for none, or one after which another event came."""
    role: Role | None
    """The span's part in an agent's work; None for a span that is looked through."""
    declaration: Declaration | None = None
    """The span's own statement about a task, in attributes of ours; None if it makes none."""

    @classmethod
    def of(cls, span: ReadableSpan, opted: str | None = None, more: Mapping[str, Any] | None = None) -> Reading:
        """Read an open or ended span; safe beside a thread that is still writing to it.

        Args:
            opted: the task's name, if a setting or a filter makes a task of the span.
            more: attributes of a log event that speaks for the span; they replace its own of the same name.
        """
        self = cls()
        context, parent, name, resource, start, end, kind, scope, links, events, status, code = _fields_of(span)
        self.key = context[:2]
        if parent is None:
            self.parent = self.remote = None
        elif parent[_IS_REMOTE]:
            self.parent, self.remote = None, parent[:2]
        else:
            self.parent, self.remote = parent[:2], None
        self.name = name if type(name) is str else as_text(name) or ""
        attributes = attributes_of(span)
        self.attributes = attributes if more is None else {**attributes, **more}
        self.shape = shape = shape_of(self.attributes)
        self.resource = getattr(resource, "_dict", resource)  # as `unlocked` does
        self.start = start if type(start) is int and 0 < start < LATEST else nanoseconds_of(start)
        self.end = end if type(end) is int and 0 < end < LATEST else nanoseconds_of(end) or None
        self.kind = kind
        self.scope = name_of_scope(scope)
        if links:
            self.links = tuple([link.context[:2] for link in tuple(links)[:_MOST_LINKS]])
        if events:
            self._read_events(events)
        self.failed, self.ok = code is _ERROR, code is _OK
        if self.failed:
            self._read_description(status)
        self.role = role_of(self) if shape.deciding else None
        if shape.declares or opted is not None:
            self.declaration = declaration_of(self.name, self.own_attributes, opted)
        return self

    def _read_events(self, events: Iterable[Any]) -> None:
        kind, message, progress, signals, raised_at = "", "", [], [], 0
        for event in events:
            name = as_text(event.name) or ""
            attributes = unlocked(event.attributes or {})
            raised_at = 0
            if name in EVENTS:
                signals.append((name, {key: attributes[key] for key in EVENTS[name] if key in attributes}))
            if name == semconv.EXCEPTION_EVENT:
                kind = as_text(attributes.get(semconv.EXCEPTION_TYPE)) or ""
                message = as_text(attributes.get(semconv.EXCEPTION_MESSAGE)) or ""
                raised_at = nanoseconds_of(event.timestamp)
                if kind.endswith("ExceptionGroup"):
                    leaf = leaf_of_group(as_text(attributes.get(semconv.EXCEPTION_STACKTRACE)) or "")
                    kind, message = leaf or (kind, message)
                    self.is_group = leaf is not None
            elif is_progress_event(name, attributes, self.attributes):
                progress.append((nanoseconds_of(event.timestamp), dict(attributes)))
        self.events, self.signals, self.raised_at = progress, signals, raised_at
        self.exception = kind[:ID_CAP], message[:_ERROR_CAP]

    def _read_description(self, status: Status) -> None:
        """Read what the status of a failed span says: the SDK keeps a description of errors only."""
        described = as_text(status.description) or ""
        self.described = described[:_ERROR_CAP]
        if self.is_group and "ExceptionGroup" in described[:ID_CAP]:
            self.described = ": ".join(self.exception)[:_ERROR_CAP]
        if len(described) > _ERROR_CAP:
            self.error = clean_error(described)  # its last line may be the one that says why

    @cached_property
    def error(self) -> str:
        """``Type: message`` of a failed span, cleaned; empty when the span did not fail or does not say why."""
        if not self.failed:
            return ""
        kind, message = self.exception
        kind = kind or as_text(self.attributes.get(semconv.ERROR_TYPE)) or ""
        # The SDK's own description is "ValueError: bad row"; a hand-made one may say more than the exception does.
        return clean_error(self.described or (f"{kind}: {message}" if kind and message else kind or message))

    @property
    def denied(self) -> bool:
        """True if it says that a person refused a tool's call: the one that it is, or is a part of."""
        return denies(self)

    @property
    def raised_at_end(self) -> bool:
        """True if an exception is the last that it recorded, just before its end, and its status is not OK."""
        end = self.end
        return end is not None and not self.ok and self.raised_at > 0 and end - self.raised_at <= _AT_END

    @property
    def own_attributes(self) -> Mapping[str, Any]:
        """The attributes without those of ours that an agent's program copied from its resource onto all spans: they
        are the resource's words, and declare nothing."""
        attributes, resource = self.attributes, self.resource
        if not self.shape.declares or not self.shape.deciding:
            return attributes
        shared = [name for name in semconv.INTERESTING if name in attributes and name in resource]
        copies = [name for name in shared if (as_text(attributes[name]) or 0) == as_text(resource[name])]
        if not copies:
            return attributes
        return {name: value for name, value in attributes.items() if name not in copies}

    @property
    def above(self) -> SpanKey | None:
        """The parent, wherever it is."""
        return self.parent or self.remote

    def carry(self, attributes: Mapping[str, Any]) -> None:
        """Take over attributes, in place of its own of the same names."""
        self.attributes = {**self.attributes, **attributes}
        self.shape = shape_of(self.attributes)

    def default(self, name: str) -> str | None:
        """Return an id from the resource. It holds for a whole process, so it is nobody's own."""
        value = self.resource.get(name)
        return None if value is None else id_of(value)

    def copy(self) -> Reading:
        twin = Reading()
        twin.__dict__ = self.__dict__.copy()
        return twin

    def drop_content(self) -> Reading:
        """Forget attributes, events and error texts, since it is kept for long. Returns itself."""
        if self.declaration is not None:
            self.error  # noqa: B018 - read now, and kept
        self.attributes, self.shape = _NO_ATTRIBUTES, _NO_SHAPE
        self.events = self.signals = ()
        self.described, self.exception = "", _NO_EXCEPTION
        return self


_NO_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({})
_NO_SHAPE = shape_of(_NO_ATTRIBUTES)
_IN_A_GROUP = pattern(r"^[ |]*\| (?P<kind>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?:: (?P<text>.*))?$")
_GROUPS_LINE = pattern(r"^[ |]*\+-")
_STACK_CAP = 262_144


def leaf_of_group(stack: str) -> tuple[str, str] | None:
    """Return type and text of the first exception in a group that is none itself, and how many more there are; None if
    the stack trace, which alone names them, does not show them."""
    leaves, before = [], ""
    for line in stack[:_STACK_CAP].splitlines():
        if _GROUPS_LINE.match(line):
            found = _IN_A_GROUP.match(before)
            if found is not None and not found["kind"].endswith("ExceptionGroup"):
                leaves.append((found["kind"], found["text"] or ""))
        before = line
    if not leaves:
        return None
    kind, text = leaves[0]
    return kind, text + (f", and {len(leaves) - 1} more" if len(leaves) > 1 else "")


def unlocked(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return attributes that never change without the SDK's own mapping around them: that takes a lock for each look,
    and raises inside for each that it lacks."""
    found: Mapping[str, Any] = getattr(attributes, "_dict", attributes)
    return found


def key_of(span: ReadableSpan) -> SpanKey:
    context = span.context
    return (context.trace_id, context.span_id)


def name_of_scope(scope: InstrumentationScope | None) -> str:
    """Return the name of an instrumentation scope; empty for none."""
    if scope is None:
        return ""
    name = getattr(scope, "_name", None)  # past the SDK's property: that is a call in Python
    return name if type(name) is str else as_text(scope.name) or ""


_FIELDS = (
    *("context", "parent", "name", "resource.attributes", "start_time", "end_time", "kind", "instrumentation_scope"),
    *("links", "events", "status", "status.status_code"),
)
_shown = attrgetter(*_FIELDS)
_held = attrgetter(*["_" + name.replace(".", "._") for name in _FIELDS])
"""The same past the SDK's properties: each is a call in Python."""


def _fields_of(span: ReadableSpan) -> tuple[Any, ...]:
    """Return what a span says, but for its attributes."""
    if type(span) is ReadableSpan:
        try:
            return _held(span)
        except AttributeError:
            pass  # another release may have other private fields
    return _shown(span)


_SDKS_OWN = ReadableSpan.attributes
"""Makes a view for each look, which has to be asked through two more calls in Python: 1 µs until all are copied."""


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """Return all attributes, as they are now.

    Iterating over an open span's attributes can raise KeyError while another thread makes the SDK evict one at its
    limit; ``copy()`` copies the inner dict in one step and never did (0 in half a million tries).
    """
    is_sdks = type(span) is ReadableSpan or getattr(type(span), "attributes", None) is _SDKS_OWN
    held = getattr(span, "_attributes", None) if is_sdks else None
    if type(held) is dict:  # of a span that was read from OTLP; others may still write to the SDK's own mapping
        return held
    attributes = unlocked(held or span.attributes or {})
    copied = getattr(attributes, "copy", None)
    return copied() if copied is not None else dict(attributes)


def may_declare(attributes: Mapping[str, Any]) -> bool:
    """Say no, fast, to the spans that have nothing to say to us."""
    return bool(attributes) and not NOTED.isdisjoint(attributes)
