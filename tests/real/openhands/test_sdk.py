"""The callback and the context manager, on real conversations."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, reporting
from otel_letta.testing import InMemoryLetta
from tests.real.openhands.scenarios import SCENARIOS, Scenario
from tests.support.openhands_llm import ScriptedModel, finish, plan, tool
from tests.support.waiting import until

Make = Callable[..., Any]


class Received:
    """Everything that was put onto the way to the agent, paced or not, and what it got in the end."""

    def __init__(self, letta: InMemoryLetta, agent: str) -> None:
        self._letta, self._agent = letta, agent

    def reports(self) -> list[dict[str, Any]]:
        assert openhands.flush(20)
        return self._letta.reports(self._agent)

    def ends(self) -> list[dict[str, Any]]:
        return [report for report in self.reports() if report["status"] != "in_progress"]

    def end(self) -> dict[str, Any]:
        (end,) = self.ends()
        return end


@pytest.fixture
def received(letta: InMemoryLetta, agent: str) -> Received:
    return Received(letta, agent)


@pytest.fixture
def every_report(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All reports, also those that a newer one replaces before they are sent."""
    from otel_letta.integrations.openhands.runs import Runs

    seen: list[Any] = []
    start = Runs.start

    def spy(self: Runs, emit: Callable[[Any], None]) -> None:
        def keep(report: Any) -> None:
            seen.append(report)
            emit(report)

        start(self, keep)

    monkeypatch.setattr(Runs, "start", spy)
    return seen


def run(conversation: Any, scenario: Scenario) -> None:
    conversation.send_message("Do it, and tell nobody that the word is xyzzy.")
    if scenario.raises:
        with pytest.raises(Exception, match="run failed"):
            conversation.run()
    else:
        conversation.run()


WAYS = ["callback", "reporting", "reporting without a callback"]
CASES = [(way, scenario) for scenario in SCENARIOS for way in WAYS if way != "callback" or scenario.by_events]


@pytest.mark.parametrize(("way", "scenario"), CASES, ids=str)
def test_each_run_has_its_end_and_only_one(
    way: str,
    scenario: Scenario,
    make: Make,
    model: ScriptedModel,
    settings: Any,
    received: Received,
    every_report: list[Any],
    tmp_path: Path,
) -> None:
    name = model.play(f"sdk-{way}-{scenario}".replace(" ", "-"), scenario.steps(str(tmp_path)))
    observer = callback(chat_id="chat-123", message_id="msg-456", **settings)
    if way == "reporting without a callback":
        conversation = make(name, max_iteration_per_run=scenario.max_iterations)
        watching: Any = reporting(conversation, chat_id="chat-123", message_id="msg-456", **settings)
    else:
        conversation = make(name, observer, max_iteration_per_run=scenario.max_iterations)
        watching = reporting(conversation, observer)
    if way == "callback":
        run(conversation, scenario)
    else:
        with watching:
            run(conversation, scenario)

    end = received.end()
    assert end["status"] == scenario.status
    assert end["task_id"] == f"{conversation.id}/1"
    assert (end["chat_id"], end["message_id"]) == ("chat-123", "msg-456")
    assert end["result"] == scenario.result
    if scenario.content is not None:
        assert end["content"] == scenario.content
    if scenario.error is not None:
        assert end["error"].startswith(scenario.error)
    assert every_report[0].content == "Task started"
    assert scenario.summaries <= {report.content for report in every_report}
    assert scenario.progress <= {f"{report.progress:.0%}" for report in every_report}
    fractions = [report.progress for report in every_report]
    assert fractions == sorted(fractions)
    text = " ".join(report.to_json() for report in every_report)
    assert "xyzzy" not in text
    assert "private" not in text


def test_an_exception_of_run_is_reported_once_by_callback_and_reporting(
    make: Make, model: ScriptedModel, settings: Any, received: Received
) -> None:
    observer = callback(**settings)
    conversation = make(model.play("sdk-unknown", [{"status": 404}]), observer)
    with pytest.raises(Exception, match="run failed"), reporting(conversation, observer):
        conversation.send_message("go")
        conversation.run()
    assert received.end()["status"] == "failed"


