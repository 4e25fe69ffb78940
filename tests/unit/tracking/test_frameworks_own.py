"""Recorded runs of frameworks that trace themselves, compared with what really happened in each.

Google ADK 2.13.0, Agent Framework 1.23.0 (orchestrations 1.4.0), AutoGen 0.7.5, Semantic Kernel 1.45.0. Agent Framework
and Semantic Kernel were told to put prompts and answers on their spans.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.framework_runs import COMPLETED, FAILED, ORDERS, WAITS, Run, check, check_all_are_read
from tests.support.tracked import Live

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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_reported_as_it_was(name: str, order: str, tmp_path: Path) -> None:
    check(RUNS[name], name, order, tmp_path)


def test_every_recording_has_a_right_value() -> None:
    check_all_are_read(RUNS)


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
