"""Recorded runs of frameworks that others trace, compared with what really happened in each.

With prompts and answers on the spans but for ``langchain_oll_bare``; long texts were cut off.

LlamaIndex 0.14.25 (workflows 2.26.1; OpenInference 4.6.1, OpenLLMetry 0.62.4), Agno 3.1.10 (OpenInference 1.0.15),
LangChain 1.5.2 with LangGraph 1.2.24 and OpenAI Agents 0.24.0 (OpenLLMetry 0.62.4), Haystack 3.4.1 (its own, in
opentelemetry-haystack 2.0.0; OpenInference 0.1.46), DSPy 3.4.1 (OpenInference 0.1.48).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.framework_runs import (
    COMPLETED,
    FAILED,
    NOTHING,
    ORDERS,
    WAITS,
    Run,
    check,
    check_all_are_read,
    play_in,
)

_500 = "failed: Error code: 500 - the model is on strike"
_STRIKE = "failed: the model is on strike"
_REFUSED = "failed: the mail server refused it"
_STOPPED = "stopped: it ended without an answer"
_CANCELLED = "was cancelled"
_CRASHED = "failed: the program's own code"
_ASKS = "waits for a person: send_report"
_TOOL_FAILED = ("Tool send_report failed: the mail server refused it",)
# Agents of LlamaIndex go by their classes, and those of Haystack, which have no names, by the service's.
RUNS = {
    "llamaindex_oi.success": Run("FunctionAgent", COMPLETED, "2 tools", 2),
    "llamaindex_oi.web": Run("FunctionAgent", COMPLETED, "2 tools", 2),
    "llamaindex_oi.tool_error": Run("FunctionAgent", COMPLETED, "1 problem", 2, says=_TOOL_FAILED),
    "llamaindex_oi.llm_500": Run("FunctionAgent", FAILED, _500, 1),
    "llamaindex_oi.blocked": Run("FunctionAgent", FAILED, "blocked by the model's filter", 1),
    "llamaindex_oi.length": Run("FunctionAgent", COMPLETED, "1 problem", 1),
    "llamaindex_oi.cancel_tool": Run("FunctionAgent", FAILED, _CANCELLED, 2),
    "llamaindex_oi.cancel_run": Run("FunctionAgent", FAILED, _CANCELLED, 2),
    "llamaindex_oi.max_turns": Run("FunctionAgent", FAILED, "Max iterations of 3 reached", 2),
    "llamaindex_oi.agent_tool_error": Run("FunctionAgent", COMPLETED, "1 tool, 2 problems", 1),
    "llamaindex_oi.handoff": Run("AgentWorkflow", COMPLETED, "3 tools", 3),
    "llamaindex_oi.handoff_error": Run("AgentWorkflow", FAILED, _500, 2),
    # The tool is called once more when the person has answered.
    "llamaindex_oi.approval_inline": Run("FunctionAgent", COMPLETED, "3 tools", 3),
    "llamaindex_oi.approval_paused": Run("FunctionAgent", WAITS, _ASKS, 2),
    "llamaindex_oi.two_runs_session": Run("FunctionAgent", COMPLETED, "1 tool", 2, (("FunctionAgent", COMPLETED),)),
    "llamaindex_oi.own_workflow_crash": Run("Wf2", FAILED, _CRASHED, 2),
    "llamaindex_oi.only_llm": NOTHING,
    "llamaindex_oll.success": Run("FunctionAgent", COMPLETED, "2 tools", 2),
    "llamaindex_oll.agent_tool": Run("FunctionAgent", COMPLETED, "2 tools", 2),
    "llamaindex_oll.blocked": Run("FunctionAgent", FAILED, "blocked by the model's filter", 1),
    "llamaindex_oll.cancel_run": Run("FunctionAgent", FAILED, _STOPPED, 2),
    # Its spans never end where an exception goes through them: nothing shows whose run it was, and why it failed.
    "llamaindex_oll.llm_500": Run("assistant", FAILED, "failed: lost", 1),
    "agno.success": Run("reporter", COMPLETED, "2 tools", 2),
    "agno.web": Run("reporter", COMPLETED, "2 tools", 2),
    "agno.unnamed": Run("assistant", COMPLETED, "2 tools", 2),
    "agno.tool_error": Run("reporter", COMPLETED, "1 problem", 2, says=_TOOL_FAILED),
    "agno.parallel_error": Run("reporter", COMPLETED, "1 problem", 2, says=_TOOL_FAILED),
    "agno.bad_args": Run("reporter", COMPLETED, "1 problem", 2, says=("Tool search_docs failed",)),
    "agno.llm_500": Run("reporter", FAILED, _STRIKE, 1),
    "agno.cancel_tool": Run("reporter", FAILED, _STOPPED, 1),
    "agno.crash_stream": Run("reporter", FAILED, _STOPPED, 1),
    "agno.agent_tool_error": Run("reporter", COMPLETED, "1 problem", 1, says=("Sub-agent writer failed",)),
    "agno.team_run": Run("newsroom", COMPLETED, "4 tools", 4, says=("Sub-agent writer finished",)),
    "agno.team_error": Run("newsroom", COMPLETED, "1 problem", 3, says=("Sub-agent writer failed",)),
    "agno.team_llm_500": Run("newsroom", FAILED, _STRIKE, 2, says=("Sub-agent researcher finished",)),
    "agno.workflow": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "agno.workflow_error": Run("pipeline", FAILED, _STRIKE, 1, says=("Sub-agent writer failed",)),
    "agno.approval": Run("reporter", WAITS, _ASKS, 1),
    "agno.approval_ok": Run("reporter", COMPLETED, "2 tools", 2, says=(_ASKS, "'reporter' goes on")),
    "agno.approval_no": Run("reporter", COMPLETED, "1 tool", 1, says=(_ASKS, "'reporter' goes on")),
    "agno.two_runs": Run("reporter", COMPLETED, "1 tool", 2, (("reporter", COMPLETED),)),
    "langchain_oll.success": Run("reporter", COMPLETED, "2 tools", 2),
    "langchain_oll.web": Run("reporter", COMPLETED, "2 tools", 2),
    "langchain_oll.structured": Run("reporter", COMPLETED, "1 tool", 1),
    "langchain_oll.tool_error": Run("reporter", FAILED, _REFUSED, 2, says=_TOOL_FAILED),
    "langchain_oll.tool_error_handled": Run("reporter", COMPLETED, "1 problem", 2, says=_TOOL_FAILED),
    "langchain_oll.llm_500": Run("reporter", FAILED, _500, 1),
    "langchain_oll.blocked": Run("reporter", FAILED, "blocked by the model's filter", 1),
    "langchain_oll.cancel_model": Run("reporter", FAILED, _CANCELLED, 1),
    "langchain_oll.crash_stream": Run("reporter", FAILED, _CANCELLED, 1),
    # The program read no more of the stream.
    "langchain_oll.stream_sync_break": Run("reporter", FAILED, _CANCELLED, 0),
    "langchain_oll.max_turns": Run("reporter", FAILED, "Recursion limit of 6 reached", 3),
    "langchain_oll.agent_tool": Run("reporter", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "langchain_oll.agent_tool_error": Run("reporter", FAILED, _500, 1, says=("Sub-agent writer failed",)),
    "langchain_oll.workflow": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "langchain_oll.workflow_crash": Run("pipeline", FAILED, _CRASHED, 2, says=("Sub-agent writer finished",)),
    "langchain_oll.approval_ok": Run("reporter", COMPLETED, "3 tools", 3, says=(_ASKS, "'reporter' goes on")),
    "langchain_oll.approval_hitl": Run(
        "reporter", COMPLETED, "2 tools", 2, says=("waits for a person", "'reporter' goes on")
    ),
    "langchain_oll.two_runs": Run("reporter", COMPLETED, "1 tool", 2, (("reporter", COMPLETED),)),
    "langchain_oll.only_llm": NOTHING,
    # Without content, an agent's span still says whether it went well.
    "langchain_oll_bare.structured": Run("reporter", COMPLETED, "1 tool", 1),
    "langchain_oll_bare.cancel_model": Run("reporter", FAILED, _CANCELLED, 1),
    "openai_agents_oll.success": Run("Agent Workflow", COMPLETED, "2 tools", 2),
    "openai_agents_oll.web": Run("Agent Workflow", COMPLETED, "2 tools", 2),
    "openai_agents_oll.tool_error_uncaught": Run("Agent Workflow", FAILED, "the mail server refused it", 2),
    "openai_agents_oll.llm_500": Run("Agent Workflow", FAILED, _500, 1, says=("Sub-agent reporter failed",)),
    "openai_agents_oll.cancel_model": Run("Agent Workflow", FAILED, _STOPPED, 1),
    "openai_agents_oll.cancel_tool": Run("Agent Workflow", FAILED, _STOPPED, 2),
    "openai_agents_oll.crash_stream": Run("Agent Workflow", FAILED, _STOPPED, 1),
    "openai_agents_oll.unknown_tool": Run("Agent Workflow", FAILED, _STOPPED, 0),
    "openai_agents_oll.max_turns": Run("Agent Workflow", FAILED, "Max turns exceeded", 3),
    "openai_agents_oll.handoff_run": Run(
        "Agent Workflow", COMPLETED, "2 tools", 2, says=("Sub-agent desk finished", "Sub-agent writer finished")
    ),
    "openai_agents_oll.handoff_error": Run("Agent Workflow", FAILED, _500, 1, says=("Sub-agent writer failed",)),
    "openai_agents_oll.agent_tool_error": Run("Agent Workflow", COMPLETED, "2 problems", 1),
    # A tool that has to be allowed has a span like one that was cut off, and what goes on has a trace of its own.
    "openai_agents_oll.approval_ok": Run("reporter", COMPLETED, "1 tool", 3, (("Agent Workflow", FAILED),)),
    "haystack.success": Run("assistant", COMPLETED, "2 tools", 2),
    "haystack.tool_error": Run("assistant", COMPLETED, "1 problem", 2, says=("Tool send_report failed",)),
    "haystack.llm_500": Run("assistant", FAILED, _500, 1),
    "haystack.cancel_tool": Run("assistant", FAILED, _STOPPED, 2),
    "haystack.agent_tool_error": Run("assistant", COMPLETED, "1 problem", 1, says=("Tool writer failed",)),
    "haystack.exit_tool": Run("assistant", COMPLETED, "2 tools", 2),
    "haystack.pipeline": Run("assistant", COMPLETED, "2 tools", 2),
    "haystack.pipeline_no_agent": NOTHING,
    # This one knows no tools.
    "haystack_oi.success": Run("assistant", COMPLETED, "Finished 'assistant'", 0),
    "haystack_oi.cancel_model": Run("assistant", FAILED, _STOPPED, 0),
    "haystack_oi.pipeline_crash": Run("Pipeline", FAILED, _CRASHED, 0),
    # `finish` is a tool of every agent.
    "dspy.success": Run("ReAct", COMPLETED, "3 tools", 3, says=("Used tool search_docs (", "Used tool finish (")),
    "dspy.tool_error": Run("ReAct", COMPLETED, "1 problem", 3, says=_TOOL_FAILED),
    "dspy.llm_500": Run("ReAct", FAILED, "the model is on strike", 1),
    "dspy.cancel_tool": Run("ReAct", FAILED, _STOPPED, 2),
    "dspy.crash": Run("Prog", FAILED, _CRASHED, 3),
    "dspy.agent_tool": Run("ReAct", COMPLETED, "4 tools", 4),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_reported_as_it_was(name: str, order: str, tmp_path: Path) -> None:
    check(RUNS[name], name, order, tmp_path)


def test_every_recording_has_a_right_value() -> None:
    check_all_are_read(RUNS)


@pytest.mark.parametrize(
    ("name", "chats"), [("agno.two_runs", {"session-7"}), ("langchain_oll.two_runs", {"thread-7"})]
)
def test_two_runs_of_a_conversation_have_its_id(name: str, chats: set[str], tmp_path: Path) -> None:
    assert {report.chat_id for report in play_in("as recorded", name, tmp_path).reports} == chats
