"""OpenHands' events, made and recorded, and its `Runs` without threads and with a clock that stands still."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands.events import Event, EventKind, Origin, read_event
from otel_letta.integrations.openhands.runs import Runs
from otel_letta.report import ProgressReport
from otel_letta.testing import InMemoryLetta
from tests.support.tracked import Clock

__all__ = [
    "ASKED",
    "FINISH",
    "FINISHED",
    "Conversation",
    "Driver",
    "action",
    "ends",
    "letta",
    "observation",
    "plan",
    "recorded",
    "settings",
    "spoken",
    "status",
]

DATA = Path(__file__).parent.parent / "data" / "openhands"


def recorded(name: str) -> list[dict[str, Any]]:
    """The lines of a recording of a real run (openhands-sdk 1.58.2, CLI 1.16.0), shortened."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def action(tool: str = "terminal", summary: str | None = "run it", **arguments: Any) -> dict[str, Any]:
    return {"kind": "ActionEvent", "tool_name": tool, "summary": summary, "action": arguments}


def observation(tool: str = "terminal", **fields: Any) -> dict[str, Any]:
    return {"kind": "ObservationEvent", "tool_name": tool, "observation": fields}


def plan(*statuses: str) -> dict[str, Any]:
    return observation("task_tracker", task_list=[{"title": "private", "status": status} for status in statuses])


def spoken(text: str) -> dict[str, Any]:
    return {"kind": "MessageEvent", "source": "agent", "llm_message": {"content": [{"type": "text", "text": text}]}}


def status(value: str) -> dict[str, Any]:
    return {"kind": "ConversationStateUpdateEvent", "key": "execution_status", "value": value}


ASKED = {"kind": "MessageEvent", "source": "user", "id": "m1", "llm_message": {"content": [{"text": "secret prompt"}]}}
FINISH = {"kind": "ActionEvent", "tool_name": "finish", "action": {"message": "all done"}, "id": "finish"}
FINISHED = {"kind": "ObservationEvent", "tool_name": "finish", "observation": {}, "id": "finished"}


class Conversation:
    """As much of OpenHands' conversation as is used."""

    def __init__(self, *callbacks: Callable[[Any], None]) -> None:
        self.id = uuid.uuid4()
        self.state = SimpleNamespace(execution_status="idle", events=[])
        self._callbacks = callbacks

    def happen(self, *events: dict[str, Any], status: str | None = None) -> None:
        for event in events:
            self.state.events.append(event)
            for each in self._callbacks:
                each(event)
        if status is not None:
            self.state.execution_status = status

    def run(self) -> None:
        self.happen(FINISH, FINISHED, status="finished")


class Driver:
    """Hands events to `Runs` and keeps the reports."""

    def __init__(self, **options: Any) -> None:
        self.reports: list[ProgressReport] = []
        self.clock = Clock()
        self.runs = Runs(now=self.clock, **options)
        self.runs.start(self.reports.append)
        self.conversation = "conversation"
        self.origin = Origin("chat-1", "message-1")

    def observe(self, *events: Event | EventKind | dict[str, Any] | None) -> Driver:
        for event in events:
            if isinstance(event, dict):
                event = read_event(event)
            elif isinstance(event, EventKind):
                event = Event(event)
            if event is not None:
                self.runs.observe(self.conversation, self.origin, event)
        return self

    def tick(self) -> int | None:
        return self.runs.tick(self.clock())

    def replay(self, name: str, *, watched: bool) -> Driver:
        """A recorded run; ``watched`` as if it ran inside `reporting`."""
        lines = recorded(name)
        self.conversation = lines[0]["conversation"]
        self.observe(
            *(line["event"] for line in lines if "event" in line and line["event"]["kind"] == "SystemPromptEvent")
        )
        if watched:
            self.observe(EventKind.RUN_ENTERED)
        self.observe(*(line["event"] for line in lines if "event" in line))
        left = next(line for line in lines if "left" in line)
        if watched:
            self.observe(Event(EventKind.RUN_RETURNED, code=left["left"], text=left.get("error", "")))
        return self

    @property
    def contents(self) -> list[str]:
        return [report.content for report in self.reports]

    @property
    def ends(self) -> list[ProgressReport]:
        return [report for report in self.reports if report.status.is_terminal]

    @property
    def end(self) -> ProgressReport:
        (end,) = self.ends
        return end


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server
        openhands.shutdown()


@pytest.fixture
def settings(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages", "message_interval": 0}


def ends(letta: InMemoryLetta, agent: str) -> list[dict[str, Any]]:
    """Reports of ends that are in the agent's context, once all callbacks have delivered."""
    assert openhands.flush(10)
    return [report for report in letta.reports(agent) if report["status"] != "in_progress"]
