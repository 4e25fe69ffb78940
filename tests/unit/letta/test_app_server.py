"""The App Server's transport, against a server on loopback that speaks and misbehaves as the real one was seen to."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from otel_letta import errors
from otel_letta.delivery.gate import exchange
from otel_letta.letta.app_server import conversations, following, socket
from otel_letta.letta.app_server import sending as sending_module
from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.flavour import Flavour, ServerInfo
from otel_letta.letta.transport import Block, Message, Run
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from tests.support.scripted_app_server import Frame, Held, ScriptedAppServer, scripted_app_server

AGENT = "agent-local-1"
OTHER = "agent-local-2"
ONE, TWO = Message("report one", "otid-1"), Message("report two", "otid-2")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_STEP", 0.01)
    monkeypatch.setattr(following, "_SILENCE", 0.05)
    monkeypatch.setattr(sending_module, "_SHARED_RUN_PATIENCE", 0.0)


@pytest.fixture
def server() -> Iterator[ScriptedAppServer]:
    with scripted_app_server() as made:
        made.agent(AGENT)
        made.agent(OTHER)
        yield made


Make = Callable[..., AppServerTransport]


@pytest.fixture
def make(server: ScriptedAppServer) -> Iterator[Make]:
    made: list[AppServerTransport] = []

    def letta(info: ServerInfo | None = None, **options: Any) -> AppServerTransport:
        options = {"base_url": server.url, "agent_id": AGENT, "read_timeout": 10.0, **options}
        made.append(AppServerTransport(Settings.resolve(environ={}, **options), info))
        return made[-1]

    yield letta
    for transport in made:
        leave(transport, 2.0)
    server.wait_for(lambda: server.open == 0)  # no socket is left open


def leave(letta: AppServerTransport, seconds: float) -> None:
    """End as a program does that has so many seconds for it."""
    letta.ending.bring_forward(time.monotonic() + seconds)
    letta.close(until=letta.ending)


def send(letta: AppServerTransport, *messages: Message, chat_id: str | None = None) -> dict[str, Any]:
    return letta.send(letta.lane(None, chat_id), messages or [ONE])


def told(server: ScriptedAppServer, conversation: str = "default", agent: str = AGENT) -> list[str]:
    return server.texts(agent, conversation)


@contextlib.contextmanager
def sending(letta: AppServerTransport, *messages: Message) -> Iterator[dict[str, Any]]:
    """Send on another thread; afterwards the dictionary has its ``answer`` or ``error``."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["answer"] = send(letta, *messages)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield outcome
    thread.join(10.0)
    assert not thread.is_alive(), "the call never came back"


# -- delivery ----------------------------------------------------------------------------------------------------------


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


