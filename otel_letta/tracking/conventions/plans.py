"""Plans: how much of an agent's to-do list is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from otel_letta import semconv
from otel_letta.text import as_text
from otel_letta.tracking.conventions.reasons import parse_literal
from otel_letta.tracking.values import JSON_CAP, number_of, share_of

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_PLAN_LISTS = ("task_list", "todos", "todo_list", "tasks", "plan", "steps", "items")
_DONE = frozenset({"done", "completed", "complete", "finished"})
_STATES = _DONE | {"todo", "pending", "in_progress", "in-progress", "not_started", "cancelled", "blocked", "open"}


def plan_of(reading: Reading) -> float | None:
    """Return how much of a plan is done: of a to-do list in a tool's span, or of an MCP progress notification."""
    attributes = reading.attributes
    if semconv.BARE_TOTAL in attributes:
        share = share_of(attributes.get(semconv.BARE_PROGRESS), attributes[semconv.BARE_TOTAL])
        if share is not None:
            return share
    for name in reading.shape.plans:
        text = as_text(attributes[name])
        if text is None or len(text) > JSON_CAP or not ('"status"' in text or "'status'" in text):
            continue
        share = _share_done(_parsed(text))
        if share is not None:
            return share
    return None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return parse_literal(text) if len(text) <= 4_000 else None


def _share_done(value: object, depth: int = 4) -> float | None:
    if isinstance(value, str) and depth and value[:1] in "{[":
        return _share_done(_parsed(value[:JSON_CAP]), depth - 1)
    if isinstance(value, Mapping) and depth:
        for name in _PLAN_LISTS:
            if isinstance(value.get(name), list):
                return _counted(value[name])
        inner: Iterable[object] = value.values()
        return next((share for share in (_share_done(v, depth - 1) for v in inner) if share is not None), None)
    return None


def _counted(points: list[object]) -> float | None:
    states = [str(point.get("status")).lower() for point in points if isinstance(point, Mapping)]
    if not states or len(states) != len(points) or not set(states) <= _STATES:
        return None
    return sum(state in _DONE for state in states) / len(states)


def progress_event(attributes: Mapping[str, Any]) -> float | None:
    """Return the share in an event of a tool's span: MCP's ``progress`` of ``total``, or ``done`` of ``total``."""
    for name in (semconv.BARE_PROGRESS, semconv.BARE_DONE):
        share = share_of(attributes.get(name), attributes.get(semconv.BARE_TOTAL))
        if share is not None:
            return share
    value = number_of(attributes.get(semconv.TASK_PROGRESS))
    return value if value is not None and 0.0 <= value <= 1.0 else None
