"""Sub-agents that no span above them shows, and whose conversation a task is in."""

from __future__ import annotations

import itertools
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, TraceFlags

from otel_letta.report import TaskStatus
from tests.unit.tracking.test_inferred_tasks import Played, agent, arrived, chat, contents, told, tool

SAME = {"gen_ai.conversation.id": "c-1"}


def sub(name: str, trace: int, start: float, end: float, **more: Any) -> ReadableSpan:
    return agent(name, trace * 10, None, start, end, trace_id=trace, attributes=SAME, **more)


def linked(span: ReadableSpan, to: int, trace: int = 1) -> ReadableSpan:
    span._links = (Link(SpanContext(trace, to, False, TraceFlags(TraceFlags.SAMPLED))),)
    return span


def test_agents_of_one_conversation_within_anothers_time_are_its_sub_agents_in_any_order() -> None:
    spans = [sub("writer", 2, 1, 3), sub("reader", 3, 1, 4), sub("fanout", 1, 0, 4.5)]
    for order in itertools.permutations(spans):
        played = arrived(*order)
        assert [(end.name, end.status) for end in played.ends] == [("fanout", TaskStatus.COMPLETED)]
        assert {report.task_id for report in played.reports} == {played.ends[0].task_id}
        assert {"Sub-agent writer finished", "Sub-agent reader finished"} <= set(contents(played))
        assert played.tracker.tree.size == 0


def test_a_sub_agents_failure_that_nothing_came_after_is_its_callers() -> None:
    played = arrived(sub("writer", 2, 1, 3, error="disk full"), sub("fanout", 1, 0, 4.5))
    assert [end.content for end in played.ends] == ["'fanout' failed: disk full"]


def test_two_turns_of_a_conversation_and_agents_of_other_services_are_tasks_of_their_own() -> None:
    turns = [sub("one", 1, 0, 1), sub("two", 2, 2, 3), sub("overlaps", 3, 2.5, 4)]
    other = [sub("outer", 4, 0, 9, resource={"service.name": "other"})]
    assert sorted(end.name for end in arrived(*turns, *other).ends) == ["one", "outer", "overlaps", "two"]


def test_an_agent_that_links_to_a_tool_is_the_sub_agent_of_that_ones_agent() -> None:
    work = [chat(12, 10, 0, 1), tool("delegate", 13, 10, 1, 2), chat(14, 10, 3, 4)]
    caller = agent("caller", 10, None, 0, 5)
    inner = linked(agent("helper", 20, None, 1, 8, trace_id=2), 13)
    played = Played()
    played.arrive([*work, caller, inner])
    played.pass_seconds(10)
    assert [end.name for end in played.ends] == ["caller"]
    # In the background it may end after its caller, and is still no task of its own.
    played.arrive([linked(agent("background", 30, None, 1, 20, trace_id=3), 13)])
    played.pass_seconds(10)
    assert [end.name for end in played.ends] == ["caller"]


def test_a_link_to_anything_else_makes_no_sub_agent() -> None:
    lone = linked(agent("lone", 20, None, 1, 8, trace_id=2), 99)
    assert [end.name for end in arrived(agent("other", 10), lone).ends] == ["other", "lone"]


def test_a_sub_agents_own_conversation_is_not_the_tasks() -> None:
    inner = {"gen_ai.conversation.id": "made-up"}
    spans = [
        agent("checker", 3, 2, 1, 2, attributes=inner),
        tool("checker", 2, 1, 1, 2.1),
        chat(4, 1, 3, 4),
        agent("keeper", 1, None, 0, 5, attributes=SAME),
    ]
    played = arrived(*spans)
    assert {report.chat_id for report in played.reports} <= {"c-1", f"{1:032x}"}
    assert played.ends[0].chat_id == "c-1"


def test_what_comes_after_it_has_ended_is_told_in_the_order_of_its_ends() -> None:
    spans = [agent("A", 1), chat(5, 1, 4, 5), tool("second", 3, 1, 1, 3), tool("first", 2, 1, 1, 2)]
    assert [content for _, _, content in told(arrived(*spans))] == [
        "Started 'A'",
        "Used tool first (1.0 s); 1 tool used",
        "Used tool second (2.0 s); 2 tools used",
        "Finished 'A' in 9.0 s, 2 tools",
    ]
