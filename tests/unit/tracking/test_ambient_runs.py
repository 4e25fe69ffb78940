"""Runs without an agent's span of their own: the nearest span over a tool and a model call is the agent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta.report import TaskStatus
from otel_letta.tracking import Reading
from tests.support.tracked import Live
from tests.unit.tracking.test_inferred_tasks import CHAT, Played, arrived, chat, contents, made, tool

FAILED, COMPLETED = TaskStatus.FAILED, TaskStatus.COMPLETED
NAMED = {**CHAT, "gen_ai.conversation.id": "c", "gen_ai.agent.name": "keeper"}


def run(first: int, above: int | None, start: float, *, error: str | None = None, name: str = "job") -> list[Any]:
    """Return a job's span without a role over a model call, a tool and a model call."""
    return [
        chat(first + 1, first, start, start + 1),
        tool("read", first + 2, first, start + 1, start + 2),
        chat(first + 3, first, start + 2, start + 3, error=error),
        made(name, first, above, start, start + 3.1, error=error),
    ]


def ends(played: Played) -> list[tuple[TaskStatus, str]]:
    return [(end.status, end.content.partition(" in ")[0]) for end in played.ends]


def test_a_run_below_a_request_is_judged_like_an_agents() -> None:
    assert ends(arrived(*run(1, None, 0))) == [(COMPLETED, "Finished 'unnamed agent'")]
    assert ends(arrived(*run(1, None, 0, error="500: exploded"))) == [(FAILED, "'unnamed agent' failed: 500: exploded")]


def test_its_own_error_counts_though_its_calls_went_well() -> None:
    spans = [chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2), chat(4, 1, 2, 3), made("job", 1, None, 0, 3, error="disk full")]
    assert ends(arrived(*spans)) == [(FAILED, "'unnamed agent' failed: disk full")]


def test_a_run_that_ends_on_a_tool_stopped() -> None:
    spans = [chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2), made("request", 1, None, 0, 3, kind=SpanKind.SERVER)]
    assert ends(arrived(*spans)) == [(FAILED, "'unnamed agent' stopped: it ended without an answer")]


def test_two_runs_that_go_by_the_traces_id_one_after_the_other_are_two_runs_of_it() -> None:
    """Below a span that never ends both do, as long as nobody knows what bounds them."""
    played = Played()
    began = played.clock.now
    first, second = _job(10, 0), _job(20, 1.9)
    for at, request in ((0.7, first[:2]), (2.0, first[2:]), (3.3, second[:2]), (4.2, second[2:])):
        played.pass_seconds(at - (played.clock.now - began) / 1e9)
        for span in reversed(request):
            played.tracker.ended_alone(Reading.of(span))
        played.tracker.tick()
    played.tracker.finish()
    assert ends(played) == [(COMPLETED, "Finished 'keeper'")] * 2
    assert len({end.identity for end in played.ends}) == 2
    assert len({(end.task_id, end.run) for end in played.ends}) == 2


def _job(first: int, start: float) -> list[Any]:
    return [
        chat(first + 1, first, start, start + 0.3, attributes=NAMED),
        tool("read", first + 2, first, start + 0.3, start + 0.4),
        chat(first + 3, first, start + 0.4, start + 0.6, attributes=NAMED),
        tool("run", first + 4, first, start + 0.6, start + 0.7),
        made("job", first, 1, start, start + 0.95),
        chat(first + 5, first, start + 0.7, start + 0.9, attributes=NAMED),
    ]


def test_runs_below_a_span_that_never_ends_are_tasks_each_at_its_own_end() -> None:
    played = Played()
    played.arrive(run(10, 1, 0))
    played.pass_seconds(3)
    assert ends(played) == [(COMPLETED, "Finished 'unnamed agent'")]
    played.arrive(run(20, 1, 100, error="500"))
    played.pass_seconds(3)
    assert [status for status, _ in ends(played)] == [COMPLETED, FAILED]
    assert len({end.task_id for end in played.ends}) == 2
    played.pass_seconds(10_000)
    assert len(played.ends) == 2


def test_the_nearest_span_is_the_run_and_not_the_request_around_it() -> None:
    spans = [*run(10, 1, 0), *run(20, 1, 4), made("POST /", 1, None, 0, 8, kind=SpanKind.SERVER, error="500")]
    assert ends(arrived(*spans)) == [(COMPLETED, "Finished 'unnamed agent'")] * 2


