"""A task's span as it is shown: in a terminal, a debugger, and as a bar in a notebook."""

from __future__ import annotations

import html
from typing import Any

from opentelemetry.trace import Span, StatusCode

from otel_letta import semconv
from otel_letta.text import as_text, clean_line, percent

_CAP = 200


def described(span: Span) -> tuple[str, float | None, str, str]:
    """Return a task's name, the share that is done, its state, and its line; all cleaned."""
    readable: Any = span
    attributes = dict(getattr(readable, "attributes", None) or {})
    name = clean_line(as_text(attributes.get(semconv.TASK_NAME)) or getattr(readable, "name", "") or "", _CAP)
    share = attributes.get(semconv.TASK_PROGRESS)
    progress = float(share) if isinstance(share, (int, float)) else None
    status = getattr(readable, "status", None)
    words = attributes.get(semconv.TASK_RESULT, attributes.get(semconv.TASK_CONTENT))
    if not hasattr(readable, "end_time"):
        return name, None, "not recorded", ""
    if status is not None and status.status_code is StatusCode.ERROR:
        state, words = "failed", status.description
    else:
        state = "in progress" if readable.end_time is None else "completed"
    if state == "completed":
        progress = 1.0
    return name, progress, state, clean_line(as_text(words) or "", _CAP)


def text_of(span: Span) -> str:
    """Return a task on one line."""
    name, progress, state, words = described(span)
    share = "" if progress is None else f" {percent(progress)}"
    return f"<Task {name!r}, {state}{share}{f': {words}' if words else ''}>"


def bundle_of(span: Span) -> dict[str, str]:
    """Return a task for a notebook, as a bar."""
    name, progress, state, words = described(span)
    value = "" if progress is None else f' value="{min(max(progress, 0.0), 1.0):.3f}"'
    share = "" if progress is None else f" {percent(progress)}"
    bar = (
        f"<div><b>{html.escape(name)}</b> <progress max=1{value}></progress>{share} {state}"
        f"{f': {html.escape(words)}' if words else ''}</div>"
    )
    return {"text/plain": text_of(span), "text/html": bar}
