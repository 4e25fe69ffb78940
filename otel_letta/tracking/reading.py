"""Readings: a span, or a log event of it, read once into one object. Everything else of tracking reads that."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta import semconv
from otel_letta.text import as_text, clean_error
from otel_letta.tracking.conventions import MARKS, Role, role_of
from otel_letta.tracking.declared import Declaration, declaration_of, is_progress_event
from otel_letta.tracking.values import ID_CAP, id_of, nanoseconds_of

__all__ = ["NOTED", "Reading", "SpanKey", "attributes_of", "key_of", "may_declare", "scope_of"]

SpanKey = tuple[int, int]
"""Trace id and span id."""

NOTED = semconv.INTERESTING | MARKS
"""A span without any of these is no task, no step, and has no role, unless a setting or a filter says so."""

_ERROR_CAP = 16_384
_UNREAD: Any = object()


class Reading:
    """A span as it was when it was read. Times are Unix nanoseconds, 0 or None if the span holds something else."""

    __slots__ = (
        "_declaration",
        "_error",
        "_role",
        "attributes",
        "described",
        "end",
        "events",
        "exception",
        "failed",
        "key",
        "kind",
        "name",
        "opted",
        "parent",
        "remote",
        "resource",
        "scope",
        "start",
    )

    _role: Any
    _declaration: Any
    _error: Any
    key: SpanKey
    name: str
    parent: SpanKey | None
    """None for a root, and for a child of another process: nobody here will ever see that parent."""
    remote: SpanKey | None
    """The parent, if that is in another process. Spans of both may still arrive here, through a Collector."""
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    start: int
    end: int | None
    failed: bool
    kind: SpanKind
    scope: str
    events: Sequence[tuple[int, Mapping[str, Any]]]
    """Time and attributes of each span event that reports progress."""
    described: str
    """The status's own words, as they came."""
    exception: tuple[str, str]
    """Type and message of the last exception that the span recorded, as they came."""
    opted: str | None
    """The task's name, if a setting or a filter makes a task of the span."""

    @classmethod
    def of(cls, span: ReadableSpan, opted: str | None = None, more: Mapping[str, Any] | None = None) -> Reading:
        """Read an open or ended span; safe beside a thread that is still writing to it.

        Args:
            opted: the task's name, if a setting or a filter makes a task of the span.
            more: attributes of a log event that speaks for the span; they replace its own of the same name.
        """
        self = cls()
        self._role = self._declaration = _UNREAD
        self.key = span.context[:2]
        parent = span.parent
        above = None if parent is None else parent[:2]
        if parent is not None and parent.is_remote:
            self.parent, self.remote = None, above
        else:
            self.parent, self.remote = above, None
        name = span.name
        self.name = name if type(name) is str else as_text(name) or ""
        attributes = attributes_of(span)
        self.attributes = attributes if more is None else {**attributes, **more}
        self.resource = span.resource.attributes
        self.start = nanoseconds_of(span.start_time)
        end = span.end_time
        self.end = None if end is None else nanoseconds_of(end) or None
        self.kind = span.kind
        self.scope = scope_of(span)
        self.opted = opted
        self.events, self.exception = (), ("", "")
        if events := span.events:
            self._read_events(events)
        self._read_status(span)
        return self

    def _read_events(self, events: Sequence[Any]) -> None:
        kind, message, progress = "", "", []
        for event in events:
            name = as_text(event.name) or ""
            attributes = event.attributes or {}
            if name == semconv.EXCEPTION_EVENT:
                kind = as_text(attributes.get(semconv.EXCEPTION_TYPE)) or ""
                message = as_text(attributes.get(semconv.EXCEPTION_MESSAGE)) or ""
            elif is_progress_event(name, attributes, self.attributes):
                progress.append((nanoseconds_of(event.timestamp), dict(attributes)))
        self.events = progress
        self.exception = kind[:ID_CAP], message[:_ERROR_CAP]

    def _read_status(self, span: ReadableSpan) -> None:
        status = span.status
        self.failed = status.status_code is StatusCode.ERROR
        self.described, self._error = "", _UNREAD
        if self.failed:  # the SDK keeps a description of errors only
            described = as_text(status.description) or ""
            self.described = described[:_ERROR_CAP]
            if len(described) > _ERROR_CAP:
                self._error = clean_error(described)  # its last line may be the one that says why

    @property
    def error(self) -> str:
        """``Type: message`` of a failed span, cleaned; empty when the span did not fail or does not say why."""
        if not self.failed:
            return ""
        if self._error is _UNREAD:
            kind, message = self.exception
            kind = kind or as_text(self.attributes.get(semconv.ERROR_TYPE)) or ""
            # The SDK's own description is "ValueError: bad row"; a hand-made one may say more than the exception does.
            self._error = clean_error(self.described or (f"{kind}: {message}" if kind and message else kind or message))
        error: str = self._error
        return error

    @property
    def role(self) -> Role | None:
        """The span's part in an agent's work; None for a span that is looked through."""
        if self._role is _UNREAD:
            self._role = role_of(self)
        role: Role | None = self._role
        return role

    @property
    def declaration(self) -> Declaration | None:
        """The span's own statement about a task, in attributes of ours; None if it makes none."""
        if self._declaration is _UNREAD:
            self._declaration = declaration_of(self.name, self.attributes, self.opted)
        said: Declaration | None = self._declaration
        return said

    @property
    def above(self) -> SpanKey | None:
        """The parent, wherever it is."""
        return self.parent or self.remote

    def default(self, name: str) -> str | None:
        """Return an id from the resource. It holds for a whole process, so it is nobody's own."""
        return id_of(self.resource.get(name))

    def without_content(self) -> Reading:
        """Copy it without attributes, events and error texts, for what is kept for long."""
        light = copy.copy(self)
        light._role, light._declaration = self.role, self.declaration
        if self.declaration is not None:
            light._error = self.error
        light.attributes, light.events, light.described, light.exception = {}, (), "", ("", "")
        return light


def key_of(span: ReadableSpan) -> SpanKey:
    context = span.context
    return (context.trace_id, context.span_id)


def scope_of(span: ReadableSpan) -> str:
    """Return the name of the instrumentation scope; empty for none."""
    scope = span.instrumentation_scope
    if scope is None:
        return ""
    name = scope.name
    return name if type(name) is str else as_text(name) or ""


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """Copy all attributes.

    Iterating over an open span's attributes can raise KeyError while another thread makes the SDK evict one at its
    limit; ``copy()`` copies the inner dict in one step and never did (0 in half a million tries).
    """
    attributes = span.attributes
    if not attributes:
        return {}
    copied = getattr(attributes, "copy", None)
    return copied() if copied is not None else dict(attributes)


def may_declare(attributes: Mapping[str, Any]) -> bool:
    """Say no, fast, to the spans that have nothing to say to us."""
    return bool(attributes) and not NOTED.isdisjoint(attributes)