def test_a_pause_is_in_progress_and_the_same_task_goes_on(
    make: Make, model: ScriptedModel, settings: Any, received: Received, tmp_path: Path
) -> None:
    observer = callback(**settings)
    conversation: Any = None

    def pause_soon() -> None:
        # Not here: pausing waits for the step to end, and the step for this answer.
        threading.Thread(target=lambda: conversation.pause()).start()

    steps = [plan("in_progress", "todo"), tool("terminal", command="sleep 1", summary="sleep")]
    conversation = make(model.play("sdk-pause", steps, before_last=pause_soon), observer)
    with reporting(conversation, observer):
        conversation.send_message("go")
        conversation.run()
    reports = received.reports()
    assert (reports[-1]["status"], reports[-1]["content"]) == ("in_progress", "Paused")
    model.play("sdk-pause", [finish("after the pause")])
    with reporting(conversation, observer):
        conversation.run()
    assert (received.end()["status"], received.end()["result"]) == ("completed", "after the pause")
    assert received.end()["task_id"] == reports[0]["task_id"]


@pytest.mark.parametrize("where", ["LLM", "tool"])
@pytest.mark.parametrize("way", ["callback", "reporting"])
def test_an_interrupt_is_a_failure(
    way: str, where: str, make: Make, model: ScriptedModel, settings: Any, received: Received, tmp_path: Path
) -> None:
    observer = callback(**settings)
    held = threading.Event()
    conversation: Any = None

    def interrupt() -> None:
        conversation.interrupt()
        held.wait(20)

    if where == "LLM":
        name = model.play(f"sdk-interrupt-llm-{way}", [plan("todo"), finish("never")], before_last=interrupt)
        extra: list[Any] = []
    else:
        name = model.play(f"sdk-interrupt-tool-{way}", [tool("terminal", command="sleep 30", summary="long")])

        def when_the_tool_starts(event: Any) -> None:
            if type(event).__name__ == "ActionEvent":
                threading.Timer(1.0, conversation.interrupt).start()

        extra = [when_the_tool_starts]
    conversation = make(name, observer, *extra)

    async def main() -> None:
        conversation.send_message("go")
        await asyncio.wait_for(conversation.arun(), 60)

    async def watched() -> None:
        async with reporting(conversation, observer):
            await main()

    try:
        asyncio.run(main() if way == "callback" else watched())
    finally:
        held.set()
    assert (received.end()["status"], received.end()["error"]) == ("failed", "interrupted")


def test_waiting_for_confirmation_is_in_progress(
    make: Make, model: ScriptedModel, settings: Any, received: Received
) -> None:
    from openhands.sdk.security.confirmation_policy import AlwaysConfirm

    observer = callback(**settings)
    steps = [tool("terminal", command="echo hi", summary="say hi"), finish("said it")]
    conversation = make(model.play("sdk-confirm", steps), observer)
    conversation.set_confirmation_policy(AlwaysConfirm())
    with reporting(conversation, observer):
        conversation.send_message("go")
        conversation.run()
    assert received.reports()[-1]["content"] == "waits for a person: confirm 'say hi'"
    with reporting(conversation, observer):
        conversation.run()
    assert received.end()["result"] == "said it"


def test_two_conversations_at_once(
    make: Make, model: ScriptedModel, settings: Any, received: Received, tmp_path: Path
) -> None:
    def work(n: int) -> None:
        observer = callback(chat_id=f"chat-{n}", **settings)
        steps = [plan("in_progress"), tool("terminal", command=f"echo {n}", summary=f"say {n}"), finish(f"answer {n}")]
        conversation = make(model.play(f"sdk-both-{n}", steps), observer)
        with reporting(conversation, observer):
            conversation.send_message("go")
            conversation.run()

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted((end["chat_id"], end["result"]) for end in received.ends()) == [
        ("chat-1", "answer 1"),
        ("chat-2", "answer 2"),
    ]


