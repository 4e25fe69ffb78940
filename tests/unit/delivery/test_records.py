"""Reports as texts in an outbox, and back."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import datetime, timezone

import pytest

from otel_letta.delivery.records import read_report, write_report
from otel_letta.report import ProgressReport, TaskStatus

_MOMENT = datetime(2026, 11, 29, 12, 0, 1, tzinfo=timezone.utc)
_FULL = ProgressReport(
    task_id="t-1",
    name="job",
    status=TaskStatus.FAILED,
    progress=0.5,
    content="halfway",
    chat_id="chat-1",
    message_id="msg-1",
    agent_id="agent-1",
    result="none",
    error="ValueError: bad row",
    trace_id="a" * 32,
    span_id="b" * 16,
    service="worker",
    host="vm",
    timestamp=_MOMENT,
    started=_MOMENT,
    duration=1.5,
    sequence=3,
    run=2,
    waiting=True,
    wakes=False,
    inferred=True,
)


def test_a_report_comes_back_with_every_field() -> None:
    blank = ProgressReport(task_id="")
    same = [each.name for each in fields(blank) if getattr(_FULL, each.name) == getattr(blank, each.name)]
    assert same == [], "each field has a value that it does not have by itself"
    assert read_report(write_report(_FULL)) == _FULL


def test_what_a_newer_release_wrote_beside_it_is_left_out() -> None:
    written = {**json.loads(write_report(_FULL)), "colour": "red"}
    assert read_report(json.dumps(written)) == _FULL


@pytest.mark.parametrize("text", ["7", "{}", '{"task_id": 7}', '{"task_id": "t", "progress": true}', "[" * 100_000])
def test_what_is_no_report_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_report(text)
