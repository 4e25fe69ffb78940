"""What the frames of a socket say about one input. The frames are shaped like those of a real App Server 0.34.12."""

from __future__ import annotations

from typing import Any

import pytest

from otel_letta.letta.app_server.turns import Turn

OURS = {"agent_id": "agent-a", "conversation_id": "default"}
Frame = dict[str, Any]


@pytest.fixture
def turn() -> Turn:
    made = Turn("agent-a", "default", "consumer-1", ["cm-1", "cm-2"])
    made.request_id = "r-1"
    return made


def accepted(request_id: str = "r-1", **body: Any) -> Frame:
    return {"type": "input_accepted", "request_id": request_id, "accepted": True, "disposition": "started", **body}


def loop(status: str = "SENDING_API_REQUEST", runtime: Frame = OURS, **runs: list[Any]) -> Frame:
    loop_status = {"status": status, "client_message_ids_by_run_id": runs}
    return {"type": "update_loop_status", "runtime": runtime, "loop_status": loop_status}


def queue(*ids: object, runtime: Frame = OURS) -> Frame:
    return {"type": "update_queue", "runtime": runtime, "queue": [{"id": "q", "client_message_id": i} for i in ids]}


def delta(**body: Any) -> Frame:
    return {"type": "stream_delta", "runtime": OURS, "delta": body}


def finished(stop_reason: str = "end_turn", runtime: Frame = OURS, **body: Any) -> Frame:
    return {"type": "turn_finished", "runtime": runtime, "turn_id": "t-1", "stop_reason": stop_reason, **body}


def test_it_is_over_when_a_turn_ends_that_names_its_consumer(turn: Turn) -> None:
    assert turn.see(accepted())
    assert (turn.accepted, turn.queued, turn.over) == (True, False, False)
    assert turn.see(finished(terminal_consumer_ids=["consumer-0", "consumer-1"], run_id="run-1"))
    assert (turn.over, turn.stop_reason, turn.error, turn.turn_id, turn.run_id) == (
        True, "end_turn", "", "t-1", "run-1"
    )  # fmt: skip


def test_where_no_consumers_are_named_the_run_tells_whose_end_it_is(turn: Turn) -> None:
    turn.see(loop(run_1=["cm-1"]))
    turn.see(finished(run_id="run_0"))
    assert not turn.over
    turn.see(finished(run_id="run_1"))
    assert turn.over


def test_the_end_of_somebody_else_s_turn_is_not_ours(turn: Turn) -> None:
    turn.see(accepted())
    turn.see(finished(terminal_consumer_ids=["consumer-0"], run_id="run-0"))
    turn.see(finished("error", error="Agent x not found"))
    turn.see(delta(message_type="loop_error", is_terminal=True, client_message_ids=["other"]))
    turn.see(finished("error", error="Agent x not found"))
    assert not turn.over


@pytest.mark.parametrize(
    "runtime",
    [
        {"agent_id": "agent-b", "conversation_id": "default"},
        {"agent_id": "agent-a", "conversation_id": "local-conv-1"},
        {},
    ],
)
def test_frames_of_other_agents_and_conversations_are_passed_over(turn: Turn, runtime: Frame) -> None:
    for frame in (
        loop("WAITING_ON_INPUT", runtime, run_1=["cm-1"]),
        queue("cm-1", runtime=runtime),
        finished(runtime=runtime, terminal_consumer_ids=["consumer-1"]),
    ):
        assert not turn.see(frame)
    assert (turn.over, turn.queued, turn.loop_idle) == (False, False, None)


def test_an_input_that_fails_before_its_run_is_known_by_the_error_before_the_end(turn: Turn) -> None:
    turn.see(delta(message_type="loop_error", is_terminal=True, client_message_ids=["cm-1", "cm-2"]))
    assert not turn.over
    turn.see(finished("error", run_id="run-7"))
    assert not turn.over  # the end of a turn that did have a run
    turn.see(finished("error", error="Conversation default not found"))
    assert (turn.over, turn.error) == (True, "Conversation default not found")


