"""The App Server's harness itself: what other tests take for granted about that server, its LLM and the oracle."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support import app_server as app_server_module
from tests.support.app_server import APP_SERVER_VERSION, AppServer
from tests.support.app_server_client import AppServerClient, RequestFailed, TurnFailed, content_text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.app_server_harness import AppServerHarness
    from tests.support.scripted_llm import Failure, ScriptedLLM


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    return [content_text(message) for message in messages]


def _user_ids(messages: list[dict[str, Any]]) -> list[str]:
    return [message["otid"] for message in messages if message["message_type"] == "user_message"]


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_the_server_is_the_pinned_one_and_offers_both_ways_in(app_server: AppServerHarness) -> None:
    info = _get(f"{app_server.http_url}/app-server-info")
    agent = app_server.create_agent()

    assert (info["backend"], info["letta_code_version"]) == ("local", APP_SERVER_VERSION)
    assert app_server.client.request("app_server_info")["letta_code_version"] == APP_SERVER_VERSION
    assert app_server.client.request("agent_retrieve", agent_id=agent)["agent"]["id"] == agent
    assert len(_get(f"{app_server.http_url}/v1/models")["data"]) >= 1


def test_an_agent_answers_and_its_next_prompt_has_what_was_said(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent()

    turn = app_server.say(agent, "the kettle is on")

    assert turn.reply.startswith("ack")
    assert turn.run_id is not None
    said, answered = app_server.messages(agent)
    assert content_text(said).endswith("the kettle is on")
    assert content_text(answered) == turn.reply
    assert "the kettle is on" in app_server.next_prompt(agent)
    assert app_server.llm.chat_calls == 2, "one LLM call per message"


def test_conversations_of_one_agent_do_not_see_each_other(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent()
    side = app_server.create_conversation(agent, summary="aside")

    app_server.say(agent, "only on the side", side)

    assert [(found["id"], found["summary"]) for found in app_server.conversations(agent)] == [(side, "aside")]
    assert "only on the side" not in app_server.next_prompt(agent)
    assert "only on the side" in app_server.next_prompt(agent, side)
    assert "only on the side" not in " ".join(_texts(app_server.messages(agent)))


def test_the_whole_history_is_listed_oldest_first(
    app_server: AppServerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = app_server.create_agent()
    said = [f"remark {i}" for i in range(5)]
    for text in said:
        app_server.say(agent, text)
    monkeypatch.setattr("tests.support.app_server_client._PAGE", 3)

    listed = app_server.messages(agent)

    assert [_texts([message])[0].splitlines()[-1] for message in listed[::2]] == said
    assert len(set(_user_ids(listed))) == 5


def test_what_is_said_during_a_turn_waits_and_gets_its_own_answer(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent()
    with ThreadPoolExecutor(2) as pool:
        with app_server.llm.hold():
            first: Future[Any] = pool.submit(app_server.say, agent, "take your time")
            app_server.llm.wait_for_calls(1)
            second: Future[Any] = pool.submit(app_server.say, agent, "and hurry")
            assert app_server.llm.in_flight == 1
            assert not first.done()
        replies = [first.result(30).reply, second.result(30).reply]

    assert _texts(app_server.messages(agent))[1:] == [replies[0], "and hurry", replies[1]]
    assert replies[0] != replies[1]


def test_memory_is_read_back_and_stands_in_the_next_prompt(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent()
    content = "---\nname: Board\ndescription: live\n---\n3 of 10 done\n"

    app_server.client.request("write_memory_file", agent_id=agent, path="board.md", content=content)

    assert app_server.memory(agent)["board.md"] == "3 of 10 done"
    assert app_server.client.memory_file(agent, "board.md") == content
    assert len(app_server.client.memory_commits(agent)) == 2, "that of the agent's creation, and this one"
    assert app_server.llm.chat_calls == 0
    assert "3 of 10 done" in app_server.next_prompt(agent)


def test_all_files_of_a_large_memory_are_listed(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent(memory_blocks=[{"label": f"note_{i}", "value": f"note {i}"} for i in range(12)])

    memory = app_server.memory(agent)

    assert {path: memory[path] for path in memory if path.startswith("note_")} == {
        f"note_{i}.md": f"note {i}" for i in range(12)
    }


def test_a_request_about_an_unknown_agent_fails(app_server: AppServerHarness) -> None:
    with pytest.raises(RequestFailed, match="agent-nope not found"):
        app_server.client.request("agent_retrieve", agent_id="agent-nope")
    with pytest.raises(TurnFailed, match="error: Agent agent-nope not found"):
        app_server.say("agent-nope", "anyone?")


@pytest.mark.parametrize("failure", ["401", "400"])
def test_a_failing_llm_is_seen_and_it_recovers(app_server: AppServerHarness, failure: Failure) -> None:
    agent = app_server.create_agent()
    app_server.llm.fail_with(failure)

    with pytest.raises(TurnFailed, match=f"{failure}: .*scripted refusal"):
        app_server.say(agent, "bad luck")
    calls = app_server.llm.chat_calls
    app_server.llm.recover()

    assert calls == 1
    assert app_server.say(agent, "better").reply.startswith("ack")


def test_the_server_itself_tries_again_when_its_llm_fails_once(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent()
    app_server.llm.fail_with("500", times=1)

    app_server.say(agent, "through at the second try")

    assert app_server.llm.chat_calls == 2


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_restarted_server_still_knows_its_agents(app_server: AppServerHarness, kill: bool) -> None:
    agent = app_server.create_agent()
    app_server.say(agent, "remember me")
    before = (app_server.base_url, app_server.server.pid)

    with app_server.client.socket() as socket:
        app_server.server.kill() if kill else app_server.server.stop()
        with pytest.raises(ConnectionClosed):
            while True:  # what had been on its way
                socket.recv(timeout=30)
    assert app_server.server.pid is None
    with pytest.raises(ConnectionRefusedError):
        app_server.client.request("app_server_info")
    app_server.server.start()

    assert app_server.base_url == before[0]
    assert app_server.server.pid != before[1]
    assert "remember me" in app_server.next_prompt(agent)


def test_a_server_that_goes_away_in_the_middle_of_a_turn_is_noticed(app_server: AppServerHarness) -> None:
    agent = app_server.create_agent()
    with ThreadPoolExecutor(1) as pool, app_server.llm.hold():
        turn = pool.submit(app_server.say, agent, "wait for it")
        app_server.llm.wait_for_calls(1)
        app_server.server.kill()
        with pytest.raises(ConnectionError, match="the server went away before the end of the turn"):
            turn.result(30)


def test_looking_on_does_not_save_a_conversation_whose_only_socket_closes_in_a_turn(
    app_server: AppServerHarness,
) -> None:
    """The server's own fault, from which the library has to recover; the oracle must not hide it."""
    agent = app_server.create_agent()
    message = {"role": "user", "content": "cut short", "client_message_id": "cut-short"}
    runtime = {"agent_id": agent, "conversation_id": "default"}
    payload = {"kind": "create_message", "messages": [message]}
    with app_server.llm.hold():
        with app_server.client.socket() as socket:
            socket.send(json.dumps({"type": "input", "runtime": runtime, "payload": payload}))
            app_server.llm.wait_for_calls(1)
            assert _user_ids(app_server.messages(agent)) == ["cut-short"]
        app_server.memory(agent)

    with pytest.raises(TurnFailed, match=r"^error: Conversation default already has an active run \(local-run-\d+\)$"):
        app_server.say(agent, "anyone?")
    other = app_server.create_conversation(agent)
    assert app_server.say(agent, "here then", other).reply.startswith("ack")
    app_server.server.restart()
    assert app_server.say(agent, "and here again").reply.startswith("ack")


