"""Declarations: what a span or an event says about a task in attributes of ours (``letta.*``) and in bare words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_letta import semconv
from otel_letta.task_status import TaskStatus
from otel_letta.text import as_text, clean_line, pattern
from otel_letta.tracking.conventions import CONVENTIONS, MARKS
from otel_letta.tracking.conventions.celery import steered_by
from otel_letta.tracking.values import id_of, number_of, share_of

_NAME_CAP = 200
_TEXT_CAP = 65_536  # raw text is kept up to here; it is cut to size where it is shown
_DECLARES_NOTHING = tuple(c.declares_nothing for c in CONVENTIONS if c.declares_nothing is not None)
_EVENT_PREFIXES = tuple(prefix for convention in CONVENTIONS for prefix in convention.event_prefixes)


class Declaration:
    """A statement about a task. None is unsaid; ``ignored`` names what was said and cannot be used, and why."""

    task_id: str | None = None
    name: str | None = None
    chat_id: str | None = None
    message_id: str | None = None
    agent_id: str | None = None
    progress: float | None = None
    status: TaskStatus | None = None
    content: str | None = None
    result: str | None = None
    waiting: bool = False
    """If the span ends like this, its task does not: it waits for somebody."""
    waits_now: bool = False
    """It waits for somebody while the span is open. Only the attribute says so: a content may have been left there."""
    steered: tuple[str, bool] | None = None
    """What a framework did with it instead of ending it well or failing it, and whether it goes on."""
    inferred: bool = False
    """Nothing of the span says so: a setting or a filter makes a task of it."""

    def __init__(self) -> None:
        self.ignored: list[tuple[str, str]] = []

    @property
    def is_anonymous(self) -> bool:
        return self.task_id is None and self.chat_id is None


def declaration_of(name: str, attributes: Mapping[str, Any], opted: str | None = None) -> Declaration | None:
    """Read the declaration of a task or step, or None for a span that makes none. Only its own attributes declare.

    Args:
        name: the span's name.
        opted: the task's name, if a setting or a filter makes a task of the span.
    """
    if opted is None and semconv.INTERESTING.isdisjoint(attributes):
        return None
    bare = _bare_words_count(attributes)
    ours = not semconv.DECLARING.isdisjoint(attributes)
    if opted is None:
        if not bare and not ours:
            return None
        if any(declares_nothing(name, attributes) for declares_nothing in _DECLARES_NOTHING):
            return None
    declaration = Declaration()
    declaration.inferred = not bare and not ours

    def first(name: str, bare_name: str) -> tuple[str, Any]:
        if name in attributes or not bare:
            return name, attributes.get(name)
        return bare_name, attributes.get(bare_name)

    declaration.task_id = id_of(attributes.get(semconv.TASK_ID))
    declaration.name = _line(attributes.get(semconv.TASK_NAME)) or _line(opted)
    declaration.chat_id = id_of(first(semconv.CHAT_ID, semconv.BARE_CHAT_ID)[1])
    declaration.message_id = id_of(first(semconv.MESSAGE_ID, semconv.BARE_MESSAGE_ID)[1])
    declaration.agent_id = id_of(attributes.get(semconv.AGENT_ID))
    declaration.content = _text(first(semconv.TASK_CONTENT, semconv.BARE_CONTENT)[1])
    declaration.result = _text(attributes.get(semconv.TASK_RESULT))
    key, value = first(semconv.TASK_PROGRESS, semconv.BARE_PROGRESS)
    declaration.progress = read_progress(key, _share(key, value, attributes), declaration.ignored)
    declaration.status = _status(*first(semconv.TASK_STATUS, semconv.BARE_STATUS), declaration.ignored)
    declaration.steered = steered_by(attributes)
    if declaration.status is TaskStatus.IN_PROGRESS and _GOES_ON.match(declaration.content or "") is not None:
        declaration.steered = declaration.content or "", True
    declaration.waiting = _waits(attributes.get(semconv.TASK_WAITING), declaration)
    declaration.waits_now = declaration.waiting and semconv.TASK_WAITING in attributes
    return declaration


_GOES_ON = pattern(r"(?:will be tried again|goes on elsewhere)\b")
"""How our own helpers write down that a framework's exception left a task that is not over."""
_WAITS = pattern(r"(?i)\s*(?:(?:it|task) )?(?:is )?wait(?:s|ing)\b")


