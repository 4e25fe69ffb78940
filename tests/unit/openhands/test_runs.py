"""What becomes of OpenHands' events: recorded ones of real runs, and what hostile or odd ones could be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from otel_letta.integrations.openhands.runs import Claims, Event, Origin, What, read_event, read_hook
from otel_letta.report import TaskStatus
from tests.support.conversations import Told, recorded

COMPLETED, FAILED, IN_PROGRESS = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.IN_PROGRESS

ASKED = {"kind": "MessageEvent", "source": "user", "id": "m1", "llm_message": {"content": [{"text": "secret prompt"}]}}
BOTH = pytest.mark.parametrize("watched", [False, True], ids=["callback alone", "inside reporting"])


def action(tool: str = "terminal", summary: str | None = "run it", **arguments: Any) -> dict[str, Any]:
    return {"kind": "ActionEvent", "tool_name": tool, "summary": summary, "action": arguments}


def observation(tool: str = "terminal", **fields: Any) -> dict[str, Any]:
    return {"kind": "ObservationEvent", "tool_name": tool, "observation": fields}


def plan(*statuses: str) -> dict[str, Any]:
    return observation("task_tracker", task_list=[{"title": "private", "status": status} for status in statuses])


def spoken(text: str) -> dict[str, Any]:
    return {"kind": "MessageEvent", "source": "agent", "llm_message": {"content": [{"type": "text", "text": text}]}}


def status(value: str) -> dict[str, Any]:
    return {"kind": "ConversationStateUpdateEvent", "key": "execution_status", "value": value}


# -- recorded runs ---------------------------------------------------------------------------------------------------


@BOTH
def test_a_run_with_a_plan(watched: bool) -> None:
    told = Told().replay("ok", watched=watched)
    assert told.contents[0] == "Task started"
    assert "run hello.py" in told.contents
    assert [report.progress for report in told.reports] == sorted(report.progress for report in told.reports)
    assert {0.25, 0.5, 0.75, 0.99} < {report.progress for report in told.reports}
    assert all(report.progress < 1 for report in told.reports[:-1])
    end = told.end
    assert (end.status, end.progress, end.result) == (COMPLETED, 1.0, "hello.py prints hello 0, 1 and 2.")
    assert end.task_id == f"{told.conversation}/1"
    assert (end.chat_id, end.message_id, end.service) == ("chat-1", "message-1", "openhands")


@BOTH
def test_an_llm_that_fails_ends_the_task_once(watched: bool) -> None:
    end = Told().replay("err500", watched=watched).end
    assert end.status is FAILED
    assert end.error is not None
    assert end.error.startswith("LLMServiceUnavailableError: litellm.InternalServerError")


@BOTH
def test_a_late_failure_keeps_the_progress(watched: bool) -> None:
    end = Told().replay("err500_later", watched=watched).end
    assert (end.status, end.progress) == (FAILED, 0.25)


@BOTH
def test_max_iterations_are_a_failure(watched: bool) -> None:
    end = Told().replay("max_iter", watched=watched).end
    assert end.status is FAILED
    assert end.error == "MaxIterationsReached: Agent reached maximum iterations limit (3)."


@BOTH
def test_an_interrupted_run_is_a_failure(watched: bool) -> None:
    end = Told().replay("interrupt_tool", watched=watched).end
    assert (end.status, end.error) == (FAILED, "interrupted")


@BOTH
def test_tool_errors_that_were_recovered_from_are_only_counted(watched: bool) -> None:
    told = Told().replay("tool_error", watched=watched)
    assert (told.end.status, told.end.result) == (COMPLETED, "Recovered.")
    assert "5 failed steps" in told.end.content


@BOTH
def test_tools_side_by_side(watched: bool) -> None:
    told = Told().replay("parallel", watched=watched)
    assert {"a", "create p"} < set(told.contents)
    assert told.end.status is COMPLETED


def test_what_is_told_of_a_run_holds_no_prompt_argument_or_output() -> None:
    told = Told()
    for name in ("ok", "tool_error", "parallel", "max_iter"):
        told.replay(name, watched=False)
    words = " ".join(str(report.to_dict()) for report in told.reports)
    for private in ("in the directory", "echo step", "print('hello')", "task_list", "Step 0", "No such file"):
        assert private not in words


# -- starts, tools and the plan --------------------------------------------------------------------------------------


def test_a_summary_that_openhands_made_of_the_arguments_is_not_told() -> None:
    told = Told().hear(ASKED, action(summary='terminal: {"command": "curl -H token"}'))
    assert told.contents == ["Task started", "terminal"]


def test_a_summary_is_one_cleaned_line() -> None:
    told = Told().hear(ASKED, action(summary="log in with password=hunter2 \x1b[31m\nand more" + "x" * 500))
    assert told.contents[-1] == "log in with password=[redacted]"


def test_the_plan_never_goes_backwards_when_it_grows() -> None:
    told = Told().hear(ASKED, plan("done", "todo"), plan("done", "todo", "todo", "todo"), plan("done"))
    assert [report.progress for report in told.reports] == [0, 0.5, 0.5, 0.99]


@pytest.mark.parametrize("tasks", [None, "done", {}, [], 5, [None, 3, "done"], [{"status": ["done"]}]])
def test_an_odd_plan_does_no_harm(tasks: object) -> None:
    told = Told().hear(ASKED, observation("task_tracker", task_list=tasks), action("finish", message="ok"))
    assert all(report.progress == 0.0 for report in told.reports)


def test_a_second_message_goes_to_the_run_that_is_under_way() -> None:
    told = Told().hear(ASKED, action(), {**ASKED, "id": "m2"})
    assert len({report.task_id for report in told.reports}) == 1


def test_each_run_is_a_task() -> None:
    told = Told().hear(What.BEGUN)
    for n in (1, 2):
        told.hear({**ASKED, "id": f"m{n}"}, action("finish", message=f"answer {n}"), observation("finish"))
    assert [(end.task_id, end.result) for end in told.ends] == [
        ("conversation/1", "answer 1"),
        ("conversation/2", "answer 2"),
    ]


def test_runs_of_a_conversation_whose_beginning_was_not_seen_are_named_by_time() -> None:
    """Another process may have told ``/1`` before it was resumed, and Letta's side would take this for the same end."""
    told = Told().hear(ASKED)
    assert told.reports[0].task_id == "conversation/20270115T080000.000Z"


