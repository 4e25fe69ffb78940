"""`otel-letta check` says whether a report would get through, and in one line each what is wrong; never a secret."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import certifi
import pytest
from click.testing import CliRunner, Result

from otel_letta.cli.main import app
from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaError,
    LettaUnsupportedError,
)
from otel_letta.letta.flavour import ServerInfo
from otel_letta.letta.transport import Block, Lane, Message, Run
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.stub_server import Stub, app_server, stub_server

PASSWORD = "correct-horse-Grüße"
WRONG = "wrong-horse-battery"
NO_SUCH_AGENT = "agent-00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trust") / "one.pem"
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----")
    path.write_text(first + end, encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def quick_clients(monkeypatch: pytest.MonkeyPatch, one_certificate: str) -> None:
    """httpx reads every certificate that it trusts for each client, which takes longer than everything else here."""
    monkeypatch.setenv("SSL_CERT_FILE", one_certificate)


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta(password=PASSWORD) as server:
        yield server


@pytest.fixture
def agent_id(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> str:
    """An agent, and an environment in which everything is right."""
    agent_id = letta.create_agent("assistant")
    monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
    monkeypatch.setenv("LETTA_AGENT_ID", agent_id)
    monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
    return agent_id


def check(*arguments: str) -> Result:
    result = CliRunner().invoke(app(), ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    for secret in (PASSWORD, WRONG):
        assert secret not in result.output
    assert "\x1b" not in result.output
    assert "Traceback" not in result.output
    return result


def problems(result: Result) -> list[str]:
    assert result.exit_code == 1, result.output
    return [line.strip().removeprefix("✗ ") for line in result.output.splitlines() if line.strip().startswith("✗")]


# -- all is well


def test_it_names_server_version_and_agent_and_exits_0(letta: InMemoryLetta, agent_id: str) -> None:
    result = check()
    assert result.exit_code == 0, result.output
    assert f"Letta REST server 0.16.8 at {letta.base_url}" in result.output
    assert "LETTA_PASSWORD is accepted" in result.output
    assert 'agent "assistant"' in result.output
    assert "A report would get through." in result.output


def test_it_sends_nothing_to_the_agent(letta: InMemoryLetta, agent_id: str) -> None:
    check()
    assert {request.method for request in letta.requests} == {"GET"}
    assert letta.turns == 0


def test_it_says_where_each_setting_came_from(agent_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LETTA_PASSWORD")
    (tmp_path / ".env").write_text(f"LETTA_PASSWORD='{PASSWORD}'\nOTEL_LETTA_BOARD_LABEL=board\n", encoding="utf-8")
    lines = [line.split() for line in check().output.splitlines()]
    environment, dotenv, defaults = (
        next(i for i, line in enumerate(lines) if line == ["from", *words])
        for words in (["the", "environment"], [str(tmp_path / ".env")], ["the", "defaults"])
    )
    assert environment < lines.index(["LETTA_AGENT_ID", agent_id]) < dotenv
    assert dotenv < lines.index(["LETTA_PASSWORD", "***"]) < defaults
    assert dotenv < lines.index(["OTEL_LETTA_BOARD_LABEL", "board"]) < defaults
    assert defaults < lines.index(["LETTA_API_KEY", "not", "set"])
    assert defaults < lines.index(["OTEL_LETTA_BOARD_INTERVAL", "15", "s"])


def test_switches_are_shown_as_the_environment_spells_them(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ["OTEL_LETTA_BAGGAGE", "false"] in [line.split() for line in check().output.splitlines()]
    monkeypatch.setenv("OTEL_LETTA_BAGGAGE", "TRUE")
    assert ["OTEL_LETTA_BAGGAGE", "true"] in [line.split() for line in check().output.splitlines()]


def test_another_env_file_can_be_named(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("LETTA_PASSWORD", "LETTA_BASE_URL", "LETTA_AGENT_ID"):
        monkeypatch.delenv(name)
    path = tmp_path / "other.env"
    path.write_text(
        f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent_id}\nLETTA_PASSWORD='{PASSWORD}'\n", encoding="utf-8"
    )
    result = check("--env-file", str(path))
    assert result.exit_code == 0, result.output
    assert f"from {path}" in result.output


def test_the_model_is_named_where_the_server_says_it(letta: InMemoryLetta, agent_id: str) -> None:
    for row in ({"model": "openai/gpt-5"}, {"llm_config": {"handle": "openai/gpt-5", "model": "gpt-5"}}):
        letta.fail_next(200, {"id": agent_id, "name": "assistant", **row}, path=f"{agent_id}$")
        assert 'agent "assistant", model openai/gpt-5' in check().output


def test_a_server_without_a_password_needs_none(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> None:
    with InMemoryLetta() as open_server:
        monkeypatch.setenv("LETTA_BASE_URL", open_server.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", open_server.create_agent())
        result = check()
    assert result.exit_code == 0
    assert "no password needed" in result.output


@pytest.mark.parametrize(
    ("mode", "cost"), [("auto", "1 agent turn"), ("messages", "up to 5 agent turns"), ("board", "no agent turn")]
)
def test_it_says_what_one_task_costs(agent_id: str, monkeypatch: pytest.MonkeyPatch, mode: str, cost: str) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", mode)
    result = check()
    assert result.exit_code == 0
    assert f"{mode}: " in result.output
    assert f"One task costs {cost} " in result.output


def test_json_says_the_same_to_programs(letta: InMemoryLetta, agent_id: str) -> None:
    found = json.loads(check("--json").output)
    assert found["ok"] is True
    assert found["problems"] == found["warnings"] == []
    assert found["settings"]["LETTA_PASSWORD"] == {"value": "***", "source": "environment"}
    assert found["settings"]["LETTA_API_KEY"] == {"value": None, "source": "default"}
    assert found["server"] == {
        "flavour": "rest",
        "version": "0.16.8",
        "url": letta.base_url,
        "credentials": "accepted",
    }
    assert found["agent"] == {"id": agent_id, "name": "assistant", "model": None}
    assert found["board"] == {"possible": True, "label": "task_progress", "state": "new"}
    assert found["delivery"] == {"mode": "auto", "turns_per_task_at_most": 1, "turns_per_hour_at_most": 60}
    assert found["test_report"] is None


# -- settings


def test_every_setting_that_cannot_be_used_is_named_at_once(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", "loud")
    monkeypatch.setenv("OTEL_LETTA_MAX_STEPS", "0")
    monkeypatch.setenv("LETTA_BASE_URL", f"http://user:{WRONG}@letta.example")
    told = problems(check())
    assert len(told) == 3
    assert told[0].startswith("LETTA_BASE_URL") and "put the password in LETTA_PASSWORD" in told[0]
    assert told[1] == "OTEL_LETTA_DELIVERY from the environment cannot be 'loud'. Fix: use auto, messages, board"
    assert told[2].startswith("OTEL_LETTA_MAX_STEPS from the environment cannot be '0'")


def test_no_server_is_asked_with_bad_settings(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", "loud")
    check()
    assert letta.requests == []


def test_a_kind_that_cannot_have_this_address_is_named(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", "ws://127.0.0.1:4500/ws")
    monkeypatch.setenv("OTEL_LETTA_SERVER", "rest")
    (told,) = problems(check())
    assert told.startswith("OTEL_LETTA_SERVER from the environment cannot be 'rest': LETTA_BASE_URL is the address")


def test_an_env_file_that_is_not_there_is_named(agent_id: str, tmp_path: Path) -> None:
    (told,) = problems(check("--env-file", str(tmp_path / "none.env")))
    assert told.startswith("--env-file") and "No such file" in told


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
    (told,) = problems(check())
    assert told.startswith("OTEL_SDK_DISABLED=true")


def test_a_secret_that_would_travel_readable_is_warned_of(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", "http://letta.invalid:9")
    result = check()
    assert "! LETTA_BASE_URL is plain http: reports and LETTA_PASSWORD travel readable" in result.output
    assert len(problems(result)) == 1


def test_a_url_from_a_file_that_gets_the_environments_secret_is_warned_of(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LETTA_BASE_URL")
    (tmp_path / ".env").write_text(f"LETTA_BASE_URL={letta.base_url}\n")
    result = check()
    assert result.exit_code == 0
    assert f"which LETTA_BASE_URL in {tmp_path / '.env'} names" in result.output


# -- the server


def test_a_server_that_is_not_there(letta: InMemoryLetta, agent_id: str) -> None:
    letta.stop_listening()
    (told,) = problems(check())
    assert told.startswith(f"Could not connect to Letta API at {letta.base_url}")
    assert told.endswith("Fix: check LETTA_BASE_URL, and that the server runs")


def test_https_to_a_server_that_speaks_http(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", letta.base_url.replace("http:", "https:"))
    (told,) = problems(check())
    assert "write http:// in LETTA_BASE_URL" in told


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
            (told,) = problems(check())
        finally:
            stop.set()
            thread.join(5)
    assert "did not answer in time" in told and "Fix: " in told
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
        (told,) = problems(check())
    assert told.startswith(f"What answers at {stub.url} is no Letta server")
    assert "Fix: check LETTA_BASE_URL, or set OTEL_LETTA_SERVER=rest" in told
    assert stub.seen and not stub.tokens


@pytest.mark.parametrize(
    ("status", "words"),
    [(503, "Letta server error (HTTP 503)"), (429, "limits the rate"), (307, "redirects elsewhere")],
)
def test_a_server_in_trouble(letta: InMemoryLetta, agent_id: str, status: int, words: str) -> None:
    letta.fail_next(status, headers={"Location": "https://elsewhere.example/"}, times=None)
    (told,) = problems(check())
    assert words in told and "Fix: " in told


def test_a_proxy_that_hides_what_is_behind_it_is_tried(letta: InMemoryLetta, agent_id: str) -> None:
    letta.fail_next(401, path="/v1/health/|/app-server-info", times=None)
    result = check()
    assert result.exit_code == 0
    assert "perhaps a proxy in front of Letta" in result.output


def test_another_version_than_the_tested_one_is_said(letta: InMemoryLetta, agent_id: str) -> None:
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


# -- an App Server


class FakeAppServer:
    """Stands for the transport to an App Server, of which tests of its own tell that it works."""

    queues_messages = True
    row: ClassVar[dict[str, Any]] = {}
    failure: ClassVar[LettaError | None] = None
    board: ClassVar[LettaError | None] = None
    answer: ClassVar[dict[str, Any]] = {}
    sent: ClassVar[list[tuple[Lane, str]]] = []

    def __init__(self, settings: Settings, info: ServerInfo, **_: object) -> None:
        pass

    def describe(self, agent_id: str, **_: object) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        return self.row

    def agents(self, limit: int, **_: object) -> list[dict[str, Any]]:
        return [{"id": "agent-local-1", "name": "helper"}][:limit]

    def blocks(self, agent_id: str, **_: object) -> list[Block]:
        if self.board is not None:
            raise self.board
        return []

    def active_runs(self, lane: Lane, **_: object) -> list[Run]:
        return []

    def landed(self, lane: Lane, otids: Sequence[str], **_: object) -> dict[str, str]:
        return {otid: otid for otid in otids}

    def in_context(self, lane: Lane, message_ids: Sequence[str], **_: object) -> set[str]:
        return set(message_ids)

    def send(self, lane: Lane, messages: Sequence[Message], **_: object) -> dict[str, Any]:
        self.sent.extend((lane, message.content) for message in messages)
        return self.answer

    def close(self, **_: object) -> None: ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeAppServer]:
    fresh = type("Fresh", (FakeAppServer,), {"row": {"id": "agent-local-1", "name": "helper"}, "sent": []})
    for home, name in (("transport", "AppServerTransport"), ("openai_api", "AppServerHttpTransport")):
        module = types.ModuleType(f"otel_letta.letta.app_server.{home}")
        setattr(module, name, fresh)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fresh


@pytest.fixture
def stub(fake: type[FakeAppServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """An App Server without a token, and an environment that names it by its WebSocket."""
    with stub_server(app_server()) as server:
        monkeypatch.setenv("LETTA_BASE_URL", server.url.replace("http", "ws") + "/ws")
        monkeypatch.setenv("LETTA_AGENT_ID", "agent-local-1")
        yield server


@pytest.mark.parametrize("spell", ["ws", "http"])
@pytest.mark.parametrize(("openai_api", "word"), [(True, "on"), (False, "off")])
def test_an_app_server_says_what_it_can_do(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, spell: str, openai_api: bool, word: str
) -> None:
    monkeypatch.setenv("LETTA_BASE_URL", stub.url.replace("http", spell))
    stub.answer = app_server(openai_api=openai_api)
    result = check()
    assert result.exit_code == 0, result.output
    at = stub.url.replace("http", spell)
    assert f"Letta App Server 0.34.12 at {at} (protocol 1, local backend)" in result.output
    assert f"reports go over its WebSocket; its OpenAI-compatible API is {word}" in result.output
    assert "no token needed" in result.output
    assert 'agent "helper"' in result.output
    assert "board: memory file task_progress.md, made at the first report" in result.output
    assert stub.tokens == []


def test_settings_that_mean_something_else_on_an_app_server_are_named(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_CONVERSATION", "Reports")
    monkeypatch.setenv("OTEL_LETTA_MAX_STEPS", "3")
    monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
    said = check().output
    assert "reports go to its conversation 'Reports', made if there is none" in said
    assert "OTEL_LETTA_MAX_STEPS has no effect on an App Server" in said
    assert "LETTA_PASSWORD is accepted, or none is needed" in said


def test_an_agent_that_the_http_api_cannot_ask_for_gets_no_tick(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", "app-server-http")
    monkeypatch.setenv("LETTA_BASE_URL", stub.url)
    said = check().output
    assert "agent agent-local-1: this API cannot tell whether it exists; --send does" in said
    assert "✓ agent" not in said


def test_programs_hear_the_same_about_an_app_server(stub: Stub) -> None:
    found = json.loads(check("--json").output)
    assert found["ok"] is True
    assert found["server"] == {
        "flavour": "app-server",
        "version": "0.34.12",
        "url": stub.url.replace("http", "ws"),
        "protocol": 1,
        "backend": "local",
        "openai_api": True,
        "capabilities": ["conversation_management", "memory_management"],
        "credentials": "none needed",
    }


@pytest.mark.parametrize("name", [None, "LETTA_PASSWORD", "LETTA_API_KEY"])
def test_a_token_that_an_app_server_does_not_take(
    stub: Stub, fake: type[FakeAppServer], monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    stub.answer = app_server(token=PASSWORD)
    fake.failure = LettaAuthenticationError(status=401)
    if name is not None:
        monkeypatch.setenv(name, WRONG)
    result = check()
    where = "the token that the server was started with (--ws-auth)"
    assert problems(result) == [
        f"The server asks for a token, and none is set (HTTP 401). Fix: set LETTA_PASSWORD to {where}"
        if name is None
        else f"The server refuses {name} (HTTP 401; it came from the environment). "
        f"Fix: check {name}: it has to be {where}"
    ]
    assert "Letta App Server at ws://" in result.output


def test_a_token_that_an_app_server_takes(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.answer = app_server(token="plain-token-1001")
    monkeypatch.setenv("LETTA_PASSWORD", "plain-token-1001")
    result = check()
    assert result.exit_code == 0, result.output
    assert "Letta App Server 0.34.12" in result.output and "LETTA_PASSWORD is accepted" in result.output


def test_an_agent_that_an_app_server_does_not_have(stub: Stub, fake: type[FakeAppServer]) -> None:
    fake.failure = LettaAgentNotFoundError(hint="check LETTA_AGENT_ID")
    assert problems(check()) == [
        "Letta agent not found. Fix: check LETTA_AGENT_ID; agents on this server: agent-local-1 (helper)"
    ]


def test_without_an_agent_it_names_those_of_an_app_server(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LETTA_AGENT_ID")
    result = check()
    assert len(problems(result)) == 1
    assert "agents on this server: agent-local-1 (helper)" in result.output


def test_without_websockets_it_says_what_to_install(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    (told,) = problems(check())
    assert "the library websockets is not installed. Fix: pip install 'otel-letta[app-server]'" in told


@pytest.mark.parametrize("kind", ["rest", "app-server"])
def test_a_kind_that_is_set_and_is_another_is_a_problem(
    letta: InMemoryLetta, agent_id: str, stub: Stub, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", kind)
    monkeypatch.setenv("LETTA_BASE_URL", stub.url if kind == "rest" else letta.base_url)
    (told,) = problems(check())
    other = "Letta App Server" if kind == "rest" else "Letta REST server"
    assert told.startswith(f"OTEL_LETTA_SERVER={kind}, and a {other} answers. Fix: unset OTEL_LETTA_SERVER")


def test_a_kind_that_is_set_counts_where_the_server_does_not_say(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", "rest")
    letta.fail_next(404, path="/v1/health/|/app-server-info", times=None)
    result = check()
    assert result.exit_code == 0, result.output
    assert "it is taken for what OTEL_LETTA_SERVER=rest says" in result.output


def test_the_openai_compatible_api_is_used_where_that_is_set(
    stub: Stub, fake: type[FakeAppServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", "app-server-http")
    fake.board = LettaUnsupportedError()
    fake.answer = {"choices": [{"message": {"content": "thank you"}}], "usage": {"total_tokens": 13}}
    result = check("--send")
    assert result.exit_code == 0, result.output
    assert "reports go over its OpenAI-compatible API" in result.output
    assert "The OpenAI-compatible API reaches no memory files: progress goes as messages instead." in result.output
    assert "it cost 1 agent turn, 13 tokens" in result.output
    assert "The agent answers: thank you" in result.output


def test_an_openai_compatible_api_that_is_off_is_a_problem(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", "app-server-http")
    stub.answer = app_server(openai_api=False)
    assert problems(check())[0].endswith("Fix: start it with --openai-api, or unset OTEL_LETTA_SERVER")


def test_a_test_report_to_an_app_server_says_what_it_cost(stub: Stub, fake: type[FakeAppServer]) -> None:
    fake.answer = {
        "messages": [{"message_type": "assistant_message", "content": "ack"}],
        "usage": {"step_count": 1, "total_tokens": 13},
    }
    result = check("--send")
    assert result.exit_code == 0, result.output
    assert "it cost 1 agent turn, 1 LLM step, 13 tokens" in result.output and "The agent answers: ack" in result.output
    ((lane, content),) = fake.sent
    assert lane == Lane(stub.url, "agent-local-1") and "otel-letta check --send" in content


def test_a_title_for_reports_changes_nothing_on_a_rest_server(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_CONVERSATION", "Task progress")
    result = check()
    assert result.exit_code == 0
    assert "OTEL_LETTA_CONVERSATION is for App Servers" in result.output


# -- the agent


@pytest.mark.parametrize("wrong", [NO_SUCH_AGENT, "assistant"], ids=["unknown", "malformed"])
def test_an_agent_that_is_not_there(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("LETTA_AGENT_ID", wrong)
    result = check()
    (told,) = problems(result)
    assert told.startswith("Letta agent not found (HTTP 4")
    assert "check LETTA_AGENT_ID" in told
    assert f"agents on this server: {agent_id} (assistant)" in told
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


# -- the test report


def test_a_test_report_says_what_it_cost_and_what_the_agent_answers(letta: InMemoryLetta, agent_id: str) -> None:
    result = check("--send")
    assert result.exit_code == 0, result.output
    assert "it cost 1 agent turn, 1 LLM step, 13 tokens" in result.output
    assert "The agent answers: ack 1" in result.output
    (report,) = letta.reports(agent_id)
    assert (report["status"], report["chat_id"]) == ("completed", "otel-letta-check")
    assert json.loads(check("--send", "--json").output)["test_report"]["answer"] == "ack 2"


def test_no_test_report_is_sent_where_something_is_wrong(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    result = check("--send")
    assert "The test report was not sent." in result.output
    assert letta.turns == 0


def test_a_test_report_that_fails_is_a_problem(letta: InMemoryLetta, agent_id: str) -> None:
    letta.model_failure("401")
    result = check("--send")
    (told,) = problems(result)
    assert told.startswith("The Letta server's LLM failed (HTTP 401)")
    assert "your own settings are fine" in told


def test_a_hostile_answer_reaches_no_terminal(letta: InMemoryLetta, agent_id: str) -> None:
    said = [{"type": "text", "text": f"\x1b]52;c;ZXZpbA==\x07hello\x1b[8m {PASSWORD}"}]
    answer = {"messages": [{"message_type": "assistant_message", "content": said}], "usage": "none"}
    letta.fail_next(200, answer, method="POST")
    result = check("--send")
    assert "The agent answers: hello [redacted]" in result.output
    assert "52;c" not in result.output


# -- as people run it


def run(*arguments: str, code: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "otel_letta"] if code is None else [sys.executable, "-c", code]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**kept, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8", **environ},
    )


def test_the_module_is_the_command(agent_id: str) -> None:
    done = run("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert PASSWORD not in done.stdout and "\x1b" not in done.stdout
    refused = run("check", LETTA_PASSWORD=WRONG)
    assert refused.returncode == 1
    assert WRONG not in refused.stdout + refused.stderr


def test_a_line_is_not_broken_in_a_pipe_and_never_too_long_on_a_terminal(agent_id: str) -> None:
    piped = run("check", LETTA_AGENT_ID=NO_SUCH_AGENT)
    assert sum("Fix:" in line and "(assistant)" in line for line in piped.stdout.splitlines()) == 1
    shown = run("check", LETTA_AGENT_ID=NO_SUCH_AGENT, FORCE_COLOR="1", NO_COLOR="1", COLUMNS="80", TERM="xterm")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown.stdout)
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout).splitlines()) <= 80


def test_an_encoding_without_marks_is_no_traceback(agent_id: str) -> None:
    done = run("check", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "ok LETTA_PASSWORD is accepted" in done.stdout


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    done = run("--version")
    assert done.stdout.strip() == f"otel-letta, version {version('otel-letta')}"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_in_one_line_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from otel_letta.cli.main import main; main()"
    done = run(code=code)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "otel-letta needs two more libraries: pip install 'otel-letta[cli]'\n"


def test_importing_the_package_loads_neither_click_nor_rich() -> None:
    done = run(code="import sys, otel_letta, otel_letta.cli.main; sys.exit(bool({'click', 'rich'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