def test_an_error_in_between_that_is_not_the_last_word_ends_nothing(turn: Turn) -> None:
    turn.see(delta(message_type="loop_error", is_terminal=False, client_message_ids=["cm-1"]))
    turn.see(finished("error"))
    assert not turn.over


def test_only_the_answer_to_our_own_input_counts_as_acceptance(turn: Turn) -> None:
    assert not turn.see(accepted("r-2"))
    assert turn.accepted is None
    turn.see(accepted(disposition="queued"))
    assert (turn.accepted, turn.queued) == (True, True)


@pytest.mark.parametrize("value", [False, None, "true", 1])
def test_whatever_is_not_a_yes_is_a_refusal(turn: Turn, value: object) -> None:
    turn.see(accepted(accepted=value, error="Input was rejected by the queue"))
    assert (turn.accepted, turn.refusal) == (False, "Input was rejected by the queue")


def test_it_waits_as_long_as_the_queue_lists_it(turn: Turn) -> None:
    turn.see(queue("other", "cm-1"))
    assert (turn.queued, turn.with_others) == (True, True)
    turn.see(queue("other"))
    assert not turn.queued


def test_a_queue_that_holds_only_ours_is_not_shared(turn: Turn) -> None:
    turn.see(queue("cm-1", "cm-2"))
    assert (turn.queued, turn.with_others) == (True, False)


def test_a_run_that_holds_another_s_message_too_is_shared(turn: Turn) -> None:
    turn.see(loop(old=["other"], run_1=["cm-1"]))
    assert not turn.with_others
    turn.see(loop(old=["other"], run_1=["cm-1", "other-2"]))
    assert turn.with_others


def test_whether_the_conversation_is_idle(turn: Turn) -> None:
    assert turn.loop_idle is None
    turn.see(loop())
    assert turn.loop_idle is False
    turn.see(loop("WAITING_ON_INPUT"))
    assert turn.loop_idle is True


def test_the_usage_of_our_own_runs_is_added_up(turn: Turn) -> None:
    turn.see(loop(run_1=["cm-1"], run_2=["cm-2"], run_0=["other"]))
    for run, tokens in (("run_1", 5), ("run_2", 7), ("run_0", 100)):
        turn.see(delta(message_type="usage_statistics", run_id=run, prompt_tokens=tokens, total_tokens=True, junk="x"))
    assert turn.usage == {"prompt_tokens": 12, "step_count": 2}


HOSTILE: list[Any] = [None, 7, "text", [], {}, [{}], [[]], {"a": [{}]}, [None, {"a": 1}], True]


@pytest.mark.parametrize("odd", HOSTILE, ids=repr)
def test_no_frame_however_odd_breaks_it(turn: Turn, odd: Any) -> None:
    turn.see(loop(run_1=["cm-1"]))
    for frame in (
        {"type": odd},
        {"type": "update_loop_status", "runtime": odd},
        {"type": "update_loop_status", "runtime": OURS, "loop_status": odd},
        {"type": "update_loop_status", "runtime": OURS, "loop_status": {"client_message_ids_by_run_id": odd}},
        loop(run_1=odd),
        {"type": "update_queue", "runtime": OURS, "queue": odd},
        queue(odd),
        {"type": "stream_delta", "runtime": OURS, "delta": odd},
        delta(message_type=odd),
        delta(message_type="loop_error", is_terminal=True, client_message_ids=odd),
        delta(message_type="usage_statistics", run_id=odd, prompt_tokens=odd),
        finished(terminal_consumer_ids=odd, run_id=odd),
        {"type": "turn_finished", "runtime": {"agent_id": odd, "conversation_id": odd}},
        {"type": "input_accepted", "request_id": odd},
    ):
        turn.see(frame)
    assert (turn.over, turn.accepted) == (False, None)
    turn.see(finished(odd, terminal_consumer_ids=["consumer-1"], error=odd, turn_id=odd, run_id=odd))
    assert turn.over
    assert all(isinstance(text, str) for text in (turn.stop_reason, turn.error, turn.turn_id, turn.run_id))