def test_several_runs_of_a_conversation_are_several_tasks(
    make: Make, model: ScriptedModel, settings: Any, received: Received
) -> None:
    observer = callback(**settings)
    conversation = make(model.play("sdk-runs", [finish("first"), finish("second")]), observer)
    for _ in range(2):
        conversation.send_message("go")
        conversation.run()
    assert [(end["task_id"], end["result"]) for end in received.ends()] == [
        (f"{conversation.id}/1", "first"),
        (f"{conversation.id}/2", "second"),
    ]


def test_a_conversation_that_is_resumed_does_not_take_up_the_ids_of_its_past(
    make: Make, model: ScriptedModel, settings: Any, received: Received, tmp_path: Path
) -> None:
    name = model.play("sdk-resumed", [finish("first"), finish("second")])
    first = make(name, callback(**settings), persistence_dir=str(tmp_path / "kept"))
    first.send_message("go")
    first.run()
    received.reports()
    first.close()
    openhands.shutdown()  # as another process would find it
    again = make(name, callback(**settings), persistence_dir=str(tmp_path / "kept"), conversation_id=first.id)
    again.send_message("go on")
    again.run()
    ids = [end["task_id"] for end in received.ends()]
    assert len(set(ids)) == 2
    assert all(task_id.startswith(f"{first.id}/") for task_id in ids)


def test_a_hook_configuration_that_we_print_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess
    import sys

    from openhands.sdk.hooks import HookConfig

    printed = subprocess.run(
        [sys.executable, "-m", "otel_letta", "hook", "--print-config"], capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "hooks.json").write_text(printed)
    config = HookConfig.load(str(tmp_path / "hooks.json"))
    for event in ("user_prompt_submit", "pre_tool_use", "post_tool_use", "stop", "session_end"):
        (matcher,) = getattr(config, event)
        assert "hook" in matcher.hooks[0].command
    assert config.post_tool_use[0].matches("finish")
    assert not config.post_tool_use[0].matches("terminal")


def test_hooks_that_openhands_runs_itself_report_the_session(
    make: Make,
    model: ScriptedModel,
    letta: InMemoryLetta,
    agent: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import subprocess
    import sys

    from openhands.sdk.hooks import HookConfig

    (tmp_path / "hooks.json").write_text(
        subprocess.run(
            [sys.executable, "-m", "otel_letta", "hook", "--print-config", "--chat-id", "chat-7"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
    monkeypatch.setenv("LETTA_AGENT_ID", agent)
    steps = [plan("in_progress", "todo"), plan("done", "todo"), finish("told by hooks")]
    conversation = make(model.play("sdk-hooks", steps), hook_config=HookConfig.load(str(tmp_path / "hooks.json")))
    conversation.send_message("go")
    conversation.run()
    conversation.close()
    over = lambda: [r for r in letta.reports(agent) if r["status"] != "in_progress"]  # noqa: E731
    assert letta.wait_for(lambda: bool(over()), 30)
    (end,) = over()
    assert (end["status"], end["result"], end["chat_id"]) == ("completed", "told by hooks", "chat-7")
    assert end["task_id"].startswith(f"{conversation.id}/")


@pytest.mark.parametrize("way", ["callback", "reporting"])
def test_a_run_that_waits_for_confirmation_is_one_task(
    way: str,
    make: Make,
    model: ScriptedModel,
    settings: Any,
    received: Received,
    every_report: list[Any],
    tmp_path: Path,
) -> None:
    from openhands.sdk.security.confirmation_policy import AlwaysConfirm

    steps = [
        tool("file_editor", command="create", path=f"{tmp_path}/a.py", file_text="x\n", summary="create a.py"),
        finish("done"),
    ]
    observer = callback(**settings)
    conversation = make(model.play(f"confirmation {way}", steps), observer)
    conversation.set_confirmation_policy(AlwaysConfirm())
    watch = (lambda: reporting(conversation, observer)) if way == "reporting" else contextlib.nullcontext
    conversation.send_message("Do it.")
    with watch():
        conversation.run()
    assert conversation.state.execution_status == "waiting_for_confirmation"
    assert until(lambda: any(report.waiting for report in every_report), 20)
    with watch():
        conversation.run()
    assert received.end()["status"] == "completed"
    assert [r.content for r in every_report if r.waiting] == ["waits for a person: confirm 'create a.py'"]
    assert len({report.task_id for report in every_report}) == 1
