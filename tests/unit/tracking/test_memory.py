"""What is kept of what is over: bounded, whatever kind of spans a program makes for months."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_letta.recent import Recent
from otel_letta.tracking.log_events import LogEvent
from otel_letta.tracking.nodes import Node
from tests.support.memory import reachable
from tests.support.tracked import Alone, Live

Driver = Live | Alone
_KEPT = 20
"""The most entries of each memory here, so that all are full soon."""
_DAY = 86_400.0
_count = itertools.count()


@pytest.fixture(autouse=True)
def _small_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recent.__init__
    monkeypatch.setattr(Recent, "__init__", lambda self, most=1_000: real(self, min(most, _KEPT)))


def declared(driver: Driver) -> None:
    with driver.tracer.start_as_current_span("work", attributes={"letta.task.name": f"t{next(_count)}"}):
        pass


def with_an_id(driver: Driver) -> None:
    with driver.tracer.start_as_current_span("work", attributes={"letta.task.id": f"t{next(_count)}"}):
        pass


def with_steps(driver: Driver) -> None:
    with driver.tracer.start_as_current_span("work", attributes={"letta.task.name": f"t{next(_count)}"}):
        with driver.tracer.start_as_current_span("step", attributes={"letta.task.progress": 0.5}):
            pass
        with driver.tracer.start_as_current_span("tool", attributes={"gen_ai.operation.name": "execute_tool"}):
            pass


def that_waits(driver: Driver) -> None:
    attributes = {"letta.task.name": f"t{next(_count)}", "letta.task.waiting": True}
    with driver.tracer.start_as_current_span("work", attributes=attributes):
        pass


def to_agents_not_allowed(driver: Driver) -> None:
    attributes = {"letta.task.name": "t", "letta.agent.id": f"agent-{next(_count)}", "letta.task.progress": "much"}
    with driver.tracer.start_as_current_span("work", attributes=attributes):
        pass


def model_call(driver: Driver) -> None:
    with driver.tracer.start_as_current_span(
        "chat", attributes={"gen_ai.operation.name": "chat"}, kind=SpanKind.CLIENT
    ):
        pass


def tool_call(driver: Driver) -> None:
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
    with driver.tracer.start_as_current_span("execute_tool search", attributes=attributes):
        pass


def conversation(driver: Driver) -> None:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.conversation.id": f"c{next(_count)}"}
    with driver.tracer.start_as_current_span("chat", attributes=attributes, kind=SpanKind.CLIENT):
        pass


def agent(driver: Driver) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
    with driver.tracer.start_as_current_span("invoke_agent a", attributes=attributes):
        model_call(driver)
        tool_call(driver)
        model_call(driver)


def run_without_an_agent(driver: Driver) -> None:
    with driver.tracer.start_as_current_span("request"):
        model_call(driver)
        tool_call(driver)
        model_call(driver)


def failing_agent(driver: Driver) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{next(_count)}"}
    with driver.tracer.start_as_current_span("invoke_agent", attributes=attributes) as span:
        tool_call(driver)
        span.set_status(Status(StatusCode.ERROR, "it broke"))


def orphan(driver: Driver) -> None:
    """Every other span never comes: the one above, of an exporter that drops some."""
    with driver.tracer.start_as_current_span("lost") as lost:
        with driver.tracer.start_as_current_span("work", attributes={"letta.task.name": f"t{next(_count)}"}):
            pass
        tool_call(driver)
    if isinstance(driver, Alone):
        driver.batch = [span for span in driver.batch if span.name != lost.name]  # type: ignore[attr-defined]


def plain(driver: Driver) -> None:
    with driver.tracer.start_as_current_span("request") as span, driver.tracer.start_as_current_span("query"):
        span.set_status(Status(StatusCode.ERROR, "it broke"))


KINDS = (
    declared,
    with_an_id,
    with_steps,
    that_waits,
    to_agents_not_allowed,
    model_call,
    tool_call,
    conversation,
    agent,
    run_without_an_agent,
    failing_agent,
    orphan,
    plain,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("of", [Live, Alone])
def test_what_is_over_takes_no_room_for_good(of: type[Driver], kind: Callable[[Driver], None]) -> None:
    def work(driver: Driver) -> None:
        kind(driver)
        if isinstance(driver, Alone):
            driver.export()
            driver.batch.clear()

    driver = of()
    first, last = _rooms(driver, lambda: work(driver))
    assert last <= first


def test_log_events_of_turns_that_are_over_take_no_room_for_good() -> None:
    driver = Alone({"service.name": "coder"})

    def turn() -> None:
        session = f"s{next(_count)}"
        for seconds, name, attributes in (
            (0, "x.user_prompt", {}),
            (1, "x.tool_decision", {"tool_name": "Bash", "call_id": "c1", "decision": "accept"}),
            (2, "x.tool_result", {"tool_name": "Bash", "call_id": "c1", "success": "true"}),
        ):
            driver.clock.pass_seconds(seconds)
            event = LogEvent.of(
                name,
                {"session.id": session, **attributes},
                {"service.name": "coder"},
                time=driver.clock.now,
                trace_id=0,
                span_id=0,
                scope="coder.events",
            )
            assert event is not None
            driver.tracker.event(event)
            driver.tracker.tick()

    first, last = _rooms(driver, turn)
    assert last <= first


@pytest.mark.parametrize("kind", [agent, run_without_an_agent, failing_agent], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("of", [Live, Alone])
def test_the_spans_of_a_task_that_is_over_wait_for_no_collector_of_memory(
    of: type[Driver], kind: Callable[[Driver], None]
) -> None:
    """It costs as much as the spans do, or more: each refers to the one above it, and that one to all below."""
    driver = of()
    gc.collect()
    gc.disable()
    try:
        before = _nodes()
        kind(driver)
        if isinstance(driver, Alone):
            driver.export()
            assert _nodes() > before
        driver.clock.pass_seconds(10)
        driver.tracker.tick()
        assert driver.reports[-1].status.is_terminal
        assert _nodes() == before
    finally:
        gc.enable()


def _nodes() -> int:
    return sum(type(each) is Node for each in gc.get_objects())


def _rooms(driver: Driver, work: Callable[[], None]) -> tuple[int, int]:
    """Return how many objects the tracker keeps when its memories are full, and when it has worked as much again."""
    kept = []
    for _ in range(4):
        for _ in range(3 * _KEPT):
            work()
        driver.reports.clear()
        for _ in range(4):  # whatever waits for something has waited long enough
            driver.clock.pass_seconds(30 * _DAY)
            driver.tracker.tick()
        driver.reports.clear()
        kept.append(sum(1 for _ in reachable(driver.tracker)))
    # A few more or less: what an interpreter shares or not, and what hangs by the newest entry.
    return max(kept[:2]) + _KEPT // 2, kept[-1]


def test_a_span_with_a_role_takes_no_dictionary() -> None:
    """It sets so many attributes that one of its own would take three times as much as all of them."""
    alone = Alone()
    alone.tracer.start_span("keeper", attributes={"gen_ai.operation.name": "invoke_agent"}).end()
    alone.export()
    (trace,) = alone.tracker.tree.traces.values()
    (node,) = trace.nodes.values()
    assert not hasattr(node, "__dict__")


def test_an_open_task_keeps_neither_the_text_of_its_id_nor_a_dictionary_of_its_own() -> None:
    """A program may have 100,000 of them."""
    live = Live()
    live.tracer.start_span("work", attributes={"letta.task.name": "t"})
    live.tracer.start_span("work", attributes={"letta.task.name": "t"})
    texts = {each for each in reachable(live.tracker, live.reports) if type(each) is str}
    assert texts.isdisjoint(report.task_id for report in live.reports)
    (task, *_) = live.tracker._ledger.tasks.values()
    assert vars(task) == {}
