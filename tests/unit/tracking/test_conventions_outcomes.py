"""Outcomes: what a single span says about how its work ended, in the words of any convention."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import Event

from otel_letta.tracking.conventions.facts import AgentFacts
from otel_letta.tracking.conventions.finishes import Finish
from tests.support.facts import END, facts, raised, read

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "keeper"}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "check"}
REASONS = "gen_ai.response.finish_reasons"


def finish(value: object, name: str = REASONS) -> AgentFacts:
    return facts({**CHAT, name: value})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("stop",), Finish.ANSWERED),
        ("STOP", Finish.ANSWERED),
        ("end_turn", Finish.ANSWERED),
        ("FinishReason.STOP", Finish.ANSWERED),
        ('["TOOL_CALLS"]', Finish.TOOLS),
        ("[tool_calls]", Finish.TOOLS),
        ("['tool-calls']", Finish.TOOLS),
        ("TOOL_EXECUTION", Finish.TOOLS),
        (("tool_use",), Finish.TOOLS),
        (("max_tokens",), Finish.LENGTH),
        ("FINISH_REASON_MAX_TOKENS", Finish.LENGTH),
        ("LENGTH", Finish.LENGTH),
        (("SAFETY",), Finish.FILTERED),
        ("content_filter", Finish.FILTERED),
        ("BLOCKLIST", Finish.FILTERED),
        (("error",), Finish.ERROR),
        ("canceled", Finish.CANCELLED),
        ("aborted", Finish.CANCELLED),
        ("", Finish.EMPTY),
        ((), Finish.EMPTY),
        ("[]", Finish.EMPTY),
        ("none", None),
        ("unknown", None),
        (("stop", "content_filter"), Finish.FILTERED),
    ],
)
def test_finish_reasons_come_in_any_form(value: object, expected: Finish | None) -> None:
    assert finish(value).finish is expected


@pytest.mark.parametrize(
    "name",
    [
        "gen_ai.response.finish_reason",
        "llm.finish_reason",
        "llm.response.finish_reasons",
        "ai.response.finishReason",
        "stop_reason",
    ],
)
def test_finish_reasons_are_read_wherever_they_stand(name: str) -> None:
    assert finish("content_filter", name).finish is Finish.FILTERED


def test_a_filters_word_is_kept() -> None:
    assert finish(("SAFETY",)).finish_word == "SAFETY"


def test_a_root_and_its_events_have_finish_reasons_too() -> None:
    event = Event("gen_ai.choice", {"finish_reason": "cancelled", "message": "SECRET"}, END)
    found = facts(AGENT, events=[event])
    assert (found.finish, found.cancelled, found.answered) == (Finish.CANCELLED, True, False)


def test_a_model_that_says_it_is_done_and_asks_for_a_tool_asks_for_a_tool() -> None:
    named = "llm.output_messages.0.message.tool_calls.0.tool_call.function.name"
    found = facts({"openinference.span.kind": "LLM", "llm.finish_reason": "stop", named: "read"})
    assert found.finish is Finish.TOOLS
    assert facts({"llm.request.model": "m", "llm.completions.0.tool_calls.0.name": "read"}).finish is Finish.TOOLS


def test_finish_reasons_inside_of_messages_are_read_without_their_text() -> None:
    output = '{"finishReason":"blocked","message":{"content":[{"text":"\\"finishReason\\":\\"stop\\""}]}}'
    assert facts({"genkit:metadata:subtype": "model", "genkit:output": output}).finish is Finish.FILTERED
    message = '[{"role":"assistant","content":"","response_meta":{"finish_reason":"content_filter"}}]'
    inner = {"gen_ai.span.kind": "chatmodel", "gen_ai.completion.0.content": message}
    assert facts(inner).finish is Finish.FILTERED


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"gen_ai.response.id": ""},
        {"gen_ai.response.model": "m-2026"},
        {"gen_ai.response.model": "none"},
        {"gen_ai.response.id": "none", "gen_ai.usage.output_tokens": 0},
        {"gen_ai.response.id": "unknown"},
        {REASONS: ("error",), "gen_ai.response.id": "r"},
        {REASONS: (), "gen_ai.response.id": "r"},
        {REASONS: ("SAFETY",), "gen_ai.usage.output_tokens": 5},
        {"gen_ai.output.messages": "[]"},
    ],
)
def test_what_is_no_answer(attributes: dict[str, Any]) -> None:
    assert not facts({**CHAT, **attributes}).answered


@pytest.mark.parametrize(
    "attributes",
    [{"gen_ai.response.id": "r"}, {"gen_ai.usage.output_tokens": 5}, {REASONS: ("stop",)}, {REASONS: ("length",)}],
)
def test_what_is_an_answer(attributes: dict[str, Any]) -> None:
    assert facts({**CHAT, **attributes}).answered


def test_an_instrumentation_without_attributes_for_answers_is_known_as_one() -> None:
    stream = {"openinference.span.kind": "LLM", "llm.model_name": "m"}
    assert not facts(stream).records_answers
    assert facts({**stream, "llm.token_count.completion": 0}).records_answers


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("AbortError", "This operation was aborted"),
        ("asyncio.exceptions.CancelledError", ""),
        ("trio.Cancelled", ""),
        ("java.lang.InterruptedException", "sleep interrupted"),
        ("java.util.concurrent.CancellationException", ""),
        ("kotlinx.coroutines.JobCancellationException", "Parent job is Cancelling"),
        ("System.Threading.Tasks.TaskCanceledException", "A task was canceled."),
        ("*url.Error", 'Post "http://h/v1": context canceled'),
        ("*fmt.wrapError", "error sending request: interrupt signal received"),
        ("Error", "Request was aborted."),
        ("", "Delay was aborted"),
        ("", "Abort\n\nError: Abort\n    at AbortSignal.listener (runner.js:1:1)"),
    ],
)
def test_cancellations_of_any_language_are_known(kind: str, message: str) -> None:
    found = facts(AGENT, error=message or None, events=[raised(kind, message)])
    assert found.cancelled
    assert facts({**AGENT, "error.type": kind or "canceled"}, error=message).reason.text.startswith("cancelled")


@pytest.mark.parametrize("kind", ["cancelled", "aborted", "AbortError", "CancelledError", "GeneratorExit"])
def test_an_errors_type_alone_says_cancelled(kind: str) -> None:
    assert facts({**CHAT, "error.type": kind}).cancelled


@pytest.mark.parametrize(
    "message", ["the order was cancelled by its owner's bank", "no such row", "aborting is a word"]
)
def test_other_errors_are_no_cancellations(message: str) -> None:
    assert not facts(TOOL, error=message, events=[raised("ValueError", message)]).cancelled


def test_an_attribute_says_cancelled() -> None:
    assert facts({"entity.type": "agent", "agent.state": "cancelled"}).cancelled
    assert facts({"entity.type": "agent", "cancelled": True}).cancelled


def test_a_deadline_is_a_timeout() -> None:
    found = facts(CHAT, error='Post "http://h/v1": context deadline exceeded')
    assert (found.timed_out, found.cancelled, str(found.reason)) == (True, False, "timed out")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("langgraph.errors.GraphInterrupt", "(Interrupt(value='SECRET'),)"),
        ("NodeInterrupt", ""),
        ("*ai.toolInterruptError", "tool execution interrupted"),
        ("*compose.interruptError", "interrupt happened"),
        ("*core.InterruptSignal", ""),
        ("pydantic_ai.exceptions.ApprovalRequired", ""),
        ("workflows.runtime.types.results.WaitingForEvent", "Waiting for event <class 'x.HumanResponseEvent'>"),
        ("", 'error tool "check" requires confirmation, please approve or reject'),
        ("", "(Interrupt(value={'question': 'SECRET'}),)"),
    ],
)
@pytest.mark.parametrize("failed", [True, False])
def test_a_pause_waits_for_a_person_and_is_no_error(kind: str, message: str, failed: bool) -> None:
    found = facts(TOOL, error=message if failed else None, ok=not failed, events=[raised(kind, message)])
    assert found.waits_for == "a person"
    assert not found.cancelled
    assert "SECRET" not in found.reason.full


@pytest.mark.parametrize(
    ("events", "waits"),
    [
        (["gen_ai.agent.paused"], "a person"),
        (["gen_ai.agent.paused", "gen_ai.agent.checkpointed"], "a person"),
        (["gen_ai.agent.paused", "gen_ai.agent.resumed"], None),
        (["gen_ai.agent.checkpointed"], None),
    ],
)
def test_proposed_events_of_pauses_are_read(events: list[str], waits: str | None) -> None:
    assert facts(AGENT, events=[Event(name, {}, END) for name in events]).waits_for == waits


@pytest.mark.parametrize(
    ("reason", "waits"),
    [
        ("human_input", "a person"),
        ("external_system", "another system"),
        ("rate_limit", "a rate limit"),
        ("scheduled_delay", "a time that was set"),
        ("SECRET", "a person"),
        (7, "a person"),
    ],
)
def test_a_pause_says_what_it_waits_for_in_the_words_of_the_proposal(reason: Any, waits: str) -> None:
    paused = Event("gen_ai.agent.paused", {"gen_ai.agent.pause.reason": reason}, END)
    assert facts(AGENT, events=[paused]).waits_for == waits


@pytest.mark.parametrize(
    ("status", "waits", "cancelled", "failed"),
    [
        ("input-required", "a person", False, False),
        ("auth_required", "a person: sign in", False, False),
        ("canceled", None, True, False),
        ("failed", None, False, True),
        ("working", None, False, False),
    ],
)
def test_proposed_statuses_of_tasks_are_read(status: str, waits: str | None, cancelled: bool, failed: bool) -> None:
    found = facts({**AGENT, "gen_ai.task.status": status})
    assert (found.waits_for, found.cancelled, found.failed) == (waits, cancelled, failed)


def test_a_refusal_is_seen_on_the_tool_and_on_its_part() -> None:
    assert facts({"span.type": "tool", "decision": "reject"}).denied
    assert read({"span.type": "tool.blocked_on_user", "decision": "reject"}).denied
    assert not read({"span.type": "tool.blocked_on_user", "decision": "accept"}).denied


@pytest.mark.parametrize(
    ("kind", "text"),
    [("denied", ""), ("", "Tool execution was rejected by the user"), ("ToolError", "The user declined this call")],
)
def test_a_tools_error_may_be_a_refusal(kind: str, text: str) -> None:
    assert facts({**TOOL, "error.type": kind}, error=text).denied
    assert facts({**TOOL, "gen_ai.tool.call.outcome": "denied"}).denied
    assert not facts(TOOL, error="permission denied").denied


def test_an_exception_at_the_end_counts_where_the_status_is_never_set() -> None:
    boom = raised("java.lang.IllegalStateException", "boom")
    found = facts(AGENT, events=[boom])
    assert not found.failed
    assert found.raised is not None
    assert found.raised.full == "IllegalStateException: boom"
    assert facts(AGENT, ok=True, events=[boom]).raised is None
    assert facts(AGENT, events=[raised("ValueError", "handled", at=END - 1_000_000_000)]).raised is None
    assert facts(AGENT, events=[boom, Event("later", {}, END)]).raised is None


def test_a_tools_outcome_is_an_attribute_of_some() -> None:
    found = facts({**TOOL, "gen_ai.tool.call.outcome": "error", "gen_ai.tool.error.type": "timeout"})
    assert (found.failed, str(found.reason)) == (True, "timeout")
    assert str(facts({**TOOL, "gen_ai.tool.call.outcome": "error", "gen_ai.tool.error.type": "other"}).reason) == ""
    assert not facts({**TOOL, "gen_ai.tool.call.outcome": "success"}).failed


def test_a_convention_may_mark_the_agents_that_ended_well() -> None:
    root = {"gcp.vertex.agent.invocation_id": "i", "agent.name": "keeper"}
    assert not facts(root).answered
    assert facts(root, events=[Event("Agent execution complete", {}, END)]).answered


def test_a_tool_of_haystack_says_that_it_failed() -> None:
    assert facts({"haystack.tool.name": "read", "haystack.tool.error": True}).failed
    assert not facts({"haystack.tool.name": "read"}).failed


def test_a_run_of_haystack_that_never_counted_its_steps_was_cut_off() -> None:
    root = {"haystack.agent.max_steps": 100}
    assert (facts(root).finish, facts(root).answered) == (Finish.EMPTY, False)
    through = facts({**root, "haystack.agent.steps_taken": 2})
    assert (through.finish, through.answered) == (None, True)


def test_the_tools_that_an_agent_has_and_a_model_asked_for_are_known_by_name() -> None:
    agent = facts({"openinference.span.kind": "AGENT", "agno.tools": ("search", "send")})
    asked = "llm.output_messages.0.message.tool_calls.0.tool_call.function"
    model = facts({"openinference.span.kind": "LLM", f"{asked}.name": "send", f"{asked}.arguments": "SECRET"})
    assert (agent.tool_names, model.tool_names) == ({"search", "send"}, {"send"})


def test_a_tools_call_that_shows_what_it_was_called_with_shows_whether_it_gave_anything_back() -> None:
    call = {**TOOL, "gen_ai.tool.call.arguments": "{}"}
    assert facts(call).no_result
    assert not facts({**call, "gen_ai.tool.call.result": ""}).no_result
    assert not facts(TOOL).no_result
