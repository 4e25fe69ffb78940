"""Recorded runs of agent frameworks in Python, compared with what really happened in each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.framework_runs import NOTHING, RUNS, WAITS
from tests.support.recorded_agents import Played, play
from tests.support.tracked import Live

_FOLDER = Path(__file__).parents[2] / "data" / "frameworks"
ORDERS = ("as recorded", "each request reversed", "one batch", "one batch, reversed")


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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_reported_as_it_was(name: str, order: str, tmp_path: Path) -> None:
    run, played = RUNS[name], play_in(order, name, tmp_path)
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


def test_every_recording_has_a_right_value() -> None:
    assert {path.name.removesuffix(".otlp.jsonl.gz") for path in _FOLDER.glob("*.gz")} == set(RUNS)


@pytest.mark.parametrize(
    ("name", "chats"), [("agno.two_runs", {"session-7"}), ("langchain_oll.two_runs", {"thread-7"})]
)
def test_two_runs_of_a_conversation_have_its_id(name: str, chats: set[str], tmp_path: Path) -> None:
    assert {report.chat_id for report in play_in("as recorded", name, tmp_path).reports} == chats


def test_a_live_workflow_is_one_task_from_its_start() -> None:
    live = Live()
    started = live.tracer.start_as_current_span
    with started("workflow.run", attributes={"workflow.id": "w", "workflow.name": "pipeline"}) as workflow:
        workflow.add_event("workflow.started")
        live.look()
        for name in ("researcher", "writer"):
            agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}
            with started(f"executor.process {name}", attributes={"executor.id": name}):
                live.tracer.start_span(f"invoke_agent {name}", attributes=agent).end()
        workflow.add_event("workflow.completed")
    live.clock.pass_seconds(10)
    live.tracker.tick()
    assert [report.content.partition(" in ")[0] for report in live.reports] == [
        "Started 'pipeline'",
        "Sub-agent researcher finished",
        "Sub-agent writer finished",
        "Finished 'pipeline'",
    ]
