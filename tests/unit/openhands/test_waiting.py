"""Runs that cannot go on without a person: a pause is no end, and is reported once."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback
from otel_letta.integrations.openhands.events import Event, EventKind
from otel_letta.report import TaskStatus
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import ASKED, FINISH, FINISHED, Conversation, Driver, action, ends, observation, status

WAITS = "waits for a person: confirm 'run it'"
CALL = {**action(), "id": "a1", "tool_call_id": "c1"}
RESULT = {**observation(), "id": "o1", "tool_call_id": "c1"}


def waiting(driver: Driver) -> list[str]:
    return [report.content for report in driver.reports if report.content.startswith("waits for ")]


@pytest.mark.parametrize(
    "pause",
    [
        [status("waiting_for_confirmation")],
        [Event(EventKind.RUN_RETURNED, code="waiting_for_confirmation")],
        [status("waiting_for_confirmation"), Event(EventKind.RUN_RETURNED, code="waiting_for_confirmation")],
        [status("waiting_for_confirmation"), status("waiting_for_confirmation")],
    ],
    ids=["status", "reporting", "both", "status twice"],
)
@pytest.mark.parametrize(
    "resume",
    [[status("running")], [EventKind.RUN_ENTERED], [RESULT], []],
    ids=["status", "reporting", "result", "at once the end"],
)
def test_a_run_that_waits_for_confirmation_goes_on_as_the_same_task(
    pause: list[Event | dict[str, Any]], resume: list[EventKind | dict[str, Any]]
) -> None:
    driver = Driver().observe(ASKED, EventKind.RUN_ENTERED, CALL, *pause)
    assert waiting(driver) == [WAITS]
    assert driver.reports[-1].status is TaskStatus.IN_PROGRESS
    assert [report.waiting for report in driver.reports] == [report.content == WAITS for report in driver.reports]
    assert driver.reports[-1].wakes
    driver.observe(*resume, FINISH, FINISHED, Event(EventKind.RUN_RETURNED, code="finished"))
    assert (waiting(driver), driver.end.status) == ([WAITS], TaskStatus.COMPLETED)
    assert len({report.task_id for report in driver.reports}) == 1
    assert [report.sequence for report in driver.reports] == list(range(1, len(driver.reports) + 1))


def test_a_run_that_waits_is_not_failed_when_the_program_ends() -> None:
    driver = Driver().observe(ASKED, CALL, status("waiting_for_confirmation"))
    driver.runs.shutdown()
    assert driver.contents[-1] == WAITS


@pytest.mark.parametrize("resume", [[EventKind.RUN_ENTERED], [RESULT], []], ids=["reporting", "result", "the end"])
def test_a_run_that_waits_goes_on_in_another_process_as_the_same_task(
    resume: list[EventKind | dict[str, Any]],
) -> None:
    before = Driver().observe(EventKind.CREATED, ASKED, CALL, status("waiting_for_confirmation"))
    before.runs.shutdown()
    last = before.reports[-1]
    driver = Driver()
    for _ in range(2):  # it may come again
        driver.runs.restore(last)
    assert (driver.runs.open_tasks, driver.reports) == (1, [])
    driver.observe(*resume, FINISH, FINISHED, Event(EventKind.RUN_RETURNED, code="finished"))
    assert (driver.end.task_id, driver.end.status) == ("conversation/1", TaskStatus.COMPLETED)
    assert driver.end.started == before.reports[0].started
    numbers = [report.sequence for report in driver.reports]
    assert numbers == list(range(last.sequence + 1, last.sequence + 1 + len(numbers)))
    driver.runs.restore(last)
    assert driver.runs.open_tasks == 0
    driver.observe({**ASKED, "id": "m2"})
    assert driver.reports[-1].task_id == "conversation/2"


def test_a_run_that_waits_since_an_earlier_process_is_lost_when_nobody_comes() -> None:
    driver = Driver(wait_timeout=3_600.0)
    driver.runs.restore(Driver().observe(ASKED, CALL, status("waiting_for_confirmation")).reports[-1])
    driver.clock.pass_seconds(3_601)
    driver.tick()
    assert driver.end.error == "lost, it waited for 1 h and nobody came"


@pytest.mark.parametrize(
    "other", [{"service": "other"}, {"task_id": "no-run"}, {"waiting": False}, {"agent_id": "agent-9"}]
)
def test_what_waits_and_is_no_run_of_openhands_is_left_alone(other: dict[str, Any]) -> None:
    last = Driver().observe(ASKED, CALL, status("waiting_for_confirmation")).reports[-1]
    driver = Driver()
    driver.runs.restore(replace(last, **other))
    assert driver.runs.open_tasks == 0


def test_an_outbox_lets_a_run_go_on_after_its_program_has_ended(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["outbox"] = str(tmp_path / "outbox.db")
    conversation = str(uuid.uuid4())
    waiting = (ASKED, CALL, status("waiting_for_confirmation"))
    for event in waiting:
        callback(conversation_id=conversation, **settings)(event)
    assert openhands.flush(10)  # or the program ends, and the run goes on, before anybody could be told that it waits
    openhands.shutdown()
    for event in ({**RESULT, "id": "o2"}, FINISH, FINISHED):
        callback(conversation_id=conversation, **settings)(event)
    (end,) = ends(letta, agent)
    reports = letta.reports(agent)
    assert end["status"] == "completed"
    assert {report["task_id"] for report in reports} == {end["task_id"]}
    assert WAITS in [report["content"] for report in reports]


def test_a_setting_lets_it_wait_in_silence() -> None:
    driver = Driver(wake_on_wait=False).observe(ASKED, CALL, status("waiting_for_confirmation"))
    assert (driver.reports[-1].waiting, driver.reports[-1].wakes) == (True, False)


def test_a_run_for_which_nobody_came_is_lost() -> None:
    driver = Driver(wait_timeout=3_600.0).observe(ASKED, CALL, status("waiting_for_confirmation"))
    driver.clock.pass_seconds(3_599)
    due = driver.tick()
    assert due is not None
    assert not driver.ends
    driver.clock.now = due
    assert driver.tick() is None
    assert driver.end.error == "lost, it waited for 1 h and nobody came"


def test_a_run_that_was_deleted_while_it_waited_has_failed() -> None:
    driver = Driver().observe(ASKED, CALL, status("waiting_for_confirmation"), status("deleting"))
    driver.runs.shutdown()
    assert driver.end.error == "the conversation was deleted before the task was finished"


def test_several_calls_are_confirmed_at_once() -> None:
    others = [{**action(summary=f"step {n}"), "id": f"b{n}", "tool_call_id": f"d{n}"} for n in (1, 2)]
    driver = Driver().observe(ASKED, CALL, RESULT, *others, status("waiting_for_confirmation"))
    assert waiting(driver) == ["waits for a person: confirm 'step 1, and 1 more'"]


def test_each_confirmation_is_reported() -> None:
    again = {**CALL, "id": "a2", "tool_call_id": "c2", "summary": "run it again"}
    driver = Driver().observe(ASKED, CALL, status("waiting_for_confirmation"), status("running"), RESULT)
    driver.observe(again, status("waiting_for_confirmation"))
    assert waiting(driver) == [WAITS, "waits for a person: confirm 'run it again'"]


def test_a_denied_call_is_denied_and_nobody_is_waited_for_any_more() -> None:
    denied = {"kind": "UserRejectObservation", "tool_name": "terminal", "tool_call_id": "c1", "rejection_reason": "no!"}
    driver = Driver().observe(ASKED, CALL, status("waiting_for_confirmation"), denied)
    assert driver.contents[-1] == "Denied: run it"
    driver.observe(EventKind.RUN_ENTERED, FINISH, FINISHED, Event(EventKind.RUN_RETURNED, code="finished"))
    assert "failed step" not in driver.end.content
    assert "no!" not in str([report.to_dict() for report in driver.reports])


def test_a_question_to_the_user_is_waited_for_until_the_answer() -> None:
    question = {"kind": "AskUserRequestEvent", "id": "q1", "questions": [{"question": "private?"}]}
    answer = {"kind": "AskUserResponseEvent", "id": "q2", "answers": {"x": "private"}}
    driver = Driver().observe(ASKED, {**CALL, "tool_name": "ask_user", "summary": None}, question)
    driver.runs.shutdown()
    assert driver.contents[-1] == "waits for a person: answer its question"
    driver.observe(answer, FINISH, FINISHED)
    assert driver.contents[-2:] == ["Resumed", driver.end.content]
    assert "private" not in str([report.to_dict() for report in driver.reports])


def test_a_callback_alone_reads_the_status_after_a_tool_s_start() -> None:
    """A conversation in this process sends no event of its status."""
    now = "running"
    driver = Driver().observe(ASKED, Event(EventKind.TOOL_STARTED, "a1", "terminal", "run it", status=lambda: now))
    due = driver.tick()
    assert due is not None
    assert not waiting(driver)
    now = "waiting_for_confirmation"
    driver.clock.now = due
    driver.tick()
    assert waiting(driver) == [WAITS]
    driver.observe(RESULT)
    assert driver.contents[-1] == "Resumed"


class LocalConversation(Conversation):
    """Named as OpenHands' own."""

    def act(self) -> None:
        self.happen(ASKED, CALL, status="waiting_for_confirmation")


