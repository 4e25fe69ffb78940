"""A pause is no end: a task that waits for somebody stays in progress, and goes on as the same task."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.report import TaskStatus
from otel_letta.tracking import Reading
from tests.support.tracked import Alone, Live
from tests.unit.tracking.test_inferred_tasks import Played, agent, arrived, chat, made, tool


class Exported(Alone):
    """Hands over each span when it has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        self.tracker.ended_alone(Reading.of(span))


IN_PROGRESS, COMPLETED, FAILED = TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED, TaskStatus.FAILED
DAY = 86_400
INTERRUPT = (
    "exception",
    {"exception.type": "langgraph.errors.GraphInterrupt", "exception.message": "Interrupt(value={})"},
)


def refund(first: int, trace: int, start: float, *, waits: bool, chat_id: str | None = "c-1") -> list[Any]:
    """Return the spans of an agent that asks a person, or goes on and answers."""
    conversation = {"gen_ai.conversation.id": chat_id} if chat_id else {}
    events = (INTERRUPT,) if waits else ()
    spans = [
        chat(first + 1, first, start, start + 1, trace_id=trace),
        tool("refund", first + 2, first, start + 1, start + 2, trace_id=trace, events=events),
    ]
    if not waits:
        spans.append(chat(first + 3, first, start + 2, start + 3, trace_id=trace))
    return [*spans, agent("desk", first, None, start, start + 4, trace_id=trace, attributes=conversation)]


def test_an_interrupted_agent_waits_once_and_goes_on_as_the_same_task_in_another_trace() -> None:
    played = Played()
    played.arrive(refund(10, 1, 0, waits=True))
    played.pass_seconds(10)
    assert played.ends == []
    assert [(r.status, r.content, r.wakes) for r in played.reports if r.waiting] == [
        (IN_PROGRESS, "waits for a person: refund", True)
    ]
    played.pass_seconds(5_000)  # it is not lost by idling
    before = played.reports[-1]
    assert before.waiting
    played.arrive(refund(20, 2, 5_000, waits=False))
    played.pass_seconds(10)
    assert [(end.status, end.task_id) for end in played.ends] == [(COMPLETED, before.task_id)]
    assert {report.key for report in played.reports} == {before.key}
    assert [report.sequence for report in played.reports] == list(range(1, len(played.reports) + 1))
    assert not played.reports[-1].waiting


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_within_its_request_does_not_matter_for_what_goes_on(reverse: bool) -> None:
    played = Played()
    played.arrive(refund(10, 1, 0, waits=True)[:: -1 if reverse else 1])
    played.pass_seconds(10)
    played.arrive(refund(20, 2, 100, waits=False)[:: -1 if reverse else 1])
    played.pass_seconds(10)
    assert len({report.task_id for report in played.reports}) == 1
    assert [end.status for end in played.ends] == [COMPLETED]


def test_another_conversation_is_another_task() -> None:
    played = Played()
    played.arrive(refund(10, 1, 0, waits=True))
    played.pass_seconds(10)
    played.arrive(refund(20, 2, 100, waits=False, chat_id="c-2"))
    played.pass_seconds(10)
    assert len({report.task_id for report in played.reports}) == 2
    assert len(played.ends) == 1


def test_it_may_wait_again() -> None:
    played = Played()
    for n in range(3):
        played.arrive(refund(10 * (n + 1), n + 1, 100 * n, waits=n < 2))
        played.pass_seconds(10)
    assert [report.waiting for report in played.reports].count(True) == 2
    assert [end.status for end in played.ends] == [COMPLETED]


def test_an_interrupt_that_is_recorded_as_an_error_waits_too() -> None:
    root = agent("desk", 1, None, 0, 4, error="(Interrupt(value={'SECRET': 1}),)", events=(INTERRUPT,))
    played = arrived(chat(2, 1, 0, 1), tool("refund", 3, 1, 1, 2), root)
    assert played.ends == []
    assert played.reports[-1].content == "waits for a person"


def test_nobody_came_for_a_day() -> None:
    played = arrived(*refund(10, 1, 0, waits=True), wait=10)
    played.pass_seconds(DAY - 60)
    assert played.ends == []
    played.pass_seconds(61)
    assert [(end.status, end.content) for end in played.ends] == [
        (FAILED, "'desk' failed: lost, it waited for 24 h and nobody came")
    ]
    played.pass_seconds(10 * DAY)
    assert len(played.ends) == 1


