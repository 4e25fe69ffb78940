"""Runs of agent frameworks in Python, and what really happened in each; `tests/data/frameworks` has the recordings.

Every run had a scripted model, and two tools, ``search_docs`` and ``send_report``. ``SECRET`` begins each prompt,
argument, result and answer; long texts were cut off. Agent Framework, Semantic Kernel and all that others trace, but
for ``langchain_oll_bare``, were told to put those on their spans.

Google ADK 2.13.0, Agent Framework 1.23.0 (orchestrations 1.4.0), AutoGen 0.7.5, Semantic Kernel 1.45.0, LlamaIndex
0.14.25 (workflows 2.26.1; OpenInference 4.6.1, OpenLLMetry 0.62.4), Agno 3.1.10 (OpenInference 1.0.15), LangChain 1.5.2
with LangGraph 1.2.24 and OpenAI Agents 0.24.0 (OpenLLMetry 0.62.4), Haystack 3.4.1 (its own, in opentelemetry-haystack
2.0.0; OpenInference 0.1.46), DSPy 3.4.1 (OpenInference 0.1.48).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NOTHING", "RUNS", "WAITS", "Run"]

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
_500 = "the model is on strike"
_HTTP_500 = "failed: Error code: 500 - the model is on strike"
_STRIKE = "failed: the model is on strike"
_REFUSED = "failed: the mail server refused it"
_STOPPED = "stopped: it ended without an answer"
_CANCELLED = "was cancelled"
_CRASHED = "failed: the program's own code"
_ASKS = "waits for a person: a tool that it asked for was not called"
_ASKS_TO_SEND = "waits for a person: send_report"
_TOOL_FAILED = ("Tool send_report failed: the mail server refused it",)

_OWN = {
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
"""Those that trace themselves."""

# Agents of LlamaIndex go by their classes, and those of Haystack, which have no names, by the service's.
_INSTRUMENTED = {
    "llamaindex_oi.success": Run("FunctionAgent", COMPLETED, "2 tools", 2),
    "llamaindex_oi.web": Run("FunctionAgent", COMPLETED, "2 tools", 2),
    "llamaindex_oi.tool_error": Run("FunctionAgent", COMPLETED, "1 problem", 2, says=_TOOL_FAILED),
    "llamaindex_oi.llm_500": Run("FunctionAgent", FAILED, _HTTP_500, 1),
    "llamaindex_oi.blocked": Run("FunctionAgent", FAILED, "blocked by the model's filter", 1),
    "llamaindex_oi.length": Run("FunctionAgent", COMPLETED, "1 problem", 1),
    "llamaindex_oi.cancel_tool": Run("FunctionAgent", FAILED, _CANCELLED, 2),
    "llamaindex_oi.cancel_run": Run("FunctionAgent", FAILED, _CANCELLED, 2),
    "llamaindex_oi.max_turns": Run("FunctionAgent", FAILED, "Max iterations of 3 reached", 2),
    "llamaindex_oi.agent_tool_error": Run("FunctionAgent", COMPLETED, "1 tool, 2 problems", 1),
    "llamaindex_oi.handoff": Run("AgentWorkflow", COMPLETED, "3 tools", 3),
    "llamaindex_oi.handoff_error": Run("AgentWorkflow", FAILED, _HTTP_500, 2),
    # The tool is called once more when the person has answered.
    "llamaindex_oi.approval_inline": Run("FunctionAgent", COMPLETED, "3 tools", 3),
    "llamaindex_oi.approval_paused": Run("FunctionAgent", WAITS, _ASKS_TO_SEND, 2),
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
    "agno.approval": Run("reporter", WAITS, _ASKS_TO_SEND, 1),
    "agno.approval_ok": Run("reporter", COMPLETED, "2 tools", 2, says=(_ASKS_TO_SEND, "'reporter' goes on")),
    "agno.approval_no": Run("reporter", COMPLETED, "1 tool", 1, says=(_ASKS_TO_SEND, "'reporter' goes on")),
    "agno.two_runs": Run("reporter", COMPLETED, "1 tool", 2, (("reporter", COMPLETED),)),
    "langchain_oll.success": Run("reporter", COMPLETED, "2 tools", 2),
    "langchain_oll.web": Run("reporter", COMPLETED, "2 tools", 2),
    "langchain_oll.structured": Run("reporter", COMPLETED, "1 tool", 1),
    "langchain_oll.tool_error": Run("reporter", FAILED, _REFUSED, 2, says=_TOOL_FAILED),
    "langchain_oll.tool_error_handled": Run("reporter", COMPLETED, "1 problem", 2, says=_TOOL_FAILED),
    "langchain_oll.llm_500": Run("reporter", FAILED, _HTTP_500, 1),
    "langchain_oll.blocked": Run("reporter", FAILED, "blocked by the model's filter", 1),
    "langchain_oll.cancel_model": Run("reporter", FAILED, _CANCELLED, 1),
    "langchain_oll.crash_stream": Run("reporter", FAILED, _CANCELLED, 1),
    # The program read no more of the stream.
    "langchain_oll.stream_sync_break": Run("reporter", FAILED, _CANCELLED, 0),
    "langchain_oll.max_turns": Run("reporter", FAILED, "Recursion limit of 6 reached", 3),
    "langchain_oll.agent_tool": Run("reporter", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "langchain_oll.agent_tool_error": Run("reporter", FAILED, _HTTP_500, 1, says=("Sub-agent writer failed",)),
    "langchain_oll.workflow": Run("pipeline", COMPLETED, "2 tools", 2, says=("Sub-agent writer finished",)),
    "langchain_oll.workflow_crash": Run("pipeline", FAILED, _CRASHED, 2, says=("Sub-agent writer finished",)),
    "langchain_oll.approval_ok": Run("reporter", COMPLETED, "3 tools", 3, says=(_ASKS_TO_SEND, "'reporter' goes on")),
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
    "openai_agents_oll.llm_500": Run("Agent Workflow", FAILED, _HTTP_500, 1, says=("Sub-agent reporter failed",)),
    "openai_agents_oll.cancel_model": Run("Agent Workflow", FAILED, _STOPPED, 1),
    "openai_agents_oll.cancel_tool": Run("Agent Workflow", FAILED, _STOPPED, 2),
    "openai_agents_oll.crash_stream": Run("Agent Workflow", FAILED, _STOPPED, 1),
    "openai_agents_oll.unknown_tool": Run("Agent Workflow", FAILED, _STOPPED, 0),
    "openai_agents_oll.max_turns": Run("Agent Workflow", FAILED, "Max turns exceeded", 3),
    "openai_agents_oll.handoff_run": Run(
        "Agent Workflow", COMPLETED, "2 tools", 2, says=("Sub-agent desk finished", "Sub-agent writer finished")
    ),
    "openai_agents_oll.handoff_error": Run("Agent Workflow", FAILED, _HTTP_500, 1, says=("Sub-agent writer failed",)),
    "openai_agents_oll.agent_tool_error": Run("Agent Workflow", COMPLETED, "2 problems", 1),
    # A tool that has to be allowed has a span like one that was cut off, and what goes on has a trace of its own.
    "openai_agents_oll.approval_ok": Run("reporter", COMPLETED, "1 tool", 3, (("Agent Workflow", FAILED),)),
    "haystack.success": Run("assistant", COMPLETED, "2 tools", 2),
    "haystack.tool_error": Run("assistant", COMPLETED, "1 problem", 2, says=("Tool send_report failed",)),
    "haystack.llm_500": Run("assistant", FAILED, _HTTP_500, 1),
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
"""Those that others trace, and Haystack."""

RUNS = {**_OWN, **_INSTRUMENTED}
