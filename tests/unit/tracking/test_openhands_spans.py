"""OpenHands by its spans alone: which of them are tasks, how a run ended, whose it is, and who tells of it.

Recorded conversations are played in `test_agents`; here are the ones that nobody recorded, in the form that Laminar
gives their spans.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, StatusCode, Tracer

from otel_letta.integrations import openhands
from otel_letta.otel.processor import LettaSpanProcessor
from otel_letta.testing import InMemoryLetta
from otel_letta.tracking.conventions.laminar import tool_name
from tests.support.recorded import play, play_live
from tests.support.tracked import Alone, Live

SESSION = "9ff3da80-23e4-4f9f-a936-512fe8e8fbb0"
STOPPED = "'OpenHands' failed: stopped before it was finished: paused, interrupted, stuck, or at a limit"
SPOKE = "it ended with a message, which may be a question"


class Laminar:
    """Makes spans as OpenHands does. ``metadata`` is what its user gives it."""

    def __init__(self, tracer: Tracer, *, session: str = SESSION, metadata: dict[str, str] | None = None) -> None:
        self._tracer = tracer
        self._session = session
        self._metadata = metadata or {}
        self._paths: dict[Span, tuple[str, ...]] = {}
        self.root = self._start(None, "conversation", "DEFAULT", {})

    def close(self) -> None:
        self.root.set_attributes(self._metadata)
        self.root.end()

    def start(self, above: Span, name: str, kind: str = "DEFAULT", **more: Any) -> Span:
        own = {f"lmnr.association.properties.metadata.{key}": value for key, value in self._metadata.items()}
        own["lmnr.association.properties.session_id"] = self._session
        return self._start(above, name, kind, {**own, **{f"lmnr.span.{key}": value for key, value in more.items()}})

    def _start(self, above: Span | None, name: str, kind: str, attributes: dict[str, Any]) -> Span:
        path = (*(self._paths[above] if above is not None else ()), name)
        context = trace.set_span_in_context(above if above is not None else trace.INVALID_SPAN)
        attributes = {"lmnr.span.type": kind, "lmnr.span.path": path, **attributes}
        span = self._tracer.start_span(name, context, attributes=attributes)
        self._paths[span] = path
        return span

    def one(self, above: Span, name: str, kind: str = "DEFAULT", **more: Any) -> None:
        self.start(above, name, kind, **more).end()

    @contextmanager
    def run(self) -> Iterator[Span]:
        span = self.start(self.root, "conversation.run", input="{}")
        yield span
        span.end()

    def step(self, run: Span, *tools: str, **more: Any) -> None:
        """The model is asked, and calls these tools."""
        step = self.start(run, "agent.step")
        self.one(step, "llm.openai/m", "LLM")
        for name in tools:
            self.one(step, name, "TOOL", **more)
        step.end()


@pytest.fixture(params=[Live, Alone], ids=["as it happens", "ended spans alone"])
def way(request: pytest.FixtureRequest) -> type[Live] | type[Alone]:
    found: type[Live] | type[Alone] = request.param
    return found


def over(driver: Live | Alone) -> list[str]:
    """What was told at ends, once nothing more comes."""
    if isinstance(driver, Alone):
        driver.export()
        driver.batch.clear()
    driver.clock.pass_seconds(3)
    driver.tracker.tick()
    return [end.content.split(" in ")[0] if end.error is None else end.content for end in driver.ends]


# -- recorded ones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("played", [play, play_live], ids=["ended spans alone", "as it happens"])
def test_the_plan_of_a_recorded_run_is_its_progress(played: Callable[[str], Any]) -> None:
    shares = [report.progress for report in played("openhands.lmnr.success").reports]
    assert list(dict.fromkeys(shares)) == [0.0, 0.25, 0.5, 0.75, 0.99, 1.0]
    later = [report.progress for report in played("openhands.lmnr.llm_error-later").reports]
    assert list(dict.fromkeys(later)) == [0.0, 0.25]


def test_what_the_finish_tool_says_is_told_only_where_the_settings_ask_for_answers() -> None:
    said = "hello.py prints hello 0, 1 and 2."
    assert play("openhands.lmnr.success").ends[0].result is None
    assert play("openhands.lmnr.success", content=("answer",)).ends[0].result == said
    assert play_live("openhands.lmnr.success", content=("answer",)).ends[0].result == said


@pytest.mark.parametrize("message", ['{"action": 5}', "[]", "{", '{"action":{"message":["x"]}}', "[" * 100_000])
def test_a_finish_without_a_readable_message_is_one_all_the_same(way: Any, message: str) -> None:
    driver = way(content=("answer",))
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "FinishAction", input=message)
    assert over(driver) == ["Finished 'OpenHands'"]
    assert driver.last.result in (None, "")


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_each_run_of_a_conversation_is_a_task_though_the_conversation_never_ends(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    for _ in range(2):
        said.one(said.root, "conversation.send_message")
        with said.run() as run:
            said.step(run, "TerminalAction")
            said.step(run, "FinishAction")
    assert over(driver) == ["Finished 'OpenHands'"] * 2
    assert len({report.task_id for report in driver.reports}) == 2
    assert [end.content.endswith(", 1 tool") for end in driver.ends] == [True, True]
    assert driver.tracker.open_tasks == 0
    said.close()


def test_a_run_that_starts_before_the_last_one_is_judged_keeps_its_tools_to_itself() -> None:
    driver = Alone()
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "FinishAction")
    driver.export()
    driver.batch.clear()
    with said.run() as run:
        said.step(run, "TerminalAction")
        driver.export()
        driver.batch.clear()
        said.step(run, "FinishAction")
    over(driver)
    (used,) = [report for report in driver.reports if report.content.startswith("Used tool terminal")]
    assert used.task_id == driver.ends[1].task_id != driver.ends[0].task_id


def test_a_sub_agent_that_a_tool_runs_is_no_second_task(way: Any) -> None:
    """Its conversation has a trace of its own, within the tool of the one that asked for it."""
    driver = way()
    outer = Laminar(driver.tracer)
    with outer.run() as run:
        step = outer.start(run, "agent.step")
        outer.one(step, "llm.openai/m", "LLM")
        tool = outer.start(step, "TaskAction", "TOOL")
        metadata = {"is_delegate": "true", "delegate.parent_span_id": "00000000-0000-0000-6283-67ec08bcdd69"}
        inner = Laminar(driver.tracer, session="another", metadata=metadata)
        with inner.run() as work:
            inner.step(work, "TerminalAction")
            inner.step(work, "FinishAction")
        inner.close()
        tool.end()
        step.end()
        outer.step(run, "FinishAction")
    assert over(driver) == ["Finished 'OpenHands'"]
    assert driver.ends[0].content.endswith(", 1 tool")
    assert len({report.task_id for report in driver.reports}) == 1
    assert not any("terminal" in report.content for report in driver.reports)
    outer.close()


@pytest.mark.parametrize("keys", [("letta.chat_id", "letta.message_id"), ("letta.chat.id", "letta.message.id")])
def test_chat_and_message_come_from_the_metadata_and_make_no_second_task(way: Any, keys: tuple[str, str]) -> None:
    driver = way()
    said = Laminar(driver.tracer, metadata={keys[0]: "chat-1", keys[1]: "message-1"})
    with said.run() as run:
        said.step(run, "FinishAction")
    said.close()  # now the root bears them as its own attributes
    assert over(driver) == ["Finished 'OpenHands'"]
    assert {(report.chat_id, report.message_id) for report in driver.reports} == {("chat-1", "message-1")}
    assert driver.tracker.open_tasks == 0


def test_without_metadata_the_chat_is_the_conversation(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "FinishAction")
    over(driver)
    assert {(report.chat_id, report.message_id) for report in driver.reports} == {(SESSION, None)}


def test_what_belongs_to_no_run_tells_nothing(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    title = said.start(said.root, "conversation.generate_title")
    said.one(title, "llm.openai/m", "LLM")
    title.end()
    said.one(said.root, "InvalidToolCall", "TOOL", output='{"role":"tool"}')
    driver.tracer.start_span("GET /api/conversations", attributes={"fastapi.endpoint": "x"}).end()
    said.close()
    assert over(driver) == []
    driver.tracker.finish()
    assert driver.reports == []


@pytest.mark.parametrize(
    ("span", "name"),
    [
        ("TerminalAction", "terminal"),
        ("TaskTrackerAction", "task_tracker"),
        ("MCPToolAction", "mcp_tool"),
        ("Action", "Action"),
        ("my_tool", "my_tool"),
    ],
)
def test_a_tool_is_called_as_the_model_calls_it(span: str, name: str) -> None:
    assert tool_name(span) == name


# -- verdicts --------------------------------------------------------------------------------------------------------


def test_a_run_whose_tool_was_not_confirmed_yet_waits_and_goes_on(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        step = said.start(run, "agent.step")
        model = said.start(step, "llm.openai/m", "LLM")
        completion = said.start(model, "litellm.completion", "LLM")
        calls = '[{"content":null,"role":"assistant","tool_calls":[{"function":{"arguments":"secret","name":"x"}}]}]'
        completion.set_attribute("gen_ai.output.messages", calls)
        completion.end()
        model.end()
        step.end()
    assert over(driver) == []
    assert driver.reports[-1].content == "waits for a person"
    assert driver.reports[-1].waiting
    with said.run() as run:
        said.one(run, "TerminalAction", "TOOL")
        said.step(run, "FinishAction")
    assert over(driver) == ["Finished 'OpenHands'"]
    assert len({report.task_id for report in driver.reports}) == 1
    said.close()


def test_a_run_that_ends_with_a_message_is_completed_and_says_so(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "TerminalAction")
        said.step(run)
    over(driver)
    assert driver.last.status.value == "completed"
    assert driver.last.content.endswith(f", 1 tool; {SPOKE}")


def test_a_run_whose_last_step_used_a_tool_has_stopped(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run)
        said.step(run, "TerminalAction")
    assert over(driver) == [STOPPED]
    assert driver.last.error == STOPPED.removeprefix("'OpenHands' failed: ")


def test_a_run_that_goes_on_after_it_called_itself_finished_has_to_finish_again(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "FinishAction")  # and a hook does not let it
        said.step(run, "TerminalAction")
    assert over(driver) == [STOPPED]


def test_a_last_step_that_called_a_tool_which_does_not_exist_is_no_message(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        step = said.start(run, "agent.step")
        said.one(step, "llm.openai/m", "LLM")
        said.one(said.root, "InvalidToolCall", "TOOL")
        step.end()
    assert over(driver) == [STOPPED]


def test_an_interrupted_call_of_the_model_is_no_answer() -> None:
    driver = Live()
    said = Laminar(driver.tracer)
    with said.run() as run:
        step = said.start(run, "agent.step")
        model = said.start(step, "llm.openai/m", "LLM")
    said._paths.clear()
    del step, model  # nobody ends them, and nobody can
    driver.look()
    assert over(driver) == [STOPPED]


def test_an_error_that_a_tool_answers_with_is_a_problem_and_no_failure(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "FileEditorAction", output='{"content":[{"text":"secret"}],"is_error":true}')
        said.step(run, "TerminalAction", output=json.dumps({"content": '{"is_error":true}', "is_error": False}))
        said.step(run, "FinishAction")
    over(driver)
    assert driver.last.content.endswith(", 2 tools, 1 problem")
    assert "secret" not in str(driver.reports)


def test_why_a_run_failed_is_told_without_the_wrapping(way: Any) -> None:
    driver = way()
    said = Laminar(driver.tracer)
    with said.run() as run:
        run.set_status(StatusCode.ERROR, f"Conversation run failed for id={SESSION}: litellm.RateLimitError: try later")
    assert over(driver) == ["'OpenHands' failed: try later"]
    assert driver.last.error == "RateLimitError: try later"


# -- who tells -------------------------------------------------------------------------------------------------------


def test_what_somebody_else_tells_of_is_followed_in_silence(way: Any) -> None:
    driver = way(claimed=lambda session: session == SESSION)
    said, other = Laminar(driver.tracer), Laminar(driver.tracer, session="another")
    for conversation in (said, other):
        with conversation.run() as run:
            conversation.step(run, "TerminalAction")
            assert driver.tracker.open_tasks <= 1
            conversation.step(run, "FinishAction")
    assert over(driver) == ["Finished 'OpenHands'"]
    assert {report.chat_id for report in driver.reports} == {"another"}
    assert driver.tracker.open_tasks == 0


def test_what_is_claimed_after_its_start_ends_and_wakes_nobody() -> None:
    claims: set[str] = set()
    driver = Live(claimed=claims.__contains__, wake_after=0.0)
    said = Laminar(driver.tracer)
    with said.run() as run:
        said.step(run, "TerminalAction")
        before = len(driver.reports)
        claims.add(SESSION)
        said.step(run, "TerminalAction")
        claims.clear()  # it stays as it is, whoever forgets it
        said.step(run, "TerminalAction")
        assert driver.tracker.open_tasks == 0
    over(driver)
    assert len(driver.reports) == before + 1
    assert (driver.last.content, driver.last.wakes) == ("'OpenHands' ended; its callback tells how", False)
    assert driver.last.task_id == driver.reports[0].task_id


@pytest.mark.parametrize("delivery", ["messages", "auto"])
def test_callback_and_spans_at_once_tell_each_thing_once(delivery: str) -> None:
    with InMemoryLetta() as letta:
        agent = letta.create_agent()
        options: dict[str, Any] = {
            "base_url": letta.base_url,
            "agent_id": agent,
            "delivery": delivery,
            "message_interval": 0,
            "wake_after": 0,
        }
        processor = LettaSpanProcessor(**options)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        tracer = provider.get_tracer("lmnr.tracer")
        told = openhands.callback(conversation_id=SESSION, chat_id="chat-1", **options)
        said, alone = Laminar(tracer), Laminar(tracer, session="nobody-claims-it")
        told({"kind": "MessageEvent", "source": "user"})
        for conversation in (said, alone):
            with conversation.run() as run:
                conversation.step(run, "FinishAction")
        told({"kind": "ActionEvent", "tool_name": "finish", "action": {"message": "done"}})
        told({"kind": "ObservationEvent", "tool_name": "finish", "observation": {}})
        assert provider.force_flush()
        assert openhands.flush(10)
        assert processor.stats()["open_tasks"] == 0
        ends = [report for report in letta.reports(agent) if report["status"] == "completed"]
        openhands.shutdown()
        provider.shutdown()
    assert sorted((end["chat_id"], end["result"]) for end in ends) == [("chat-1", "done"), ("nobody-claims-it", None)]
    assert f"{SESSION}/" in next(end["task_id"] for end in ends if end["chat_id"] == "chat-1")
