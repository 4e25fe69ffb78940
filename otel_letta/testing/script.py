"""What a test has the agents answer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otel_letta.testing.world import Message, new_id

Calls = Sequence[tuple[str, Mapping[str, Any]]]
"""Names of tools, each with the arguments of its call."""


@dataclass(slots=True)
class Scripted:
    """An answer to the next ``left`` turns (None: to all of them) of one agent, or of any."""

    text: str | None
    calls: Calls
    reasoning: str | None
    agent_id: str | None
    left: int | None


class Script:
    """The answers to come. Guarded by the world's condition, like everything else."""

    def __init__(self) -> None:
        self.answers: list[Scripted] = []

    def replies(self, agent_id: str, number: int, run_id: str, conversation_id: str | None) -> list[Message]:
        """Return what the agent says and does in a turn, in order. ``number`` counts the turns."""
        scripted = self._next(agent_id)
        if scripted is None:
            rows: list[Message] = [Message("assistant", f"ack {number}")]
        else:
            rows = [] if scripted.reasoning is None else [_row("reasoning", reasoning=scripted.reasoning)]
            for name, arguments in scripted.calls:
                rows += _called(name, arguments)
            rows += [] if scripted.text is None else [Message("assistant", scripted.text)]
        step = new_id("step")
        for row in rows:
            row.otid, row.run_id, row.step_id, row.conversation_id = str(uuid.uuid4()), run_id, step, conversation_id
        return rows

    def _next(self, agent_id: str) -> Scripted | None:
        found = next((answer for answer in self.answers if answer.agent_id in (None, agent_id)), None)
        if found is not None and found.left is not None:
            found.left -= 1
            if found.left == 0:
                self.answers.remove(found)
        return found


def _row(kind: str, **fields: Any) -> Message:
    return Message(kind, "", fields=fields)


def _called(name: str, arguments: Mapping[str, Any]) -> list[Message]:
    """Make the rows of a call and of what came of it, as Letta 0.16.8 was seen to answer them."""
    call_id = f"call_{uuid.uuid4().hex[:16]}"
    call = {"name": name, "arguments": json.dumps(dict(arguments)), "tool_call_id": call_id}
    return [
        _row("tool_call", tool_call=call, tool_calls=[call]),
        _row("tool_return", tool_return="ok", status="success", tool_call_id=call_id),
    ]
