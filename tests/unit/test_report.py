"""`ProgressReport` and `TaskStatus`: the value that everything else passes on."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any, get_type_hints

import pytest

from otel_letta import ProgressReport, TaskStatus
from otel_letta.report import Draft

MOMENT = datetime(2026, 11, 22, 12, 30, 15, 123_456, tzinfo=timezone.utc)


def full() -> ProgressReport:
    return ProgressReport(
        chat_id="chat-123",
        message_id="msg-456",
        content="Processing task: 50% complete",
        progress=0.5,
        status=TaskStatus.IN_PROGRESS,
        task_id="task-1",
        name="Refactor module",
        agent_id="agent-1",
        result="nothing yet",
        error=None,
        sequence=2,
        run=1,
        timestamp=MOMENT,
        started=MOMENT - timedelta(seconds=90),
        duration=90.0,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        service="worker",
        host="host-1",
    )


def test_the_originals_five_fields_come_first_under_their_own_names() -> None:
    names = [field.name for field in dataclasses.fields(ProgressReport)]
    assert names[:5] == ["chat_id", "message_id", "content", "progress", "status"]


def test_it_has_the_fields_that_the_issue_adds() -> None:
    added = [
        "task_id",
        "name",
        "agent_id",
        "result",
        "sequence",
        "timestamp",
        "started",
        "duration",
        "trace_id",
        "span_id",
    ]
    assert {field.name for field in dataclasses.fields(ProgressReport)} >= set(added)


def test_a_report_without_arguments_is_a_start_that_says_nothing() -> None:
    report = ProgressReport()
    assert (report.progress, report.status, report.content) == (0.0, TaskStatus.IN_PROGRESS, "")
    assert (report.chat_id, report.message_id, report.result, report.timestamp) == (None, None, None, None)


def test_fields_are_given_by_keyword_only() -> None:
    with pytest.raises(TypeError):
        ProgressReport("chat-123")  # type: ignore[misc]


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        full().progress = 1.0  # type: ignore[misc]


def test_a_report_that_was_made_field_by_field_is_like_any_other() -> None:
    draft = Draft()
    for field in dataclasses.fields(ProgressReport):
        setattr(draft, field.name, getattr(full(), field.name))
    made = draft.sealed()
    assert (type(made), repr(made), hash(made)) == (ProgressReport, repr(full()), hash(full()))
    assert made == full() == copy.deepcopy(made) == pickle.loads(pickle.dumps(made))
    assert dataclasses.replace(made, run=2) == dataclasses.replace(full(), run=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.progress = 1.0  # type: ignore[misc]


def test_a_draft_has_a_reports_fields() -> None:
    assert get_type_hints(Draft) == get_type_hints(ProgressReport)


def test_equal_reports_are_equal_and_hash_alike() -> None:
    assert full() == full()
    assert len({full(), full()}) == 1


def test_a_report_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(full())) == full()


def test_to_dict_holds_every_field_in_order_as_plain_values() -> None:
    out = full().to_dict()
    assert list(out) == [field.name for field in dataclasses.fields(ProgressReport)]
    assert out["status"] == "in_progress"
    assert type(out["status"]) is str
    assert out["timestamp"] == "2026-11-22T12:30:15.123Z"
    assert out["started"] == "2026-11-22T12:28:45.123Z"
    assert (out["progress"], out["duration"], out["sequence"], out["error"]) == (0.5, 90.0, 2, None)


def test_times_of_other_zones_are_told_in_utc() -> None:
    there = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert ProgressReport(timestamp=there).to_dict()["timestamp"] == "2026-11-22T12:30:15.123Z"


def test_to_json_is_one_line_with_the_same_content() -> None:
    text = full().to_json()
    assert "\n" not in text
    assert json.loads(text) == full().to_dict()


@pytest.mark.parametrize("content", ["\ud800 lone", "\x00", "a\nb", "“quoted” 🚀", "</task-progress>"])
def test_to_json_is_ascii_whatever_the_content_holds(content: str) -> None:
    text = ProgressReport(content=content).to_json()
    assert json.loads(text.encode("ascii"))["content"] == content
    assert "\n" not in text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_to_json_refuses_what_is_no_json(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        ProgressReport(progress=number).to_json()


def test_there_are_three_statuses() -> None:
    assert [status.value for status in TaskStatus] == ["in_progress", "completed", "failed"]


@pytest.mark.parametrize("status", TaskStatus)
def test_a_status_is_its_word(status: TaskStatus) -> None:
    spellings: list[Any] = [str(status), f"{status}", status.value, "%s" % status, json.loads(json.dumps(status))]  # noqa: UP031
    assert spellings == [status.value] * 5
    assert status == status.value
    assert TaskStatus(status.value) is status


@pytest.mark.parametrize(
    ("status", "terminal"),
    [(TaskStatus.IN_PROGRESS, False), (TaskStatus.COMPLETED, True), (TaskStatus.FAILED, True)],
)
def test_completed_and_failed_are_terminal(status: TaskStatus, terminal: bool) -> None:
    assert status.is_terminal is terminal


@pytest.mark.parametrize("word", ["cancelled", "COMPLETED", "", "running"])
def test_other_words_are_no_status(word: str) -> None:
    with pytest.raises(ValueError, match=r"is not a valid TaskStatus"):
        TaskStatus(word)
