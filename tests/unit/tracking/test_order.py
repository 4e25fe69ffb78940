"""Order is no evidence: the spans of one request in any order give the same reports."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.report import ProgressReport
from otel_letta.tracking.order import in_order
from tests.support.recorded import Played, batches, traces
from tests.unit.tracking.test_inferred_tasks import made

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
