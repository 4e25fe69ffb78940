"""Who receives the demo's reports: the stand-in on this machine, or the agent of the user's own settings."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from otel_letta.text import clean_line


@dataclass(frozen=True)
class Entry:
    """One report in a message, or what the agent answered to it."""

    state: str
    head: str
    text: str


@dataclass(frozen=True)
class Received:
    """What the receiving side knows at one moment."""

    board: str | None
    messages: tuple[Entry, ...]
    turns: int
    board_writes: int


class Receiver(ABC):
    title: str
    board_title: str
    messages_title: str
    settings: Settings
    patience: float
    """Seconds after which deliveries that are still on their way are not waited for any more."""

    @abstractmethod
    def received(self, stats: dict[str, Any]) -> Received:
        """Sum up what has arrived; ``stats`` are the processor's."""

    def example(self) -> str | None:
        """Return a message as the agent reads it, word for word; None if there is none."""
        return None


class StandIn(Receiver):
    title = "a stand-in for Letta on this machine"
    board_title = "Memory block: costs no LLM call"
    messages_title = "Messages: one LLM turn each"
    patience = 0.0

    def __init__(self, letta: InMemoryLetta) -> None:
        self._letta = letta
        self._agent_id = letta.create_agent("demo")
        # Nothing of the user's own settings: the demo is the same everywhere, and no secret of theirs takes part.
        self.settings = Settings.resolve(
            environ={},
            dotenv_path=os.devnull,
            base_url=letta.base_url,
            agent_id=self._agent_id,
            board_interval=0.5,
            poll_interval=0.1,
        )

    def received(self, stats: dict[str, Any]) -> Received:
        reports = iter(self._letta.reports(self._agent_id))
        entries = []
        for text in self._letta.context(self._agent_id)[1:]:
            if not text.startswith("<task-progress"):
                entries.append(Entry("answer", "the agent answers", text))
                continue
            for report in (next(reports, None) for _ in range(text.count("<task-progress "))):
                if report is not None:
                    entries.append(_entry_of(report))
        board = self._letta.board(self._agent_id)
        return Received(board, tuple(entries), self._letta.turns, int(stats.get("board_writes", 0)))

    def example(self) -> str | None:
        messages = self._letta.messages(self._agent_id)
        return messages[-1].content if messages else None


def _entry_of(report: dict[str, Any]) -> Entry:
    text = report.get("result") or report.get("error") or report["content"]
    head = f"{report['status']} {report['progress']} {report.get('task', '')}, {report.get('duration', '')}"
    return Entry(report["status"], head, text)


class RealAgent(Receiver):
    title = "your Letta agent"
    board_title = "Sent"
    messages_title = "State"
    patience = 180.0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def received(self, stats: dict[str, Any]) -> Received:
        lines = [
            f"to {clean_line(self.settings.agent_id, 200)}",
            f"at {self.settings.base_url}",
            f"messages sent: {stats.get('sent', 0)} (agent turns: {stats.get('requests', 0)})",
            f"board writes: {stats.get('board_writes', 0)} (no LLM call)",
        ]
        dropped = stats.get("dropped") or {}
        lines += [f"dropped: {number} ({clean_line(str(reason), 80)})" for reason, number in dropped.items()]
        turns, writes = int(stats.get("requests", 0)), int(stats.get("board_writes", 0))
        return Received("\n".join(lines), tuple(_deliveries(stats)), turns, writes)


def _deliveries(stats: dict[str, Any]) -> list[Entry]:
    """List what is on its way, and each trouble once with the places that have it."""
    entries = []
    troubles: dict[str, list[str]] = {}
    for board in (stats.get("boards") or {}).values():
        if board.get("parked"):
            troubles.setdefault(clean_line(str(board["parked"]), 300), []).append("board")
        elif board.get("label"):
            entries.append(Entry("completed", f"board: memory block {board['label']}", ""))
    for lane in (stats.get("lanes") or {}).values():
        trouble = lane.get("parked") or lane.get("last_error")
        if trouble:
            troubles.setdefault(clean_line(str(trouble), 300), []).append("messages")
        elif lane.get("in_flight"):
            entries.append(Entry("in_progress", "the agent's turn on a message", ""))
        elif lane.get("waiting"):
            entries.append(Entry("in_progress", f"messages: {lane['waiting']} waiting", ""))
    return entries + [Entry("failed", " and ".join(dict.fromkeys(where)), what) for what, where in troubles.items()]
