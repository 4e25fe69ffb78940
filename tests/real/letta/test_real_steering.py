"""Real agents that steer work: one that is asked by a task, and one that hears of an OpenHands run's end.

The model is scripted, so what the agent decides is given. All else is real: its server, its turn, its tool in Letta's
sandbox, and the program that waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_letta import Instruction, await_instruction, task, wait_for_instruction
from tests.support import openhands_env
from tests.support.either import At, Either, EitherAppServer, EitherRest
from tests.support.fault_proxy import REFUSE, FaultProxy
from tests.support.program import program, told_to
from tests.support.scripted_llm import ScriptedLLM, text_of

if TYPE_CHECKING:
    from tests.support.letta_harness import LettaHarness

PATIENCE = 120.0
LONG = 300.0
"""Seconds; OpenHands takes its time to start beside others."""
ROOT = Path(__file__).parents[3]

TOOL = '''
def instruct_task(task_id: str, action: str, text: str) -> str:
    """
    Instruct a task that waits for it.

    Args:
        task_id (str): The task's id, as its report has it.
        action (str): continue, accept or reject.
        text (str): What it shall do.

    Returns:
        str: What becomes of it.
    """
    return "noted"
'''


def block(text: str, task_id: str = "t-1", action: str = "continue") -> str:
    return f'<task-instruction task_id="{task_id}" action="{action}">{text}</task-instruction>'


@pytest.fixture(params=["rest", "app-server"])
def server(request: pytest.FixtureRequest) -> Either:
    if request.param == "rest":
        return EitherRest(request.getfixturevalue("letta"))
    return EitherAppServer(request.getfixturevalue("app_server"))


@pytest.mark.parametrize("way", ["blocking", "in a loop"])
def test_a_task_waits_for_the_block_in_a_real_agent_s_answer(server: Either, way: str) -> None:
    agent = server.create_agent()
    server.llm.say_next(f"It is the second.\n\n{block('Use the second ledger.')}")
    with program(server, agent) as app, task("Book", task_id="t-1", tracer=app.tracer) as t:
        if way == "blocking":
            found = wait_for_instruction(t, PATIENCE, question="which of the two?")
        else:
            found = asyncio.run(await_instruction(t, PATIENCE, question="which of the two?"))
        assert found == Instruction(task_id="t-1", action="continue", text="Use the second ledger.")
    assert 'waiting="it cannot go on until somebody acts"' in text_of(server.llm.prompts[0])
    assert "waits for an instruction: which of the two?" in text_of(server.llm.prompts[0])


def test_an_answer_whose_connection_breaks_is_looked_up(server: Either) -> None:
    agent = server.create_agent()
    server.llm.say_next(block("Use the second ledger."))
    with (
        FaultProxy(server.base_url) as proxy,
        program(At(proxy.base_url, server.password), agent, server=server.kind) as app,
        task("Book", task_id="t-1", tracer=app.tracer) as t,
        ThreadPoolExecutor(1) as pool,
    ):
        with server.llm.hold():
            asking = pool.submit(wait_for_instruction, t, PATIENCE, question="which of the two?")
            server.llm.wait_for_calls(1, PATIENCE)
            proxy.set(REFUSE)
            proxy.set(None)
        assert asking.result(PATIENCE) == Instruction(task_id="t-1", action="continue", text="Use the second ledger.")
        assert server.llm.chat_calls == 1, "the agent was asked once"


def test_a_task_waits_for_a_real_agent_s_call_of_its_tool(letta: LettaHarness) -> None:
    tool = letta.client.tools.upsert(source_code=TOOL)
    agent = letta.create_agent(tool_ids=[tool.id])
    values = {"task_id": "t-1", "action": "reject", "text": "Leave them both."}
    letta.llm.call_tool_next("instruct_task", json.dumps(values))
    with program(letta, agent) as app, task("Book", task_id="t-1", tracer=app.tracer) as t:
        found = wait_for_instruction(t, PATIENCE, question="which of the two?")
        assert found == Instruction(**values)  # type: ignore[arg-type]
    assert [told["status"] for told in told_to(letta, agent)] == ["in_progress", "completed"]


def test_a_block_that_the_agent_only_shows_instructs_nobody(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    letta.llm.say_next(f"You want me to say\n```xml\n{block('go')}\n```\nI will not.", block("Now go."))
    with (
        program(letta, agent) as app,
        ThreadPoolExecutor(1) as pool,
        task("Book", task_id="t-1", tracer=app.tracer) as t,
    ):
        asking = pool.submit(wait_for_instruction, t, PATIENCE, question="shall I?")
        letta.llm.wait_for_calls(1, PATIENCE)
        with task("another", task_id="t-2", tracer=app.tracer):
            pass  # its end is the agent's next turn
        found = asking.result(PATIENCE)
    assert found is not None
    assert found.text == "Now go."


# -- OpenHands, real as well -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def openhands_python() -> Path:
    return openhands_env.python(as_it_is=True)


def first_task(llm: ScriptedLLM) -> str:
    """The id of the task whose report the agent's model is reading now."""
    llm.wait_for_calls(1, LONG)
    found = re.search(r'task_id="([^"]+)"', text_of(llm.last_prompt()))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("form", ["block", "call of a tool"])
def test_a_real_agent_steers_a_run_of_the_real_openhands(
    form: str, letta: LettaHarness, openhands_python: Path, tmp_path: Path
) -> None:
    tool = letta.client.tools.upsert(source_code=TOOL)
    agent = letta.create_agent(name=f"steering-{uuid.uuid4().hex[:8]}", tool_ids=[tool.id])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLM_"))}
    environment: dict[str, Any] = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_PASSWORD": letta.password,
        "LETTA_AGENT_ID": agent,
    }
    with letta.llm.hold("task-progress") as release:
        running = subprocess.Popen(
            [openhands_python, ROOT / "examples" / "openhands_steered.py"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            task_id = first_task(letta.llm)
            values = {"task_id": task_id, "action": "continue", "text": "Write test_hello.py, too."}
            if form == "block":
                letta.llm.say_next(block(values["text"], task_id))
            else:
                letta.llm.call_tool_next("instruct_task", json.dumps(values))
            release()
            out, err = running.communicate(timeout=LONG)
        finally:
            running.kill()
            running.wait()
    assert running.returncode == 0, err[-3_000:]
    assert "Files: hello.py, test_hello.py" in out
    ends = [told for told in told_to(letta, agent) if told["status"] == "completed"]
    assert [(end["task_id"].rpartition("/")[2], end["result"]) for end in ends] == [
        ("1", "hello.py prints hello."),
        ("2", "hello.py has a test."),
    ]
