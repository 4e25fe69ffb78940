"""An answer is a value: compared, hashed, and written as JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from otel_letta import Answer, Instruction

ANSWER = Answer(
    agent_id="agent-1",
    text="Good.",
    tools=("send_mail",),
    instructions=(Instruction(task_id="t", action="continue", text="go"),),
    run_id="run-1",
    stop_reason="end_turn",
    usage={"total_tokens": 3},
)


def test_it_is_a_value() -> None:
    assert dataclasses.replace(ANSWER) == ANSWER
    assert hash(dataclasses.replace(ANSWER)) == hash(ANSWER)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ANSWER.text = "Bad."  # type: ignore[misc]
    with pytest.raises(TypeError):
        Answer(agent_id="agent-1").usage["total_tokens"] = 1  # type: ignore[index]


def test_it_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(ANSWER.to_dict())) == {
        "agent_id": "agent-1",
        "text": "Good.",
        "tools": ["send_mail"],
        "instructions": [{"task_id": "t", "action": "continue", "text": "go"}],
        "run_id": "run-1",
        "stop_reason": "end_turn",
        "usage": {"total_tokens": 3},
        "reasoning": None,
    }
