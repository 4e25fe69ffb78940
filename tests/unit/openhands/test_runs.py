"""The rules of OpenHands' runs: events of recorded real runs, and of some that nobody recorded."""

from __future__ import annotations

import pytest

from otel_letta.integrations.openhands.events import Event, EventKind, Origin
from otel_letta.report import TaskStatus
from tests.support.conversations import ASKED, Driver, action, observation, plan, recorded, spoken, status

COMPLETED, FAILED, IN_PROGRESS = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.IN_PROGRESS

BOTH = pytest.mark.parametrize("watched", [False, True], ids=["callback alone", "inside reporting"])


# -- recorded runs ---------------------------------------------------------------------------------------------------


@BOTH
def test_a_run_with_a_plan(watched: bool) -> None:
    driver = Driver().replay("ok", watched=watched)
    assert driver.contents[0] == "Task started"
    assert "run hello.py" in driver.contents
    assert [report.progress for report in driver.reports] == sorted(report.progress for report in driver.reports)
    assert {0.25, 0.5, 0.75, 0.99} < {report.progress for report in driver.reports}
    assert all(report.progress < 1 for report in driver.reports[:-1])
    end = driver.end
    assert (end.status, end.progress, end.result) == (COMPLETED, 1.0, "hello.py prints hello 0, 1 and 2.")
    assert end.task_id == f"{driver.conversation}/1"
    assert (end.chat_id, end.message_id, end.service) == ("chat-1", "message-1", "openhands")


@BOTH
def test_an_llm_that_fails_ends_the_task_once(watched: bool) -> None:
    end = Driver().replay("err500", watched=watched).end
    assert end.status is FAILED
    assert end.error is not None
    assert end.error.startswith("LLMServiceUnavailableError: litellm.InternalServerError")


@BOTH
def test_a_late_failure_keeps_the_progress(watched: bool) -> None:
    end = Driver().replay("err500_later", watched=watched).end
    assert (end.status, end.progress) == (FAILED, 0.25)


@BOTH
def test_max_iterations_are_a_failure(watched: bool) -> None:
    end = Driver().replay("max_iter", watched=watched).end
    assert end.status is FAILED
    assert end.error == "MaxIterationsReached: Agent reached maximum iterations limit (3)."


@BOTH
def test_an_interrupted_run_is_a_failure(watched: bool) -> None:
    end = Driver().replay("interrupt_tool", watched=watched).end
    assert (end.status, end.error) == (FAILED, "interrupted")


@BOTH
def test_tool_errors_that_were_recovered_from_are_only_counted(watched: bool) -> None:
    driver = Driver().replay("tool_error", watched=watched)
    assert (driver.end.status, driver.end.result) == (COMPLETED, "Recovered.")
    assert "5 failed steps" in driver.end.content


@BOTH
def test_tools_side_by_side(watched: bool) -> None:
    driver = Driver().replay("parallel", watched=watched)
    assert {"a", "create p"} < set(driver.contents)
    assert driver.end.status is COMPLETED


def test_reports_of_a_run_hold_no_prompt_argument_or_output() -> None:
    driver = Driver()
    for name in ("ok", "tool_error", "parallel", "max_iter"):
        driver.replay(name, watched=False)
    texts = " ".join(str(report.to_dict()) for report in driver.reports)
    for private in ("in the directory", "echo step", "print('hello')", "task_list", "Step 0", "No such file"):
        assert private not in texts


# -- starts, tools and the plan --------------------------------------------------------------------------------------


def test_a_summary_that_openhands_made_of_the_arguments_is_not_reported() -> None:
    driver = Driver().observe(ASKED, action(summary='terminal: {"command": "curl -H token"}'))
    assert driver.contents == ["Task started", "terminal"]


def test_a_summary_is_one_cleaned_line() -> None:
    driver = Driver().observe(ASKED, action(summary="log in with password=hunter2 \x1b[31m\nand more" + "x" * 500))
    assert driver.contents[-1] == "log in with password=[redacted]"


def test_the_plan_never_goes_backwards_when_it_grows() -> None:
    driver = Driver().observe(ASKED, plan("done", "todo"), plan("done", "todo", "todo", "todo"), plan("done"))
    assert [report.progress for report in driver.reports] == [0, 0.5, 0.5, 0.99]


@pytest.mark.parametrize("tasks", [None, "done", {}, [], 5, [None, 3, "done"], [{"status": ["done"]}]])
def test_an_odd_plan_does_no_harm(tasks: object) -> None:
    driver = Driver().observe(ASKED, observation("task_tracker", task_list=tasks), action("finish", message="ok"))
    assert all(report.progress == 0.0 for report in driver.reports)