def test_agents_that_wait_at_the_same_time_are_given_up_each_for_itself() -> None:
    one, two = refund(10, 1, 0, waits=True, chat_id="c-1"), refund(20, 2, 0, waits=True, chat_id="c-2")
    played = arrived(*one, *two, wait=10)
    assert sum(report.waiting for report in played.reports) == 2
    played.pass_seconds(DAY + 1)
    assert sorted((end.chat_id, end.status) for end in played.ends) == [("c-1", FAILED), ("c-2", FAILED)]


def test_settings_of_waiting() -> None:
    played = arrived(*refund(10, 1, 0, waits=True), wait=10, wake_on_wait=False, wait_timeout=60.0)
    assert [report.wakes for report in played.reports if report.waiting] == [False]
    played.pass_seconds(61)
    assert [end.status for end in played.ends] == [FAILED]


@pytest.mark.parametrize("end", ["shutdown", "finish"])
def test_a_waiting_task_is_no_failure_when_the_program_ends(end: str) -> None:
    played = arrived(*refund(10, 1, 0, waits=True), wait=10)
    getattr(played.tracker, end)()
    assert played.ends == []


# -- declared ----------------------------------------------------------------------------------------------------------

WAITING = {"letta.task.id": "job-7", "letta.task.status": "in_progress", "letta.task.content": "waits for approval"}


@pytest.mark.parametrize("driver", [Live, Exported])
@pytest.mark.parametrize(
    "said",
    [
        WAITING,
        {"letta.task.id": "job-7", "letta.task.waiting": True},
        {"letta.task.id": "job-7", "letta.task.waiting": True, "letta.chat.id": "c", "letta.task.content": "approve 3"},
    ],
)
def test_a_declared_task_that_waits_goes_on_in_another_trace(driver: Any, said: dict[str, Any]) -> None:
    one = driver()
    one.tracer.start_span("refund", attributes={**said, "letta.task.progress": 0.4}).end()
    assert one.ends == []
    assert one.last.waiting
    assert sum(report.waiting and report.wakes for report in one.reports) == 1
    assert one.last.content in (said.get("letta.task.content"), "waits for a person")
    one.tracer.start_span("refund", attributes={"letta.task.id": "job-7", "letta.task.progress": 0.6}).end()
    assert [end.task_id for end in one.ends] == ["job-7"]
    assert one.ends[0].status is COMPLETED
    assert len({report.key for report in one.reports}) == 1
    assert [report.sequence for report in one.reports] == list(range(1, len(one.reports) + 1))
    assert [report.run for report in one.reports] == [1] * len(one.reports)


def test_a_task_waits_while_its_span_is_open_and_goes_on_in_the_same_one() -> None:
    live = Live()
    span = live.tracer.start_span("job", attributes={"letta.task.id": "job-7", "letta.task.progress": 0.2})
    span.set_attributes({"letta.task.waiting": True, "letta.task.content": "waits for an instruction: which?"})
    live.look()
    assert [(r.waiting, r.wakes, r.status) for r in live.reports][1:] == [(True, True, IN_PROGRESS)]
    span.set_attribute("letta.task.progress", 0.3)
    live.look()
    assert (live.last.waiting, live.last.wakes) == (True, False)  # it was told already
    span.set_attributes({"letta.task.waiting": False, "letta.task.content": ""})
    live.look()
    assert (live.last.waiting, live.last.wakes, live.last.content) == (False, True, "30% complete")
    span.end()
    assert [(end.status, end.waiting) for end in live.ends] == [(COMPLETED, False)]
    assert live.last.content.startswith("Task completed in ")


def test_a_task_waits_again_and_wakes_again() -> None:
    live = Live()
    span = live.tracer.start_span("job", attributes={"letta.task.id": "job-7"})
    for waits in (True, False, True, False):
        span.set_attribute("letta.task.waiting", waits)
        live.look()
    assert [r.wakes for r in live.reports if r.waiting] == [True, True]