def test_a_slow_llm_is_waited_for(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    with sending(make()) as outcome:
        server.wait_for(lambda: len(server.of("sync")) >= 2)  # it asks, and hears that a turn runs
        assert not outcome
        (held,) = server.running
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"
    assert not server.of("runtime_start", "abort_message")


def test_a_question_that_is_not_answered_does_not_close_the_socket_of_a_running_turn(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.letta.app_server.socket._SHORT", 0.02)
    server.on_input = lambda held: None
    server.answers["sync"] = lambda connection, frame: None
    with sending(make()) as outcome:
        server.wait_for(lambda: server.of("sync"))
        until = time.monotonic() + 0.2
        with server.changed:
            server.changed.wait_for(lambda: server.wedged or outcome, max(until - time.monotonic(), 0.0))
        assert not outcome
        (held,) = server.running
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"
    assert len(server.of("sync")) == 1
    assert not server.wedged


def test_the_end_of_a_turn_that_arrives_behind_the_word_that_nothing_runs_is_heard(
    server: ScriptedAppServer, make: Make
) -> None:
    server.on_input = lambda held: None

    def answer_then_end(connection: ServerConnection, frame: Frame) -> None:
        (held,) = server.running
        idle = {"type": "update_loop_status", "loop_status": {"status": "WAITING_ON_INPUT"}}
        server.tell(connection, {**idle, "runtime": frame["runtime"]})
        server.reply(connection, frame)
        held.finish("error", "500: the LLM is down")

    server.answers["sync"] = answer_then_end
    with pytest.raises(errors.LettaModelError):
        send(make())
    assert not server.wedged


def test_a_message_that_waits_behind_a_turn_is_waited_for(server: ScriptedAppServer, make: Make) -> None:
    server.accept = lambda frame: {"accepted": True, "disposition": "queued"}

    def wait_in_queue(connection: ServerConnection, frame: Frame) -> None:
        runtime = frame["runtime"]
        (held,) = server.running
        server.tell(connection, {"type": "update_loop_status", "runtime": runtime, "loop_status": {"status": "X"}})
        queue = [{"client_message_id": held.ids[0]}]
        server.tell(connection, {"type": "update_queue", "runtime": runtime, "queue": queue})
        server.reply(connection, frame)

    server.on_input = lambda held: None
    server.answers["sync"] = wait_in_queue
    with sending(make()) as outcome:
        server.wait_for(lambda: len(server.of("sync")) >= 2)
        assert not outcome
        (held,) = server.running
        held.tell("update_queue", queue=[])
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"


def test_frames_of_others_on_the_same_socket_change_nothing(server: ScriptedAppServer, make: Make) -> None:
    def amid_others(held: Held) -> None:
        for runtime in ({"agent_id": OTHER, "conversation_id": "default"}, {"agent_id": AGENT, "conversation_id": "c"}):
            finished = {"type": "turn_finished", "stop_reason": "error", "error": "theirs", "run_id": held.run}
            server.tell(held.socket, {**finished, "runtime": runtime, "terminal_consumer_ids": [None]})
        held.tell("turn_finished", stop_reason="error", error="somebody's", run_id="x", terminal_consumer_ids=["y"])
        held.finish()

    server.on_input = amid_others
    server.noise = ["garbage", '{"type": "of the future", "runtime": 7}', b"\x00"]
    assert send(make())["stop_reason"] == "end_turn"


def test_a_rejected_input_has_not_landed_and_may_be_tried_again(server: ScriptedAppServer, make: Make) -> None:
    server.accept = lambda frame: {"accepted": False, "error": "Stable input ledger is at capacity"}
    with pytest.raises(errors.LettaRateLimitError, match="ledger is at capacity") as raised:
        send(make())
    assert (raised.value.may_have_landed, raised.value.parks) == (False, False)


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


# -- where to ----------------------------------------------------------------------------------------------------------


def test_only_a_chat_id_that_has_a_conversation_s_form_names_one(make: Make) -> None:
    local = make()
    foreign = make(ServerInfo(Flavour.APP_SERVER, backend="cloud"))
    rest_id = "conv-22222222-2222-4222-8222-222222222222"
    assert local.lane(None, "local-conv-7").conversation_id == "local-conv-7"
    assert local.lane(None, "chat-7").conversation_id is None
    assert local.lane(None, rest_id).conversation_id is None
    assert foreign.lane(None, rest_id).conversation_id == rest_id
    assert local.lane(OTHER, None).agent_id == OTHER
    assert local.lane(None, None).server.startswith("http://")


def test_a_named_conversation_is_used_and_its_owner_asked_for_once(server: ScriptedAppServer, make: Make) -> None:
    named, letta = server.conversation(AGENT), make()
    send(letta, ONE, chat_id=named)
    send(letta, TWO, chat_id=named)
    assert told(server, named) == ["report one", "report two"]
    assert len(server.of("conversation_retrieve")) == 1


@pytest.mark.parametrize("whose", [OTHER, None])
def test_a_named_conversation_that_this_agent_does_not_have(
    server: ScriptedAppServer, make: Make, whose: str | None
) -> None:
    """The server itself would run the message there, as the other agent."""
    named = server.conversation(whose) if whose else "local-conv-99"
    with pytest.raises(errors.LettaConversationNotFoundError):
        send(make(), chat_id=named)
    assert not server.of("input")


def test_the_oldest_conversation_of_the_title_is_the_one_for_reports(server: ScriptedAppServer, make: Make) -> None:
    server.conversation(OTHER, "Reports", "2020-01-01")
    server.conversation(AGENT, "Reports", "2020-01-01", archived=True)
    server.conversation(AGENT, "All Reports", "2020-01-01")
    oldest = server.conversation(AGENT, "Reports", "2026-01-01")
    server.conversation(AGENT, "Reports", "2026-01-02")
    for number in range(120):  # the server lists the newest first, and not all of them
        server.conversation(AGENT, f"chat {number}", "2026-03-01")
    send(make(conversation="Reports"))
    assert told(server, oldest) == ["report one"]
    assert not server.of("conversation_create")


def test_a_missing_conversation_for_reports_is_made_and_found_by_the_next(
    server: ScriptedAppServer, make: Make
) -> None:
    assert send(make(conversation="Reports"), ONE)["conversation_id"] == "local-conv-1"
    assert send(make(conversation="Reports"), TWO)["conversation_id"] == "local-conv-1"
    assert told(server, "local-conv-1") == ["report one", "report two"]


def test_of_two_that_were_made_at_once_both_machines_take_the_older(server: ScriptedAppServer, make: Make) -> None:
    create = server._conversation_create

    def somebody_is_faster(connection: ServerConnection, frame: Frame) -> None:
        server.conversation(AGENT, "Reports", "2026-01-31")
        create(connection, frame)

    server.answers["conversation_create"] = somebody_is_faster
    assert send(make(conversation="Reports"))["conversation_id"] == "local-conv-1"


def test_a_conversation_for_reports_that_somebody_deleted_is_made_again(server: ScriptedAppServer, make: Make) -> None:
    letta = make(conversation="Reports")
    send(letta, ONE)
    server.conversations["local-conv-1"]["summary"] = "renamed"
    assert send(letta, TWO)["conversation_id"] == "local-conv-2"


def test_a_conversation_for_reports_that_vanishes_meanwhile_is_no_reason_to_ask_without_end(
    server: ScriptedAppServer, make: Make
) -> None:
    """Delivery sends a lane's reports to the default lane when its conversation is gone: from there to itself."""
    letta = make(conversation="Reports")
    server.accept = lambda frame: (server.conversations.clear(), {"accepted": True})[1]
    with pytest.raises(errors.LettaServerError, match="conversation for reports is gone") as raised:
        send(letta)
    assert not isinstance(raised.value, errors.LettaConversationNotFoundError)


def test_a_conversation_that_cannot_be_made(server: ScriptedAppServer, make: Make) -> None:
    def refuse(connection: ServerConnection, frame: Frame) -> None:
        server.reply(connection, frame, success=False, error="no\nspace")

    server.answers["conversation_create"] = refuse
    with pytest.raises(errors.LettaServerError, match="no"):
        send(make(conversation="Reports"))
    server.answers["conversation_create"] = lambda connection, frame: server.reply(connection, frame)
    with pytest.raises(errors.LettaServerError, match="does not list"):
        send(make(conversation="Reports"))


# -- occupied conversations --------------------------------------------------------------------------------------------


def test_another_agent_s_turn_in_the_default_conversation_is_waited_for(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_module, "_SHARED_RUN_PATIENCE", 10.0)
    server.occupied.add("default")
    letta = make()
    waits: list[float] = []

    def free_at_the_third(self: Deadline, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            server.occupied.clear()
        return False

    monkeypatch.setattr(Deadline, "wait", free_at_the_third)
    assert send(letta)["conversation_id"] == "default"
    assert told(server) == ["report one"]
    assert waits == [0.5, 1.0, 2.0]
    ids = [frame["payload"]["messages"][0]["client_message_id"] for frame in server.of("input")]
    assert len(set(ids)) == 4  # the server has used up each, and would drop it


def test_one_that_stays_occupied_is_left_for_another_and_said(
    server: ScriptedAppServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.occupied.add("default")
    letta = make()
    assert send(letta, ONE)["conversation_id"] == "local-conv-1"
    assert server.conversations["local-conv-1"]["summary"] == "Task reports (otel_letta)"
    assert told(server, "local-conv-1") == ["report one"]
    assert "blocked" in caplog.text and "local-conv-1" in caplog.text
    asked = len(server.of("input"))
    send(letta, TWO)
    assert len(server.of("input")) == asked + 1  # the blocked one is not tried again
    assert letta.landed(letta.lane(None, None), ["otid-1", "otid-2"]).keys() == {"otid-1", "otid-2"}


def test_what_went_to_the_blocked_conversation_before_counts_as_landed(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    send(letta, ONE)
    server.occupied.add("default")
    send(letta, TWO)
    assert letta.landed(letta.lane(None, None), ["otid-1", "otid-2"]).keys() == {"otid-1", "otid-2"}


def test_a_blocked_conversation_with_a_name_is_left_at_once(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_module, "_SHARED_RUN_PATIENCE", 60.0)
    named = server.conversation(AGENT)
    server.occupied.add(named)
    assert send(make(), chat_id=named)["conversation_id"] == "local-conv-2"


def test_a_detour_that_is_blocked_too_leads_to_the_next_and_then_it_is_said(
    server: ScriptedAppServer, make: Make
) -> None:
    server.occupied |= {"default", "local-conv-1"}
    letta = make()
    assert send(letta, ONE)["conversation_id"] == "local-conv-2"
    asked = len(server.of("input"))
    assert send(letta, TWO)["conversation_id"] == "local-conv-2"
    assert len(server.of("input")) == asked + 1
    server.occupied |= {f"local-conv-{number}" for number in range(9)}
    with pytest.raises(errors.LettaConflictError, match="restart the App Server") as raised:
        send(letta, Message("three", "otid-3"))
    assert raised.value.may_have_landed is False


def test_after_a_while_the_blocked_conversation_is_tried_again(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "_DETOUR_LASTS", 0.0)
    server.occupied.add("default")
    letta = make()
    send(letta, ONE)
    server.occupied.clear()
    assert send(letta, TWO)["conversation_id"] == "default"


def test_a_restarted_server_is_tried_at_its_first_conversation_again(server: ScriptedAppServer, make: Make) -> None:
    server.occupied.add("default")
    letta = make()
    send(letta, ONE)
    url = letta._settings
    letta._settings = Settings.resolve(environ={}, base_url="ws://127.0.0.1:1", agent_id=AGENT)
    with pytest.raises(errors.LettaConnectionError):
        send(letta, TWO)
    letta._settings = url
    server.occupied.clear()
    assert send(letta, TWO)["conversation_id"] == "default"


# -- looking -----------------------------------------------------------------------------------------------------------


def test_a_running_turn_and_a_queue_are_seen(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    lane = letta.lane(None, None)
    assert letta.active_runs(lane) == []
    server.on_input = lambda held: None
    with sending(letta):
        server.wait_for(lambda: server.running)
        assert letta.active_runs(lane) == [Run("default", None)]
        for held in list(server.running):
            held.finish()
    assert letta.in_context(lane, ["a"]) == {"a"}


def test_landed_looks_past_odd_rows(server: ScriptedAppServer, make: Make) -> None:
    rows = [{"otid": {}}, {"otid": None}, 7, None, {"otid": "otid-1", "id": "m-1"}]
    server.answers["conversation_messages_list"] = lambda connection, frame: server.reply(
        connection, frame, messages=rows
    )
    letta = make()
    assert letta.landed(letta.lane(None, None), ["otid-1", "otid-2"]) == {"otid-1": "m-1"}


def test_agents_are_described_for_people(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    assert letta.describe(AGENT) == {"id": AGENT, "name": f"name of {AGENT}", "model": "stub"}
    assert [agent["id"] for agent in letta.agents(1)] == [AGENT]
    server.agents[AGENT]["model"] = {"odd": 1}
    assert "model" not in letta.describe(AGENT)


# -- ends of the process -----------------------------------------------------------------------------------------------


def test_leaving_stops_our_own_turn_before_the_socket_closes(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make()
    with sending(letta) as outcome:
        server.wait_for(lambda: server.running)
        leave(letta, 0.3)
    assert len(server.of("abort_message")) == 1
    assert isinstance(outcome["error"], errors.LettaTimeoutError)
    assert outcome["error"].may_have_landed is True
    server.wait_for(lambda: server.open == 0)
    assert not server.wedged


def test_leaving_gives_the_turn_the_time_that_there_is(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make()
    with sending(letta) as outcome:
        server.wait_for(lambda: server.running)
        letta.ending.bring_forward(time.monotonic() + 60.0)
        (held,) = server.running
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"
    assert not server.of("abort_message")


@pytest.mark.parametrize("shared", ["in the run", "in the queue"])
def test_leaving_does_not_stop_what_runs_for_others_as_well(server: ScriptedAppServer, make: Make, shared: str) -> None:
    def with_another(held: Held) -> None:
        if shared == "in the run":
            held.loop("PROCESSING", run=[*held.ids, "theirs"])
        else:
            held.tell("update_queue", queue=[{"client_message_id": i} for i in (*held.ids, "theirs")])

    server.on_input = with_another
    letta = make()
    with sending(letta) as outcome:
        server.wait_for(lambda: server.of("input"))
        leave(letta, 0.1)
    assert isinstance(outcome["error"], errors.LettaTimeoutError)
    assert not server.of("abort_message")


def test_the_first_word_about_the_end_holds(make: Make) -> None:
    letta = make()
    now = time.monotonic()
    letta.ending.bring_forward(now + 10.0)
    letta.ending.bring_forward(now + 50.0)
    assert letta.ending.at == now + 10.0
    letta.ending.bring_forward(now + 5.0)
    assert letta.ending.at == now + 5.0


def test_after_the_end_no_turn_is_begun(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    letta.ending.bring_forward(time.monotonic())
    with pytest.raises(errors.LettaTimeoutError) as raised:
        send(letta)
    assert raised.value.may_have_landed is False
    assert not server.of("input")


def test_leaving_waits_no_longer_than_it_may(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    server.answers["abort_message"] = lambda connection, frame: None
    letta = make()
    with sending(letta):
        server.wait_for(lambda: server.running)
        began = time.monotonic()
        leave(letta, 0.2)
        assert time.monotonic() - began < 5.0
    assert len(server.of("abort_message")) == 1


def test_a_turn_that_takes_too_long_goes_on_with_its_socket_open(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=0.1)
    with pytest.raises(errors.LettaTimeoutError, match="OTEL_LETTA_READ_TIMEOUT") as raised:
        send(letta)
    assert raised.value.may_have_landed is True
    assert server.open == 1
    (held,) = server.running
    held.finish()
    server.wait_for(lambda: server.open == 0)
    assert not server.wedged
    assert not server.of("abort_message")


def test_a_turn_that_nobody_waits_for_is_stopped_at_the_end(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=0.1)
    with pytest.raises(errors.LettaTimeoutError):
        send(letta)
    leave(letta, 0.3)
    assert len(server.of("abort_message")) == 1
    server.wait_for(lambda: server.open == 0)
    assert not server.wedged


def test_a_duplicate_that_nobody_waits_for_does_not_keep_its_socket(server: ScriptedAppServer, make: Make) -> None:
    send(make())
    letta = make(read_timeout=0.03)
    with pytest.raises(errors.LettaTimeoutError):
        send(letta)
    server.wait_for(lambda: server.open == 0)


def test_a_socket_is_not_kept_for_ever(server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_LINGER_AT_MOST", 0.1)
    server.answers["input"] = lambda connection, frame: None
    with pytest.raises(errors.LettaTimeoutError):
        send(make(read_timeout=0.05))
    server.wait_for(lambda: server.open == 0)


def test_where_no_thread_can_be_started_the_turn_is_stopped(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=0.1)
    start = threading.Thread.start

    def no_thread(self: threading.Thread) -> None:
        if threading.current_thread() is not threading.main_thread():
            start(self)  # the stand-in server's own
            return
        raise RuntimeError("can't create new thread at interpreter shutdown")

    receive = socket.Session.receive

    def then_no_thread(self: socket.Session, seconds: float) -> Frame | None:
        monkeypatch.setattr(threading.Thread, "start", no_thread)  # the socket's own thread runs by now
        return receive(self, seconds)

    monkeypatch.setattr(socket.Session, "receive", then_no_thread)
    with pytest.raises(errors.LettaTimeoutError):
        send(letta)
    monkeypatch.undo()
    assert len(server.of("abort_message")) == 1
    assert not server.wedged


def test_ctrl_c_leaves_the_turn_to_the_exit(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on_input = lambda held: None
    letta = make()
    step = following.Watch.step

    def interrupted(self: following.Watch) -> bool:
        if self._turn.accepted and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(following.Watch, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send(letta)
    assert server.open == 1
    leave(letta, 0.3)
    assert len(server.of("abort_message")) == 1
    assert not server.wedged


def test_a_call_ends_when_somebody_waits_for_less(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=60.0)
    began = time.monotonic()
    with pytest.raises(errors.LettaTimeoutError):
        letta.send(letta.lane(None, None), [ONE], until=Deadline.after(0.1))
    assert time.monotonic() - began < 5.0
    for held in list(server.running):
        held.finish()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_its_parent_s_socket_alone_and_has_its_own(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None if "one" in held.frame["payload"]["messages"][0]["content"] else held.finish()
    letta = make()
    with sending(letta, ONE) as outcome:
        server.wait_for(lambda: server.running)
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                leave(letta, 5.0)
                import gc

                gc.collect()
                fresh = AppServerTransport(letta._settings)
                fresh.send(fresh.lane(None, None), [TWO])
                code = 0 if not letta._sessions._open and len(socket._inherited) == 1 else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert told(server) == ["report one", "report two"]
        (held,) = server.running
        assert not outcome and not server.wedged
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"


def test_a_child_that_goes_on_in_the_middle_of_a_call_does_not_close_the_socket(
    server: ScriptedAppServer, make: Make
) -> None:
    letta = make()
    call = letta._session()
    session = call.__enter__()
    server.wait_for(lambda: server.open == 1)
    letta._begin_in_child()  # what a fork does to the child's copy
    call.__exit__(None, None, None)
    assert session in socket._inherited
    assert session.request("agent_retrieve", {"agent_id": AGENT})["success"]
    socket._inherited.remove(session)
    session.close()


def test_new_settings_forget_what_was_learnt_of_the_old_server(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = server.conversation(AGENT)
    server.occupied.add("default")
    letta = make()
    send(letta, ONE)
    send(letta, TWO, chat_id=named)
    assert letta._conversations.detours and letta._conversations.owners
    letta.reload()
    assert letta._conversations.detours and letta._conversations.owners  # nothing new
    fresh = Settings.resolve(environ={}, base_url="ws://127.0.0.1:1", agent_id=OTHER)
    monkeypatch.setattr(Settings, "refresh", lambda self: fresh)
    letta.reload()
    assert not letta._conversations.detours and not letta._conversations.owners
    assert letta.lane(None, None).agent_id == OTHER


def test_many_threads_share_a_transport(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            send(letta, Message(f"n{number}", f"o{number}"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert not failures
    assert sorted(told(server)) == sorted(f"n{number}" for number in range(12))


def test_the_server_s_words_are_logged_clean(
    server: ScriptedAppServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.occupied.add("default")
    forged = "conv\nERROR forged line open-sesame-1001"

    def create(connection: ServerConnection, frame: Frame) -> None:
        row = {"id": forged, "agent_id": AGENT, "summary": frame["body"]["summary"], "created_at": ""}
        server.conversations[forged] = row
        server.reply(connection, frame)

    server.answers["conversation_create"] = create
    assert send(make(password="open-sesame-1001"))["conversation_id"] == forged
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("otel_letta")]
    assert any("is blocked" in message for message in messages)
    assert not any("\n" in message or "sesame" in message for message in messages)


# -- the board ---------------------------------------------------------------------------------------------------------

MARKED = {"otel_letta": {"host": "vm", "closed": False}}


def board(letta: AppServerTransport) -> Block:
    return letta.create_block(AGENT, "task_progress", "none", 5_000, "Progress\nof tasks.", MARKED)


def writes(server: ScriptedAppServer) -> list[str]:
    return [frame["content"] for frame in server.of("write_memory_file")]


def test_a_board_is_a_file_in_the_root_with_the_two_keys_that_the_server_allows(
    server: ScriptedAppServer, make: Make
) -> None:
    letta = make()
    block = board(letta)
    assert server.files[AGENT]["task_progress.md"] == (
        "---\nname: task_progress\ndescription: Progress of tasks.\n---\nnone\n"
    )
    letta.write_block(block, "50 %", MARKED)
    assert server.files[AGENT]["task_progress.md"] == (
        "---\nname: task_progress\ndescription: Progress of tasks.\n---\n50 %\n"
    )
    assert not server.of("input")  # no LLM call


def test_whose_a_board_is_stands_in_its_commits(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    server.files[AGENT]["task_progress_2.md"] = "---\nname: x\ndescription: y\n---\na stranger's"
    for message in ("otel_letta {", "otel_letta [1]", 'otel_letta {"label": 7}', "otel_letta " + "[" * 90_000, 7, None):
        server.commits.insert(0, {"message": message})
    found = {found.label: found for found in make().blocks(AGENT)}
    assert found["task_progress"].metadata == MARKED
    assert found["task_progress_2"].metadata == {}
    assert "MEMORY" not in found
    newer = {"otel_letta": {"host": "vm", "closed": True}}
    letta.write_block(block, "done", newer)
    found = {found.label: found for found in make().blocks(AGENT)}
    assert (found["task_progress"].metadata, found["task_progress"].value) == (newer, "done")


def test_what_did_not_change_is_not_written(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    letta.write_block(block, "50 %", MARKED)
    before = len(writes(server))
    letta.write_block(block, " 50 %\n", {"otel_letta": {"closed": True}})
    assert len(writes(server)) == before


def test_a_file_without_a_head_gets_one(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    for broken in ("50 %\n", "---\nname: x\n", "---\nname: x\n---\n50 %\n"):
        server.files[AGENT]["task_progress.md"] = broken
        letta.write_block(block, "51 %", MARKED)
        written = server.files[AGENT]["task_progress.md"]
        assert written.startswith("---\nname: task_progress\ndescription: task_progress\n---\n")


def test_the_memory_is_listed_to_the_last_part(server: ScriptedAppServer, make: Make) -> None:
    server.files[AGENT] = {f"f{number}.md": f"v{number}" for number in range(12)}
    server.files[AGENT] |= {"system/deep.md": "x", "notes.txt": "x", "MEMORY.md": "x"}
    blocks = make().blocks(AGENT)
    assert [block.label for block in blocks] == [f"f{number}" for number in range(12)]
    assert not server.of("memory_history")  # none of them could be ours


def test_odd_entries_are_passed_over(server: ScriptedAppServer, make: Make) -> None:
    entries = [None, 7, {}, {"relative_path": 7}, {"relative_path": "a.md", "content": {}}]
    server.answers["list_memory"] = lambda connection, frame: server.reply(connection, frame, entries=entries)
    assert [(block.label, block.value) for block in make().blocks(AGENT)] == [("a", "")]


@pytest.mark.parametrize("before", [None, "---\nname: t\ndescription: d\n---\nold\n"])
def test_a_refused_file_is_taken_back(server: ScriptedAppServer, make: Make, before: str | None) -> None:
    """It would stay, uncommitted, and the agent be told with every turn to see to it."""
    letta = make()
    if before is not None:
        block = board(letta)
        server.files[AGENT]["task_progress.md"] = before
    refused = "new" if before is not None else "none"
    server.refuse_file = lambda path, content: "bad.md: missing\nfrontmatter" if refused in content else None
    with pytest.raises(errors.LettaConflictError, match="refused the memory file") as raised:
        board(letta) if before is None else letta.write_block(block, "new", MARKED)
    assert raised.value.parks
    assert raised.value.status is None  # so that nobody takes it for a conflict that passes
    assert server.files[AGENT].get("task_progress.md") == before


def test_a_file_that_is_there_already_is_not_overwritten(server: ScriptedAppServer, make: Make) -> None:
    server.files[AGENT] = {"task_progress.md": "a person's"}
    with pytest.raises(errors.LettaConflictError) as raised:
        board(make())
    assert raised.value.status == 409
    assert server.files[AGENT] == {"task_progress.md": "a person's"}


def test_a_deleted_file_is_told_as_such(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    del server.files[AGENT]["task_progress.md"]
    with pytest.raises(errors.LettaConflictError) as raised:
        letta.write_block(block, "50 %", MARKED)
    assert (raised.value.status, raised.value.parks) == (404, False)
    assert "task_progress.md" not in server.files[AGENT]


def test_no_memory_is_made_for_an_agent_that_does_not_exist(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    del server.agents[AGENT]
    server.files.clear()
    for call in (
        lambda: letta.blocks(AGENT),
        lambda: board(letta),
        lambda: letta.write_block(block, "x", MARKED),
    ):
        with pytest.raises(errors.LettaAgentNotFoundError):
            call()
    assert not server.files


def test_an_agent_without_files_has_no_board(server: ScriptedAppServer, make: Make) -> None:
    for body in ({"memfs_enabled": False, "entries": []}, {"success": False, "error": "no memory"}):
        server.answers["list_memory"] = lambda connection, frame, body=body: server.reply(connection, frame, **body)
        with pytest.raises(errors.LettaUnsupportedError):
            make().blocks(AGENT)
