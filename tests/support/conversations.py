"""A `ConversationTracker` without threads and with a clock that stands still, and what real OpenHands runs told it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otel_letta.integrations.openhands.runs import ConversationTracker, Event, Origin, What, read_event
from otel_letta.report import ProgressReport
from tests.support.tracked import Clock

__all__ = ["Told", "recorded"]

DATA = Path(__file__).parent.parent / "data" / "openhands"


def recorded(name: str) -> list[dict[str, Any]]:
    """The lines of a recording of a real run (openhands-sdk 1.58.2, CLI 1.16.0), shortened."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


class Told:
    """Takes events and keeps the reports that they became."""

    def __init__(self, **options: Any) -> None:
        self.reports: list[ProgressReport] = []
        self.clock = Clock()
        self.tracker = ConversationTracker(emit=self.reports.append, now=self.clock, **options)
        self.conversation = "conversation"
        self.origin = Origin("chat-1", "message-1")

    def hear(self, *events: Event | What | dict[str, Any] | None) -> Told:
        for event in events:
            if isinstance(event, dict):
                event = read_event(event)
            elif isinstance(event, What):
                event = Event(event)
            if event is not None:
                self.tracker.hear(self.conversation, self.origin, event)
        return self

    def replay(self, name: str, *, watched: bool) -> Told:
        """A recorded run; ``watched`` as if it ran inside `reporting`."""
        lines = recorded(name)
        self.conversation = lines[0]["conversation"]
        self.hear(
            *(line["event"] for line in lines if "event" in line and line["event"]["kind"] == "SystemPromptEvent")
        )
        if watched:
            self.hear(What.ENTERED)
        self.hear(*(line["event"] for line in lines if "event" in line))
        left = next(line for line in lines if "left" in line)
        if watched:
            self.hear(Event(What.LEFT, code=left["left"], text=left.get("error", "")))
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
