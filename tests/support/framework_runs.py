"""Recorded runs of agent frameworks in Python, and what really happened in each.

Every run had a scripted model, and two tools, ``search_docs`` and ``send_report``. ``SECRET`` begins each prompt,
argument, result and answer.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.recorded_agents import Played, play

__all__ = ["COMPLETED", "FAILED", "NOTHING", "ORDERS", "WAITS", "Run", "check", "check_all_are_read", "play_in"]

_FOLDER = Path(__file__).parents[1] / "data" / "frameworks"
ORDERS = ("as recorded", "each request reversed", "one batch", "one batch, reversed")
COMPLETED, FAILED, WAITS = "completed", "failed", "in_progress"


class Run(NamedTuple):
    """What really happened; the first fields are about the run's last task."""

    name: str
    status: str
    words: str
    """In its last report. Where spans do not show why a run ended, that it ended without an answer."""
    tools: int
    """The calls of tools of all tasks."""
    others: tuple[tuple[str, str], ...] = ()
    """Names and statuses of the tasks before it."""
    says: tuple[str, ...] = ()
    """Further reports, by their beginnings."""


NOTHING = Run("", "", "", 0)
"""Calls of a model alone, or a retrieval: no task."""


def check(run: Run, name: str, order: str, folder: Path) -> None:
    """Assert that a recording, played in an order, is reported as it was."""
    played = play_in(order, name, folder)
    last = {report.task_id: report for report in played.reports}
    expected = [*run.others, (run.name, run.status)] if run is not NOTHING else []

    assert sorted((report.name, report.status.value) for report in last.values()) == sorted(expected)
    found = [r.content for r in last.values() if (r.name, r.status.value) == (run.name, run.status)]
    assert run is NOTHING or any(run.words in content for content in found), found
    assert played.waiting == (run.status == WAITS)
    assert played.tools == run.tools
    contents = [report.content for report in played.reports]
    assert [said for said in run.says if not any(content.startswith(said) for content in contents)] == []
    assert "SECRET" not in played.shown + "".join(map(repr, played.reports))


def check_all_are_read(runs: Mapping[str, Run]) -> None:
    """Assert that no recording of these frameworks is left out."""
    frameworks = {name.partition(".")[0] for name in runs}
    recorded = {path.name.removesuffix(".otlp.jsonl.gz") for path in _FOLDER.glob("*.gz")}
    assert {name for name in recorded if name.partition(".")[0] in frameworks} == set(runs)


def play_in(order: str, name: str, folder: Path) -> Played:
    """Play a recording through what `otel-letta replay` is made of."""
    with gzip.open(_FOLDER / f"{name}.otlp.jsonl.gz", "rt", encoding="utf-8") as file:
        requests = [json.loads(line) for line in file]
    if order.startswith("one batch"):
        requests = [{"resourceSpans": [group for request in requests for group in request["resourceSpans"]]}]
    if order.endswith("reversed"):
        for request in requests:
            _turn_round(request)
    path = folder / "spans.jsonl"
    path.write_text("".join(f"{json.dumps(request)}\n" for request in requests), "utf-8")
    return play([path])


def _turn_round(request: dict[str, Any]) -> None:
    request["resourceSpans"].reverse()
    for group in request["resourceSpans"]:
        group["scopeSpans"].reverse()
        for scope in group["scopeSpans"]:
            scope["spans"].reverse()