def test_the_same_event_is_heard_once() -> None:
    finish = {**action("finish", message="done"), "id": "a"}
    seen = {**observation("finish"), "id": "b"}
    told = Told().hear(ASKED, finish, seen, ASKED, finish, seen)
    assert len(told.ends) == 1
    assert len(told.reports) == 2


# -- ends ------------------------------------------------------------------------------------------------------------


def test_a_message_without_a_tool_ends_a_run() -> None:
    end = Told().hear(ASKED, spoken("Which file do you mean?")).end
    assert (end.status, end.result) == (COMPLETED, "Which file do you mean?")
    assert end.content == "Ended with a message: it may be a question"


def test_words_of_openhands_to_the_agent_are_nothing_to_tell() -> None:
    nudge = {"kind": "MessageEvent", "source": "environment", "llm_message": {"content": [{"text": "nudge"}]}}
    assert Told().hear(ASKED, nudge).contents == ["Task started"]


def test_a_finish_that_was_not_the_end_is_forgotten() -> None:
    """A stop hook, or OpenHands' refinement, can send an agent back to work."""
    told = Told().hear(What.ENTERED, action("finish", message="too early"), observation("finish"), action())
    told.hear(action("finish", message="really"), observation("finish"), Event(What.LEFT, code="finished"))
    assert told.end.result == "really"


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
    end = Told().hear(What.ENTERED, action(), Event(What.LEFT, code=code)).end
    assert (end.status, end.error) == (FAILED, error)
    assert end.content == f"Task failed: {error} (last: run it)"


