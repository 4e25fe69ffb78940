"""Reports and lanes as texts in an outbox, and back.

Nobody vouches for what is read: the file may be older, or edited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.store.model import Standing

LOST = "lost: its process ended"
"""Why a task failed whose process died: the words that its report has."""

_MOST = 2**53


def write_lane(lane: Lane) -> str:
    """Write a lane as one line."""
    return json.dumps([lane.server, lane.agent_id, lane.conversation_id])


def read_lane(text: str) -> Lane:
    """Read what `write_lane` wrote; ValueError for anything else."""
    try:
        server, agent, conversation = json.loads(text)
    except (TypeError, RecursionError) as error:
        raise ValueError("no lane") from error
    if not (isinstance(server, str) and isinstance(agent, str) and agent):
        raise ValueError("no lane")
    if conversation is not None and not isinstance(conversation, str):
        raise ValueError("no lane")
    return Lane(server, agent, conversation)


def write_report(report: ProgressReport) -> str:
    """Write a report as one line."""
    return report.to_json()


def read_report(text: str) -> ProgressReport:
    """Read what `write_report` wrote. Fields that this version does not know are left out; ValueError if it is none."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("no report") from error
    if not isinstance(found, dict):
        raise ValueError("no report")
    report = ProgressReport(**{name: _READERS[name](value) for name, value in found.items() if name in _READERS})
    if not report.task_id:
        raise ValueError("no report")
    return report


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    # Python 3.10 reads no Z.
    return datetime.fromisoformat(_text(value).replace("Z", "+00:00")).astimezone(timezone.utc)


def _share(value: Any) -> float:
    return min(max(_number(value), 0.0), 1.0)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("no number")
    return float(value)


def _optional_number(value: Any) -> float | None:
    return None if value is None else _number(value)


def _whole(value: Any) -> int:
    return int(min(max(_number(value), 0), _MOST))


_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("content", "task_id", "name"), _text),
    **dict.fromkeys(
        ("chat_id", "message_id", "agent_id", "result", "error", "trace_id", "span_id", "service", "host"),
        _optional_text,
    ),
    **dict.fromkeys(("timestamp", "started"), _time),
    **dict.fromkeys(("sequence", "run"), _whole),
    **dict.fromkeys(("waiting", "wakes", "inferred"), bool),
    "status": TaskStatus,
    "progress": _share,
    "duration": _optional_number,
}
"""By the field."""


def key_of(report: ProgressReport, lane: Lane) -> str:
    """Return what a task under way is known by in an outbox: two agents may have tasks of one id."""
    return json.dumps([lane.agent_id, report.key])  # ASCII, whatever an id holds


def addressed(report: ProgressReport, lane: Lane) -> ProgressReport:
    """Return the report with the agent that it was for, whichever agent this process would report to by default."""
    return report if report.agent_id == lane.agent_id else replace(report, agent_id=lane.agent_id)


def lose(standing: Standing) -> str:
    """Write the report that a task failed because its process ended. ValueError if the standing cannot be read."""
    last = read_report(standing.body)
    now = datetime.now(timezone.utc)
    content = f"{LOST}. Last known: {last.content}" if last.content else LOST
    return write_report(
        replace(
            last,
            status=TaskStatus.FAILED,
            content=content,
            error=LOST,
            sequence=last.sequence + 1,
            timestamp=now,
            duration=None if last.started is None else max((now - last.started).total_seconds(), 0.0),
            waiting=False,
            wakes=True,
        )
    )
