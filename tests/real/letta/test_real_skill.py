"""A real App Server's agent, on a scripted model, reads the skill of `otel-letta setup letta` and runs its commands."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.app_server_harness import AppServerHarness
from tests.support.bridge import PATIENCE, SENDER, Bridge, bridge_to
from tests.support.scripted_llm import text_of

ROOT = Path(__file__).parents[3]
SKILL = "otel-letta-tasks"


@pytest.fixture
def skills(app_server: AppServerHarness) -> Path:
    """Where the server looks for them: below the home of its user."""
    return app_server.server.home / ".letta" / "skills"


@pytest.fixture
def bridge(
    app_server: AppServerHarness, skills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bridge]:
    """The command of this checkout is the one on the PATH; the server's own PATH and environment lack it."""
    command = tmp_path / "bin" / "otel-letta"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m otel_letta "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    agent, other = app_server.create_agent(), app_server.create_agent()
    with bridge_to(app_server, agent, other, tmp_path, "--skills", str(skills)) as running:
        yield running


def call(bridge: Bridge, agent: str, tool: str, **arguments: str) -> str:
    """Let the agent's model call a tool, and return what it is shown of it: the last message of its next prompt."""
    llm = bridge.letta.llm
    before = len(llm.prompts)
    llm.call_tool_next(tool, json.dumps(arguments))
    bridge.letta.say(agent, f"please {tool}")
    *_, last = llm.prompts[before:]
    return text_of({"messages": last["messages"][-1:]})


def shell(bridge: Bridge, agent: str, command: str) -> Any:
    """Let the agent's model run a command in its shell, and return the JSON that it printed."""
    shown = call(bridge, agent, "Bash", command=command, description="ask")
    return json.loads(shown.removeprefix("[tool] "))


def test_an_agent_reads_the_skill_and_lists_shows_and_instructs_its_tasks(bridge: Bridge) -> None:
    for agent in (bridge.agent, bridge.other):
        result = bridge.set_up("--write", agent=agent)
        assert result.exit_code == 0, result.output
        assert "the bridge answers" in result.output
    bridge.begin(1, "import the ledger", bridge.agent, **{"letta.task.content": "row 40 of 100"})
    bridge.begin(2, "somebody else's", bridge.other)

    assert f"`{SKILL}`: See the tasks" in bridge.letta.next_prompt(bridge.agent)
    skill = call(bridge, bridge.agent, "Skill", skill=SKILL)
    commands = re.findall(r"^/\S+ tasks .*$", skill, re.MULTILINE)  # what follows is taken from what the model read
    listing, showing, continuing, accepting, _ = commands

    for agent, task in ((bridge.agent, "import the ledger"), (bridge.other, "somebody else's")):
        listed = shell(bridge, agent, listing)["tasks"]
        assert [(each["task_id"], each["state"]) for each in listed] == [(task, "working")]
    shown = shell(bridge, bridge.agent, showing.replace("TASK_ID", "import the ledger"))
    assert [step["line"] for step in shown["steps"]] == ["row 40 of 100"]
    stranger = showing.replace("'TASK_ID'", "'somebody else'\\''s'")
    assert "no task of yours" in call(bridge, bridge.agent, "Bash", command=stranger, description="ask")

    with ThreadPoolExecutor(1) as program_s:
        waiting = program_s.submit(bridge.taken, "import the ledger")
        command = continuing.replace("TASK_ID", "import the ledger").replace("what to do next", "Skip row 41.")
        assert shell(bridge, bridge.agent, command)["task_id"] == "import the ledger"
        assert waiting.result(3 * PATIENCE) == [("continue", "Skip row 41.")]
    accepting = accepting.replace("TASK_ID", "import the ledger")
    refused = call(bridge, bridge.agent, "Bash", command=accepting, description="ask")
    assert "does not wait for a yes or no" in refused


def test_the_skill_and_the_tokens_are_taken_back_and_nothing_else(bridge: Bridge, skills: Path) -> None:
    mine = skills / "mine" / "SKILL.md"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("---\nname: mine\ndescription: of a person\n---\n")
    for agent in (bridge.agent, bridge.other):
        assert bridge.set_up("--write", agent=agent).exit_code == 0
    assert "nothing is to be done" in bridge.set_up("--write").output

    assert bridge.set_up("--remove").exit_code == 0
    assert f"`{SKILL}`" in bridge.letta.next_prompt(bridge.other)  # which still has it
    assert bridge.set_up("--remove", agent=bridge.other).exit_code == 0
    prompt = bridge.letta.next_prompt(bridge.letta.create_agent())
    assert "`mine`" in prompt
    assert SKILL not in prompt
    assert bridge.tokens.read_text() == f"{SENDER}\n"
    assert not (skills.parent / "otel-letta").exists()
