"""An App Server, and everything that differs there."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from otel_letta.errors import LettaAgentNotFoundError, LettaAuthenticationError, LettaError, LettaUnsupportedError
from otel_letta.letta.flavour import ServerInfo
from otel_letta.letta.transport import Block, Lane, Message, Run
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.checking import PASSWORD, WRONG, check, problems
from tests.support.stub_server import Stub, app_server, stub_server


class FakeAppServer:
    """Stands for the transport to an App Server, which has tests of its own."""

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
def test_an_app_server_shows_what_it_can_do(
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
    output = check().output
    assert "reports go to its conversation 'Reports', made if there is none" in output
    assert "OTEL_LETTA_MAX_STEPS has no effect on an App Server" in output
    assert "LETTA_PASSWORD is accepted, or none is needed" in output


def test_an_agent_that_the_http_api_cannot_ask_for_gets_no_tick(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", "app-server-http")
    monkeypatch.setenv("LETTA_BASE_URL", stub.url)
    output = check().output
    assert "agent agent-local-1: this API cannot tell whether it exists; --send does" in output
    assert "✓ agent" not in output


def test_programs_read_the_same_about_an_app_server(stub: Stub) -> None:
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


def test_without_websockets_it_names_what_to_install(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    (problem,) = problems(check())
    assert "the library websockets is not installed. Fix: pip install 'otel-letta[app-server]'" in problem


@pytest.mark.parametrize("kind", ["rest", "app-server"])
def test_a_kind_that_is_set_and_is_another_is_a_problem(
    letta: InMemoryLetta, agent_id: str, stub: Stub, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OTEL_LETTA_SERVER", kind)
    monkeypatch.setenv("LETTA_BASE_URL", stub.url if kind == "rest" else letta.base_url)
    (problem,) = problems(check())
    other = "Letta App Server" if kind == "rest" else "Letta REST server"
    assert problem.startswith(f"OTEL_LETTA_SERVER={kind}, and a {other} answers. Fix: unset OTEL_LETTA_SERVER")


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


def test_a_test_report_to_an_app_server_shows_what_it_cost(stub: Stub, fake: type[FakeAppServer]) -> None:
    fake.answer = {
        "messages": [{"message_type": "assistant_message", "content": "ack"}],
        "usage": {"step_count": 1, "total_tokens": 13},
    }
    result = check("--send")
    assert result.exit_code == 0, result.output
    assert "it cost 1 agent turn, 1 LLM step, 13 tokens" in result.output and "The agent answers: ack" in result.output
    ((lane, content),) = fake.sent
    assert lane == Lane(stub.url, "agent-local-1") and "Test report of otel-letta" in content


def test_a_title_for_reports_changes_nothing_on_a_rest_server(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_CONVERSATION", "Task progress")
    result = check()
    assert result.exit_code == 0
    assert "OTEL_LETTA_CONVERSATION is for App Servers" in result.output
