"""Tasks as requests to a Collector, and what has become of them behind it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from otel_letta.testing import InMemoryLetta
from tests.support.collector_run import Gateway, Sink
from tests.support.waiting import until

__all__ = ["PATIENCE", "check_ends", "ends", "every_end_once", "gave_up", "ids", "names_at", "once", "tasks"]

PATIENCE = 240.0
"""Seconds; a machine may be busy with other things."""


def tasks(numbers: range, spans: int = 3) -> list[dict[str, Any]]:
    """Return requests of one task each: the task's span, and others below it."""
    return [{"resourceSpans": [{"scopeSpans": [{"spans": _of_task(number, spans)}]}]} for number in numbers]


def _of_task(number: int, spans: int) -> list[dict[str, Any]]:
    trace = f"{number + 1:032x}"
    times = {"startTimeUnixNano": "1795946400000000000", "endTimeUnixNano": "1795946401000000000"}
    found: list[dict[str, Any]] = []
    for part in range(spans):
        span: dict[str, Any] = {"traceId": trace, "spanId": f"{number * 1000 + part + 1:016x}", **times}
        if part:
            span |= {"name": f"part {part}", "parentSpanId": f"{number * 1000 + 1:016x}"}
        else:
            span["name"] = f"task {number}"
            span["attributes"] = [{"key": "letta.task.id", "value": {"stringValue": f"t{number}"}}]
        found.append(span)
    return found


def ids(sink: Sink) -> Counter[tuple[bytes, bytes]]:
    """Return how often each span arrived."""
    return Counter((span.trace_id, span.span_id) for span in sink.spans)


def names_at(sink: Sink) -> set[str]:
    """Return the tasks whose own spans arrived."""
    return {name for name in sink.names if name.startswith("task ")}


def once(sink: Sink, spans: int) -> None:
    """Wait for so many spans, and see that there are no more, and none twice."""
    assert until(lambda: len(ids(sink)) >= spans, PATIENCE), len(ids(sink))
    found = ids(sink)
    assert len(found) == spans
    assert set(found.values()) == {1}, "sent twice"


def ends(letta: InMemoryLetta, agent: str) -> Counter[str]:
    """Return how often the end of each task was reported, by its name."""
    return Counter(report["task"] for report in letta.reports(agent) if report["status"] != "in_progress")


def every_end_once(letta: InMemoryLetta, agent: str, count: int, unsure: range = range(0)) -> None:
    """Wait for the ends of that many tasks, from the first on, and see that none is there twice.

    Args:
        unsure: tasks whose ends were on their way when a receiver was killed; these may be reported once more
            (`docs/serve.md`, "What survives").
    """
    wanted = {f"task {number}" for number in range(count)}
    assert until(lambda: ends(letta, agent).keys() >= wanted, PATIENCE), wanted - ends(letta, agent).keys()
    check_ends(ends(letta, agent), count, unsure)


def check_ends(found: Counter[str], count: int, unsure: range = range(0)) -> None:
    """See that the ends of that many tasks are there, each once; see `every_end_once`."""
    assert found.keys() == {f"task {number}" for number in range(count)}
    again = {name for name, times in found.items() if times > 1}
    assert again <= {f"task {number}" for number in unsure}
    assert max(found.values()) <= 2


def gave_up(running: Gateway) -> bool:
    """Return True once the hop has dropped something, since the queue behind it stays full or its disk does."""
    return "no more retries left" in running.collector.log