def test_the_nearest_span_with_both_may_be_further_up() -> None:
    call, work = made("call", 2, 1, 0, 1), made("work", 4, 1, 1, 2)
    spans = [chat(3, 2, 0, 1), call, tool("t", 5, 4, 1, 2), work, chat(6, 1, 2, 3), made("job", 1, None, 0, 4)]
    assert [end.content for end in arrived(*spans).ends] == ["Finished 'unnamed agent' in 4.0 s, 1 tool"]


def test_a_turn_between_an_agent_and_its_calls_is_no_agent() -> None:
    turns = [*run(10, 1, 0, name="cycle"), *run(20, 1, 4, name="cycle")]
    root = made("invoke_agent A", 1, None, 0, 9, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "A"})
    for order in ([*turns, root], [root, *turns], [*turns[::-1], root]):
        played = Played()
        played.arrive(order)
        played.pass_seconds(3)
        assert [end.content for end in played.ends] == ["Finished 'A' in 9.0 s, 2 tools"]


def test_turns_that_end_on_a_tool_are_no_tasks_when_their_agent_never_comes() -> None:
    turns = [
        [chat(n + 1, n, n, n + 1), tool("t", n + 2, n, n + 1, n + 2), made("cycle", n, 1, n, n + 3)] for n in (10, 20)
    ]
    played = arrived(*itertools.chain(*turns), wait=10_000)
    assert [end.content for end in played.ends] == ["'unnamed agent' failed: lost, no news for 15 min"]


@pytest.mark.parametrize("error", [None, "500"])
def test_calls_of_models_alone_say_nothing_whatever_they_carry(error: str | None) -> None:
    calls = [chat(n, 1, n, n + 1, attributes=NAMED, error=error) for n in range(2, 5)]
    for around in ([], [made("POST /", 1, None, 0, 9, error=error)]):
        played = arrived(*calls, *around, wait=10_000)
        played.tracker.finish()
        assert contents(played) == []
        assert played.tracker.tree.size == 0


def test_work_of_another_process_makes_no_run_of_its_caller() -> None:
    inner = [chat(5, 4, 1, 2), made("POST /", 4, 3, 1, 2, kind=SpanKind.SERVER, remote=True)]
    spans = [*inner, made("POST", 3, 1, 1, 2, kind=SpanKind.CLIENT), tool("t", 2, 1, 2, 3), made("job", 1, None, 0, 4)]
    assert arrived(*spans).reports == []


@pytest.mark.parametrize("error", [None, "500: exploded"])
def test_requests_in_any_order_within_the_grace_give_the_same(error: str | None) -> None:
    spans = [*run(10, 1, 0, error=error), made("POST /", 1, None, 0, 3.2, kind=SpanKind.SERVER)]
    found = set()
    for order in itertools.permutations(spans):
        played = arrived(*order)
        found.add(tuple(end.content for end in played.ends))
    assert len(found) == 1
    assert len(found.pop()) == 1


@pytest.mark.parametrize("error", [None, "500: exploded"])
def test_a_run_that_runs_here_is_told_alike(error: str | None) -> None:
    live = Live()
    for n in range(2):
        with (
            live.tracer.start_as_current_span("POST /", kind=SpanKind.SERVER),
            live.tracer.start_as_current_span("job"),
        ):
            live.tracer.start_span("chat m", attributes=NAMED).end()
            with live.tracer.start_as_current_span(
                "execute_tool t", attributes={"gen_ai.operation.name": "execute_tool"}
            ):
                live.tracer.start_span("SELECT").end()
            last = live.tracer.start_span("chat m", attributes=NAMED)
            if error is not None:
                last.set_status(StatusCode.ERROR, error)
            last.end()
        live.clock.pass_seconds(3)
        live.tracker.tick()
        assert len(live.ends) == n + 1
    assert [(end.status, end.chat_id) for end in live.ends] == [(FAILED if error else COMPLETED, "c")] * 2
    assert live.tracker.tree.size == 0


def test_calls_of_models_alone_that_run_here_say_nothing() -> None:
    live = Live()
    with live.tracer.start_as_current_span("POST /"):
        for _ in range(3):
            live.tracer.start_span("chat m", attributes=NAMED).end()
    live.clock.pass_seconds(10)
    live.tracker.tick()
    assert live.reports == []
    assert live.tracker.tree.size == 0