@pytest.mark.parametrize("over", ["the step ends", "the step is lost", "it goes on"])
def test_a_task_waits_as_long_as_a_step_of_it_does(over: str) -> None:
    live = Live()
    with live.tracer.start_as_current_span("job", attributes={"letta.task.id": "job-7"}):
        step: Any = live.tracer.start_span("step", attributes={"letta.task.name": "step", "letta.task.waiting": True})
        live.look()
        assert (live.last.task_id, live.last.waiting, live.last.wakes) == ("job-7", True, True)
        if over == "the step ends":
            step.end()
        elif over == "it goes on":
            step.set_attribute("letta.task.waiting", False)
        del step
        gc.collect()
        live.look()
        assert not live.last.waiting
    assert [end.status for end in live.ends] == [COMPLETED]


def by_attribute(span: Any, content: str) -> None:
    span.set_attributes({"letta.task.progress": 0.5, "letta.task.content": content})


def by_event(span: Any, content: str) -> None:
    span.add_event("letta.task.progress", {"letta.task.progress": 0.5, "letta.task.content": content})


says = pytest.mark.parametrize("say", [by_attribute, by_event])


@says
def test_what_other_spans_say_while_a_task_waits_is_no_question(say: Any) -> None:
    live = Live()
    with live.tracer.start_as_current_span("job", attributes={"letta.task.id": "job-7"}) as span:
        span.set_attributes({"letta.task.waiting": True, "letta.task.content": "which ledger?"})
        live.look()
        with live.tracer.start_as_current_span("download", attributes={"letta.task.name": "download"}) as step:
            say(step, "3 of 5 files")
            live.look()
            assert live.last.progress == 0.5
        span.set_attribute("letta.task.waiting", False)
        live.look()
    asked = [(report.content, report.wakes) for report in live.reports if report.waiting]
    assert asked == [("which ledger?", True)] + [("which ledger?", False)] * (len(asked) - 1)
    assert len(asked) > 1
    assert live.reports[-2].content == "3 of 5 files"


@says
def test_a_span_that_waits_may_ask_something_else(say: Any) -> None:
    live = Live()
    span = live.tracer.start_span("job", attributes={"letta.task.id": "job-7", "letta.task.waiting": True})
    live.look()
    for question in ("which?", "the third?", "which?"):
        say(span, question)
        live.look()
    asked = [(report.content, report.wakes) for report in live.reports if report.waiting]
    assert asked == [("waits for a person", True), ("which?", True), ("the third?", True), ("which?", True)]


def test_of_two_steps_that_wait_the_first_is_asked_once() -> None:
    live = Live()
    asking: dict[str, Any] = {}
    with live.tracer.start_as_current_span("job", attributes={"letta.task.id": "job-7"}):
        for name in ("first?", "second?"):
            asks = {"letta.task.waiting": True, "letta.task.content": name}
            asking[name] = live.tracer.start_span(name, attributes=asks)
            live.look()
        asking["second?"].end()
        assert (live.last.waiting, live.last.content, live.last.wakes) == (True, "first?", False)
        asking["first?"].end()
        assert not live.last.waiting


def test_a_content_alone_makes_no_open_task_wait() -> None:
    live = Live()
    span = live.tracer.start_span("job", attributes=WAITING)
    live.look()
    assert not any(report.waiting for report in live.reports)
    span.end()
    assert live.last.waiting


@pytest.mark.parametrize("driver", [Live, Exported])
def test_a_status_of_its_start_that_was_left_there_is_no_pause(driver: Any) -> None:
    one = driver()
    one.tracer.start_span("job", attributes={"letta.task.id": "j", "letta.task.status": "in_progress"}).end()
    assert [end.status for end in one.ends] == [COMPLETED]
    started = {"letta.task.id": "k", "letta.task.status": "in_progress", "letta.task.content": "reads files"}
    one.tracer.start_span("job", attributes=started).end()
    assert [end.status for end in one.ends] == [COMPLETED] * 2


@pytest.mark.parametrize("driver", [Live, Exported])
def test_an_error_or_an_end_that_it_declares_wins_over_waiting(driver: Any) -> None:
    one = driver()
    span = one.tracer.start_span("job", attributes=WAITING)
    span.record_exception(ValueError("broken"))
    span.set_status(made("x", 1, error="broken").status)
    span.end()
    one.tracer.start_span("job", attributes={**WAITING, "letta.task.status": "completed"}).end()
    assert [end.status for end in one.ends] == [FAILED, COMPLETED]