def test_a_second_message_goes_to_the_run_that_is_under_way() -> None:
    driver = Driver().observe(ASKED, action(), {**ASKED, "id": "m2"})
    assert len({report.task_id for report in driver.reports}) == 1


def test_each_run_is_a_task() -> None:
    driver = Driver().observe(EventKind.CREATED)
    for n in (1, 2):
        driver.observe({**ASKED, "id": f"m{n}"}, action("finish", message=f"answer {n}"), observation("finish"))
    assert [(end.task_id, end.result) for end in driver.ends] == [
        ("conversation/1", "answer 1"),
        ("conversation/2", "answer 2"),
    ]


def test_runs_of_a_conversation_whose_beginning_was_not_seen_are_named_by_time() -> None:
    """Another process may have reported ``/1`` before it was resumed: delivery would take this for the same end."""
    driver = Driver().observe(ASKED)
    assert driver.reports[0].task_id == "conversation/20270115T080000.000Z"


def test_the_same_event_counts_once() -> None:
    finish = {**action("finish", message="done"), "id": "a"}
    seen = {**observation("finish"), "id": "b"}
    driver = Driver().observe(ASKED, finish, seen, ASKED, finish, seen)
    assert len(driver.ends) == 1
    assert len(driver.reports) == 2


# -- ends ------------------------------------------------------------------------------------------------------------


def test_a_message_without_a_tool_ends_a_run() -> None:
    end = Driver().observe(ASKED, spoken("Which file do you mean?")).end
    assert (end.status, end.result) == (COMPLETED, "Which file do you mean?")
    assert end.content == "Ended with a message: it may be a question"


def test_messages_of_openhands_to_the_agent_are_not_reported() -> None:
    nudge = {"kind": "MessageEvent", "source": "environment", "llm_message": {"content": [{"text": "nudge"}]}}
    assert Driver().observe(ASKED, nudge).contents == ["Task started"]


def test_a_finish_that_was_not_the_end_is_forgotten() -> None:
    """A stop hook, or OpenHands' refinement, can send an agent back to work."""
    driver = Driver().observe(
        EventKind.RUN_ENTERED, action("finish", message="too early"), observation("finish"), action()
    )
    driver.observe(
        action("finish", message="really"), observation("finish"), Event(EventKind.RUN_RETURNED, code="finished")
    )
    assert driver.end.result == "really"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("stuck", "stuck: OpenHands saw it repeat itself"),
        ("error", "stopped before it was finished"),
        ("running", "stopped before it was finished"),
        ("", "stopped before it was finished"),
    ],
)
def test_a_run_that_returns_unfinished_is_a_failure(code: str, error: str) -> None:
    end = Driver().observe(EventKind.RUN_ENTERED, action(), Event(EventKind.RUN_RETURNED, code=code)).end
    assert (end.status, end.error) == (FAILED, error)
    assert end.content == f"Task failed: {error} (last: run it)"


@pytest.mark.parametrize(
    ("code", "content"), [("paused", "Paused"), ("waiting_for_confirmation", "waits for a person: confirm 'run it'")]
)
def test_a_halted_run_is_in_progress_and_goes_on_with_the_next(code: str, content: str) -> None:
    driver = Driver().observe(EventKind.RUN_ENTERED, action(), Event(EventKind.RUN_RETURNED, code=code))
    assert (driver.reports[-1].status, driver.reports[-1].content) == (IN_PROGRESS, content)
    driver.observe(EventKind.RUN_ENTERED)
    assert driver.contents[-1] == "Resumed"
    driver.observe(
        action("finish", message="ok"), observation("finish"), Event(EventKind.RUN_RETURNED, code="finished")
    )
    assert driver.end.status is COMPLETED
    assert len({report.task_id for report in driver.reports}) == 1


def test_an_exception_of_the_run_is_a_failure() -> None:
    end = (
        Driver()
        .observe(
            EventKind.RUN_ENTERED, Event(EventKind.RUN_RETURNED, code="running", text="ValueError: password=hunter2")
        )
        .end
    )
    assert (end.status, end.error) == (FAILED, "ValueError: password=[redacted]")


