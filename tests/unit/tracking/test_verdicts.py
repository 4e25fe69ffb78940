"""Cancelled is not success: what came last tells how an agent's task ended."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status, StatusCode

from otel_letta.report import TaskStatus
from tests.unit.tracking.test_inferred_tasks import agent, arrived, chat, made, tool

FAILED, COMPLETED = TaskStatus.FAILED, TaskStatus.COMPLETED
STOPPED = (FAILED, "'A' stopped: it ended without an answer")
CANCELLED = (FAILED, "'A' was cancelled")
OP = {"gen_ai.operation.name": "chat"}


def verdict(*below: ReadableSpan, **root: Any) -> tuple[TaskStatus, str]:
    (end,) = arrived(*below, agent("A", 1, None, 0, 9, **root)).ends
    return end.status, end.content


def last(**attributes: Any) -> list[ReadableSpan]:
    """Return a model call, a tool, and a model call with these attributes (dots for double underscores)."""
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    return [chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2), chat(4, 1, 2, 3, attributes={**OP, **named})]


def ok(span: ReadableSpan) -> ReadableSpan:
    span._status = Status(StatusCode.OK)
    return span


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"gen_ai__response__finish_reasons": ("stop",)}, (COMPLETED, "Finished 'A' in 9.0 s, 1 tool")),
        ({"gen_ai__response__finish_reasons": '["STOP"]'}, (COMPLETED, "Finished 'A' in 9.0 s, 1 tool")),
        ({"gen_ai__response__finish_reasons": ("length",)}, (COMPLETED, "Finished 'A' in 9.0 s, 1 tool, 1 problem")),
        ({"gen_ai__response__finish_reasons": ("cancelled",)}, CANCELLED),
        ({"gen_ai__response__finish_reasons": "ABORTED"}, CANCELLED),
        ({"gen_ai__response__finish_reasons": ("",)}, STOPPED),
        ({"gen_ai__response__finish_reason": ""}, STOPPED),
        (
            {"gen_ai__response__finish_reasons": ("SAFETY",)},
            (FAILED, "'A' failed: blocked by the model's filter (SAFETY)"),
        ),
        (
            {"gen_ai__response__finish_reasons": ("error",)},
            (FAILED, "'A' stopped: the model's answer ended with an error"),
        ),
        ({"gen_ai__response__model": "m"}, STOPPED),
        ({"gen_ai__response__model": "none", "gen_ai__response__id": ""}, STOPPED),
        ({}, STOPPED),
    ],
    ids=str,
)
def test_a_finish_reason_says_whether_the_model_answered(
    attributes: dict[str, Any], expected: tuple[TaskStatus, str]
) -> None:
    assert verdict(*last(**attributes)) == expected


def test_a_root_that_says_it_was_cancelled_was() -> None:
    reasons = {"gen_ai.response.finish_reasons": ("cancelled",)}
    assert verdict(chat(2, 1), attributes=reasons) == CANCELLED


def test_a_tool_that_is_last_means_that_something_stopped_it() -> None:
    assert verdict(chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2)) == STOPPED
    # A model's span may enclose the tools that the model asked for, and ends after them.
    assert verdict(chat(2, 1, 0, 3), tool("t", 3, 2, 1, 2)) == STOPPED
    assert verdict(chat(2, 1, 0, 3), tool("t", 3, 2, 1, 2), chat(4, 1, 3, 4))[0] is COMPLETED


@pytest.mark.parametrize(
    "name",
    [
        *("final_answer", "final_result", "transfer_to_reporter", "StructuredOutput"),
        *("exit_loop", "finish_task", "end_conversation", "set_model_response"),
    ],
)
def test_an_agent_may_end_on_a_tool_that_is_made_for_that(name: str) -> None:
    assert verdict(chat(2, 1, 0, 1), tool(name, 3, 1, 1, 2))[0] is COMPLETED


def test_a_root_that_says_ok_may_end_on_any_tool() -> None:
    root = ok(agent("A", 1, None, 0, 9))
    assert arrived(chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2), root).ends[0].status is COMPLETED


def test_a_tool_whose_own_agent_called_models_is_last_only_if_the_callers_models_are_traced() -> None:
    inner = [chat(4, 3, 1, 2)]
    assert verdict(*inner, tool("ask", 3, 1, 1, 3))[0] is COMPLETED
    assert verdict(*inner, tool("ask", 3, 1, 1, 3), chat(2, 1, 0, 1)) == STOPPED


@pytest.mark.parametrize(
    "kind", ["asyncio.exceptions.CancelledError", "AbortError", "*errors.CanceledError", "trio.Cancelled"]
)
def test_a_cancellations_exception_on_the_last_span_is_one_though_no_status_is_set(kind: str) -> None:
    event = ("exception", {"exception.type": kind, "exception.message": ""})
    status, content = verdict(chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2, events=(event,)))
    assert status is FAILED
    assert "was cancelled" in content


@pytest.mark.parametrize("text", ["context canceled", "This operation was aborted", "Request was aborted.", "Abort"])
def test_an_error_that_says_so_is_a_cancellation(text: str) -> None:
    assert verdict(chat(2, 1), error=text) == CANCELLED


def test_a_timeout_is_said_as_one() -> None:
    assert verdict(chat(2, 1), error="context deadline exceeded") == (FAILED, "'A' timed out")


def test_an_exception_at_the_end_of_a_call_without_an_answer_is_why_it_failed() -> None:
    event = ("exception", {"exception.type": "HttpError", "exception.message": "HTTP 500"})
    calls = [chat(2, 1, 0, 1), chat(3, 1, 2, 3, attributes=OP, events=(event,))]
    assert verdict(*calls) == (FAILED, "'A' failed: HTTP 500")
    assert verdict(chat(2, 1), events=(event,)) == (FAILED, "'A' failed: HTTP 500")


def test_no_answer_says_nothing_where_none_is_ever_recorded() -> None:
    calls = [chat(2, 1, 0, 1, attributes=OP), tool("t", 3, 1, 1, 2), chat(4, 1, 2, 3, attributes=OP)]
    assert verdict(*calls) == STOPPED
    root = ok(agent("A", 1, None, 0, 9))
    assert arrived(*calls, root).ends[0].status is COMPLETED


def test_a_span_whose_parent_never_came_was_cut_off() -> None:
    torn = made("part", 5, 99, 4, 5, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "part"})
    assert verdict(torn, chat(2, 1, 0, 1), chat(4, 1, 2, 3)) == STOPPED
    assert verdict(torn, chat(2, 1, 0, 1), chat(4, 1, 6, 7))[0] is COMPLETED  # it went on after that
    assert arrived(torn, chat(2, 1, 0, 1), chat(4, 1, 2, 3), ok(agent("A", 1))).ends[0].status is COMPLETED


def test_a_refused_tool_is_told_as_refused() -> None:
    played = arrived(
        chat(2, 1, 0, 1),
        made("blocked", 5, 3, 1, 2, {"decision": "reject"}),
        tool("rm", 3, 1, 1, 2, attributes={"decision": "reject"}),
        chat(4, 1, 2, 3),
        agent("A", 1),
    )
    assert "Tool rm was denied; 1 tool used" in [report.content for report in played.reports]


def test_the_wrapper_of_a_tool_with_its_call_id_is_the_same_call() -> None:
    call = {"gen_ai.tool.call.id": "call-1"}
    inner, outer = tool("read", 3, 2, 1, 2, attributes=call), tool("tool.execution", 2, 1, 1, 2.1, attributes=call)
    played = arrived(inner, outer, chat(4, 1, 3, 4), agent("A", 1))
    assert played.ends[0].content == "Finished 'A' in 9.0 s, 1 tool"


def test_a_model_that_asked_for_a_tool_and_was_never_asked_again_has_not_answered() -> None:
    asks = {"gen_ai.response.finish_reasons": ("tool_calls",)}
    assert verdict(*last(gen_ai__response__finish_reasons=("tool_calls",))) == STOPPED
    assert verdict(chat(2, 1, 0, 1, attributes={**OP, **asks})) == STOPPED
    # Frameworks that end on a tool without a span of its own record what it gave on the root.
    answered = {"gen_ai.output.messages": "[]", "gen_ai.usage.output_tokens": 7}
    assert verdict(chat(2, 1, 0, 1, attributes={**OP, **asks}), attributes=answered)[0] is COMPLETED


def test_an_agent_that_says_it_ended_by_asking_for_a_tool_waits_for_who_calls_that() -> None:
    asks = {"gen_ai.response.finish_reasons": ("tool_calls",)}
    waits = "waits for a person: a tool that it asked for was not called"
    for below in (
        [chat(2, 1, 0, 1, attributes={**OP, **asks})],
        last(gen_ai__response__finish_reasons=("tool_calls",)),
    ):
        played = arrived(*below, agent("A", 1, None, 0, 9, attributes=asks))
        assert (played.ends, played.reports[-1].content, played.reports[-1].waiting) == ([], waits, True)
    sub_agent = [chat(3, 2, 0, 1, attributes={**OP, **asks}), agent("B", 2, 1, 0, 2, attributes=asks)]
    assert arrived(*sub_agent, agent("A", 1, None, 0, 9)).reports[-1].content == waits
    # The tool was called: it is the last thing that happened.
    called = [chat(2, 1, 0, 1, attributes={**OP, **asks}), tool("t", 3, 1, 1, 2)]
    assert verdict(*called, attributes=asks) == STOPPED


def test_a_sub_agent_that_a_tool_called_fails_the_run_only_if_the_callers_models_are_traced() -> None:
    failed = [agent("B", 3, 2, 1, 2, error="ValueError: no"), tool("ask", 2, 1, 1, 2, error="ValueError: no")]
    assert verdict(*failed) == (COMPLETED, "Finished 'A' in 9.0 s, 1 tool, 1 problem")
    assert verdict(chat(4, 3, 1, 2), *failed)[0] is COMPLETED  # the sub-agent's own
    assert verdict(chat(4, 1, 0, 1), *failed) == (FAILED, "'A' failed: no")
    assert verdict(chat(4, 1, 0, 1), *failed, chat(5, 1, 2, 3))[0] is COMPLETED
    assert verdict(agent("B", 3, 1, 1, 2, error="ValueError: no")) == (FAILED, "'A' failed: no")


@pytest.mark.parametrize("name", ["adk_request_input", "request_input", "get_user_choice"])
def test_a_tool_that_asks_a_person_and_is_last_means_that_the_agent_waits(name: str) -> None:
    asks = [chat(2, 1, 0, 1), tool(name, 3, 1, 1, 2)]
    last_report = arrived(*asks, agent("A", 1, None, 0, 9)).reports[-1]
    assert (last_report.content, last_report.waiting) == (f"waits for a person: {name}", True)
    assert verdict(*asks, chat(4, 1, 2, 3))[0] is COMPLETED  # it has its answer
    assert verdict(chat(2, 1, 0, 1), tool(name, 3, 1, 1, 2, error="no terminal"))[0] is FAILED


ASKS = {**OP, "gen_ai.response.finish_reasons": ("tool_calls",)}
ASKS_BY_NAME = {"openinference.span.kind": "LLM", "llm.output_messages.0.message.tool_calls.0.tool_call.name": "send"}
WITH_TOOLS = {"openinference.span.kind": "AGENT", "agent.name": "A", "agno.tools": ("find", "send")}


def test_a_request_for_a_tool_may_be_the_answer_of_the_agent_that_made_it() -> None:
    """Structured output, in a span of an agent below the root of the same run."""
    model = chat(3, 2, 0, 1, attributes=ASKS)
    answered = {"gen_ai.usage.output_tokens": 7}
    assert verdict(model, agent("A", 2, 1, 0, 2, attributes=answered))[0] is COMPLETED
    assert verdict(model, agent("A", 2, 1, 0, 2, attributes={"gen_ai.task.status": "success"}))[0] is COMPLETED
    assert verdict(model, agent("A", 2, 1, 0, 2)) == STOPPED
    # Whichever of the agents around it: here the one that another has right below itself.
    model, inner = chat(4, 3, 0, 1, attributes=ASKS), agent("A", 3, 2, 0, 2)
    assert verdict(model, inner, agent("A", 2, 1, 0, 3, attributes=answered))[0] is COMPLETED
    assert verdict(model, inner, agent("A", 2, 1, 0, 3)) == STOPPED


def test_ok_alone_does_not_make_an_answer_of_a_request_for_a_tool() -> None:
    (end,) = arrived(chat(2, 1, 0, 1, attributes=ASKS), ok(agent("A", 1, None, 0, 9))).ends
    assert (end.status, end.content) == STOPPED


def test_a_root_that_says_ok_has_not_ended_on_a_tool_that_gave_nothing_back() -> None:
    called = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.arguments": "{}"}
    for result, expected in (({}, FAILED), ({"gen_ai.tool.call.result": "null"}, COMPLETED)):
        below = [chat(2, 1, 0, 1), tool("t", 3, 1, 1, 2, attributes={**called, **result})]
        (end,) = arrived(*below, ok(agent("A", 1, None, 0, 9))).ends
        assert end.status is expected


def test_an_agent_that_ended_well_after_asking_for_a_tool_of_its_own_waits_for_somebody() -> None:
    model = chat(2, 1, 0, 1, attributes=ASKS_BY_NAME)
    played = arrived(model, ok(agent("A", 1, None, 0, 9, attributes=WITH_TOOLS)))
    assert (played.ends, played.reports[-1].content) == ([], "waits for a person: send")
    assert verdict(model, attributes=WITH_TOOLS) == STOPPED  # nothing says that it ended well
    # One that nobody has, such as the form of an answer.
    other = {**WITH_TOOLS, "agno.tools": ("find",), "output.value": "x"}
    (end,) = arrived(model, ok(agent("A", 1, None, 0, 9, attributes=other))).ends
    assert end.status is COMPLETED


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("content_filter", (FAILED, "'A' failed: blocked by the model's filter (content_filter)")),
        ("length", (COMPLETED, "Finished 'A' in 9.0 s, 1 problem")),
        ("stop", (COMPLETED, "Finished 'A' in 9.0 s")),
    ],
)
def test_of_two_spans_around_one_call_of_a_model_the_inner_one_says_why_it_ended(
    reason: str, expected: tuple[TaskStatus, str]
) -> None:
    outer = {"openinference.span.kind": "LLM", "output.value": "x"}
    inner = {**outer, "llm.finish_reason": reason}
    assert verdict(chat(3, 2, 0, 1, attributes=inner), chat(2, 1, 0, 2, attributes=outer)) == expected


def test_two_spans_around_one_call_of_a_model_that_failed_are_one_problem() -> None:
    answer = chat(4, 1, 2, 3, attributes={**OP, "gen_ai.response.id": "r"})
    inside, beside = chat(3, 2, 0, 1, error="no"), chat(3, 1, 0, 1, error="no")
    assert verdict(inside, chat(2, 1, 0, 1, error="no"), answer)[1] == "Finished 'A' in 9.0 s, 1 problem"
    assert verdict(beside, chat(2, 1, 0, 1, error="no"), answer)[1] == "Finished 'A' in 9.0 s, 2 problems"


def test_a_root_whose_own_finish_reason_is_empty_was_cut_off() -> None:
    attributes = {"haystack.agent.max_steps": 9}
    assert verdict(tool("t", 3, 1, 1, 2), attributes=attributes) == (
        FAILED,
        "'A' stopped: it ended without an answer",
    )
    assert verdict(tool("t", 3, 1, 1, 2), attributes={**attributes, "haystack.agent.steps_taken": 2})[0] is COMPLETED
