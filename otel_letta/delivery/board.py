"""The text of a board: the tasks that are under way, and the last that ended."""

from __future__ import annotations

from collections import OrderedDict, deque
from datetime import datetime, timezone

from otel_letta.report import ProgressReport
from otel_letta.text import clean_line, duration, escape, percent

_ENDED_SHOWN = 10
_LINE_CAP = 300
_NAME_CAP = 80


class Board:
    """Open tasks in the order of their starts, then the last ended ones. No threads, and no clock of its own."""

    def __init__(self, writer: str) -> None:
        self._writer = writer
        self._open: OrderedDict[str, ProgressReport] = OrderedDict()
        self._ended: deque[ProgressReport] = deque(maxlen=_ENDED_SHOWN)

    @property
    def open_tasks(self) -> int:
        return len(self._open)

    def update(self, report: ProgressReport) -> bool:
        """Take a report. Return True if the board has to be written again."""
        if report.status.is_terminal:
            self._open.pop(report.key, None)
            self._ended.appendleft(report)
            return True
        before = self._open.get(report.key)
        self._open[report.key] = report
        return before is None or _signature(before) != _signature(report)

    def open_reports(self) -> list[ProgressReport]:
        return list(self._open.values())

    def text(self, limit: int, now: datetime) -> str:
        """Write the block's value, of at most ``limit`` characters.

        If not everything fits, the oldest ended tasks are left out first, then the newest open ones.
        """
        head = [f"Updated {now:%Y-%m-%d %H:%M:%S} UTC by {escape(clean_line(self._writer, _NAME_CAP))}."]
        opened: list[str] = []
        room = limit
        for report in self._open.values():
            if room <= 0:
                break  # thousands more may be open, and none of them would fit
            opened.append(_open_line(report, now))
            room -= len(opened[-1]) + 1
        ended = [_ended_line(report) for report in self._ended]
        hidden = len(self._open) - len(opened)
        while True:
            lines = list(head)
            lines.append(f"In progress: {len(self._open) or 'none'}")
            lines += opened
            if hidden:
                lines.append(f"… and {hidden} more in progress")
            if ended:
                lines.append("Ended:")
                lines += ended
            text = "\n".join(lines)
            if len(text) <= limit:
                return text
            if ended:
                ended.pop()
            elif opened:
                opened.pop()
                hidden += 1
            else:
                return text[:limit]


def _signature(report: ProgressReport) -> tuple[object, ...]:
    return (percent(report.progress), report.content, report.name, report.chat_id, report.waiting)


def _open_line(report: ProgressReport, now: datetime) -> str:
    filled = int(report.progress * 10 + 1e-9)
    age = f", {duration(max((now - report.started).total_seconds(), 0.0))}" if report.started else ""
    line = f"[{'█' * filled}{'░' * (10 - filled)}] {percent(report.progress)} {_name(report)}{age}: {report.content}"
    return escape(clean_line(line, _LINE_CAP))


def _ended_line(report: ProgressReport) -> str:
    at = f" {report.timestamp.astimezone(timezone.utc):%H:%M:%S} UTC" if report.timestamp else ""
    took = f", {duration(report.duration)}" if report.duration is not None else ""
    return escape(clean_line(f"{report.status}{at} {_name(report)}{took}: {outcome(report)}", _LINE_CAP))


def outcome(report: ProgressReport) -> str:
    """Return what came of a task that ended: its result or last line, after the error if there was one."""
    text = report.result if report.result is not None else report.content
    return f"{report.error}. {text}" if report.error and report.error not in text else text


def _name(report: ProgressReport) -> str:
    name = clean_line(report.name, _NAME_CAP) or report.task_id
    return f"{name} (chat {clean_line(report.chat_id, 60)})" if report.chat_id else name
