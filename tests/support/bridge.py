"""``otel-letta serve`` with agents' tokens, as a process of its own, and `otel-letta setup letta` for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from click.testing import CliRunner, Result

from otel_letta.cli.main import app
from tests.support.otlp_sender import post, request_of, span_of
from tests.support.waiting import until
from tests.unit.serve.test_durable import program

if TYPE_CHECKING:
    from tests.support.app_server_harness import AppServerHarness
    from tests.support.letta_harness import LettaHarness

__all__ = ["PATIENCE", "SENDER", "Bridge", "bridge_to"]

SENDER = "the-sender-s-token"
PATIENCE = 90.0
"""Seconds for one thing."""


@dataclass
class Bridge:
    """One that reports to two agents."""

    letta: LettaHarness | AppServerHarness
    agent: str
    other: str
    port: int
    tokens: Path
    flags: tuple[str, ...] = ()
    """Further ones of the command."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sender(self) -> dict[str, str]:
        """What a program sends along."""
        return {"Authorization": f"Bearer {SENDER}"}

    def set_up(self, *flags: str, agent: str | None = None) -> Result:
        """Run the command as a person would, in this process."""
        more = ["--url", self.url, "--token-file", str(self.tokens), *self.flags, *flags]
        environ = {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_PASSWORD": self.letta.password,
            "LETTA_AGENT_ID": agent or self.agent,
        }
        result = CliRunner().invoke(app(), ["setup", "letta", *more], env=environ)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def begin(self, number: int, task: str, agent: str, **more: str) -> None:
        """Let a program report that a task is under way."""
        event = {
            "timeUnixNano": "1795946401500000000",
            "eventName": "letta.task.progress",
            "traceId": f"{number:032x}",
            "spanId": f"{number:016x}",
            "attributes": _attributes(task, agent, **more),
        }
        assert post(self.port, "/v1/logs", request_of(event, logs=True), **self.sender).status == 200
        assert until(lambda: task in self.known(), PATIENCE)

    def ask(self, number: int, task: str, agent: str, question: str) -> None:
        """Let a program report a task that waits for an answer: its span has ended, and it has not."""
        more: dict[str, str | bool] = {"letta.task.content": question, "letta.task.waiting": True}
        span = span_of(task, number, attributes=_attributes(task, agent, **more), status={})
        assert post(self.port, "/v1/traces", request_of(span), **self.sender).status == 200
        assert until(lambda: task in self.known(), PATIENCE)

    def known(self) -> list[str]:
        """Return the ids of all tasks that the bridge knows, as a sender sees them."""
        found = httpx.get(f"{self.url}/api/tasks", headers=self.sender, timeout=PATIENCE)
        return [task["task_id"] for task in found.json()["tasks"]]

    def shown(self, task: str) -> dict[str, Any]:
        """Return what the bridge knows of a task."""
        found = httpx.get(f"{self.url}/api/tasks/{task}", headers=self.sender, timeout=PATIENCE).json()
        assert isinstance(found, dict)
        return found

    def taken(self, task: str) -> list[tuple[str, str]]:
        """Wait, as the program that does the task, for instructions."""
        path = f"{self.url}/api/tasks/{task}/instructions?wait=60"
        for _ in range(3):  # a tool's call may take longer than one wait, where the machine is busy
            found = httpx.get(path, headers=self.sender, timeout=PATIENCE).json()["instructions"]
            if found:
                break
        return [(each["action"], each["text"]) for each in found]


def _attributes(task: str, agent: str, **more: str | bool) -> list[dict[str, Any]]:
    values = {"letta.task.id": task, "letta.task.name": task, "letta.agent.id": agent, **more}
    return [
        {"key": key, "value": {"boolValue" if isinstance(value, bool) else "stringValue": value}}
        for key, value in values.items()
    ]


@contextmanager
def bridge_to(
    letta: Any, agent: str, other: str, folder: Path, *flags: str, delivery: str = "board"
) -> Iterator[Bridge]:
    """Run one, and take back at the end what was set up: tools and skills are the server's, which others use.

    By default no report wakes an agent, so that none makes the call that is scripted for another turn.
    """
    tokens = folder / "tokens"
    tokens.write_text(f"{SENDER}\n")
    environ = {
        "LETTA_PASSWORD": letta.password or "",
        "OTEL_LETTA_AGENT_ALLOW_LIST": other,
        "OTEL_LETTA_DELIVERY": delivery,
    }
    with program(letta, agent, "--token-file", str(tokens), **environ) as running:
        bridge = Bridge(letta, agent, other, running.port, tokens, flags)
        try:
            yield bridge
        finally:
            for each in (agent, other):
                bridge.set_up("--remove", agent=each)
