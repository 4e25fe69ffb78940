"""Work that goes on when the turn that began it is over is the task's: it has not ended."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link

from otel_letta.report import TaskStatus
from tests.support.tracked import Live
from tests.unit.tracking.test_inferred_tasks import Played, agent, chat, contents, tool

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": "c-1"}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "build"}
SAME = {"gen_ai.conversation.id": "c-1"}
GOES_ON = "'A' has answered, and work of it goes on in the background"


def named(name: str, **more: Any) -> dict[str, Any]:
    return {**AGENT, "gen_ai.agent.name": name, **more}


def wait(live: Live, seconds: float) -> None:
    live.clock.pass_seconds(seconds)
    live.tracker.tick()


def test_a_tool_that_runs_on_keeps_the_task_open_and_its_end_ends_it() -> None:
    live = Live()
    root = live.tracer.start_span("A", attributes=named("A"), start_time=live.clock.now)
    shell = live.tracer.start_span("shell", trace.set_span_in_context(root), attributes=TOOL)
    wait(live, 1)
    root.end(live.clock.now)
    wait(live, 3)
    assert (live.ends, live.last.content) == ([], f"{GOES_ON}: build")
    wait(live, 600)
    assert [report.content for report in live.reports].count(f"{GOES_ON}: build") == 1
    shell.end(live.clock.now)
    assert [(end.status, end.content) for end in live.ends] == [(TaskStatus.COMPLETED, "Finished 'A' in 1.0 s, 1 tool")]


def test_an_agent_that_failed_is_told_so_whatever_runs_on() -> None:
    live = Live()
    root = live.tracer.start_span("A", attributes=named("A"))
    live.tracer.start_span("shell", trace.set_span_in_context(root), attributes=TOOL)
    root.set_status(trace.StatusCode.ERROR, "ValueError: bad row")
    root.end()
    wait(live, 3)
    assert [end.status for end in live.ends] == [TaskStatus.FAILED]


def test_an_open_agent_of_the_same_conversation_or_one_that_links_to_a_tool_is_waited_for() -> None:
    for own, linked in ((named("helper"), False), (named("helper", **{"gen_ai.conversation.id": "c-2"}), True)):
        live = Live()
        root = live.tracer.start_span("A", attributes=named("A"), start_time=live.clock.now)
        wait(live, 1)
        call = live.tracer.start_span("task", trace.set_span_in_context(root), attributes=TOOL)
        links = [Link(call.get_span_context())] if linked else []
        helper = live.tracer.start_span("helper", attributes=own, links=links, start_time=live.clock.now)
        call.end()
        wait(live, 1)
        root.end(live.clock.now)
        wait(live, 3)
        assert (live.ends, live.last.content) == ([], f"{GOES_ON}: helper")
        helper.end(live.clock.now)
        wait(live, 3)
        assert sorted(end.name for end in live.ends) == ["A", "helper"]


def test_an_agent_of_another_conversation_or_a_later_one_is_not_waited_for() -> None:
    live = Live()
    root = live.tracer.start_span("A", attributes=named("A"), start_time=live.clock.now)
    live.tracer.start_span("other", attributes=named("B", **{"gen_ai.conversation.id": "c-2"}))
    wait(live, 1)
    root.end(live.clock.now)
    live.clock.pass_seconds(1)
    live.tracer.start_span("next", attributes=named("A"), start_time=live.clock.now)
    wait(live, 3)
    assert [end.name for end in live.ends] == ["A"]


def test_what_never_ends_is_waited_for_only_so_long() -> None:
    live = Live(idle_timeout=10.0)
    root = live.tracer.start_span("A", attributes=named("A"))
    leaked = live.tracer.start_span("shell", trace.set_span_in_context(root), attributes=TOOL)
    root.end()
    for _ in range(10):
        wait(live, 10)
    assert [end.status for end in live.ends] == [TaskStatus.COMPLETED]
    leaked.end()
    assert len(live.ends) == 1


def test_exported_work_of_a_background_agent_keeps_its_callers_task_open() -> None:
    played = Played()
    played.arrive([tool("task", 12, 10, 0, 1), chat(13, 10, 1, 2), agent("A", 10, None, 0, 3, attributes=SAME)])
    # A sub-agent that began in that time has a trace of its own, and only its tool has ended.
    played.arrive([tool("read", 21, 20, 2, 3.5, trace_id=2, attributes=SAME)])
    for seconds in (3, 60, 600):
        played.pass_seconds(seconds)
        assert played.ends == []
    assert contents(played).count(GOES_ON) == 1
    played.arrive([agent("helper", 20, None, 1, 700, trace_id=2, attributes=SAME)])
    played.pass_seconds(3)
    played.pass_seconds(3)
    assert sorted(end.name for end in played.ends) == ["A", "helper"]
    assert played.tracker.tree.size == 0