LocalConversation.__module__ = "openhands.sdk.conversation.impl.local_conversation"


@pytest.mark.parametrize("delivery", ["auto", "messages"])
def test_a_callback_alone_reports_a_wait_which_wakes_the_agent(
    delivery: str, settings: dict[str, Any], letta: InMemoryLetta, agent: str
) -> None:
    observer = callback(**{**settings, "delivery": delivery})
    conversation = LocalConversation(observer)
    observer._bind(conversation)
    conversation.act()
    assert letta.wait_for(lambda: any(WAITS in report["content"] for report in letta.reports(agent)), 20)
    openhands.shutdown()
    assert [report["status"] for report in letta.reports(agent) if report["status"] != "in_progress"] == []


# -- agents behind the Agent Client Protocol ---------------------------------------------------------------------------


def acp(call: str, state: str | None, kind: str | None = "execute", *, failed: bool = False) -> dict[str, Any]:
    return {
        "kind": "ACPToolCallEvent",
        "tool_call_id": call,
        "title": "curl -H 'token: private'",
        "status": state,
        "tool_kind": kind,
        "raw_input": {"command": "private"},
        "is_error": failed,
    }


def error_message(text: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"kind": "MessageEvent", "source": "agent", "id": "m2", "llm_message": {"content": content}}