@pytest.mark.parametrize(
    "left",
    [Event(EventKind.RUN_RETURNED, code="error"), Event(EventKind.RUN_RETURNED, text="RuntimeError: run failed")],
)
def test_a_reason_that_comes_after_the_end_is_no_task_of_its_own(left: Event) -> None:
    """Events of a remote conversation come by a way of their own, and may be late."""
    driver = Driver()
    driver.observe(Event(EventKind.RUN_ENTERED, code="new"), left)
    driver.observe({"kind": "ConversationErrorEvent", "code": "LLMTimeout", "detail": "no answer"})
    assert [report.status for report in driver.reports] == [IN_PROGRESS, FAILED]
    driver.observe(ASKED, {"kind": "ConversationErrorEvent", "code": "LLMTimeout", "detail": "again"})
    assert [end.error for end in driver.ends][1:] == ["LLMTimeout: again"]


def test_what_is_open_when_the_program_ends_has_failed() -> None:
    driver = Driver().observe(ASKED)
    driver.runs.shutdown()
    driver.runs.shutdown()
    assert driver.end.error == "the program shut down while the task was still open"
    assert driver.runs.open_tasks == 0


# -- statuses, as webhooks have them -----------------------------------------------------------------------------


def test_a_status_of_finished_ends_the_run() -> None:
    driver = Driver().observe(ASKED, status("running"), action("finish", message="ok"), observation("finish"))
    assert not driver.ends
    assert driver.observe(status("finished")).end.result == "ok"


def test_an_error_status_waits_for_its_explanation() -> None:
    error = {"kind": "ConversationErrorEvent", "code": "MaxIterationsReached", "detail": "limit (3)."}
    driver = Driver().observe(ASKED, status("running"), status("error"))
    driver.tick()
    assert not driver.ends
    assert driver.observe(error).end.error == "MaxIterationsReached: limit (3)."
    assert driver.tick() is None


def test_an_error_status_without_an_explanation_is_reported_after_a_while_and_once() -> None:
    error = {"kind": "ConversationErrorEvent", "code": "Late", "detail": "x"}
    driver = Driver().observe(ASKED, status("running"), status("error"))
    due = driver.tick()
    assert due is not None
    driver.clock.now = due
    driver.tick()
    assert driver.observe(error).end.error == "OpenHands stopped with an error"


def test_a_conversation_that_is_deleted_has_failed_unless_its_end_was_only_late() -> None:
    deleted = Driver().observe(ASKED, status("running"), status("deleting"))
    assert not deleted.ends
    due = deleted.tick()
    assert due is not None
    deleted.clock.now = due
    deleted.tick()
    assert deleted.end.error == "the conversation was deleted before the task was finished"
    assert Driver().observe(ASKED, status("running"), status("deleting"), status("finished")).end.status is COMPLETED


def test_a_run_that_goes_on_has_not_failed() -> None:
    driver = Driver().observe(ASKED, status("running"), status("error"), status("running"))
    driver.clock.pass_seconds(3_600)
    assert driver.tick() is None
    assert not driver.ends


def test_a_failure_that_waits_for_its_reason_is_reported_at_shutdown() -> None:
    driver = Driver().observe(ASKED, status("running"), status("error"))
    driver.runs.shutdown()
    assert driver.end.error == "OpenHands stopped with an error"


def test_more_conversations_than_can_be_followed_cost_the_ones_that_are_idle_first() -> None:
    driver = Driver(most=2)
    for name in ("open", "idle", "new"):
        driver.conversation = name
        driver.observe({**ASKED, "id": name})
        if name == "idle":
            driver.observe(spoken("done"))
    assert [end.status for end in driver.ends] == [COMPLETED]
    driver.conversation = "newer"
    driver.observe(ASKED)
    assert driver.ends[-1].error == "too many conversations at once: this one is not followed any more"


def test_webhooks_of_a_real_server_give_each_run_its_end() -> None:
    driver = Driver()
    for request in recorded("webhooks"):
        if isinstance(request["body"], list):
            driver.conversation = request["path"].removeprefix("/events/")
            driver.observe(*request["body"])
    assert [(end.status, end.error and end.error.split(":")[0]) for end in driver.ends] == [
        (COMPLETED, None),
        (FAILED, "LLMServiceUnavailableError"),
        (FAILED, "MaxIterationsReached"),
    ]


def test_a_later_origin_fills_in_what_an_earlier_one_left_open() -> None:
    driver = Driver()
    driver.origin = Origin(None, "message-1")
    driver.observe(ASKED)
    driver.origin = Origin("chat-2", None, "Tidy up")
    driver.observe(spoken("ok"))
    assert (driver.end.chat_id, driver.end.message_id, driver.end.name) == ("chat-2", "message-1", "Tidy up")
