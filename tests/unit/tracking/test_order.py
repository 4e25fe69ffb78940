"""Order is no evidence: the spans of one request in any order give the same reports."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.report import ProgressReport
from otel_letta.tracking.order import in_order
from tests.support.recorded import Played, batches, traces
from tests.unit.tracking.test_inferred_tasks import agent, made, tool

SOME = [name for name in traces() if name.endswith(("success", "llm_error", "handoff", "cancel"))][::3]


def reports_of(name: str, shuffle: Any) -> list[ProgressReport]:
    played = Played()
    played.clock.now = 0
    for batch in batches(name):
        spans = list(batch.spans)
        shuffle(spans)
        played.arrive(in_order(spans))
    played.pass_seconds(3)
    played.pass_seconds(1_000)
    return played.reports


@pytest.mark.parametrize("name", SOME)
def test_one_requests_spans_in_any_order_give_the_same_reports(name: str) -> None:
    expected = reports_of(name, lambda spans: None)
    assert reports_of(name, list.reverse) == expected
    for seed in range(3):
        assert reports_of(name, random.Random(seed).shuffle) == expected


def ids(spans: list[ReadableSpan]) -> list[int]:
    return [span.context.span_id for span in spans]


def test_spans_are_ordered_by_their_ends_and_children_come_before_their_parents() -> None:
    late = made("outlives its parent", 4, 2, 1, 9)
    spans = [made("root", 1, None, 0, 5), made("child", 2, 1, 1, 3), made("leaf", 3, 2, 1, 2), late]
    assert ids(in_order(spans)) == ids(in_order(spans[::-1])) == [3, 4, 2, 1]


def test_parents_in_a_circle_and_spans_that_come_twice_do_no_harm() -> None:
    circle = [made("a", 1, 2, 0, 1), made("b", 2, 1, 0, 2), made("a", 1, 2, 0, 1)]
    assert sorted(ids(in_order(circle))) == [1, 1, 2]
    assert in_order([]) == []


def test_nothing_of_a_run_is_told_before_its_root_had_the_grace_to_come() -> None:
    played = Played()
    played.arrive([tool("read", 2, 1, 0, 0.5)])
    played.pass_seconds(1.5)
    assert played.reports == []
    played.arrive([agent("A", 1, None, 0, 2)])
    played.pass_seconds(3)
    assert {report.task_id for report in played.reports} == {f"{1:032x}-{1:016x}"}
    assert [report.name for report in played.reports] == ["A"] * 3


def test_a_run_whose_root_comes_late_goes_by_its_trace_and_its_end_is_known_by_the_root() -> None:
    early, late = Played(), Played()
    early.arrive([tool("read", 2, 1, 0, 0.5), agent("A", 1, None, 0, 9)])
    early.pass_seconds(3)
    late.arrive([tool("read", 2, 1, 0, 0.5)])
    late.pass_seconds(3)
    assert [(report.task_id, report.span_id) for report in late.reports] == [(f"{1:032x}", None)] * 2
    late.arrive([agent("A", 1, None, 0, 9)])
    late.pass_seconds(3)
    assert len({report.key for report in late.reports}) == 1
    assert late.ends[0].task_id != early.ends[0].task_id
    assert late.ends[0].identity == early.ends[0].identity == early.ends[0].task_id


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("unknown_service:/opt/node22/bin/node", "node"),
        ("unknown_service:C:\\Python\\python.exe", "python.exe"),
        ("unknown_service", "unnamed agent"),
        ("desk", "desk"),
    ],
)
def test_a_run_without_a_name_has_its_services_or_its_programs(service: str, name: str) -> None:
    played = Played()
    played.arrive([tool("read", 2, 1, 0, 0.5, resource={"service.name": service})])
    played.pass_seconds(3)
    assert {report.name for report in played.reports} == {name}
