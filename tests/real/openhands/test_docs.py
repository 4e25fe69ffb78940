"""docs/uses/openhands.md and the OpenHands part of the README, followed with the real OpenHands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from otel_letta.testing import InMemoryLetta
from tests.real.openhands.test_agent_server import AgentServer, free_port, wait_until_open
from tests.support.conversations import ends, recorded
from tests.support.openhands_llm import ScriptedModel, finish, plan, tool

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/uses/openhands.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- openhands: (\w+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
(EXPORTS,) = re.findall(r"```sh\n((?:export (?:OTEL|LMNR|OPENHANDS).*\n)+)```", PAGE)


@pytest.fixture
def environment(letta: InMemoryLetta, agent: str, model: ScriptedModel, tmp_path: Path) -> dict[str, str]:
    """A reader's: an agent, a model, and the environment in which the packages are installed."""
    steps = [plan("in_progress"), tool("terminal", command="echo hi", summary="say hi"), finish("It prints hello.")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LMNR_", "OH_"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_AGENT_ID": agent,
        "OTEL_LETTA_DELIVERY": "messages",
        "LLM_MODEL": model.play("docs", steps),
        "LLM_BASE_URL": model.base_url,
        "LLM_API_KEY": "unused",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def python(code: str, environment: dict[str, str], folder: Path, exports: str = "") -> str:
    done = subprocess.run(
        ["sh", "-c", f'{exports}\nexec "$0" -c "$1"', sys.executable, code],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stderr


def test_the_page_has_no_code_that_is_not_run_here() -> None:
    assert set(BLOCKS) == {"sdk", "steered", "receiver", "server", "mounted", "hook", "spans"}


def test_the_steered_run(letta: InMemoryLetta, agent: str, environment: dict[str, str], tmp_path: Path) -> None:
    python(BLOCKS["steered"], environment, tmp_path)  # an agent that asks for nothing
    (end,) = ends(letta, agent)
    assert (end["status"], end["result"], end["chat_id"]) == ("completed", "It prints hello.", "chat-123")


def test_the_callback(letta: InMemoryLetta, agent: str, environment: dict[str, str], tmp_path: Path) -> None:
    python(BLOCKS["sdk"], environment, tmp_path)
    (end,) = ends(letta, agent)
    assert (end["status"], end["result"], end["chat_id"]) == ("completed", "It prints hello.", "chat-123")
    assert end["task"] == "Write hello.py"


def test_the_callback_of_the_readme(
    letta: InMemoryLetta, agent: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (code,) = re.findall(r"<!-- openhands: sdk -->\n```python\n(.*?)```", README, re.DOTALL)
    python(code, environment, tmp_path)
    assert [(end["status"], end["result"]) for end in ends(letta, agent)] == [("completed", "It prints hello.")]


def test_the_spans(letta: InMemoryLetta, agent: str, environment: dict[str, str], tmp_path: Path) -> None:
    exports = EXPORTS.replace("http://localhost:4318", letta.base_url)
    # Else a success of a task that nobody declared is worth a message only if it took a minute.
    exports += "export OTEL_LETTA_WAKE_AFTER=0\n"
    log = python(BLOCKS["spans"], environment, tmp_path, exports)
    assert "tracing is off" not in log
    (end,) = ends(letta, agent)
    assert (end["status"], end["chat_id"], end["message_id"]) == ("completed", "chat-123", "msg-456")


def test_the_mounted_receiver(letta: InMemoryLetta, agent: str, environment: dict[str, str], tmp_path: Path) -> None:
    client = """
from starlette.testclient import TestClient
client = TestClient(app, client=("127.0.0.1", 1))
conversation = "21c1737601f44c0abf845dd2e515b4e5"
asked = {"kind": "MessageEvent", "source": "user"}
finished = {"kind": "ConversationStateUpdateEvent", "key": "execution_status", "value": "finished"}
print(client.post(f"/openhands/events/{conversation}", json=[asked, finished]).raise_for_status())
"""
    python(BLOCKS["mounted"] + client, environment, tmp_path)
    assert [(end["status"], end["chat_id"]) for end in ends(letta, agent)] == [("completed", "chat-123")]


def test_the_receiver_and_the_agent_server(
    letta: InMemoryLetta, agent: str, environment: dict[str, str], model: ScriptedModel, tmp_path: Path
) -> None:
    receiver_port, server_port = free_port(), free_port()
    install, command = BLOCKS["receiver"].splitlines()
    assert install.startswith("pip install ")
    running = []
    try:
        for script, port in (
            (f"exec {command}", receiver_port),
            (BLOCKS["server"].replace("\npython", "\nexec python").rstrip() + f" --port {server_port}", server_port),
        ):
            process = subprocess.Popen(
                ["sh", "-c", script.replace("8284", str(receiver_port))],
                env=environment,
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            running.append(process)
            wait_until_open(port, lambda process=process: process.poll() is None)
        api = AgentServer(f"http://127.0.0.1:{server_port}", model, tmp_path, tools=("terminal", "task_tracker"))
        conversation = api.start(environment["LLM_MODEL"], lettachat="chat-123")
        assert letta.wait_for(lambda: bool(ends(letta, agent)), 60)
        api.close()
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)
    (end,) = ends(letta, agent)
    assert (end["status"], end["result"], end["chat_id"]) == ("completed", "It prints hello.", "chat-123")
    assert end["task_id"] == f"{conversation}/1"


def test_the_hooks(letta: InMemoryLetta, agent: str, environment: dict[str, str], tmp_path: Path) -> None:
    import json

    subprocess.run(["sh", "-ec", BLOCKS["hook"]], env=environment, cwd=tmp_path, check=True)
    hooks = json.loads((tmp_path / ".openhands/hooks.json").read_text())["hooks"]
    for event in recorded("hooks"):
        for matcher in hooks.get(event["event_type"], []):
            command = matcher["hooks"][0]["command"]
            subprocess.run(["sh", "-c", command], env=environment, input=json.dumps(event), text=True, check=True)
    assert letta.wait_for(lambda: bool(ends(letta, agent)), 30)
    assert [(end["status"], end["chat_id"]) for end in ends(letta, agent)] == [("completed", "chat-123")]
