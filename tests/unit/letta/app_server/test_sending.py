"""Handing over messages: none is lost, and none arrives twice."""

from __future__ import annotations

import pytest

from otel_letta import errors
from otel_letta.delivery.gate import exchange
from otel_letta.letta.transport import Message
from otel_letta.runtime.deadline import Deadline
from tests.support.scripted_app_server import Held, ScriptedAppServer
from tests.unit.letta.app_server.support import AGENT, ONE, TWO, Make, send, told


def test_messages_arrive_as_one_input_in_order(server: ScriptedAppServer, make: Make) -> None:
    def answer(held: Held) -> None:
        server.say(AGENT, "default", "thanks")
        held.finish()

    server.on_input = answer
    got = send(make(), ONE, TWO)
    assert told(server) == ["report one", "report two"]
    (frame,) = server.of("input")
    assert frame["runtime"] == {"agent_id": AGENT, "conversation_id": "default"}
    assert frame["payload"]["exclude_interactive_tools"] is True
    assert [message["otid"] for message in frame["payload"]["messages"]] == ["otid-1", "otid-2"]
    assert "mode" not in frame and "client_tool_allowlist" not in frame["payload"]  # those hold for everybody
    assert [row["content"] for row in got.pop("messages")] == ["thanks"]
    assert got == {
        "stop_reason": "end_turn",
        "usage": {"prompt_tokens": 7, "total_tokens": 9, "step_count": 1},
        "run_id": "local-run-1",
        "turn_id": "turn-local-run-1",
        "conversation_id": "default",
    }


def test_what_the_agent_said_before_is_no_answer(server: ScriptedAppServer, make: Make) -> None:
    server.store(AGENT, "default", "hello", "another")
    server.say(AGENT, "default", "old words")
    assert send(make())["messages"] == []


def test_an_answer_that_cannot_be_read_does_not_make_the_report_a_failure(
    server: ScriptedAppServer, make: Make
) -> None:
    server.answers["conversation_messages_list"] = lambda connection, frame: connection.socket.shutdown(2)
    assert send(make())["messages"] == []
    server.answers["conversation_messages_list"] = lambda connection, frame: server.reply(
        connection, frame, messages=[{"otid": {"un": "hashable"}}, None, {"otid": ["x"], "message_type": {}}]
    )
    assert send(make(), TWO)["messages"] == []


def test_the_input_s_ids_are_the_same_in_every_process_and_others_for_other_batches(
    server: ScriptedAppServer, make: Make
) -> None:
    """The server drops a whole input, new messages and all, if it knows the id of the first."""
    for messages in ([ONE], [ONE], [ONE, TWO], [TWO]):
        send(make(), *messages)
    ids = [[message["client_message_id"] for message in frame["payload"]["messages"]] for frame in server.of("input")]
    assert ids[0] == ids[1]
    assert len({first for first, *_ in ids}) == 3
    assert len(set(ids[2])) == 2


def test_a_duplicate_that_never_finishes_is_told_by_what_is_stored(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    send(letta)
    again = send(letta)
    assert told(server) == ["report one"]
    assert (again["stop_reason"], again["run_id"]) == ("", "")
    assert len(server.of("sync")) == 1


def test_an_input_that_the_server_knew_and_lost_is_sent_under_another_id(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    send(letta, ONE, TWO)
    server.messages.clear()
    send(letta, ONE, TWO)
    assert told(server) == ["report one", "report two"]
    # Before that the conversation is started: a server that was restarted holds back what it had accepted.
    (start,) = server.of("runtime_start")
    assert (start["agent_id"], start["conversation_id"]) == (AGENT, "default")
    assert "mode" not in start


def test_of_an_input_that_is_stored_in_part_only_the_rest_is_sent_again(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    send(letta, ONE, TWO)
    server.messages[AGENT, "default"].pop()
    send(letta, ONE, TWO)
    assert told(server) == ["report one", "report two"]


@pytest.mark.parametrize("later", [(ONE, TWO), (TWO, ONE)])
def test_an_input_without_an_answer_is_sent_as_it_was_before_what_joined_it(
    server: ScriptedAppServer, make: Make, later: tuple[Message, ...]
) -> None:
    """The same input again is the one thing that the server knows from the first."""
    server.on_input = lambda held: held.socket.close()
    letta = make()
    with pytest.raises(errors.LettaConnectionError) as raised:
        send(letta, ONE)
    assert raised.value.may_have_landed
    server.on_input = lambda held: held.finish()
    send(letta, *later)
    assert told(server) == ["report one", "report two"]


def test_a_turn_that_somebody_stopped_has_delivered(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: held.finish("cancelled")
    assert send(make())["stop_reason"] == "cancelled"


LLM_401 = '{"error": {"error": {"type": "llm_error", "message": "401: no\\nkey"}, "run_id": "local-run-1"}}'


@pytest.mark.parametrize(
    ("stop_reason", "error", "kind", "words"),
    [
        ("error", LLM_401, errors.LettaModelError, "401: no"),
        ("llm_api_error", None, errors.LettaModelError, "LLM"),
        ("error", "Some\nthing", errors.LettaServerError, "turn failed: Some"),
        ("error", None, errors.LettaServerError, "turn failed"),
        ("error", "[" * 9_000, errors.LettaServerError, "turn failed"),
        ("error", '{"error": {"error": 7}}', errors.LettaServerError, "turn failed"),
    ],
)
def test_a_turn_that_fails_may_have_delivered(
    server: ScriptedAppServer, make: Make, stop_reason: str, error: str | None, kind: type, words: str
) -> None:
    server.on_input = lambda held: held.finish(stop_reason, error)
    with pytest.raises(errors.LettaServerError) as raised:
        send(make())
    assert type(raised.value) is kind
    assert raised.value.may_have_landed is True
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_agent(server: ScriptedAppServer, make: Make) -> None:
    letta = make(agent_id="agent-nope")
    for call in (
        lambda: send(letta),
        lambda: letta.probe(letta.lane(None, None)),
        lambda: letta.describe("agent-nope"),
    ):
        with pytest.raises(errors.LettaAgentNotFoundError, match="LETTA_AGENT_ID"):
            call()


def test_a_connection_that_breaks_in_the_middle_may_have_landed_and_the_retry_finds_out(
    server: ScriptedAppServer, make: Make
) -> None:
    server.on_input = lambda held: held.socket.socket.shutdown(2)
    letta = make()
    with pytest.raises(errors.LettaConnectionError) as raised:
        send(letta)
    assert raised.value.may_have_landed is True
    server.running.clear()
    lane = letta.lane(None, None)
    assert exchange(letta, lane, [ONE], until=Deadline(), patience=5, busy_patience=5, check_landed_first=True) == {}
    assert told(server) == ["report one"]


def test_what_breaks_before_the_input_was_sent_has_not_landed(server: ScriptedAppServer, make: Make) -> None:
    server.answers["conversation_retrieve"] = lambda connection, frame: connection.socket.shutdown(2)
    with pytest.raises(errors.LettaConnectionError) as raised:
        send(make(), chat_id="local-conv-1")
    assert raised.value.may_have_landed is False
