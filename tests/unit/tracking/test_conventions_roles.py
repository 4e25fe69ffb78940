"""Roles and names: which part in an agent's work the attributes of each convention give to a span."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import Event

from otel_letta.tracking.conventions import Role
from tests.support.facts import END, facts, read

AGENT, STEP, TOOL, LLM = Role.AGENT, Role.STEP, Role.TOOL, Role.LLM


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        ({"ai.operationId": "ai.generateText"}, AGENT),
        ({"ai.operationId": "ai.streamText"}, AGENT),
        ({"ai.operationId": "ai.streamText.doStream", "gen_ai.request.model": "m"}, LLM),
        ({"ai.operationId": "ai.toolCall", "ai.toolCall.name": "read"}, TOOL),
        ({"ai.operationId": "ai.generateObject"}, None),
        ({"genkit:type": "action", "genkit:metadata:subtype": "flow"}, AGENT),
        ({"genkit:type": "action", "genkit:metadata:subtype": "model"}, LLM),
        ({"genkit:type": "action", "genkit:metadata:subtype": "tool"}, TOOL),
        ({"genkit:type": "action", "genkit:metadata:subtype": "tool.v2"}, TOOL),
        ({"genkit:type": "util", "genkit:metadata:subtype": "util"}, None),
        ({"gen_ai.span.kind": "workflow"}, AGENT),
        ({"gen_ai.span.kind": "AGENT"}, AGENT),
        ({"gen_ai.span.kind": "chatmodel", "gen_ai.request.model": "m"}, LLM),
        ({"gen_ai.span.kind": "tool"}, TOOL),
        ({"gen_ai.span.kind": "toolsnode"}, None),
        ({"spring.ai.kind": "chat_client", "spring.ai.chat.client.tool.names": '["read"]'}, AGENT),
        ({"spring.ai.kind": "chat_client", "spring.ai.chat.client.tool.names": "[]"}, None),
        ({"spring.ai.kind": "chat_client"}, None),
        ({"gen_ai.operation.name": "framework", "spring.ai.kind": "tool_call"}, TOOL),
        ({"gen_ai.operation.name": "framework", "spring.ai.kind": "advisor"}, None),
        ({"spring.ai.alibaba.graph.name": "g"}, AGENT),
        ({"spring.ai.alibaba.graph.node.name": "_AGENT_TOOL_"}, TOOL),
        ({"spring.ai.alibaba.graph.node.name": "_AGENT_MODEL_"}, None),
        ({"haystack.agent.max_steps": 100, "haystack.agent.steps_taken": 2}, AGENT),
        ({"haystack.tool.name": "read", "haystack.tool.description": "d"}, TOOL),
        ({"haystack.agent.step": 1}, None),
        ({"haystack.component.name": "writer"}, None),
        ({"llm.request.model": "m", "llm.vendor": "openai"}, LLM),
        ({"span.type": "agent"}, AGENT),
        ({"span.type": "interaction"}, AGENT),
        ({"span.type": "llm_request", "gen_ai.request.model": "m"}, LLM),
        ({"span.type": "tool", "entity.type": "agent"}, TOOL),
        ({"span.type": "memory", "entity.type": "agent"}, None),
        ({"span.type": "tool.execution", "gen_ai.tool.call.id": "c"}, None),
        ({"span.type": "web"}, None),
        ({"entity.type": "agent"}, AGENT),
        ({"langfuse.observation.type": "generation"}, LLM),
        ({"langfuse.observation.type": "agent"}, AGENT),
        ({"langfuse.observation.type": "tool"}, TOOL),
        ({"langfuse.observation.type": "span"}, None),
        ({"langfuse.observation.type": "span", "gen_ai.request.model": "m"}, LLM),
        ({"mlflow.spanType": '"AGENT"'}, AGENT),
        ({"mlflow.spanType": "CHAT_MODEL"}, LLM),
        ({"mlflow.spanType": '"TOOL"'}, TOOL),
        ({"mlflow.spanType": '"UNKNOWN"'}, None),
        ({"agentops.span.kind": "agent"}, AGENT),
        ({"agentops.span.kind": "tool"}, TOOL),
        ({"agentops.span.kind": "session"}, None),
        ({"langsmith.span.kind": "llm"}, LLM),
        ({"langsmith.span.kind": "chain"}, STEP),
        ({"braintrust.span_attributes": '{"type": "tool", "name": "read"}'}, TOOL),
        ({"braintrust.span_attributes": '{"type": 7}'}, None),
        ({"braintrust.span_attributes": "{"}, None),
        ({"gcp.vertex.agent.invocation_id": "i", "agent.name": "keeper"}, AGENT),
        ({"gcp.vertex.agent.invocation_id": "i", "tool.name": "read"}, TOOL),
        ({"gcp.vertex.agent.invocation_id": "i"}, None),
        ({"traceloop.span.kind": "task", "traceloop.entity.name": "Base.task", "tool.name": "read"}, TOOL),
        ({"traceloop.span.kind": "task", "traceloop.entity.name": "Base.task"}, STEP),
        ({"traceloop.span.kind": "workflow", "tool.name": "read"}, AGENT),
    ],
)
def test_each_convention_gives_spans_their_roles(attributes: dict[str, Any], role: Role | None) -> None:
    assert read(attributes).role is role


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        ({"gen_ai.request.model": "m", "gen_ai.usage.output_tokens": 5}, LLM),
        ({"gen_ai.request.model": "m", "gen_ai.response.id": "r"}, LLM),
        ({"gen_ai.request.model": "m"}, None),
        ({"gen_ai.tool.name": "read"}, TOOL),
        ({"gen_ai.tool.call.id": "c"}, TOOL),
        ({"gen_ai.tool.call_id": "c"}, TOOL),
        ({"openinference.span.kind": "LLM"}, LLM),
        ({}, None),
    ],
)
def test_an_operation_that_nobody_knows_falls_through_to_other_evidence(
    attributes: dict[str, Any], role: Role | None
) -> None:
    assert read({"gen_ai.operation.name": "some_call", **attributes}).role is role


@pytest.mark.parametrize(
    "operation",
    [
        *("agent_step", "schedule_tool_calls", "execute_agent_loop_cycle", "embeddings", "create_agent", "plan"),
        *("fetch_response", "search_memory", "create_memory", "update_memory", "upsert_memory", "delete_memory"),
        *("create_memory_store", "delete_memory_store"),
    ],
)
def test_parts_of_an_agent_stay_transparent_whatever_else_they_carry(operation: str) -> None:
    attributes = {"gen_ai.operation.name": operation, "gen_ai.request.model": "m", "gen_ai.usage.output_tokens": 5}
    assert read(attributes).role is None


@pytest.mark.parametrize("name", ["(merged tools)", "(parallel)"])
def test_a_name_that_no_function_can_have_is_no_tool(name: str) -> None:
    assert read({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}).role is None


def test_a_tool_that_was_not_found_has_the_name_in_its_spans() -> None:
    found = facts(
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "<not found>"}, name="execute_tool read"
    )
    assert (found.name, found.named) == ("read", False)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"ai.operationId": "ai.toolCall", "ai.toolCall.name": "read"}, "read"),
        ({"ai.operationId": "ai.generateText", "ai.telemetry.functionId": "quarterly-report"}, "quarterly-report"),
        ({"genkit:metadata:subtype": "flow", "genkit:name": "notesAgent"}, "notesAgent"),
        ({"spring.ai.kind": "tool_call", "spring.ai.tool.definition.name": "read_note"}, "read_note"),
        ({"haystack.tool.name": "read_note"}, "read_note"),
        ({"span.type": "tool", "tool_name": "Read"}, "Read"),
        ({"entity.type": "agent", "entity.name": "Reporter"}, "Reporter"),
        ({"gen_ai.tool.call.id": "c", "tool_name": "Bash"}, "Bash"),
        ({"gcp.vertex.agent.invocation_id": "i", "agent.name": "keeper"}, "keeper"),
        ({"traceloop.span.kind": "task", "traceloop.entity.name": "Base.task", "tool.name": "read"}, "read"),
        ({"traceloop.span.kind": "workflow", "traceloop.entity.name": "Reporter.workflow"}, "Reporter"),
        ({"traceloop.span.kind": "workflow", "traceloop.entity.name": "the.task"}, "the.task"),
    ],
)
def test_each_convention_names_agents_and_tools(attributes: dict[str, Any], name: str) -> None:
    found = facts(attributes)
    assert (found.name, found.named) == (name, True)


@pytest.mark.parametrize(
    "span_name", ["invoke_agent", "agent", "claude_code.interaction", "AiService.chat", "workflow"]
)
def test_the_name_of_an_operation_is_nobodys_name(span_name: str) -> None:
    found = facts({"gen_ai.operation.name": "invoke_agent"}, name=span_name)
    assert (found.name, found.named) == ("", False)


def test_a_name_of_the_span_alone_is_marked_as_such() -> None:
    found = facts({"openinference.span.kind": "AGENT"}, name="Quarterly report")
    assert (found.name, found.named) == ("Quarterly report", False)


@pytest.mark.parametrize("method", ["__call__", "acall", "forward", "aforward", "arun"])
def test_the_method_behind_a_name_is_no_part_of_it(method: str) -> None:
    assert facts({"openinference.span.kind": "TOOL"}, name=f"search_docs.{method}").name == "search_docs"
    assert facts({"openinference.span.kind": "CHAIN"}, name=f"Reporter.{method}").name == "Reporter"


def test_a_workflow_that_is_called_by_its_method_alone_has_no_name() -> None:
    run = {"traceloop.span.kind": "workflow", "traceloop.entity.name": "run.workflow"}
    assert (facts(run, name="run.workflow").name, facts(run).named) == ("", False)


def test_a_name_keeps_what_follows_a_dot_where_no_kind_is_given() -> None:
    found = facts({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Release 2.None"})
    assert (found.name, found.named) == ("Release 2.None", True)


def test_a_place_in_a_program_is_no_name() -> None:
    found = facts({"ai.operationId": "ai.streamText", "ai.telemetry.functionId": "session.llm"})
    assert (found.name, found.named) == ("", False)


def test_a_node_that_calls_tools_has_no_tools_name() -> None:
    found = facts({"spring.ai.alibaba.graph.node.name": "_AGENT_TOOL_"}, name="node")
    assert found.name == ""


@pytest.mark.parametrize(
    "name",
    [
        *(f"ai.telemetry.metadata.{key}" for key in ("sessionId", "conversationId", "threadId", "chatId")),
        "gen_ai.session.id",
        "spring.ai.chat.client.conversation.id",
        "langfuse.session.id",
        "mlflow.trace.session",
        "genkit:sessionId",
        "conversation.id",
    ],
)
def test_each_convention_names_its_conversations(name: str) -> None:
    found = facts({"gen_ai.operation.name": "invoke_agent", name: "conv-1"}).chat
    assert found is not None
    assert found[1] == "conv-1"


@pytest.mark.parametrize("name", ["gen_ai.tool.call.id", "gen_ai.tool_call.id", "ai.toolCall.id", "tool_use_id"])
def test_a_tools_call_has_an_id(name: str) -> None:
    assert facts({"gen_ai.operation.name": "execute_tool", name: "call-1"}).call_id == "call-1"


def test_what_others_call_a_type_does_not_change_the_bare_words() -> None:
    declared = read({"span.type": "web", "progress": 0.5}).declaration
    assert declared is not None
    assert declared.progress == 0.5


UUID = "7b26145e-0c1f-4814-afaf-dda12b8d377b"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (UUID, ""),
        (f"WorkflowBuilder-{UUID}", "WorkflowBuilder"),
        (f"writer_{UUID}/{UUID}", "writer"),
        (f"the {UUID} one", "the one"),
        ("agent-0c1f", "agent-0c1f"),
    ],
)
def test_an_id_that_a_program_made_up_is_no_name(given: str, name: str) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": given}
    assert facts(attributes, name=f"invoke_agent {given}").name == name


def test_a_span_is_a_workflow_of_agents_if_an_event_says_that_one_started() -> None:
    started = Event("workflow.started", {}, END)
    completed = Event("workflow.completed", {}, END)
    assert read({"workflow.id": "w", "workflow.name": "pipeline"}).role is None
    assert read({"executor.id": "writer"}, events=[started]).role is None
    for attributes in ({"workflow.id": "w"}, {"workflow.name": "pipeline"}):
        reading = read(attributes, events=[started, completed])
        assert reading.role is AGENT
    whole = facts({"workflow.id": "w", "workflow.name": "pipeline"}, events=[started, completed])
    assert (whole.name, whole.cancelled, whole.failed) == ("pipeline", False, False)
    assert facts({"workflow.id": "w"}, events=[started]).cancelled
    failed = facts({"workflow.id": "w", "error.type": "Boom"}, events=[started], error="Boom")
    assert (failed.failed, failed.cancelled) == (True, False)
