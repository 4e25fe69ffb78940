"""Reading a span's data once, and telling whether it declares a task by attributes of ours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta import semconv
from otel_letta.report import TaskStatus
from otel_letta.text import as_text, clean_error, clean_line
from otel_letta.tracking import laminar

__all__ = [
    "Declaration",
    "EventFacts",
    "SpanFacts",
    "SpanKey",
    "declaration",
    "event_declaration",
    "key_of",
    "may_declare",
    "number_of",
    "scope_of",
    "share_of",
]

SpanKey = tuple[int, int]
"""Trace id and span id."""

_ID_CAP = 200
_NAME_CAP = 200
_ERROR_CAP = 16_384
_TEXT_CAP = 65_536  # raw text is kept up to here; what is shown of it is cut where it is shown
_LATEST = 2**63
"""Nanoseconds in April 2262, past which a time is none."""


@dataclass(slots=True)
class EventFacts:
    """One span event that tells progress."""

    time: int
    attributes: Mapping[str, Any]


@dataclass(slots=True)
class SpanFacts:
    """What tracking reads of a span. Times are Unix nanoseconds, 0 or None if the span holds something else."""

    key: SpanKey
    name: str
    parent: SpanKey | None
    """None for a root, and for a child of another process: nobody here will ever see that parent."""
    attributes: dict[str, Any]
    resource: Mapping[str, Any]
    start: int
    end: int | None = None
    failed: bool = False
    error: str = ""
    events: list[EventFacts] = field(default_factory=list)
    remote: SpanKey | None = None
    """The parent, if that is in another process. Spans of both may still arrive here, through a Collector."""
    kind: SpanKind = SpanKind.INTERNAL
    scope: str = ""
    described: str = ""
    """The status's own words, as they came."""
    exception: tuple[str, str] = ("", "")
    """Type and message of the last exception that the span recorded, as they came."""

    @classmethod
    def read(cls, span: ReadableSpan) -> SpanFacts:
        """Read an open or ended span; safe beside a thread that is still writing to it."""
        context = span.context
        parent = span.parent
        above = None if parent is None else (parent.trace_id, parent.span_id)
        away = parent is not None and parent.is_remote
        return cls(
            key=(context.trace_id, context.span_id),
            name=as_text(span.name) or "",
            parent=None if away else above,
            attributes=attributes_of(span),
            resource=span.resource.attributes,
            start=_nanoseconds(span.start_time),
            end=_nanoseconds(span.end_time) or None,
            failed=span.status.status_code is StatusCode.ERROR,
            error=_error_of(span),
            events=_progress_events(span),
            remote=above if away else None,
            kind=span.kind,
            scope=scope_of(span),
            described=(as_text(span.status.description) or "")[:_ERROR_CAP],
            exception=_exception_of(span),
        )

    @property
    def is_lettas_own(self) -> bool:
        """A span of the Letta server itself: to tell the agent of those would make more of them, for ever."""
        return (
            self.scope == semconv.LETTA_SERVER_SCOPE
            or as_text(self.resource.get(semconv.SERVICE_NAME)) == semconv.LETTA_SERVER_SERVICE
        )

    def default(self, name: str) -> str | None:
        """An id from the resource. It holds for a whole process, so it is nobody's own."""
        return _id(self.resource.get(name))


def key_of(span: ReadableSpan) -> SpanKey:
    context = span.context
    return (context.trace_id, context.span_id)


def scope_of(span: ReadableSpan) -> str:
    """The name of the instrumentation scope; empty for none."""
    scope = span.instrumentation_scope
    return (as_text(scope.name) or "") if scope is not None else ""


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """A snapshot of all attributes.

    Iterating over an open span's attributes can raise KeyError while another thread makes the SDK evict one at its
    limit; ``copy()`` copies the inner dict in one step and never did (0 in half a million tries).
    """
    attributes = span.attributes
    if not attributes:
        return {}
    copy = getattr(attributes, "copy", None)
    return copy() if copy is not None else dict(attributes)


def may_declare(attributes: Mapping[str, Any]) -> bool:
    """A fast no for the spans that have nothing to say to us."""
    return bool(attributes) and not semconv.NOTED.isdisjoint(attributes)


