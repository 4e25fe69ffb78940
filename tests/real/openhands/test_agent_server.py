"""The webhooks of a real agent-server, received by the real command's application under uvicorn."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_letta.integrations.openhands.webhooks import OpenHandsWebhooks
from otel_letta.testing import InMemoryLetta
from tests.real.openhands.scenarios import SCENARIOS, Scenario
from tests.support.openhands_llm import ScriptedModel, finish, plan, tool

ROOT = Path(__file__).parents[3]
TOKEN = "webhook-token"
CHAT = "chat-123"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server


@pytest.fixture(scope="module")
def letta_agent(letta: InMemoryLetta) -> str:
    return letta.create_agent()


@pytest.fixture(scope="module")
def receiver(letta: InMemoryLetta, letta_agent: str) -> Iterator[tuple[OpenHandsWebhooks, str]]:
    """The application on loopback, with a token as it would have elsewhere."""
    import uvicorn

    app = OpenHandsWebhooks(
        token=TOKEN, base_url=letta.base_url, agent_id=letta_agent, delivery="messages", message_interval=0
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until_open(port, lambda: thread.is_alive())
    yield app, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def wait_until_open(port: int, alive: Any) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert alive()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)  # another program's doing: nothing to wait on
    raise TimeoutError(f"nothing listens on port {port}")


def test_a_slow_client_does_not_keep_the_receiver_from_reporting_what_is_open(
    letta: InMemoryLetta, tmp_path: Path
) -> None:
    """uvicorn waits for open requests before an application learns of the end, and a supervisor kills it then."""
    agent, port = letta.create_agent(), free_port()
    environment = {**os.environ, "LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent}
    command = [sys.executable, "-m", "otel_letta", "openhands-webhooks", "--port", str(port)]
    events = [{"kind": "MessageEvent", "source": "user", "id": "m"}]
    with subprocess.Popen(command, env=environment) as receiver, contextlib.ExitStack() as open_ones:
        try:
            wait_until_open(port, lambda: receiver.poll() is None)
            address = f"http://127.0.0.1:{port}/events/21c17376-01f4-4c0a-bf84-5dd2e515b4e5"
            assert httpx.post(address, json=events).status_code == 200
            idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            for each in idle:
                open_ones.enter_context(each)
            idle[0].sendall(b"POST /conversations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[")
            # Idle connections turn nobody away.
            parts = (part for part in (b"[", b"]"))
            assert httpx.post(address, content=parts).status_code == 200
            receiver.terminate()
            receiver.wait(15)
        finally:
            receiver.kill()
    assert [report["status"] for report in letta.reports(agent)][-1] == "failed"


class AgentServer:
    """As much of the agent-server's API as is needed."""

    def __init__(
        self,
        url: str,
        model: ScriptedModel,
        folder: Path,
        tools: tuple[str, ...] = ("terminal", "file_editor", "task_tracker", "explode"),
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        self._tools = tools
        self._model = model
        self._folder = folder

    def start(self, model_name: str, *, max_iterations: int = 50, **tags: str) -> str:
        answer = self._http.post(
            "/api/conversations",
            json={
                "agent": {
                    "kind": "Agent",
                    "llm": {
                        "model": model_name,
                        "base_url": self._model.base_url,
                        "api_key": "sk-never-told",
                        "usage_id": "agent",
                        "num_retries": 0,
                    },
                    "tools": [{"name": name} for name in self._tools],
                },
                "workspace": {"kind": "LocalWorkspace", "working_dir": str(self._folder)},
                "initial_message": {
                    "role": "user",
                    "content": [{"type": "text", "text": "Do it; the word is xyzzy."}],
                    "run": True,
                },
                "max_iterations": max_iterations,
                "tags": tags,
                "autotitle": False,
            },
        )
        assert answer.status_code < 300, answer.text
        return str(answer.json()["id"])

    def post(self, conversation: str, what: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            answer = self._http.post(f"/api/conversations/{conversation}/{what}")
            # A pause is announced before the run that it ends has returned.
            if answer.status_code != 409 or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        answer.raise_for_status()

    def delete(self, conversation: str) -> None:
        self._http.delete(f"/api/conversations/{conversation}").raise_for_status()

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def server(
    receiver: tuple[OpenHandsWebhooks, str], model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentServer]:
    folder = tmp_path_factory.mktemp("agent-server")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LETTA_", "OTEL_"))}
    environment |= {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OH_WEBHOOKS_0_BASE_URL": receiver[1],
        "OH_WEBHOOKS_0_EVENT_BUFFER_SIZE": "1",
        "OH_WEBHOOKS_0_FLUSH_DELAY": "1",
        "OH_WEBHOOKS_0_HEADERS": json.dumps({"Authorization": f"Bearer {TOKEN}"}),
        "OH_ENABLE_VSCODE": "false",
        "HOME": str(folder),
    }
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "openhands.agent_server", "--port", str(port)),
            *("--import-modules", "tests.real.openhands.explode", "--extra-python-path", str(ROOT)),
        ],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=log,
    )
    try:
        wait_until_open(port, lambda: process.poll() is None)
        api = AgentServer(f"http://127.0.0.1:{port}", model, folder)
        yield api
        api.close()
    finally:
        process.terminate()
        process.wait(30)
        log.close()