def _waits(value: Any, declaration: Declaration) -> bool:
    """Return True for a task that pauses.

    ``in_progress`` alone is no sign: people set it at the start, and leave it there. A content that says so is.
    """
    if declaration.status is not None and declaration.status.is_terminal:
        return False
    if type(value) is bool or value is not None:
        return value is True or (as_text(value) or "").lower() == "true"
    return declaration.status is TaskStatus.IN_PROGRESS and _WAITS.match(declaration.content or "") is not None


_PROGRESS_EVENTS = (semconv.PROGRESS_EVENT, semconv.TASK_PROGRESS)
_OF_PROGRESS = frozenset({semconv.TASK_PROGRESS, semconv.TASK_CONTENT, semconv.BARE_TOTAL}) | {
    semconv.BARE_PROGRESS,
    semconv.BARE_CONTENT,
}
"""Attributes without any of which only its name makes an event report progress."""


def is_progress_event(name: str, attributes: Mapping[str, Any], span: Mapping[str, Any]) -> bool:
    """Return True for a span event that reports progress. ``span``: the attributes of its span."""
    if _OF_PROGRESS.isdisjoint(attributes):
        return name in _PROGRESS_EVENTS
    return (
        name in _PROGRESS_EVENTS
        or semconv.TASK_PROGRESS in attributes
        or semconv.TASK_CONTENT in attributes
        or (semconv.BARE_TOTAL in attributes and not semconv.PARTS.isdisjoint(attributes))
        or (
            (semconv.BARE_PROGRESS in attributes or semconv.BARE_CONTENT in attributes)
            # Agent frameworks put prompts into events: Strands' "gen_ai.user.message" has them in `content`.
            and not name.startswith(_EVENT_PREFIXES)
            and MARKS.isdisjoint(span)
        )
    )


def event_declaration(attributes: Mapping[str, Any]) -> Declaration:
    """Read a progress event: only progress and content."""
    declaration = Declaration()
    for name in (semconv.TASK_PROGRESS, semconv.BARE_PROGRESS):
        if name in attributes:
            declaration.progress = read_progress(name, _share(name, attributes[name], attributes), declaration.ignored)
            break
    else:
        declaration.progress = share_of(attributes.get(semconv.BARE_DONE), attributes.get(semconv.BARE_TOTAL))
    for name in (semconv.TASK_CONTENT, semconv.BARE_CONTENT):
        if name in attributes:
            declaration.content = _text(attributes[name])
            break
    return declaration


def read_progress(name: str, value: Any, ignored: list[tuple[str, str]]) -> float | None:
    """Read a number in 0..1, or None; a value that cannot be meant as one is noted in ``ignored``."""
    if value is None:
        return None
    number = number_of(value)
    if number is not None and 0.0 <= number <= 1.0:
        return number
    kind = "" if as_text(value) is None else f" ({clean_line(as_text(type(value).__name__) or '', 60)})"
    ignored.append((name, f"{_shown(value)}{kind} is no number from 0.0 to 1.0"))
    return None


def _share(name: str, value: Any, attributes: Mapping[str, Any]) -> Any:
    """Read a bare ``progress`` beside a ``total``, as in MCP's progress notifications, as a part of that total."""
    if name == semconv.BARE_PROGRESS:
        share = share_of(value, attributes.get(semconv.BARE_TOTAL))
        return value if share is None else share
    return value


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
        or id_of(attributes.get(semconv.BARE_CHAT_ID)) is not None
    ) and MARKS.isdisjoint(attributes)


def _shown(value: Any) -> str:
    text = as_text(value)
    if text is None:
        return f"a value of type {clean_line(as_text(type(value).__name__) or '', 60)}"
    return repr(clean_line(text, 60)) if issubclass(type(value), str) else clean_line(text, 60)


def _line(value: Any) -> str | None:
    text = as_text(value)
    return (clean_line(text, _NAME_CAP) or None) if text is not None else None


def _text(value: Any) -> str | None:
    text = as_text(value)
    return text[:_TEXT_CAP] if text is not None else None
