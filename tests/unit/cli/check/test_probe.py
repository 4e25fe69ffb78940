"""Settings, server, password, agent and board: whatever is wrong is named in one line, with its remedy."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.checking import NO_SUCH_AGENT, PASSWORD, WRONG, check, problems
from tests.support.stub_server import stub_server

# -- settings


def test_every_setting_that_cannot_be_used_is_named_at_once(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", "loud")
    monkeypatch.setenv("OTEL_LETTA_MAX_STEPS", "0")
    monkeypatch.setenv("LETTA_BASE_URL", f"http://user:{WRONG}@letta.example")
    found = problems(check())
    assert len(found) == 3
    assert found[0].startswith("LETTA_BASE_URL") and "put the password in LETTA_PASSWORD" in found[0]
    assert found[1] == "OTEL_LETTA_DELIVERY from the environment cannot be 'loud'. Fix: use auto, messages, board"
    assert found[2].startswith("OTEL_LETTA_MAX_STEPS from the environment cannot be '0'")


def test_no_server_is_asked_with_bad_settings(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", "loud")
    check()
    assert letta.requests == []


def test_a_kind_that_cannot_have_this_address_is_named(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", "ws://127.0.0.1:4500/ws")
    monkeypatch.setenv("OTEL_LETTA_SERVER", "rest")
    (problem,) = problems(check())
    assert problem.startswith("OTEL_LETTA_SERVER from the environment cannot be 'rest': LETTA_BASE_URL is the address")


def test_an_env_file_that_is_not_there_is_named(agent_id: str, tmp_path: Path) -> None:
    (problem,) = problems(check("--env-file", str(tmp_path / "none.env")))
    assert problem.startswith("--env-file") and "No such file" in problem


def test_an_env_file_that_cannot_be_read_is_a_warning(agent_id: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"LETTA_PASSWORD=\xff\xfe\n")
    result = check()
    assert result.exit_code == 0
    assert "! " in result.output and "not UTF-8" in result.output


def test_without_an_agent_it_names_those_that_there_are(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LETTA_AGENT_ID")
    result = check()
    assert problems(result) == ["No Letta agent is named. Fix: set LETTA_AGENT_ID to the agent's id"]
    assert f"agents on this server: {agent_id} (assistant)" in result.output


def test_a_disabled_sdk_is_a_problem(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    (problem,) = problems(check())
    assert problem.startswith("OTEL_SDK_DISABLED=true")


def test_a_secret_that_would_travel_readable_is_warned_of(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", "http://letta.invalid:9")
    result = check()
    assert "! LETTA_BASE_URL is plain http: reports and LETTA_PASSWORD travel readable" in result.output
    assert len(problems(result)) == 1


def test_a_secret_that_a_file_would_divert_is_a_problem_and_nothing_is_sent(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LETTA_BASE_URL")
    (tmp_path / ".env").write_text(f"LETTA_BASE_URL={letta.base_url}\n")
    result = check("--send")
    assert result.exit_code == 1
    (problem,) = problems(result)
    assert f"does not go to 127.0.0.1, which LETTA_BASE_URL in {tmp_path / '.env'} names" in problem
    assert not letta.requests

    monkeypatch.setenv("OTEL_LETTA_TRUST_DOTENV", "true")
    result = check()
    assert result.exit_code == 0
    assert f"which LETTA_BASE_URL in {tmp_path / '.env'} names" in result.output


# -- the server


def test_a_server_that_is_not_there(letta: InMemoryLetta, agent_id: str) -> None:
    letta.stop_listening()
    (problem,) = problems(check())
    assert problem.startswith(f"Could not connect to Letta API at {letta.base_url}")
    assert problem.endswith("Fix: check LETTA_BASE_URL, and that the server runs")


def test_https_to_a_server_that_speaks_http(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", letta.base_url.replace("http:", "https:"))
    (problem,) = problems(check())
    assert "write http:// in LETTA_BASE_URL" in problem


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "drop by drop"])
def test_a_server_that_does_not_come_to_an_end_is_given_up(
    agent_id: str, monkeypatch: pytest.MonkeyPatch, drip: bool
) -> None:
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while not stop.wait(0.05):
                if drip:
                    connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("LETTA_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("OTEL_LETTA_READ_TIMEOUT", "0.3")
        monkeypatch.setenv("OTEL_LETTA_CONNECT_TIMEOUT", "0.3")
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        began = time.monotonic()
        try:
            (problem,) = problems(check())
        finally:
            stop.set()
            thread.join(5)
    assert "did not answer in time" in problem and "Fix: " in problem
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"<html><body>Not here</body></html>"),
        (404, {"detail": "Not Found"}),
        (200, b"<html>Welcome to nginx</html>"),
        (200, ["a list"]),
        (200, {"status": "ok"}),
    ],
)
def test_something_else_is_named_and_gets_no_secret(
    agent_id: str, monkeypatch: pytest.MonkeyPatch, status: int, body: Any
) -> None:
    with stub_server(lambda path, token: (status, body)) as stub:
        monkeypatch.setenv("LETTA_BASE_URL", stub.url)
        (problem,) = problems(check())
    assert problem.startswith(f"What answers at {stub.url} is no Letta server")
    assert "Fix: check LETTA_BASE_URL, or set OTEL_LETTA_SERVER=rest" in problem
    assert stub.seen and not stub.tokens


@pytest.mark.parametrize(
    ("status", "words"),
    [(503, "Letta server error (HTTP 503)"), (429, "limits the rate"), (307, "redirects elsewhere")],
)
def test_a_server_in_trouble(letta: InMemoryLetta, agent_id: str, status: int, words: str) -> None:
    letta.fail_next(status, headers={"Location": "https://elsewhere.example/"}, times=None)
    (problem,) = problems(check())
    assert words in problem and "Fix: " in problem


def test_a_proxy_that_hides_what_is_behind_it_is_tried(letta: InMemoryLetta, agent_id: str) -> None:
    letta.fail_next(401, path="/v1/health/|/app-server-info", times=None)
    result = check()
    assert result.exit_code == 0
    assert "perhaps a proxy in front of Letta" in result.output


def test_another_version_than_the_tested_one_is_noted(letta: InMemoryLetta, agent_id: str) -> None:
    letta.fail_next(200, {"version": "0.12.1", "status": "ok"}, path="/v1/health/")
    result = check()
    assert result.exit_code == 0
    assert "Letta REST server 0.12.1" in result.output and "tested with Letta 0.16.8" in result.output


# -- the password


def test_a_missing_password(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LETTA_PASSWORD")
    assert problems(check()) == [
        "The server asks for a password, and none is set (HTTP 401). Fix: set LETTA_PASSWORD",
    ]


@pytest.mark.parametrize("name", ["LETTA_PASSWORD", "LETTA_API_KEY"])
def test_a_wrong_secret_is_named_with_its_source(agent_id: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("LETTA_PASSWORD")
    monkeypatch.setenv(name, WRONG)
    assert problems(check()) == [
        f"The server refuses {name} (HTTP 401; it came from the environment). Fix: check {name}",
    ]


# -- the agent


@pytest.mark.parametrize("wrong", [NO_SUCH_AGENT, "assistant"], ids=["unknown", "malformed"])
def test_an_agent_that_is_not_there(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("LETTA_AGENT_ID", wrong)
    result = check()
    (problem,) = problems(result)
    assert problem.startswith("Letta agent not found (HTTP 4")
    assert "check LETTA_AGENT_ID" in problem
    assert f"agents on this server: {agent_id} (assistant)" in problem
    assert "LETTA_PASSWORD is accepted" in result.output


def test_a_hostile_agent_name_reaches_no_terminal(letta: InMemoryLetta, agent_id: str) -> None:
    name = "\x1b[2J\x1b]0;owned\x07[red]evil[/red]\r\n✓ fake line\u202e\x9b31m " + "x" * 500
    letta.fail_next(200, {"id": agent_id, "name": name, "model": "\x1b[31mm"}, path=f"{agent_id}$")
    result = check()
    assert result.exit_code == 0
    (line,) = (line for line in result.output.splitlines() if "evil" in line)
    assert 'agent "[red]evil[/red] ✓ fake line' in line and "model m" in line
    assert not set(result.output) & set("\x07\x9b\u202e\r")
    assert len(line) < 200


def test_a_server_that_echoes_our_secret_does_not_get_it_shown(letta: InMemoryLetta, agent_id: str) -> None:
    hidden = PASSWORD[:5] + "\u200b" + PASSWORD[5:]
    for name in (f"you said {PASSWORD}", f"you said {hidden}"):
        letta.fail_next(200, {"id": agent_id, "name": name, "model": PASSWORD}, path=f"{agent_id}$")
        assert "[redacted]" in check().output
        letta.fail_next(200, {"id": agent_id, "name": name, "model": PASSWORD}, path=f"{agent_id}$")
        assert "[redacted]" in json.loads(check("--json").output)["agent"]["name"]
    letta.fail_next(500, {"detail": f"bad header: Bearer {PASSWORD}"}, path=f"{agent_id}$")
    assert len(problems(check())) == 1


# -- the board


def test_a_server_without_blocks_costs_more(letta: InMemoryLetta, agent_id: str) -> None:
    letta.fail_next(404, {"detail": "Not Found"}, path="core-memory/blocks")
    result = check()
    assert result.exit_code == 0
    assert "no memory blocks: progress goes as messages instead" in result.output
    assert "up to 5 agent turns" in result.output


def test_a_board_that_cannot_be_is_a_problem_in_board_mode(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", "board")
    letta.fail_next(404, {"detail": "Not Found"}, path="core-memory/blocks")
    assert problems(check()) == [
        "This server has no memory blocks, so no board. Fix: set OTEL_LETTA_DELIVERY=messages",
    ]


def test_a_block_of_somebody_else_is_left_alone(letta: InMemoryLetta, agent_id: str) -> None:
    letta.fail_next(200, [{"id": "block-1", "label": "task_progress", "value": "mine"}], path="core-memory/blocks")
    result = check()
    assert result.exit_code == 0
    assert "block task_progress is not otel_letta's, so task_progress_2 or so is used" in result.output
