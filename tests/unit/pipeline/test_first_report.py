"""The line at INFO that says that it works: once, and only when the server has taken something."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from otel_letta.errors import LettaConnectionError, LettaError
from otel_letta.letta.transport import Block, Lane
from otel_letta.pipeline.first_report import FirstReport
from tests.support.settings import AGENT, resolve

LANE = Lane("http://letta", AGENT)
BLOCK = Block("block-1", "task_progress", "", 100)


class Server:
    """A transport that notes what it is asked for."""

    def __init__(self, name: str | None = "builder", error: LettaError | None = None) -> None:
        self.calls: list[str] = []
        self.error = error
        self.name = name

    def send(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        self.calls.append("send")
        if self.error is not None:
            raise self.error
        return {"messages": []}

    def write_block(self, *arguments: Any, **keywords: Any) -> None:
        self.calls.append("write_block")

    def create_block(self, *arguments: Any, **keywords: Any) -> Block:
        self.calls.append("create_block")
        return BLOCK

    def describe(self, agent_id: str, **keywords: Any) -> dict[str, Any]:
        self.calls.append("describe")
        if self.name is None:
            raise LettaConnectionError("no answer")
        return {"name": self.name}

    def anything_else(self) -> str:
        return "its own"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_it_comes_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_letta")
    server = Server()
    transport = FirstReport(server, resolve())
    assert transport.send(LANE, []) == {"messages": []}
    transport.send(LANE, [])
    transport.write_block(BLOCK, "")
    assert server.calls == ["send", "describe", "send", "write_block"]
    (line,) = lines(caplog)
    assert 'as a message, for the agent "builder" (agent-1) (delivery: auto)' in line


@pytest.mark.parametrize(
    "write", [lambda t: t.write_block(BLOCK, "", {}), lambda t: t.create_block(AGENT, "task_progress")]
)
def test_a_board_that_was_written_counts(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_letta")
    write(FirstReport(Server(), resolve()))
    assert "on the board task_progress" in lines(caplog)[0]


def test_a_failure_is_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_letta")
    transport = FirstReport(Server(error=LettaConnectionError("no answer")), resolve())
    with pytest.raises(LettaConnectionError):
        transport.send(LANE, [])
    assert lines(caplog) == []


def test_the_agents_name_is_asked_for_only_where_somebody_reads_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "otel_letta")
    server = Server()
    FirstReport(server, resolve()).send(LANE, [])
    assert server.calls == ["send"]


def test_without_a_name_the_id_has_to_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_letta")
    FirstReport(Server(name=None), resolve()).send(LANE, [])
    assert "for agent-1 (delivery" in lines(caplog)[0]


def test_a_hostile_name_is_cleaned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_letta")
    FirstReport(Server(name="a\nb\x1b[31m" + "c" * 500), resolve()).send(LANE, [])
    (line,) = lines(caplog)
    assert line.isprintable()
    assert len(line) < 400


def test_all_else_is_the_transports_own() -> None:
    assert FirstReport(Server(), resolve()).anything_else() == "its own"
