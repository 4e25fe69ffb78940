"""The text that the agent reads: one short block per report.

The form follows the one that Letta's own harness uses for outside events (an XML-like element with the origin in its
attributes, sent in role ``user``). A report is data: whatever a span says, it cannot close the element it stands in.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from otel_letta.report import ProgressReport
from otel_letta.text import clean_block, clean_line, escape, percent

MAX_BLOCK_BYTES = 15_000
"""Longest block. Letta itself has no limit: it took 1 MB and paid for it again with every later message (measured)."""

_ID_CAP = 200
_NAME_CAP = 200
_ERROR_CAP = 200
_LINK_CAP = 600


def render(report: ProgressReport, *, content_cap: int = 2_000, trace_link: str | None = None) -> str:
    """Write the block for one report, at most `MAX_BLOCK_BYTES` long in UTF-8.

    Args:
        report: the task's state.
        content_cap: most characters of content, and of the result, that are shown.
        trace_link: template with ``{trace_id}`` and perhaps ``{span_id}``.
    """
    attributes = " ".join(f'{name}="{escape(value)}"' for name, value in _attributes(report, trace_link))
    while True:
        body = escape(clean_block(report.content, content_cap))
        if report.result is not None:
            body += f"<result>{escape(clean_block(report.result, content_cap))}</result>"
        block = f"<task-progress {attributes}>{body}</task-progress>"
        # Escaping and UTF-8 can make a text up to six times longer than it is in characters.
        if len(block.encode("utf-8")) <= MAX_BLOCK_BYTES or content_cap <= 16:
            return block
        content_cap //= 2


def render_losses(completed: int, failed: int) -> str:
    """Write the block that stands for ends whose own reports no longer fitted in memory."""
    return (
        f'<task-progress-summary completed="{completed}" failed="{failed}">'
        f"{completed + failed} more tasks ended while Letta could not be reached ({completed} completed, "
        f"{failed} failed); their reports did not fit in memory.</task-progress-summary>"
    )


def _attributes(report: ProgressReport, trace_link: str | None) -> Iterator[tuple[str, str]]:
    for name, value in (
        ("task", clean_line(report.name, _NAME_CAP)),
        ("task_id", report.task_id),
        ("chat_id", report.chat_id),
        ("message_id", report.message_id),
    ):
        if value:
            yield name, clean_line(value, _ID_CAP)
    yield "status", report.status.value
    yield "progress", percent(report.progress)
    if report.error:
        yield "error", clean_line(report.error, _ERROR_CAP)
    if report.started is not None:
        yield "started", _utc(report.started)
    if report.duration is not None:
        yield "duration", f"{report.duration:.1f} s"
    for name, value in (("host", report.host), ("service", report.service), ("trace_id", report.trace_id)):
        if value:
            yield name, clean_line(value, _ID_CAP)
    link = link_to(report, trace_link)
    if link:
        yield "trace", link
    if report.waiting:
        yield "waiting", "it cannot go on until somebody acts"
    elif not report.status.is_terminal:
        # The agent is woken by every message; this keeps it from starting work over mere progress.
        yield "reply", "not needed"


def link_to(report: ProgressReport, template: str | None) -> str:
    """Return the address of a report's trace; empty where there is none."""
    if not (template and report.trace_id):
        return ""
    link = template.replace("{trace_id}", report.trace_id).replace("{span_id}", report.span_id or "")
    return clean_line(link, _LINK_CAP) if len(link) <= _LINK_CAP else ""  # half an address leads nowhere


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