@pytest.mark.parametrize(
    ("code", "word"), [("paused", "Paused"), ("waiting_for_confirmation", "Waiting for confirmation")]
)
def test_a_halted_run_is_in_progress_and_goes_on_with_the_next(code: str, word: str) -> None:
    told = Told().hear(What.ENTERED, action(), Event(What.LEFT, code=code))
    assert (told.reports[-1].status, told.reports[-1].content) == (IN_PROGRESS, word)
    told.hear(What.ENTERED)
    assert told.contents[-1] == "Resumed"
    told.hear(action("finish", message="ok"), observation("finish"), Event(What.LEFT, code="finished"))
    assert told.end.status is COMPLETED
    assert len({report.task_id for report in told.reports}) == 1


def test_an_exception_of_the_run_is_a_failure() -> None:
    end = Told().hear(What.ENTERED, Event(What.LEFT, code="running", text="ValueError: password=hunter2")).end
    assert (end.status, end.error) == (FAILED, "ValueError: password=[redacted]")


@pytest.mark.parametrize("left", [Event(What.LEFT, code="error"), Event(What.LEFT, text="RuntimeError: run failed")])
def test_a_reason_that_comes_after_the_end_is_no_task_of_its_own(left: Event) -> None:
    """Events of a remote conversation come by a way of their own, and may be late."""
    told = Told()
    told.hear(Event(What.ENTERED, code="new"), left)
    told.hear({"kind": "ConversationErrorEvent", "code": "LLMTimeout", "detail": "no answer"})
    assert [report.status for report in told.reports] == [IN_PROGRESS, FAILED]
    told.hear(ASKED, {"kind": "ConversationErrorEvent", "code": "LLMTimeout", "detail": "again"})
    assert [end.error for end in told.ends][1:] == ["LLMTimeout: again"]


def test_of_a_long_summary_little_is_kept_until_it_is_told() -> None:
    event = read_event(action(summary="x" * 2**20))
    assert event is not None
    assert len(event.text) <= 1_000


def test_a_plan_is_counted_up_to_a_bound() -> None:
    event = read_event(plan(*["done"] * 5_000))
    assert event is not None
    assert (event.done, event.total) == (1_000, 1_000)


def test_what_is_open_when_the_program_ends_has_failed() -> None:
    told = Told().hear(ASKED)
    told.tracker.shutdown()
    told.tracker.shutdown()
    assert told.end.error == "the program shut down while the task was still open"
    assert told.tracker.open_tasks == 0


# -- statuses, as webhooks have them -----------------------------------------------------------------------------


def test_a_status_of_finished_ends_the_run() -> None:
    told = Told().hear(ASKED, status("running"), action("finish", message="ok"), observation("finish"))
    assert not told.ends
    assert told.hear(status("finished")).end.result == "ok"


def test_an_error_status_waits_for_its_explanation() -> None:
    error = {"kind": "ConversationErrorEvent", "code": "MaxIterationsReached", "detail": "limit (3)."}
    told = Told().hear(ASKED, status("running"), status("error"))
    told.tracker.tick()
    assert not told.ends
    assert told.hear(error).end.error == "MaxIterationsReached: limit (3)."
    assert told.tracker.tick() is None


def test_an_error_status_that_nobody_explains_is_told_after_a_while_and_once() -> None:
    error = {"kind": "ConversationErrorEvent", "code": "Late", "detail": "x"}
    told = Told().hear(ASKED, status("running"), status("error"))
    due = told.tracker.tick()
    assert due is not None
    told.clock.now = due
    told.tracker.tick()
    assert told.hear(error).end.error == "OpenHands stopped with an error"


def test_a_conversation_that_is_deleted_has_failed_unless_its_end_was_only_late() -> None:
    deleted = Told().hear(ASKED, status("running"), status("deleting"))
    assert not deleted.ends
    due = deleted.tracker.tick()
    assert due is not None
    deleted.clock.now = due
    deleted.tracker.tick()
    assert deleted.end.error == "the conversation was deleted before the task was finished"
    assert Told().hear(ASKED, status("running"), status("deleting"), status("finished")).end.status is COMPLETED


def test_a_run_that_goes_on_has_not_failed() -> None:
    told = Told().hear(ASKED, status("running"), status("error"), status("running"))
    told.clock.pass_seconds(3_600)
    assert told.tracker.tick() is None
    assert not told.ends