class Received:
    def __init__(self, letta: InMemoryLetta, agent: str) -> None:
        self._letta, self._agent = letta, agent

    def of(self, conversation: str) -> list[dict[str, Any]]:
        return [report for report in self._letta.reports(self._agent) if report["task_id"].startswith(conversation)]

    def end(self, conversation: str) -> dict[str, Any]:
        def over() -> list[dict[str, Any]]:
            return [report for report in self.of(conversation) if report["status"] != "in_progress"]

        assert self._letta.wait_for(lambda: bool(over()), 60), self.of(conversation)
        (end,) = over()
        return end

    def wait_for(self, conversation: str, content: str) -> None:
        assert self._letta.wait_for(lambda: any(r["content"] == content for r in self.of(conversation)), 60)


@pytest.fixture
def received(letta: InMemoryLetta, letta_agent: str) -> Received:
    return Received(letta, letta_agent)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_each_run_has_its_end(
    scenario: Scenario, server: AgentServer, model: ScriptedModel, received: Received, tmp_path: Path
) -> None:
    name = model.play(f"server-{scenario}".replace(" ", "-"), scenario.steps(str(tmp_path)))
    conversation = server.start(name, max_iterations=scenario.max_iterations, lettachat=CHAT, lettamessage="msg-456")
    end = received.end(conversation)
    assert end["status"] == scenario.status
    assert end["task_id"] == f"{conversation}/1"
    assert (end["chat_id"], end["message_id"]) == (CHAT, "msg-456")
    assert end["result"] == scenario.result
    if scenario.content is not None:
        assert end["content"] == scenario.content
    if scenario.error is not None:
        assert end["error"].startswith(scenario.error)
    text = json.dumps(received.of(conversation))
    for private in ("xyzzy", "private", "sk-never-told"):
        assert private not in text
    server.delete(conversation)


def test_a_pause_is_in_progress_and_the_same_task_goes_on(
    server: AgentServer, model: ScriptedModel, received: Received
) -> None:
    goes_on = threading.Event()
    steps = [plan("in_progress", "todo"), tool("terminal", command="echo hi", summary="say hi"), finish("after")]
    name = model.play("server-pause", steps[:2], before_last=lambda: goes_on.wait(30) and None)
    conversation = server.start(name)
    received.wait_for(conversation, "0 of 2 steps of the plan done")
    server.post(conversation, "pause")
    goes_on.set()
    received.wait_for(conversation, "Paused")
    model.play("server-pause", [steps[2]])
    server.post(conversation, "run")
    assert (received.end(conversation)["status"], received.end(conversation)["result"]) == ("completed", "after")


def test_an_interrupt_is_a_failure(server: AgentServer, model: ScriptedModel, received: Received) -> None:
    name = model.play("server-interrupt", [tool("terminal", command="sleep 30", summary="sleep long")])
    conversation = server.start(name)
    received.wait_for(conversation, "sleep long")
    server.post(conversation, "interrupt")
    assert (received.end(conversation)["status"], received.end(conversation)["error"]) == ("failed", "interrupted")


def test_a_conversation_that_is_deleted_has_failed(
    server: AgentServer, model: ScriptedModel, received: Received
) -> None:
    name = model.play("server-delete", [tool("terminal", command="sleep 30", summary="sleep long")])
    conversation = server.start(name)
    received.wait_for(conversation, "sleep long")
    server.delete(conversation)
    assert received.end(conversation)["status"] == "failed"


def test_two_conversations_at_once(server: AgentServer, model: ScriptedModel, received: Received) -> None:
    conversations = [
        server.start(model.play(f"server-both-{n}", [plan("todo"), finish(f"answer {n}")]), lettachat=f"chat-{n}")
        for n in (1, 2)
    ]
    ends = [received.end(conversation) for conversation in conversations]
    assert [(end["chat_id"], end["result"]) for end in ends] == [("chat-1", "answer 1"), ("chat-2", "answer 2")]
