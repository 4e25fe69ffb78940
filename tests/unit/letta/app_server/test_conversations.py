"""The conversation that reports go to: named, titled, or the default, and the way around a blocked one."""

from __future__ import annotations

import pytest
from websockets.sync.server import ServerConnection

from otel_letta import errors
from otel_letta.letta.app_server import conversations
from otel_letta.letta.app_server import sending as sending_module
from otel_letta.letta.flavour import Flavour, ServerInfo
from otel_letta.letta.transport import Message
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from tests.support.scripted_app_server import Frame, ScriptedAppServer
from tests.unit.letta.app_server.support import AGENT, ONE, OTHER, TWO, Make, send, told


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


# -- answers that are stored ------------------------------------------------------------------------------------------


def _rows(*texts: str) -> list[Frame]:
    """``?otid`` is a message of somebody's, all else the agent's; the newest is returned first, as the server does."""
    rows = [
        {"message_type": "user_message", "otid": text[1:]}
        if text.startswith("?")
        else {"message_type": "assistant_message", "content": [{"type": "text", "text": text}]}
        for text in texts
    ]
    return rows[::-1]


def test_an_answer_is_what_follows_up_to_the_next_message_of_somebody() -> None:
    rows = _rows("?theirs", "to them", "?one", "?two", "to both", "and more", "?later", "to the later one", "?open")
    found = conversations.answers_in(rows, ["one", "two", "open", "gone"])
    assert set(found) == {"one", "two"}
    assert found["one"] is found["two"]
    assert [row["content"][0]["text"] for row in found["one"]["messages"]] == ["to both", "and more"]


def test_a_stored_answer_is_looked_up_in_the_lanes_conversation(server: ScriptedAppServer, make: Make) -> None:
    named, letta = server.conversation(AGENT), make()
    send(letta, ONE, chat_id=named)
    lane = letta.lane(None, named)
    server.messages[AGENT, named].append(
        {"message_type": "assistant_message", "content": [{"type": "text", "text": "Use the second ledger."}]}
    )
    found = letta.stored_answers(lane, [ONE.otid])
    assert "Use the second ledger." in letta.answer(lane, found[ONE.otid]).text
    assert letta.stored_answers(letta.lane(None, None), [ONE.otid]) == {}