def test_a_failure_that_waits_for_its_reason_is_told_at_shutdown() -> None:
    told = Told().hear(ASKED, status("running"), status("error"))
    told.tracker.shutdown()
    assert told.end.error == "OpenHands stopped with an error"


def test_more_conversations_than_can_be_followed_cost_the_ones_that_are_idle_first() -> None:
    told = Told(most=2)
    for name in ("open", "idle", "new"):
        told.conversation = name
        told.hear({**ASKED, "id": name})
        if name == "idle":
            told.hear(spoken("done"))
    assert [end.status for end in told.ends] == [COMPLETED]
    told.conversation = "newer"
    told.hear(ASKED)
    assert told.ends[-1].error == "too many conversations at once: this one is not followed any more"


# -- reading -----------------------------------------------------------------------------------------------------


def test_objects_are_read_like_their_json() -> None:
    class ActionEvent(SimpleNamespace):
        pass

    event = ActionEvent(id="e", tool_name="finish", action=SimpleNamespace(message="all done"), summary="finish")
    assert read_event(event) == Event(What.FINISH, "e", "finish", "all done")


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
def test_what_is_no_news_is_ignored(raw: object) -> None:
    assert read_event(raw) is None


@pytest.mark.parametrize("odd", [None, 5, [], {}, ["x"], {"x": []}, "\ud800", "x" * 1_000_000])
@pytest.mark.parametrize(
    "kind", ["MessageEvent", "ActionEvent", "ObservationEvent", "AgentErrorEvent", "ConversationErrorEvent"]
)
def test_odd_fields_do_no_harm(kind: str, odd: object) -> None:
    names = ("id", "tool_name", "summary", "action", "observation", "llm_message", "code", "detail")
    for raw in ({"kind": kind, "source": "agent", **dict.fromkeys(names, odd)}, {"kind": kind, "source": odd}):
        told = Told().hear(ASKED, raw)
        for report in told.reports:
            assert len(report.to_json()) < 20_000


def test_hooks_are_read_from_a_real_session() -> None:
    told = Told()
    for line in recorded("hooks"):
        told.hear(read_hook(line))
    assert (told.end.status, told.end.result) == (COMPLETED, "hello.py prints hello 0, 1 and 2.")
    assert {0.25, 0.5, 0.75} < {report.progress for report in told.reports}


def test_a_session_that_ends_without_stop_has_failed() -> None:
    told = Told()
    for line in recorded("hooks"):
        if line["event_type"] != "Stop":
            told.hear(read_hook(line))
    assert told.end.error == "the session ended before the task was finished"


def test_webhooks_of_a_real_server_give_each_run_its_end() -> None:
    told = Told()
    for request in recorded("webhooks"):
        if isinstance(request["body"], list):
            told.conversation = request["path"].removeprefix("/events/")
            told.hear(*request["body"])
    assert [(end.status, end.error and end.error.split(":")[0]) for end in told.ends] == [
        (COMPLETED, None),
        (FAILED, "LLMServiceUnavailableError"),
        (FAILED, "MaxIterationsReached"),
    ]


# -- claims --------------------------------------------------------------------------------------------------------


def test_a_claimed_conversation_is_known_with_dashes_and_without() -> None:
    claims = Claims()
    claims.add("9FF3DA80-23e4-4f9f-a936-512fe8e8fbb0")
    assert "9ff3da8023e44f9fa936512fe8e8fbb0" in claims
    claims.discard("9ff3da8023e44f9fa936512fe8e8fbb0")
    assert "9ff3da80-23e4-4f9f-a936-512fe8e8fbb0" not in claims


def test_claims_are_bounded() -> None:
    claims = Claims(most=2)
    for name in ("a", "b", "c"):
        claims.add(name)
    assert [name in claims for name in ("a", "b", "c")] == [False, True, True]


def test_a_later_origin_fills_in_what_an_earlier_one_left_open() -> None:
    told = Told()
    told.origin = Origin(None, "message-1")
    told.hear(ASKED)
    told.origin = Origin("chat-2", None, "Tidy up")
    told.hear(spoken("ok"))
    assert (told.end.chat_id, told.end.message_id, told.end.name) == ("chat-2", "message-1", "Tidy up")