def test_a_declared_task_without_an_id_goes_on_in_the_same_chat() -> None:
    live = Live()
    live.tracer.start_span("a", attributes={"letta.chat.id": "c", "letta.task.waiting": True}).end()
    live.tracer.start_span("a", attributes={"letta.chat.id": "d"}).end()
    live.tracer.start_span("a", attributes={"letta.chat.id": "c"}).end()
    waited = next(report for report in live.reports if report.waiting)
    assert [end.task_id == waited.task_id for end in live.ends] == [False, True]
    live.tracker.shutdown()
    assert len(live.ends) == 2


def test_where_too_many_wait_the_agent_is_told_which_one_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_letta.tracking.parked._MOST", 3)
    driver = Live()
    for number in range(5):
        attributes = {"letta.task.id": f"t{number}", "letta.task.waiting": True}
        with driver.tracer.start_as_current_span("ask", attributes=attributes):
            pass
    assert [(end.task_id, end.status, end.error) for end in driver.ends] == [
        (f"t{number}", FAILED, "nobody came for it, and too many others wait") for number in range(2)
    ]


ASKS = {"gen_ai.response.finish_reasons": ("tool_calls",)}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "desk"}


def ask(live: Live) -> None:
    """Run an agent that ends by asking for a tool."""
    started = live.tracer.start_as_current_span
    chat_attributes = {"gen_ai.operation.name": "chat", **ASKS}
    with started("invoke_agent desk", attributes={**AGENT, **ASKS}), started("chat m", attributes=chat_attributes):
        live.clock.pass_seconds(1)
    live.clock.pass_seconds(10)
    live.tracker.tick()


def test_a_live_agent_that_begins_with_a_tool_goes_on_with_the_one_that_waits_for_one() -> None:
    live = Live()
    ask(live)
    (task,) = {report.task_id for report in live.reports}
    assert live.reports[-1].waiting
    before = len(live.reports)
    with live.tracer.start_as_current_span("invoke_agent desk", attributes=AGENT):
        live.look()
        assert len(live.reports) == before  # nobody can know yet
        tool_call = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "refund"}
        with live.tracer.start_as_current_span("execute_tool refund", attributes=tool_call):
            assert live.reports[before].content == "'desk' goes on"
        live.clock.pass_seconds(1)
        answered = {"gen_ai.operation.name": "chat", "gen_ai.response.finish_reasons": ("stop",)}
        with live.tracer.start_as_current_span("chat m", attributes=answered):
            live.clock.pass_seconds(1)
    live.clock.pass_seconds(10)
    live.tracker.tick()
    assert [(end.status, end.task_id) for end in live.ends] == [(COMPLETED, task)]
    assert {report.task_id for report in live.reports} == {task}


@pytest.mark.parametrize("how", ["asks a model first", "has another name", "two wait"])
def test_a_live_agent_that_may_be_another_one_is_a_task_of_its_own(how: str) -> None:
    live = Live()
    ask(live)
    if how == "two wait":
        ask(live)
    waiting = {report.task_id for report in live.reports}
    name = "clerk" if how == "has another name" else "desk"
    first = "chat" if how == "asks a model first" else "execute_tool"
    started, own = live.tracer.start_as_current_span, {**AGENT, "gen_ai.agent.name": name}
    with started(f"invoke_agent {name}", attributes=own), started(first, attributes={"gen_ai.operation.name": first}):
        assert next(r.content for r in live.reports if r.task_id not in waiting) == f"Started '{name}'"


def test_a_live_agent_that_ends_before_it_did_anything_is_told() -> None:
    live = Live()
    ask(live)
    waiting = {report.task_id for report in live.reports}
    with live.tracer.start_as_current_span("invoke_agent desk", attributes=AGENT):
        live.clock.pass_seconds(1)
    live.clock.pass_seconds(10)
    live.tracker.tick()
    assert [(end.status, end.task_id in waiting) for end in live.ends] == [(COMPLETED, False)]
