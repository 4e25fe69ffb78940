"""The calls by which an agent's tools are made; `tests/unit/cli/test_setup_letta.py` has what they are made for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_letta.errors import LettaError, LettaServerError
from otel_letta.letta.server_tools import TOKEN, TOOLS, URL, ServerTools
from otel_letta.settings import Settings
from tests.support.letta_tools import LettaTools


@pytest.fixture
def server() -> Iterator[LettaTools]:
    with LettaTools() as running:
        yield running


def tools_of(server: LettaTools, agent: str) -> ServerTools:
    return ServerTools(Settings.resolve(environ={}, base_url=server.url, agent_id=agent), agent)


def test_a_secret_that_is_hidden_when_they_are_written_is_not_overwritten(server: LettaTools) -> None:
    agent = server.create_agent(MINE="x")
    server.agents[agent]["secrets"].append({"key": "SEALED", "value": "<encrypted>", "value_enc": "gAAAA"})
    with pytest.raises(LettaServerError, match="SEALED"):
        tools_of(server, agent).set_secrets({URL: "http://b"})
    assert server.changes == []


def test_what_is_found_shows_no_secret(server: LettaTools) -> None:
    agent = server.create_agent(**{TOKEN: "tok-4711", "MINE": "other"})
    found = tools_of(server, agent).found()
    assert found.secret(TOKEN) == "tok-4711"
    assert "4711" not in repr(found)
    assert "other" not in repr(found)


def test_a_server_that_makes_another_tool_of_the_source_is_not_believed(server: LettaTools) -> None:
    server.create_tool = lambda source, tags: {"id": "tool-1", "name": "other", "tags": tags}  # type: ignore[method-assign]
    with pytest.raises(LettaServerError, match="list_tasks"):
        tools_of(server, server.create_agent()).make("list_tasks")


def test_agents_beyond_all_pages_leave_the_number_unknown(server: LettaTools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_letta.letta.server_tools._MOST_PAGES", 2)
    agents = [server.create_agent() for _ in range(45)]
    assert tools_of(server, agents[0]).users_of(frozenset({"tool-1"})) is None


@pytest.mark.parametrize("answer", [{}, {"status": "error", "tool_return": "boom"}, {"status": "success"}, []])
def test_a_try_that_does_not_end_well_is_said(server: LettaTools, answer: object) -> None:
    server.run = lambda body: answer  # type: ignore[assignment, return-value]
    assert tools_of(server, server.create_agent()).tried("http://b", None)


def test_nothing_but_our_errors_is_raised(server: LettaTools) -> None:
    tools = tools_of(server, "agent-unknown")
    for call in (tools.found, lambda: tools.make(TOOLS[0]), lambda: tools.set_secrets({})):
        server.fails = {("GET", "/v1"): 500, ("PUT", "/v1"): 500}
        with pytest.raises(LettaError):
            call()
