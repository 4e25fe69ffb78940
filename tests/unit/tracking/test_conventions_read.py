"""Conventions that were read in the sources of their programs: no recording is behind them, so whole runs stand here as
the sources say that they look."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from otel_letta.report import TaskStatus
from otel_letta.tracking.conventions import Role
from otel_letta.tracking.conventions.finishes import Finish
from tests.support.facts import facts, read
from tests.unit.tracking.test_inferred_tasks import Played, arrived, contents, made

AGENT, STEP, TOOL, LLM = Role.AGENT, Role.STEP, Role.TOOL, Role.LLM
COMPLETED, FAILED = TaskStatus.COMPLETED, TaskStatus.FAILED


def ends(*spans: ReadableSpan) -> list[tuple[TaskStatus, str]]:
    """The ends that are told of spans, whatever their order."""
    forth, back = ([(end.status, end.content) for end in arrived(*order).ends] for order in (spans, spans[::-1]))
    assert forth == back
    return forth


# -- Embabel -----------------------------------------------------------------------------------------------------------


def process(status: str, **more: Any) -> ReadableSpan:
    own = {
        "gen_ai.operation.name": "agent",
        "embabel.event.type": "agent_process",
        "embabel.agent.name": "StarNewsFinder",
        "embabel.agent.status": status,
        "gen_ai.conversation.id": "run-1",
        "input.value": "SECRET-prompt",
    }
    return made("agent StarNewsFinder", 1, None, 0, 9, own, **more)


def action(span_id: int, status: str = "SUCCEEDED") -> ReadableSpan:
    own = {
        "gen_ai.operation.name": "action",
        "embabel.event.type": "action",
        "embabel.action.short_name": "findNews",
        "embabel.action.status": status,
        "embabel.agent.name": "StarNewsFinder",
    }
    return made("action findNews", span_id, 1, 1, 8, own)


def calls(above: int, *, tool_fails: bool = False) -> list[ReadableSpan]:
    """A model's call with its wrapper, its record of costs, a tool's call (told when it is over) and the answer."""
    wrapper = {"embabel.event.type": "llm_call", "embabel.llm.model": "m", "embabel.agent.name": "StarNewsFinder"}
    loop = {"gen_ai.operation.name": "tool_loop", "embabel.event.type": "tool_loop"}
    model = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.output_tokens": 5}
    used = {
        "embabel.event.type": "tool_call",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "embabel.tool.name": "search",
        "embabel.tool.correlation_id": "call-1",
        "embabel.tool.status": "error" if tool_fails else "success",
    }
    if tool_fails:
        used |= {"embabel.tool.error.type": "IOException", "embabel.tool.error.message": "no such note: SECRET-note"}
    costs = {"embabel.event.type": "llm_invocation", "embabel.llm.model": "m", "gen_ai.usage.output_tokens": 5}
    return [
        made("chat m", 10, 21, 2, 3, {**model, "gen_ai.response.finish_reasons": '["tool_calls"]'}),
        made("execute_tool search", 11, 21, 4, 4, used),
        made("chat m", 12, 21, 5, 6, {**model, "gen_ai.response.finish_reasons": '["stop"]'}),
        made("tool-loop", 21, 20, 2, 6, loop),
        made("llm.invocation m", 13, 20, 6, 6, costs),
        made("llm m", 20, above, 2, 7, wrapper),
    ]


def test_an_agent_of_embabel_is_a_task_with_its_tools() -> None:
    played = arrived(*calls(2), action(2), process("COMPLETED"))
    assert contents(played)[-1] == "Finished 'StarNewsFinder' in 9.0 s, 1 tool"
    assert {(end.chat_id, end.name) for end in played.ends} == {("run-1", "StarNewsFinder")}
    assert ends(*calls(2), action(2), process("COMPLETED")) == [
        (COMPLETED, "Finished 'StarNewsFinder' in 9.0 s, 1 tool")
    ]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("FAILED", "'StarNewsFinder' failed"),
        ("STUCK", "'StarNewsFinder' failed: stuck"),
        ("TERMINATED", "'StarNewsFinder' failed: terminated early"),
        ("KILLED", "'StarNewsFinder' was cancelled"),
    ],
)
def test_the_status_of_a_process_says_how_it_ended(status: str, told: str) -> None:
    assert ends(*calls(2), action(2), process(status)) == [(FAILED, told)]


def test_a_process_that_waits_for_its_user_has_not_ended() -> None:
    played = arrived(*calls(2), action(2, "WAITING"), process("WAITING"))
    assert (played.ends, contents(played)[-1]) == ([], "waits for a person")


def test_a_tool_of_embabel_that_failed_is_a_problem_without_the_value_in_its_text() -> None:
    played = arrived(*calls(2, tool_fails=True), action(2), process("COMPLETED"))
    assert [end.content for end in played.ends] == ["Finished 'StarNewsFinder' in 9.0 s, 1 tool, 1 problem"]
    assert "Tool search failed: no such note: …; 1 tool used" in contents(played)


@pytest.mark.parametrize("kind", ["llm_call", "llm_invocation", "tool_loop", "planning", "ranking", "embedding", "x"])
def test_other_spans_of_embabel_have_no_role(kind: str) -> None:
    operation = {} if kind.startswith("llm") else {"gen_ai.operation.name": kind}
    attributes = {"embabel.event.type": kind, "embabel.agent.name": "A", "gen_ai.usage.output_tokens": 5, **operation}
    assert read(attributes).role is None


def test_an_action_that_failed_is_a_failed_step() -> None:
    failed = facts({"embabel.event.type": "action", "embabel.action.status": "FAILED"})
    assert (failed.role, failed.failed) == (STEP, True)
    assert not facts({"embabel.event.type": "action", "embabel.action.status": "TERMINATED"}).failed


# -- cagent ------------------------------------------------------------------------------------------------------------

EACH = {"agent": "root", "session.id": "s-1"}
SERVICE = {"service.name": "cagent"}


def streamed(span_id: int, start: float, *, tools: int = 0, length: int = 0) -> ReadableSpan:
    own = {**EACH, "tool.calls": tools, "content.length": length, "stopped": not tools}
    return made("runtime.stream", span_id, 1, start, start + 1, own, resource=SERVICE)


def called(start: float, error: str | None = None) -> list[ReadableSpan]:
    own = {**EACH, "tool.name": "read_file", "tool.call_id": "call-1"}
    return [
        made("runtime.tool.handler", 31, 30, start, start + 1, own, error=error, resource=SERVICE),
        made("runtime.tool.call", 30, 1, start, start + 1, {**own, "tool.type": "function"}, resource=SERVICE),
    ]


def session(**more: Any) -> ReadableSpan:
    return made("runtime.session", 1, None, 0, 9, EACH, resource=SERVICE, **more)


def test_a_session_of_cagent_over_a_model_and_a_tool_is_a_task() -> None:
    spans = [streamed(10, 1, tools=1), *called(3), streamed(11, 5, length=40), session()]
    assert ends(*spans) == [(COMPLETED, "Finished 'cagent' in 9.0 s, 1 tool")]
    assert {end.chat_id for end in arrived(*spans).ends} == {"s-1"}


def test_a_tool_of_cagent_that_fails_is_one_problem() -> None:
    spans = [streamed(10, 1, tools=1), *called(3, error="tool handler error"), streamed(11, 5, length=40), session()]
    assert ends(*spans) == [(COMPLETED, "Finished 'cagent' in 9.0 s, 1 tool, 1 problem")]


def test_a_session_of_cagent_whose_model_failed_or_was_left_is_no_success() -> None:
    begun = [streamed(10, 1, tools=1), *called(3)]
    failed = made("runtime.stream", 11, 1, 5, 6, EACH, error="error handling stream", resource=SERVICE)
    assert [status for status, _ in ends(*begun, failed, session())] == [FAILED]
    assert [content for _, content in ends(*begun, session())] == ["'cagent' stopped: it ended without an answer"]
    assert [status for status, _ in ends(*begun, session(error="failed to get tools"))] == [FAILED]


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        (EACH, None),
        ({**EACH, "tool.calls": 2, "content.length": 0}, LLM),
        ({**EACH, "tool.name": "t", "tool.call_id": "c"}, TOOL),
        ({"agent": "root", "tool.calls": 2, "content.length": 0}, None),
        ({"agent": "root", "tool.call_id": "c"}, None),
        ({**EACH, "http.route": "/"}, None),
        ({"from.agent": "a", "to.agent": "b", "session.id": "s"}, None),
    ],
)
def test_the_bare_words_of_cagent_count_only_together(attributes: dict[str, Any], role: Role | None) -> None:
    assert read(attributes).role is role
    assert read({**attributes, "http.route": "/"}, error="500").role is role


def test_a_model_of_cagent_that_asked_for_tools_has_not_answered() -> None:
    assert facts({**EACH, "tool.calls": 2, "content.length": 9}).finish is Finish.TOOLS
    said = facts({**EACH, "tool.calls": 0, "content.length": 9})
    assert (said.finish, said.answered) == (None, True)
    assert not facts({**EACH, "tool.calls": 0, "content.length": 0}).answered


# -- what says nothing of its own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("FinishReason.STOP", Finish.ANSWERED),
        ("FinishReason.TOOL_CALLS,FinishReason.TOOL_CALLS", Finish.TOOLS),
        ("FinishReason.CONTENT_FILTER", Finish.FILTERED),
        ("FinishReason.LENGTH,FinishReason.STOP", Finish.LENGTH),
    ],
)
def test_semantic_kernel_writes_its_enumerations_names_with_commas(reason: str, finish: Finish) -> None:
    """Read in the source of semantic-kernel 1.45.0: one attribute in the singular, for all choices."""
    call = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.response.finish_reason": reason}
    assert facts(call).finish is finish


def test_semantic_kernels_text_completions_are_calls_of_models() -> None:
    call = {"gen_ai.operation.name": "text_completions", "gen_ai.request.model": "m", "gen_ai.response.id": "r"}
    assert read(call).role is LLM


MCP: dict[str, Any] = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "search", "mcp.session.id": "m-1"}


def run_by_mcp(**of_client: Any) -> Played:
    """An agent whose tool's call is one of a server's: three spans for one call."""
    model = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.output_tokens": 5}
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search", "gen_ai.tool.call.id": "c"}
    return arrived(
        made("chat m", 2, 1, 0, 1, model),
        made("tools/call search", 5, 4, 2, 3, MCP, kind=SpanKind.SERVER, remote=True),
        made("tools/call search", 4, 3, 2, 3, {**MCP, **of_client}, kind=SpanKind.CLIENT),
        made("execute_tool search", 3, 1, 2, 3, attributes),
        made("chat m", 6, 1, 4, 5, model),
        made("invoke_agent A", 1, None, 0, 6, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "A"}),
    )


@pytest.mark.parametrize("operation", [None, "execute_tool"])
def test_a_tools_call_and_the_one_of_its_server_are_one(operation: str | None) -> None:
    own = {} if operation is None else {"gen_ai.operation.name": operation}
    assert [end.content for end in run_by_mcp(**own).ends] == ["Finished 'A' in 6.0 s, 1 tool"]


@pytest.mark.parametrize("method", ["initialize", "tools/list", "resources/read", "notifications/progress", "ping"])
def test_other_methods_of_a_server_are_no_tools(method: str) -> None:
    assert read({"mcp.method.name": method, "mcp.session.id": "m-1"}).role is None
