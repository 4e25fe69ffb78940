"""OpenHands' events and hooks as they are read: recorded ones of real runs, and hostile or odd ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from otel_letta.integrations.openhands.events import Event, EventKind, read_event, read_hook
from otel_letta.report import TaskStatus
from tests.support.conversations import ASKED, Driver, action, plan, recorded


def test_objects_are_read_like_their_json() -> None:
    class ActionEvent(SimpleNamespace):
        pass

    event = ActionEvent(id="e", tool_name="finish", action=SimpleNamespace(message="all done"), summary="finish")
    assert read_event(event) == Event(EventKind.FINISH, "e", "finish", "all done")


@pytest.mark.parametrize(
    "raw",
    [
        None,
        5,
        "ActionEvent",
        {},
        {"kind": "NoSuchEvent"},
        {"kind": ["ActionEvent"]},
        {"kind": "ConversationStateUpdateEvent", "key": "full_state", "value": {"execution_status": "finished"}},
        {"kind": "ConversationStateUpdateEvent", "key": "stats", "value": {}},
    ],
)
def test_events_without_a_report_are_ignored(raw: object) -> None:
    assert read_event(raw) is None


def test_of_a_long_summary_little_is_kept_until_it_is_reported() -> None:
    event = read_event(action(summary="x" * 2**20))
    assert event is not None
    assert len(event.text) <= 1_000


def test_a_plan_is_counted_up_to_a_bound() -> None:
    event = read_event(plan(*["done"] * 5_000))
    assert event is not None
    assert (event.done, event.total) == (1_000, 1_000)


@pytest.mark.parametrize("odd", [None, 5, [], {}, ["x"], {"x": []}, "\ud800", "x" * 1_000_000])
@pytest.mark.parametrize(
    "kind", ["MessageEvent", "ActionEvent", "ObservationEvent", "AgentErrorEvent", "ConversationErrorEvent"]
)
def test_odd_fields_do_no_harm(kind: str, odd: object) -> None:
    names = ("id", "tool_name", "summary", "action", "observation", "llm_message", "code", "detail")
    for raw in ({"kind": kind, "source": "agent", **dict.fromkeys(names, odd)}, {"kind": kind, "source": odd}):
        driver = Driver().observe(ASKED, raw)
        for report in driver.reports:
            assert len(report.to_json()) < 20_000


def test_hooks_are_read_from_a_real_session() -> None:
    driver = Driver()
    for line in recorded("hooks"):
        driver.observe(read_hook(line))
    assert (driver.end.status, driver.end.result) == (TaskStatus.COMPLETED, "hello.py prints hello 0, 1 and 2.")
    assert {0.25, 0.5, 0.75} < {report.progress for report in driver.reports}


def test_a_session_that_ends_without_stop_has_failed() -> None:
    driver = Driver()
    for line in recorded("hooks"):
        if line["event_type"] != "Stop":
            driver.observe(read_hook(line))
    assert driver.end.error == "the session ended before the task was finished"