@dataclass(slots=True)
class Declaration:
    """What a span says about a task. None is unsaid; ``ignored`` names what was said and cannot be used."""

    task_id: str | None = None
    name: str | None = None
    chat_id: str | None = None
    message_id: str | None = None
    agent_id: str | None = None
    progress: float | None = None
    status: TaskStatus | None = None
    content: str | None = None
    result: str | None = None
    quiet: bool = False
    """Nothing of the span says so: a setting or a filter makes a task of it."""
    ignored: list[tuple[str, str]] = field(default_factory=list)


def declaration(facts: SpanFacts) -> Declaration | None:
    """The declaration of a task or step, or None for a span that makes none. Only its own attributes declare."""
    attributes = facts.attributes
    if semconv.INTERESTING.isdisjoint(attributes):
        return None
    bare = _bare_words_count(attributes)
    opted = attributes.get(semconv.OPTED_IN)
    if not bare and opted is None and semconv.DECLARING.isdisjoint(attributes):
        return None
    if opted is None and laminar.is_conversation(facts.name, attributes):
        return None
    said = Declaration(quiet=not bare and semconv.DECLARING.isdisjoint(attributes))

    def first(name: str, bare_name: str | None) -> tuple[str, Any]:
        if name in attributes or bare_name is None or not bare:
            return name, attributes.get(name)
        return bare_name, attributes.get(bare_name)

    said.task_id = _id(attributes.get(semconv.TASK_ID))
    said.name = _line(attributes.get(semconv.TASK_NAME)) or _line(opted)
    said.chat_id = _id(first(semconv.CHAT_ID, semconv.BARE_CHAT_ID)[1])
    said.message_id = _id(first(semconv.MESSAGE_ID, semconv.BARE_MESSAGE_ID)[1])
    said.agent_id = _id(attributes.get(semconv.AGENT_ID))
    said.content = _text(first(semconv.TASK_CONTENT, semconv.BARE_CONTENT)[1])
    said.result = _text(attributes.get(semconv.TASK_RESULT))
    name, value = first(semconv.TASK_PROGRESS, semconv.BARE_PROGRESS)
    said.progress = read_progress(name, _share(name, value, attributes), said.ignored)
    name, value = first(semconv.TASK_STATUS, semconv.BARE_STATUS)
    said.status = _status(name, value, said.ignored)
    return said


def read_progress(name: str, value: Any, ignored: list[tuple[str, str]]) -> float | None:
    """A number in 0..1, or None; what cannot be meant as one is noted in ``ignored``."""
    if value is None:
        return None
    number = number_of(value)
    if number is not None and 0.0 <= number <= 1.0:
        return number
    ignored.append((name, f"{_shown(value)} is no number from 0.0 to 1.0"))
    return None


def _share(name: str, value: Any, attributes: Mapping[str, Any]) -> Any:
    """A bare ``progress`` beside a ``total``, as MCP's progress notifications have them, is a part of that total."""
    if name == semconv.BARE_PROGRESS:
        share = share_of(value, attributes.get(semconv.BARE_TOTAL))
        return value if share is None else share
    return value


def share_of(done: Any, total: Any) -> float | None:
    """``done`` of ``total`` as a number from 0 to 1; None if they are no such pair."""
    part, whole = number_of(done), number_of(total)
    if part is None or whole is None or not 0.0 < whole < math.inf or not 0.0 <= part < math.inf:
        return None
    return min(part / whole, 1.0)


def number_of(value: Any) -> float | None:
    """A plain float, without running the value's own code; NaN for integers that are too large for one."""
    kind = type(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, int) and kind is not bool:
        try:
            return int.__float__(value)
        except OverflowError:
            return math.nan
    return None


def _status(name: str, value: Any, ignored: list[tuple[str, str]]) -> TaskStatus | None:
    if value is None:
        return None
    try:
        return TaskStatus(as_text(value))
    except ValueError:
        ignored.append((name, f"{_shown(value)} is none of in_progress, completed, failed"))
        return None


def _bare_words_count(attributes: Mapping[str, Any]) -> bool:
    return (
        number_of(attributes.get(semconv.BARE_PROGRESS)) is not None
        or _id(attributes.get(semconv.BARE_CHAT_ID)) is not None
    ) and semconv.AGENT_SPAN_MARKS.isdisjoint(attributes)


