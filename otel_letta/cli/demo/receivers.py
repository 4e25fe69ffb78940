"""Who receives the demo's reports: the stand-in on this machine, or the agent of the user's own settings."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from xml.etree import ElementTree

from otel_letta.cli.check.asking import cleaned
from otel_letta.letta.select import SelectingTransport
from otel_letta.letta.transport import Block, Lane, Message, Transport
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from otel_letta.text import clean_line

_ANSWER_CAP = 300


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
    transport: Transport | None = None
    """Instead of the one that the settings name."""
    next_step: str
    """What to do after the demo."""
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
    next_step = "Next: 'otel-letta init' sets this up with an agent of your own; 'otel-letta demo --real' shows that."

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
    board_title = "Board: costs no LLM call"
    messages_title = "Messages: one LLM turn each"
    patience = 180.0
    next_step = "Next: otel_letta.configure() at the start of your program, or 'otel-letta run -- python app.py'."

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.title = f"{clean_line(settings.agent_id, 200)} at {settings.base_url}"
        self._watched = WatchedTransport(settings)
        self.transport = cast("Transport", self._watched)

    def received(self, stats: dict[str, Any]) -> Received:
        turns, writes = int(stats.get("requests", 0)), int(stats.get("board_writes", 0))
        dropped = stats.get("dropped") or {}
        lost = [Entry("failed", f"dropped: {number}", clean_line(str(why), 80)) for why, number in dropped.items()]
        entries = [*self._watched.entries, *lost, *_deliveries(stats)]
        return Received(self._watched.board, tuple(entries), turns, writes)

    def example(self) -> str | None:
        return self._watched.last


class WatchedTransport:
    """The transport of the user's own server, which remembers what went over it. Asks for nothing more."""

    def __init__(self, settings: Settings) -> None:
        self._transport = SelectingTransport(settings)
        self._settings = settings
        self.board: str | None = None
        self.entries: list[Entry] = []
        self.last: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, lane: Lane, messages: Sequence[Message], **keywords: Any) -> dict[str, Any]:
        answer = self._transport.send(lane, messages, **keywords)
        for message in messages:
            self.last = message.content
            self.entries.extend(_entries_in(message.content))
        text = cleaned(self._settings, self._transport.answer(lane, answer).text, _ANSWER_CAP)
        if text:
            self.entries.append(Entry("answer", "the agent answers", text))
        return answer

    def create_block(self, agent_id: str, label: str, value: str, *arguments: Any, **keywords: Any) -> Block:
        block = self._transport.create_block(agent_id, label, value, *arguments, **keywords)
        self.board = value
        return block

    def write_block(self, block: Block, value: str, *arguments: Any, **keywords: Any) -> None:
        self._transport.write_block(block, value, *arguments, **keywords)
        self.board = value


def _entries_in(content: str) -> list[Entry]:
    """Read the reports in a message of ours."""
    entries = []
    for block in ElementTree.fromstring(f"<all>{content}</all>"):  # noqa: S314 - we wrote it, every text escaped
        report: dict[str, Any] = {**block.attrib, "content": block.text or "", "result": block.findtext("result")}
        entries.append(_entry_of(report))
    return entries


def _deliveries(stats: dict[str, Any]) -> list[Entry]:
    """List what is on its way, and each trouble once with the places that have it."""
    entries = []
    troubles: dict[str, list[str]] = {}
    for board in (stats.get("boards") or {}).values():
        if board.get("parked"):
            troubles.setdefault(clean_line(str(board["parked"]), 300), []).append("board")
    for lane in (stats.get("lanes") or {}).values():
        trouble = lane.get("parked") or lane.get("last_error")
        if trouble:
            troubles.setdefault(clean_line(str(trouble), 300), []).append("messages")
        elif lane.get("in_flight"):
            entries.append(Entry("in_progress", "the agent's turn on a message", ""))
        elif lane.get("waiting"):
            entries.append(Entry("in_progress", f"messages: {lane['waiting']} waiting", ""))
    return entries + [Entry("failed", " and ".join(dict.fromkeys(where)), what) for what, where in troubles.items()]
