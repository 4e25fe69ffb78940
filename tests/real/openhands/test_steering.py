"""Runs of the real OpenHands that a Letta agent asks for, by both forms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, reporting
from otel_letta.testing import InMemoryLetta
from tests.support.openhands_llm import ScriptedModel, finish, say, tool

Make = Callable[..., Any]

PATIENCE = 60.0


@pytest.fixture
def steered(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as users have them: ends, and what waits, are messages; progress is on the board."""
    return {**settings, "delivery": "auto"}


def told(letta: InMemoryLetta, agent: str) -> list[tuple[str, str, str | None]]:
    """The run's number, status and result of each report that the agent has."""
    assert openhands.flush(30)
    reports = letta.reports(agent)
    return [(r["task_id"].rpartition("/")[2], r["status"], r.get("result")) for r in reports]


def answers(letta: InMemoryLetta, form: str, task_id: str, action: str, text: str) -> None:
    if form == "block":
        letta.answer_next(f'<task-instruction task_id="{task_id}" action="{action}">{text}</task-instruction>')
    else:
        letta.answer_next("Done.", calls=[("instruct_task", {"task_id": task_id, "action": action, "text": text})])


def messages_of_users(conversation: Any) -> list[str]:
    events = [event for event in conversation.state.events if getattr(event, "source", None) == "user"]
    return ["".join(part.text for part in e.llm_message.content) for e in events if hasattr(e, "llm_message")]


def go(conversation: Any, observer: Any, way: str, **options: Any) -> None:
    async def main() -> None:
        async with reporting(conversation, observer, follow_up=True, patience=PATIENCE, **options):
            conversation.send_message("Write a.py")
            await asyncio.wait_for(conversation.arun(), 60)

    if way == "arun":
        asyncio.run(main())
        return
    with reporting(conversation, observer, follow_up=True, patience=PATIENCE, **options):
        conversation.send_message("Write a.py")
        conversation.run()


@pytest.mark.parametrize("way", ["run", "arun"])
@pytest.mark.parametrize("form", ["block", "call of a tool"])
def test_a_run_goes_on_as_the_agent_asks(
    way: str,
    form: str,
    make: Make,
    model: ScriptedModel,
    steered: dict[str, Any],
    letta: InMemoryLetta,
    agent: str,
    tmp_path: Path,
) -> None:
    def write(name: str) -> dict[str, Any]:
        return tool("file_editor", command="create", path=f"{tmp_path}/{name}", file_text="x\n", summary=f"make {name}")

    observer = callback(**steered)
    steps = [write("a.py"), finish("a.py is there"), write("test_a.py"), finish("its test as well")]
    conversation = make(model.play(f"steered {way} {form}", steps), observer)
    answers(letta, form, f"{conversation.id}/1", "continue", "Write test_a.py, too.")
    go(conversation, observer, way)
    assert (tmp_path / "test_a.py").exists()
    first, second = messages_of_users(conversation)
    assert first == "Write a.py"
    assert f'<supervisor-instruction agent="{agent}" task_id="{conversation.id}/1">Write test_a.py, too.<' in second
    assert told(letta, agent) == [("1", "completed", "a.py is there"), ("2", "completed", "its test as well")]


def test_an_agent_without_an_end_of_wishes_gets_its_rounds_and_no_more(
    make: Make, model: ScriptedModel, steered: dict[str, Any], letta: InMemoryLetta, agent: str
) -> None:
    observer = callback(**steered)
    conversation = make(model.play("steered for ever", [finish("done")]), observer)
    for run in range(1, 10):
        answers(letta, "block", f"{conversation.id}/{run}", "continue", "more")
    go(conversation, observer, "run", rounds=2)
    assert told(letta, agent) == [(str(run), "completed", "done") for run in (1, 2, 3)]


def test_a_question_is_answered(
    make: Make, model: ScriptedModel, steered: dict[str, Any], letta: InMemoryLetta, agent: str
) -> None:
    observer = callback(**steered)
    steps = [say("Which file do you mean?"), finish("a.py it was")]
    conversation = make(model.play("steered question", steps), observer)
    answers(letta, "block", f"{conversation.id}/1", "continue", "a.py")
    go(conversation, observer, "run")
    assert told(letta, agent) == [("1", "completed", "Which file do you mean?"), ("2", "completed", "a.py it was")]


def test_a_run_that_failed_without_an_exception_goes_on(
    make: Make, model: ScriptedModel, steered: dict[str, Any], letta: InMemoryLetta, agent: str
) -> None:
    observer = callback(**steered)
    steps = [tool("terminal", command="echo 1", summary="one"), tool("terminal", command="echo 2", summary="two")]
    conversation = make(
        model.play("steered iterations", [*steps, finish("after all")]), observer, max_iteration_per_run=2
    )
    answers(letta, "block", f"{conversation.id}/1", "continue", "You may go on.")
    go(conversation, observer, "run")
    assert told(letta, agent) == [("1", "failed", None), ("2", "completed", "after all")]


@pytest.mark.parametrize("way", ["run", "arun"])
@pytest.mark.parametrize("action", ["accept", "reject"])
def test_what_waits_for_confirmation_is_decided(
    action: str,
    way: str,
    make: Make,
    model: ScriptedModel,
    steered: dict[str, Any],
    letta: InMemoryLetta,
    agent: str,
    tmp_path: Path,
) -> None:
    from openhands.sdk.security.confirmation_policy import AlwaysConfirm

    observer = callback(**steered)
    steps = [
        tool("file_editor", command="create", path=f"{tmp_path}/a.py", file_text="x\n", summary="create a.py"),
        finish("that is how it is"),
    ]
    conversation = make(model.play(f"steered {action} {way}", steps), observer)
    conversation.set_confirmation_policy(AlwaysConfirm())
    answers(letta, "call of a tool", f"{conversation.id}/1", action, "as agreed")
    go(conversation, observer, way, allow=("accept", "reject"))
    assert (tmp_path / "a.py").exists() is (action == "accept")
    rejections = [e.rejection_reason for e in conversation.state.events if hasattr(e, "rejection_reason")]
    assert ["as agreed" in reason for reason in rejections] == ([] if action == "accept" else [True])
    assert told(letta, agent) == [("1", "in_progress", None), ("1", "completed", "that is how it is")]


def test_a_message_confirms_nothing_and_by_default_nothing_does(
    make: Make, model: ScriptedModel, steered: dict[str, Any], letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    from openhands.sdk.security.confirmation_policy import AlwaysConfirm

    for number, (action, allow) in enumerate(
        [("continue", ("continue", "accept", "reject")), ("accept", ("continue",))]
    ):
        observer = callback(**steered)
        steps = [tool("file_editor", command="create", path=f"{tmp_path}/a.py", file_text="x\n", summary="create a.py")]
        conversation = make(model.play(f"steered unconfirmed {number}", steps), observer)
        conversation.set_confirmation_policy(AlwaysConfirm())
        answers(letta, "block", f"{conversation.id}/1", action, "go on")
        go(conversation, observer, "run", allow=allow)
        assert conversation.state.execution_status == "waiting_for_confirmation"
        assert not (tmp_path / "a.py").exists()
        assert openhands.flush(30)