def _shown(value: Any) -> str:
    text = as_text(value)
    if text is None:
        return f"a value of type {clean_line(as_text(type(value).__name__) or '', 60)}"
    return repr(clean_line(text, 60)) if issubclass(type(value), str) else clean_line(text, 60)


def _id(value: Any) -> str | None:
    text = as_text(value)
    if text is None:
        return None
    if len(text) > _ID_CAP:
        # Two long ids that begin alike are two.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{clean_line(text, _ID_CAP - 17)} {digest}".strip()
    return clean_line(text, _ID_CAP) or None


def _line(value: Any) -> str | None:
    text = as_text(value)
    return (clean_line(text, _NAME_CAP) or None) if text is not None else None


def _text(value: Any) -> str | None:
    text = as_text(value)
    return text[:_TEXT_CAP] if text is not None else None


def _nanoseconds(value: Any) -> int:
    """A time, or 0 for what is none: people hand in floats, seconds as text and worse."""
    if type(value) is not int:  # which a float has no room for
        number = number_of(value)
        value = int(number) if number is not None and 0.0 < number < _LATEST else 0
    return value if 0 < value < _LATEST else 0


def _progress_events(span: ReadableSpan) -> list[EventFacts]:
    found = []
    for event in span.events or ():
        name = as_text(event.name) or ""
        attributes = event.attributes or {}
        if name == semconv.EXCEPTION_EVENT:
            continue
        if (
            name in (semconv.PROGRESS_EVENT, semconv.TASK_PROGRESS)
            or semconv.TASK_PROGRESS in attributes
            or semconv.TASK_CONTENT in attributes
            or (semconv.BARE_TOTAL in attributes and not semconv.PARTS.isdisjoint(attributes))
            or (
                (semconv.BARE_PROGRESS in attributes or semconv.BARE_CONTENT in attributes)
                # Agent frameworks put prompts into events: Strands' "gen_ai.user.message" has them in `content`.
                and not name.startswith(semconv.AGENT_EVENT_PREFIXES)
                and semconv.AGENT_SPAN_MARKS.isdisjoint(span.attributes or ())
            )
        ):
            found.append(EventFacts(_nanoseconds(event.timestamp), dict(attributes)))
    return found


def event_declaration(event: EventFacts) -> Declaration:
    """What a progress event says: only progress and content."""
    said = Declaration()
    attributes = event.attributes
    for name in (semconv.TASK_PROGRESS, semconv.BARE_PROGRESS):
        if name in attributes:
            said.progress = read_progress(name, _share(name, attributes[name], attributes), said.ignored)
            break
    else:
        said.progress = share_of(attributes.get(semconv.BARE_DONE), attributes.get(semconv.BARE_TOTAL))
    for name in (semconv.TASK_CONTENT, semconv.BARE_CONTENT):
        if name in attributes:
            said.content = _text(attributes[name])
            break
    return said


def _exception_of(span: ReadableSpan) -> tuple[str, str]:
    kind, message = "", ""
    events: Sequence[Any] = span.events or ()
    for event in events:
        if as_text(event.name) == semconv.EXCEPTION_EVENT:
            attributes = event.attributes or {}
            kind = as_text(attributes.get(semconv.EXCEPTION_TYPE)) or ""
            message = as_text(attributes.get(semconv.EXCEPTION_MESSAGE)) or ""
    return kind[:_ID_CAP], message[:_ERROR_CAP]


def _error_of(span: ReadableSpan) -> str:
    """``Type: message`` of a failed span, cleaned; empty when the span did not fail or does not say why."""
    if span.status.status_code is not StatusCode.ERROR:
        return ""
    kind, message = _exception_of(span)
    # The SDK's own description is "ValueError: bad row"; a hand-made one may say more than the exception does.
    described = as_text(span.status.description) or ""
    if described:
        return clean_error(described)
    if not kind and span.attributes:
        kind = as_text(span.attributes.get(semconv.ERROR_TYPE)) or ""
    return clean_error(f"{kind}: {message}" if kind and message else kind or message)
