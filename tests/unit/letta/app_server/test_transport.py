"""The App Server's transport, against a server on loopback that speaks and misbehaves as the real one was seen to."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from otel_letta.letta.app_server import socket
from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.transport import Message, Run
from otel_letta.settings import Settings
from tests.support.scripted_app_server import Frame, ScriptedAppServer
from tests.unit.letta.app_server.support import AGENT, ONE, OTHER, TWO, Make, leave, send, sending, told


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


def test_landed_looks_back_to_the_time_of_the_send_and_no_further(server: ScriptedAppServer, make: Make) -> None:
    def row(number: int) -> dict[str, Any]:
        at = datetime.now(timezone.utc) - timedelta(minutes=number)
        return {"id": f"m-{number}", "otid": f"otid-{number}", "date": at.isoformat().replace("+00:00", "Z")}

    server.messages[AGENT, "default"] = [row(number) for number in range(1_000, 0, -1)]  # one a minute
    letta = make()
    lane = letta.lane(None, None)

    def asked() -> int:
        return sum(frame["type"] == "conversation_messages_list" for frame in server.received)

    assert letta.landed(lane, ["otid-950"], age=955 * 60.0) == {"otid-950": "m-950"}
    assert asked() == 10
    assert letta.landed(lane, ["otid-950"], age=150 * 60.0) == {}
    assert asked() == 12
    assert letta.landed(lane, ["otid-7"], age=955 * 60.0) == {"otid-7": "m-7"}
    assert asked() == 13


def test_agents_are_described_for_people(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    assert letta.describe(AGENT) == {"id": AGENT, "name": f"name of {AGENT}", "model": "stub"}
    assert [agent["id"] for agent in letta.agents(1)] == [AGENT]
    server.agents[AGENT]["model"] = {"odd": 1}
    assert "model" not in letta.describe(AGENT)


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