TIMED_OUT = "ACP prompt timed out after 1800s with no activity from the agent. The agent may have stalled, or it may"


def test_the_tools_of_an_acp_agent_are_reported_once_each_without_their_titles() -> None:
    driver = Driver().observe(ASKED, acp("1", None), acp("1", "pending"), acp("1", "in_progress"), acp("2", "pending"))
    driver.observe(acp("3", "pending", "read"), acp("4", "pending", "made up; private"))
    driver.observe(acp("2", "failed", failed=True), acp("2", "failed", failed=True), acp("1", "completed"))
    driver.observe(FINISH, FINISHED, acp("3", "completed"))
    assert driver.contents[1:-1] == ["execute", "read", "tool"]
    assert "1 failed step" in driver.end.content
    assert "private" not in str([report.to_dict() for report in driver.reports])


@pytest.mark.parametrize("watched", [False, True], ids=["callback alone", "inside reporting"])
def test_an_acp_agent_s_timeout_is_a_failure(watched: bool) -> None:
    driver = Driver().observe(ASKED, *([EventKind.RUN_ENTERED] if watched else []), error_message(TIMED_OUT))
    driver.observe(status("error"), *([Event(EventKind.RUN_RETURNED, code="error")] if watched else []))
    assert driver.end.error == "TimeoutError: ACP prompt timed out after 1800s with no activity from the agent"


@pytest.mark.parametrize("twice", [False, True])
def test_an_acp_agent_s_error_is_one_failure(twice: bool) -> None:
    error = {"kind": "ConversationErrorEvent", "code": "ACPPromptError", "detail": "it broke"}
    driver = Driver().observe(ASKED, error_message("ACP error: it broke"), {**error, "id": "e1"})
    if twice:  # where the exception that the run raises is an event as well
        driver.observe({**error, "id": "e2", "code": "RuntimeError"})
    assert driver.end.error == "ACPPromptError: it broke"


def test_a_later_error_is_another_failure() -> None:
    error = {"kind": "ConversationErrorEvent", "code": "LLMTimeout", "detail": "no answer"}
    driver = Driver().observe(ASKED, {**error, "id": "e1"})
    driver.clock.pass_seconds(60)
    assert len(driver.observe({**error, "id": "e2"}).ends) == 2


def test_a_message_that_a_model_wrote_is_no_error_whatever_it_says() -> None:
    message = {**error_message(TIMED_OUT), "llm_response_id": "r1"}
    assert Driver().observe(ASKED, message).end.status is TaskStatus.COMPLETED
