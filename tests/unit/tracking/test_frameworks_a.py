"""Recorded runs of agent frameworks in Python, compared with what really happened in each.

Every run had a scripted model, and two tools, ``search_docs`` and ``send_report``. ``SECRET`` begins each prompt,
argument, result and answer; Agent Framework and Semantic Kernel were told to put those on their spans.

Google ADK 2.13.0, Agent Framework 1.23.0 (orchestrations 1.4.0), AutoGen 0.7.5, Semantic Kernel 1.45.0.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.recorded_agents import Played, play
from tests.support.tracked import Live

FRAMEWORKS = Path(__file__).parents[2] / "data" / "frameworks"
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


_500 = "the model is on strike"
_STOPPED = "stopped: it ended without an answer"
_ASKS = "waits for a person: a tool that it asked for was not called"
RUNS = {
    "google_adk.success": Run("reporter", COMPLETED, "2 tools", 2),
    "google_adk.web": Run("reporter", COMPLETED, "2 tools", 2),
    "google_adk.tool_error": Run("reporter", FAILED, "failed: the mail server refused it", 2),
    "google_adk.llm_500": Run("reporter", FAILED, _500, 1),
    "google_adk.blocked": Run("reporter", FAILED, "blocked by the model's filter", 1),
    "google_adk.cancel_tool": Run("reporter", FAILED, _STOPPED, 2),
    "google_adk.crash": Run("reporter", FAILED, _STOPPED, 1),
    "google_adk.max_calls": Run("reporter", FAILED, "Max number of llm calls", 3),
    "google_adk.unknown_tool": Run("reporter", COMPLETED, "1 problem", 1, says=("Tool no_such_tool failed",)),
    "google_adk.transfer": Run("reporter", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "google_adk.agent_tool_error": Run("reporter", FAILED, _500, 1, says=("Sub-agent writer failed",)),
    "google_adk.parallel_agents": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent researcher finished",)),
    "google_adk.workflow": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "google_adk.workflow_node_crash": Run("pipeline", FAILED, "the program's own code", 1),
    "google_adk.exit_loop": Run("pipeline", COMPLETED, "2 tools", 2, says=("Used tool exit_loop",)),
    "google_adk.user_choice": Run("reporter", WAITS, "waits for a person: get_user_choice", 2),
    "google_adk.request_input_ok": Run(
        "reporter", COMPLETED, "3 tools", 3, says=("waits for a person: adk_request_input", "'reporter' goes on")
    ),
    "google_adk.two_runs": Run("reporter", COMPLETED, "1 tool", 2, (("reporter", COMPLETED),)),
    "agent_framework.success": Run("reporter", COMPLETED, "2 tools", 2),
    "agent_framework.tool_error": Run("reporter", COMPLETED, "1 problem", 2, says=("Tool send_report failed",)),
    "agent_framework.llm_500": Run("reporter", FAILED, f"failed: Error code: 500 - {_500}", 1),
    "agent_framework.cancel_model": Run("reporter", FAILED, _STOPPED, 1),
    "agent_framework.agent_tool_error": Run("reporter", COMPLETED, "2 problems", 1, says=("Sub-agent writer failed",)),
    "agent_framework.workflow": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent researcher finished",)),
    "agent_framework.concurrent": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "agent_framework.handoff": Run("desk", COMPLETED, "1 tool", 1, says=("Sub-agent writer finished",)),
    "agent_framework.workflow_unnamed": Run("WorkflowBuilder", COMPLETED, "2 tools", 2),
    "agent_framework.workflow_error": Run("pipeline", FAILED, f"failed: Error code: 500 - {_500}", 2),
    "agent_framework.workflow_executor_crash": Run("pipeline", FAILED, "failed: the program's own code", 2),
    "agent_framework.workflow_stream_crash": Run("pipeline", FAILED, "was cancelled", 1),
    "agent_framework.approval": Run("reporter", WAITS, _ASKS, 1),
    "agent_framework.approval_ok": Run("reporter", COMPLETED, "2 tools", 2, says=(_ASKS, "'reporter' goes on")),
    "agent_framework.workflow_approval": Run("pipeline", COMPLETED, "2 tools", 2, says=(_ASKS, "'pipeline' goes on")),
    "autogen.success": Run("reporter", COMPLETED, "2 tools", 2),
    "autogen.tool_error": Run("reporter", COMPLETED, "1 problem", 2, says=("Tool send_report failed",)),
    "autogen.bad_args": Run("reporter", COMPLETED, "1 problem", 1, says=("Tool search_docs failed",)),
    "autogen.llm_500": Run("reporter", FAILED, _500, 1),
    # Its spans show no call of a model; the agent that called the tool went on, and answered.
    "autogen.agent_tool_error": Run("reporter", COMPLETED, "1 problem", 1, says=("Sub-agent writer failed",)),
    # A team has no span, and each member's turn a trace of its own.
    "autogen.team_error": Run("writer", FAILED, _500, 2, (("researcher", COMPLETED),)),
    "semantic_kernel.success": Run("reporter", COMPLETED, "2 tools", 2),
    "semantic_kernel.tool_error": Run("reporter", COMPLETED, "1 problem", 2, says=("Tool P-send_report failed",)),
    "semantic_kernel.llm_500": Run("reporter", FAILED, f"failed: Error code: 500 - {_500}", 1),
    "semantic_kernel.cancel_model": Run("reporter", FAILED, _STOPPED, 1),
    "semantic_kernel.crash_stream": Run("reporter", FAILED, _STOPPED, 0),
    "semantic_kernel.agent_tool": Run("reporter", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    # As AutoGen's teams: an orchestration has no span.
    "semantic_kernel.concurrent": Run("writer", COMPLETED, "1 tool", 2, (("researcher", COMPLETED),)),
}


def play_in(order: str, name: str, folder: Path) -> Played:
    """Play a recording through what `otel-letta replay` is made of."""
    with gzip.open(FRAMEWORKS / f"{name}.otlp.jsonl.gz", "rt", encoding="utf-8") as file:
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

    assert sorted((report.name, report.status.value) for report in last.values()) == sorted(
        [*run.others, (run.name, run.status)]
    )
    found = [r for r in last.values() if (r.name, r.status.value) == (run.name, run.status)]
    assert any(run.words in report.content for report in found), [report.content for report in found]
    assert played.waiting == (run.status == WAITS)
    assert played.tools == run.tools
    contents = [report.content for report in played.reports]
    assert [said for said in run.says if not any(content.startswith(said) for content in contents)] == []
    assert "SECRET" not in played.shown + "".join(map(repr, played.reports))


def test_every_recording_has_a_right_value() -> None:
    frameworks = {name.partition(".")[0] for name in RUNS}
    recorded = {path.name.removesuffix(".otlp.jsonl.gz") for path in FRAMEWORKS.glob("*.gz")}

    assert {name for name in recorded if name.partition(".")[0] in frameworks} == set(RUNS)


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