def test_only_the_right_token_opens_the_second_server(
    app_server: AppServerHarness, app_server_with_token: AppServer
) -> None:
    url, token = app_server_with_token.url, app_server_with_token.token
    refusals = {"wrong": "invalid websocket bearer token", None: "missing websocket bearer token"}

    for bad, reason in refusals.items():
        with pytest.raises(InvalidStatus) as refusal:
            AppServerClient(url, token=bad).request("app_server_info")
        assert (refusal.value.response.status_code, refusal.value.response.reason_phrase) == (401, reason)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _get(f"{app_server_with_token.http_url}/app-server-info")

    client = AppServerClient(url, token=token)
    agent = client.create_agent(name="guarded", model=app_server_with_token.model)
    assert client.say(agent, "let me in").reply.startswith("ack")
    with pytest.raises(RequestFailed, match="not found"):
        app_server.client.request("agent_retrieve", agent_id=agent)


def test_a_server_that_cannot_start_is_a_failure_with_its_log(scripted_llm: ScriptedLLM) -> None:
    server = AppServer(scripted_llm, token="")  # it insists on a token that has something in it

    with pytest.raises(RuntimeError, match=r"ended while starting; its log ends with\n.*token"):
        server.start()

    assert server.pid is None
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = server.url


def test_an_installation_that_broke_off_is_not_taken_for_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_TEST_CACHE", str(tmp_path))

    def broken(command: Any, **_: Any) -> str:
        if "pip" in map(str, command):
            raise RuntimeError("connection reset")
        return ""

    monkeypatch.setattr(app_server_module, "_run", broken)
    for _ in range(2):  # the second attempt installs again instead of using what the first has left
        with pytest.raises(RuntimeError, match="connection reset"):
            AppServer.install()


def test_waiting_for_an_answer_that_never_comes_ends(app_server: AppServerHarness) -> None:
    impatient = AppServerClient(app_server.base_url, timeout=0.5)

    with pytest.raises(TimeoutError, match=r"no sign of an answer to no_such_request within 0\.5 s"):
        impatient.request("no_such_request")
