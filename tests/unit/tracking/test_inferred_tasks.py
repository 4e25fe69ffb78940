"""Agents that nobody declared: which spans make a task, what is told of it, and how it ended.

The traces in `data/traces` were recorded from real frameworks. What is expected of them was read off their timelines
and off the verdicts that a person gave, not off what the tracker says.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_letta.delivery.board import Board
from otel_letta.delivery.envelope import render
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.tracking import Reading
from otel_letta.tracking.conventions import CONTENT_FIELDS, Role, role_of
from otel_letta.tracking.conventions.reasons import clean_reason
from tests.support.recorded import Played, batches, content_values, play, play_live, traces
from tests.support.tracked import SECOND, Live, hostile_text

FAILED, COMPLETED = TaskStatus.FAILED, TaskStatus.COMPLETED
TWO = ["search_docs", "send_report"]
QUOTA = "mail service returned 503: ERR-REPORT quota exceeded"
SERVER = "The server had an error while processing your request"
OPENAI = "InternalServerError: OpenAIException - scripted failure"
UNFINISHED = "stopped before it was finished"


@dataclass
class Told:
    """What is to be heard of one task of a recorded trace."""

    status: TaskStatus
    name: str
    tools: list[str] = field(default_factory=lambda: list(TWO))
    chat: str | None = "thread-42"
    """None: the trace's id."""
    says: str = ""
    """Part of the last content."""
    problems: int = 0


EXPECTED: dict[str, list[Told]] = {
    "celery_batch.success": [],
    "celery_batch.tool_error": [],
    "web_noise.success": [],
    "claude_agent_sdk.native.llm_error": [
        Told(
            FAILED,
            "claude_agent_sdk.native",
            ["search_docs"],
            "1f0b4ebc-9fd3-402b-953d-d32dc7360870",
            "Internal server",
        )
    ],
    "claude_agent_sdk.native.success": [
        Told(COMPLETED, "claude_agent_sdk.native", chat="96086ace-08b4-492d-948b-c92f2db074c1")
    ],
    "claude_agent_sdk.native.tool_error": [
        Told(COMPLETED, "claude_agent_sdk.native", chat="c7272729-84f7-4ced-8b53-ddb5c1e57ec8", problems=1)
    ],
    "crewai.oi.handoff": [
        Told(
            COMPLETED,
            "quarterly_crew",
            [*TWO, *TWO, "Delegate work to coworker", *TWO, "Ask question to coworker"],
            chat=None,
        )
    ],
    "crewai.oi.llm_error": [Told(FAILED, "quarterly_crew", ["search_docs"], None, SERVER)],
    "crewai.oi.success": [Told(COMPLETED, "quarterly_crew", chat=None)],
    "crewai.oi.tool_error": [Told(COMPLETED, "quarterly_crew", chat=None, problems=1)],
    "langchain_agent.genai.handoff": [Told(COMPLETED, "supervisor", [*TWO, "transfer_to_reporter"])],
    "langchain_agent.genai.llm_error": [Told(FAILED, "reporter", ["search_docs"], says=SERVER)],
    "langchain_agent.genai.success": [Told(COMPLETED, "reporter")],
    "langchain_agent.genai.tool_error": [Told(COMPLETED, "reporter", problems=1)],
    "langgraph.oi.crash": [Told(FAILED, "langgraph.oi", ["search_docs"], says="lost, no news for")],
    "langgraph.oi.llm_error": [Told(FAILED, "quarterly_report_graph", ["search_docs"], says=SERVER)],
    "langgraph.oi.success": [Told(COMPLETED, "quarterly_report_graph")],
    "langgraph.oi.tool_error": [Told(FAILED, "quarterly_report_graph", says=QUOTA)],
    "langgraph.oi.tool_error-slow": [Told(FAILED, "quarterly_report_graph", says=QUOTA)],
    "openai_agents.genai.cancel": [Told(FAILED, "Quarterly report", ["search_docs"], says="cancelled or timed out")],
    "openai_agents.genai.crash": [Told(FAILED, "openai_agents.genai", ["search_docs"], says="lost, no news for")],
    "openai_agents.genai.handoff": [Told(COMPLETED, "Quarterly report")],
    "openai_agents.genai.llm_error": [Told(FAILED, "Quarterly report", ["search_docs"], says=SERVER)],
    "openai_agents.genai.success": [Told(COMPLETED, "Quarterly report")],
    "openai_agents.genai.success-slow": [Told(COMPLETED, "Quarterly report")],
    "openai_agents.genai.tool_error": [Told(COMPLETED, "Quarterly report", problems=1)],
    "openai_agents.genai_content.success": [Told(COMPLETED, "Quarterly report")],
    "openai_agents.genai_raise.tool_error": [Told(FAILED, "Quarterly report", says=QUOTA)],
    "openai_agents.genai_stream.success": [Told(COMPLETED, "Quarterly report")],
    "openhands.lmnr.interrupt_tool": [
        Told(
            FAILED,
            "OpenHands",
            # A second call of the terminal was cut off, and its span arrives after the run's.
            ["task_tracker", "terminal", "terminal"],
            "b195e859-b079-47e0-9cf5-fd4a9d4bb27c",
            UNFINISHED,
        )
    ],
    "openhands.lmnr.llm_error": [Told(FAILED, "OpenHands", [], "7ddc4b85-d438-40ff-8dd1-1c69a9df6c78", OPENAI)],
    "openhands.lmnr.llm_error-later": [
        Told(
            FAILED,
            "OpenHands",
            ["task_tracker", "file_editor", "task_tracker"],
            "01259751-d539-49f8-aa2a-27b7e6b77163",
            OPENAI,
        )
    ],
    "openhands.lmnr.max_iterations": [
        Told(FAILED, "OpenHands", ["terminal"] * 3, "29423141-f440-4ae8-92e2-190b7ca9a06d", UNFINISHED)
    ],
    "openhands.lmnr.parallel": [
        Told(
            COMPLETED,
            "OpenHands",
            ["task_tracker", "file_editor", "terminal"],
            "7f045334-12a4-4aca-89fd-6ccf0eaf2878",
        )
    ],
    "openhands.lmnr.success": [
        Told(
            COMPLETED,
            "OpenHands",
            ["task_tracker", *["file_editor", "task_tracker", "terminal", "task_tracker"] * 2],
            "9ff3da80-23e4-4f9f-a936-512fe8e8fbb0",
        )
    ],
    # Calls of tools that do not exist hang below the conversation, not below the run, and are none of these.
    "openhands.lmnr.tool_error": [
        Told(
            COMPLETED,
            "OpenHands",
            ["task_tracker", "file_editor", "file_editor", "terminal", "explode", "task_tracker"],
            "00f8facb-b1c1-4f42-a76e-ed2993935f1e",
            problems=3,
        )
    ],
    "pydantic_ai.otel.cancel": [Told(FAILED, "reporter", ["search_docs"], says="ended without an answer")],
    "pydantic_ai.otel.handoff": [Told(COMPLETED, "supervisor", [*TWO, "transfer_to_reporter"])],
    "pydantic_ai.otel.llm_error": [Told(FAILED, "reporter", ["search_docs"], says=SERVER)],
    "pydantic_ai.otel.success": [Told(COMPLETED, "reporter")],
    "pydantic_ai.otel.tool_error": [Told(COMPLETED, "reporter", problems=1)],
    "pydantic_ai.otel_raise.tool_error": [Told(FAILED, "reporter", says=QUOTA)],
    "smolagents.oi.handoff": [Told(COMPLETED, "supervisor", [*TWO, "final_answer", "final_answer"], None)],
    # Its root is never exported: what tells is the last thing under it.
    "smolagents.oi.llm_error": [Told(FAILED, "smolagents.oi", ["search_docs"], None, SERVER)],
    "smolagents.oi.success": [Told(COMPLETED, "reporter", [*TWO, "final_answer"], None)],
    "smolagents.oi.tool_error": [Told(COMPLETED, "reporter", [*TWO, "final_answer"], None, problems=1)],
    "strands.native.handoff": [Told(COMPLETED, "supervisor", [*TWO, "transfer_to_reporter"])],
    "strands.native.llm_error": [Told(FAILED, "reporter", ["search_docs"], says=SERVER)],
    "strands.native.success": [Told(COMPLETED, "reporter")],
    "strands.native.tool_error": [Told(COMPLETED, "reporter", problems=1)],
    "web_agent.pydantic_ai.llm_error": [
        Told(FAILED, "reporter", ["search_docs"], f"thread-{n}", SERVER) for n in (1, 2)
    ],
    "web_agent.pydantic_ai.success": [Told(COMPLETED, "reporter", chat=f"thread-{n}") for n in (1, 2)],
}
NEVER_ENDED = (
    "langgraph.oi.crash",
    "openai_agents.genai.crash",
    "openhands.lmnr.interrupt_tool",
    "smolagents.oi.llm_error",
)
"""A span of theirs was never exported, so it cannot be played from its start to its end."""


def test_every_recorded_trace_has_its_expectation() -> None:
    assert traces() == sorted(EXPECTED)


def tools(reports: list[ProgressReport]) -> list[str]:
    """The tools that were told of, in order."""
    found = []
    for report in reports:
        for begin, end in (("Used tool ", " ("), ("Tool ", " failed")):
            if report.content.startswith(begin):
                found.append(report.content.removeprefix(begin).split(end)[0])
    return found


def check(name: str, reports: list[ProgressReport]) -> None:
    told = EXPECTED[name]
    ends = [report for report in reports if report.status.is_terminal]
    assert [end.status for end in ends] == [want.status for want in told]
    for end, want in zip(ends, told, strict=True):
        mine = [report for report in reports if report.task_id == end.task_id]
        assert mine[-1] is end
        assert [report.sequence for report in mine] == list(range(1, len(mine) + 1))
        assert mine[0].content.startswith("Started '")
        assert end.name == want.name
        assert {report.chat_id for report in mine} == {want.chat or end.trace_id}
        assert tools(mine) == want.tools
        assert want.says in end.content
        if want.status is COMPLETED:
            number = f"{len(want.tools)} tools"
            plural = "s" if want.problems > 1 else ""
            problems = f", {want.problems} problem{plural}" if want.problems else ""
            assert end.content.endswith(number + problems)
            assert end.content.startswith(f"Finished '{want.name}' in ")
            assert (end.progress, end.error) == (1.0, None)
        else:
            assert end.content.startswith(f"'{want.name}' ")
            assert end.error
            assert end.progress < 1.0


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_agent_is_told_as_it_went(name: str) -> None:
    check(name, play(name).reports)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in NEVER_ENDED])
def test_a_recorded_agent_is_told_alike_when_it_runs_here(name: str) -> None:
    live = play_live(name, resource={"service.name": name.rpartition(".")[0]})
    # The other process's own ids are not those of the traces that the SDK makes here.
    for want, end in zip(EXPECTED[name], live.ends, strict=True):
        assert (end.status, end.name, want.says in end.content) == (want.status, want.name, True)
        mine = [report for report in live.reports if report.task_id == end.task_id]
        assert tools(mine) == want.tools
        assert [report.content.split("'")[0] for report in mine[:1]] == ["Started "]
    assert live.tracker.open_tasks == 0


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_changes_no_verdict(name: str, seed: int) -> None:
    spans = [span for batch in batches(name) for span in batch.spans]
    random.Random(seed).shuffle(spans)
    played = Played()
    for span in spans:
        played.arrive([span])
    played.tracker.finish()
    expected = [(want.status, want.name) for want in EXPECTED[name]]
    # The name of a task without a root is that of the service, whose first sign may be any span.
    assert [(end.status, end.name) for end in played.ends] == expected
    for want, end in zip(sorted(EXPECTED[name], key=lambda want: want.chat or ""), by_chat(played.ends), strict=True):
        mine = [report for report in played.reports if report.task_id == end.task_id]
        assert sorted(tools(mine)) == sorted(want.tools)
        assert end.chat_id == (want.chat or end.trace_id)


def by_chat(reports: list[ProgressReport]) -> list[ProgressReport]:
    return sorted(reports, key=lambda report: report.chat_id or "")


@pytest.mark.parametrize("name", EXPECTED)
def test_what_arrives_twice_is_told_once(name: str) -> None:
    played = Played()
    for batch in batches(name):
        played.arrive([*batch.spans, *batch.spans])
        played.arrive(batch.spans)
    played.pass_seconds(9_000)
    for batch in batches(name):
        played.arrive(batch.spans)
    played.pass_seconds(9_000)
    check(name, played.reports)


# -- what is never said ----------------------------------------------------------------------------------------------


def everything_sent(reports: list[ProgressReport]) -> str:
    """All that could reach Letta: messages, and the board after each report."""
    board = Board("host")
    texts = []
    for report in reports:
        board.update(report)
        texts += [render(report), board.text(100_000, datetime.now(timezone.utc)), report.to_json()]
    return "\n".join(texts)


CAUSES = (
    # Why something failed is told, in one line; tools hand the same line to their model, so it is content as well.
    QUOTA,
    SERVER,
    "Internal server error (stub)",
    "Tool execution failed.",
    "Error details are redacted.",
    "Error code: 500",
    "Error while generating output:",
)


@pytest.mark.parametrize("name", EXPECTED)
def test_no_content_of_a_recorded_agent_is_ever_sent(name: str) -> None:
    sent = everything_sent(play(name).reports)
    content = content_values(name)
    leaked = {text for text in content if text in sent}
    assert {text for text in leaked if not any(text in cause or cause in text for cause in CAUSES)} == set()
    for words in ("quarterly revenue", "Q1.pdf", "documents found", "team@example.com", "Traceback", 'File "', "Plan:"):
        assert words not in sent


def test_most_recorded_agents_have_content_to_search_for() -> None:
    assert sum(len(content_values(name)) > 20 for name in EXPECTED) > 20


def test_the_search_for_content_finds_what_is_sent() -> None:
    """The test above can fail: with the setting that tells content it would."""
    name = "pydantic_ai.otel.success"
    sent = everything_sent(play(name, content=tuple(CONTENT_FIELDS)).reports)
    assert any(text in sent for text in content_values(name))


# -- made-up spans ---------------------------------------------------------------------------------------------------

AGENT = {"gen_ai.operation.name": "invoke_agent"}
WORKFLOW = {"gen_ai.operation.name": "invoke_workflow"}
TOOL = {"gen_ai.operation.name": "execute_tool"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.usage.output_tokens": 5}
CHAIN = {"openinference.span.kind": "CHAIN"}
T0 = 1_800_000_000 * SECOND


def made(
    name: str,
    span_id: int,
    parent: int | None = None,
    start: float = 0.0,
    end: float = 1.0,
    attributes: dict[str, Any] | None = None,
    *,
    trace_id: int = 1,
    remote: bool = False,
    error: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    events: tuple[tuple[str, dict[str, Any]], ...] = (),
    resource: dict[str, Any] | None = None,
    scope: str = "any",
) -> ReadableSpan:
    """An ended span; times are seconds from a beginning that all share."""

    def context(of: int, is_remote: bool) -> SpanContext:
        return SpanContext(trace_id, of, is_remote, TraceFlags(TraceFlags.SAMPLED))

    return ReadableSpan(
        name=name,
        context=context(span_id, False),
        parent=context(parent, remote) if parent is not None else None,
        attributes=attributes or {},
        events=[Event(event, of, T0 + int(end * SECOND)) for event, of in events],
        kind=kind,
        resource=Resource(resource or {}),
        status=Status(StatusCode.ERROR, error) if error is not None else Status(),
        start_time=T0 + int(start * SECOND),
        end_time=T0 + int(end * SECOND),
        instrumentation_scope=InstrumentationScope(scope),
    )


def agent(name: str, span_id: int, parent: int | None = None, start: float = 0.0, end: float = 9.0, **more: Any) -> Any:
    own = {**AGENT, "gen_ai.agent.name": name, **more.pop("attributes", {})}
    return made(f"invoke_agent {name}", span_id, parent, start, end, own, **more)


def tool(name: str, span_id: int, parent: int | None = None, start: float = 1.0, end: float = 2.0, **more: Any) -> Any:
    own = {**TOOL, "gen_ai.tool.name": name, **more.pop("attributes", {})}
    return made(f"execute_tool {name}", span_id, parent, start, end, own, **more)


def chat(span_id: int, parent: int | None = None, start: float = 0.0, end: float = 1.0, **more: Any) -> Any:
    return made("chat m", span_id, parent, start, end, more.pop("attributes", CHAT), **more)


def arrived(*spans: ReadableSpan, wait: float = 3.0, **options: Any) -> Played:
    """One request for each span, and then time passes."""
    played = Played(**options)
    for span in spans:
        played.arrive([span])
    played.pass_seconds(wait)
    return played


def told(played: Played) -> list[tuple[str, str, str]]:
    return [(report.name, str(report.status), report.content) for report in played.reports]


def contents(played: Played | Live) -> list[str]:
    found = [report.content for report in played.reports]
    return [timeless(text) for text in found] if isinstance(played, Live) else found


def timeless(text: str) -> str:
    """Replace durations by no time: a live span's is the real one, and on a busy machine it may be anything."""
    return re.sub(r"\b\d+\.\d s", "0.0 s", text)


# -- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        ({"gen_ai.operation.name": "invoke_workflow"}, Role.AGENT),
        ({"gen_ai.operation.name": "invoke_agent"}, Role.AGENT),
        ({"gen_ai.operation.name": "execute_tool"}, Role.TOOL),
        ({"gen_ai.operation.name": "chat"}, Role.LLM),
        ({"gen_ai.operation.name": "text_completion"}, Role.LLM),
        ({"gen_ai.operation.name": "generate_content"}, Role.LLM),
        ({"gen_ai.operation.name": "execute_task"}, Role.STEP),
        ({"gen_ai.operation.name": "create_agent"}, None),
        ({"gen_ai.operation.name": "embeddings"}, None),
        ({"gen_ai.operation.name": "execute_event_loop_cycle", "gen_ai.request.model": "m"}, None),
        ({"gen_ai.operation.name": "invoke_agent", "traceloop.span.kind": "task"}, Role.STEP),
        ({"gen_ai.operation.name": "invoke_agent", "traceloop.span.kind": "tool"}, Role.TOOL),
        ({"gen_ai.operation.name": "invoke_agent", "traceloop.span.kind": "workflow"}, Role.AGENT),
        ({"gen_ai.operation.name": "chat", "openinference.span.kind": "AGENT"}, Role.LLM),
        ({"openinference.span.kind": "AGENT"}, Role.AGENT),
        ({"openinference.span.kind": "TOOL"}, Role.TOOL),
        ({"openinference.span.kind": "LLM"}, Role.LLM),
        ({"openinference.span.kind": "CHAIN"}, Role.STEP),
        ({"openinference.span.kind": "GUARDRAIL"}, Role.STEP),
        ({"openinference.span.kind": "RETRIEVER"}, None),
        ({"openinference.span.kind": "RERANKER"}, None),
        ({"openinference.span.kind": "EMBEDDING"}, None),
        ({"openinference.span.kind": "EMBEDDING"}, None),
        ({"traceloop.span.kind": "agent"}, Role.AGENT),
        ({"traceloop.span.kind": "task"}, Role.STEP),
        ({"traceloop.span.kind": "tool"}, Role.TOOL),
        ({"lmnr.span.type": "TOOL"}, Role.TOOL),
        ({"lmnr.span.type": "LLM"}, Role.LLM),
        ({"lmnr.span.type": "DEFAULT"}, None),
        ({"gen_ai.request.model": "m"}, Role.LLM),
        ({"gen_ai.tool.name": "t"}, Role.TOOL),
        ({"http.request.method": "GET"}, None),
        ({"gen_ai.operation.name": 5}, None),
    ],
    ids=str,
)
def test_roles_come_from_attributes(attributes: dict[str, Any], role: Role | None) -> None:
    for scope in ("openai", "langchain", "unheard of"):
        assert role_of(Reading.of(made("x", 1, attributes=attributes, scope=scope))) is role


def test_a_tool_call_as_its_mcp_server_sees_it_is_none() -> None:
    attributes = {**TOOL, "mcp.method.name": "tools/call"}
    assert role_of(Reading.of(made("tools/call t", 1, attributes=attributes, kind=SpanKind.SERVER))) is None
    assert role_of(Reading.of(made("tools/call t", 1, attributes=attributes, kind=SpanKind.CLIENT))) is Role.TOOL


@pytest.mark.parametrize("name", ["conversation.run", "conversation.arun"])
def test_of_a_laminar_conversation_each_run_is_a_task(name: str) -> None:
    plain = {"lmnr.span.type": "DEFAULT"}
    played = arrived(
        made("conversation.send_message", 9, 1, 0, 0.1, plain),
        made("TerminalAction", 4, 3, 1, 2, {"lmnr.span.type": "TOOL"}),
        made("FinishAction", 5, 3, 2, 3, {"lmnr.span.type": "TOOL"}),
        made("agent.step", 3, 2, 1, 3, plain),
        made(name, 2, 1, 1, 4, {**plain, "lmnr.association.properties.session_id": "c-1"}),
        made("conversation", 1, None, 0, 5, plain),
    )
    assert [end.content for end in played.ends] == ["Finished 'OpenHands' in 3.0 s, 1 tool"]
    assert played.ends[0].chat_id == "c-1"


# -- what is a task --------------------------------------------------------------------------------------------------


def test_an_agent_span_is_a_task_and_so_is_a_chain_without_any_agent_above() -> None:
    for root in (agent("A", 1), made("A", 1, None, 0, 9, CHAIN)):
        assert told(arrived(root)) == [
            ("A", "in_progress", "Started 'A'"),
            ("A", "completed", "Finished 'A' in 9.0 s"),
        ]


@pytest.mark.parametrize("lone", [tool("t", 1), chat(1), made("GET /", 1, kind=SpanKind.SERVER)], ids=lambda s: s.name)
def test_a_model_call_a_tool_or_a_request_alone_tells_nothing(lone: ReadableSpan) -> None:
    played = arrived(made("SELECT", 2, 1, kind=SpanKind.CLIENT, error="no such table"), lone, wait=10_000)
    played.tracker.finish()
    assert played.reports == []
    assert played.tracker.open_tasks == 0


def test_model_calls_of_a_program_without_agents_tell_nothing_even_if_their_parent_never_comes() -> None:
    played = arrived(*(chat(n, 99, n, n + 1) for n in range(1, 9)), wait=10_000)
    played.tracker.finish()
    assert played.reports == []


def test_requests_and_users_own_spans_around_an_agent_are_looked_through() -> None:
    around = [made("my job", 2, 1, 0, 9.5), made("POST /chat", 1, None, 0, 9.6, kind=SpanKind.SERVER, error="500")]
    inside = [chat(5, 4, 3, 4), made("SELECT", 7, 6), tool("t", 6, 4), agent("A", 4, 3), made("helper", 3, 2)]
    for order in ([*inside, *around], [*around[::-1], *inside[::-1]]):
        played = arrived(*order)
        assert [end.content for end in played.ends] == ["Finished 'A' in 9.0 s, 1 tool"]


def test_the_letta_servers_own_spans_tell_nothing() -> None:
    own = {"letta.chat.id": "c", **AGENT}
    played = arrived(
        made("agent_step", 1, attributes=own, scope="letta.otel.tracing"),
        made("agent_step", 2, attributes=own, resource={"service.name": "letta-server"}),
    )
    played.tracker.finish()
    assert played.reports == []


def test_two_agents_one_after_the_other_in_one_trace_are_two_tasks() -> None:
    first = [tool("t", 3, 2), agent("A", 2, 1, 0, 3)]
    second = [tool("u", 5, 4, 4, 5), agent("B", 4, 1, 4, 8)]
    played = arrived(*first, *second, made("job", 1, None, 0, 9))
    assert [end.content for end in played.ends] == ["Finished 'A' in 3.0 s, 1 tool", "Finished 'B' in 4.0 s, 1 tool"]
    assert len({end.task_id for end in played.ends}) == 2
    assert {report.task_id for report in played.reports} == {end.task_id for end in played.ends}


def test_one_explicit_id_in_several_traces_is_one_task() -> None:
    shared = {"letta.task.id": "night-7"}
    played = arrived(
        agent("A", 1, attributes=shared), agent("A", 1, None, 10, 12, attributes=shared, trace_id=2), wait=5_000
    )
    assert {end.task_id for end in played.ends} == {"night-7"}


# -- the tree, whatever the order ------------------------------------------------------------------------------------

FAMILY = [
    agent("boss", 1, None, 0, 20),
    chat(2, 1, 0, 1),
    tool("delegate", 3, 1, 2, 10),
    made("helper", 4, 3, 2, 9.9),
    agent("worker", 5, 4, 2.1, 9.8),
    chat(6, 5, 3, 4),
    tool("dig", 7, 5, 4, 5, error="RuntimeError: hit a pipe"),
    chat(8, 5, 6, 9),
    chat(9, 1, 11, 19),
]


@settings(max_examples=150)
@given(st.permutations(FAMILY), st.lists(st.integers(0, 8), max_size=6))
def test_spans_in_any_order_and_some_of_them_again_make_one_task(order: list[ReadableSpan], again: list[int]) -> None:
    played = arrived(*order, *(order[index] for index in again))
    assert [(end.content, end.status) for end in played.ends] == [
        ("Finished 'boss' in 20.0 s, 2 tools, 1 problem", COMPLETED)
    ]
    assert sorted(tools(played.reports)) == ["delegate", "dig"]
    assert played.tracker.open_tasks == 0
    assert len({report.key for report in played.reports}) == 1


def test_a_parent_of_another_process_is_waited_for_only_so_long() -> None:
    callee = agent("callee", 2, 1, 1, 3, remote=True)
    played = arrived(callee, wait=1.9, grace=2.0)
    assert played.ends == []
    played.pass_seconds(0.2)
    played.pass_seconds(2.1)
    assert [end.content for end in played.ends] == ["Finished 'callee' in 2.0 s"]


def test_a_callee_in_another_process_is_part_of_its_callers_task_and_its_conversation_is_not() -> None:
    played = arrived(
        chat(7, 6, 3, 4, attributes={**CHAT, "gen_ai.conversation.id": "made-up"}),
        agent("callee", 6, 5, 3, 5, attributes={"gen_ai.conversation.id": "made-up"}),
        made("POST /ask", 5, 4, 3, 5.1, kind=SpanKind.SERVER, remote=True),
        made("POST", 4, 3, 2, 5.2, kind=SpanKind.CLIENT),
        tool("ask", 3, 1, 2, 5.3),
        agent("desk", 1, None, 0, 6, attributes={"gen_ai.conversation.id": "real"}),
        wait=10,
    )
    assert [(end.name, end.chat_id, end.content) for end in played.ends] == [
        ("desk", "real", "Finished 'desk' in 6.0 s, 1 tool")
    ]


def test_a_task_whose_root_never_comes_is_quiet_after_the_idle_time_and_lost_after_eight() -> None:
    played = arrived(chat(3, 2, 0, 1), tool("t", 4, 2, 1, 2), wait=899, idle_timeout=900)
    played.pass_seconds(2)
    # Its root may have been open all the time, and arrives when it has ended.
    assert played.ends == []
    assert played.reports[-1].content == "No news from 'unnamed agent' for 15 min"
    played.pass_seconds(7 * 900)
    assert [(end.status, end.content) for end in played.ends] == [
        (FAILED, "'unnamed agent' failed: lost, no news for 2 h")
    ]


def test_a_quiet_task_whose_root_comes_at_last_ends_once() -> None:
    played = arrived(chat(3, 1, 0, 1), tool("t", 4, 1, 1, 2), wait=2_000, idle_timeout=900)
    played.arrive([chat(5, 1, 3_000, 3_001), agent("A", 1, None, 0, 3_001)])
    played.pass_seconds(20_000)
    assert [end.content for end in played.ends] == ["Finished 'A' in 50 min 1 s, 1 tool"]


def test_a_quiet_task_that_shows_how_it_ended_is_lost_no_later_than_before() -> None:
    played = arrived(chat(3, 2, 0, 1), tool("t", 4, 2, 1, 2, error="broken"), wait=1_000, idle_timeout=900)
    assert [(end.status, end.content) for end in played.ends] == [(FAILED, "'unnamed agent' failed: broken")]


def test_every_span_puts_the_idle_time_off() -> None:
    played = Played(idle_timeout=100)
    for n in range(5):
        played.arrive([tool("t", 10 + n, 2, n * 90, n * 90 + 1)])
    assert played.ends == []
    played.pass_seconds(801)
    assert len(played.ends) == 1


def test_an_agent_whose_outer_span_never_comes_is_judged_by_itself() -> None:
    played = arrived(tool("t", 3, 2), agent("A", 2, 1, 0, 3), wait=1_000)
    assert [end.content for end in played.ends] == ["Finished 'A' in 3.0 s, 1 tool"]


def test_agents_below_a_span_that_never_ends_are_each_told_as_they_ended() -> None:
    spans = []
    for n, error in enumerate((None, "boom", None)):
        top = 10 * (n + 1)
        spans += [tool("t", top + 1, top, 10 * n, 10 * n + 1), agent(f"A{n}", top, 1, 10 * n, 10 * n + 5, error=error)]
    played = arrived(*spans, wait=1_000)
    assert [end.content for end in played.ends] == [
        "Finished 'A0' in 5.0 s, 1 tool",
        "'A1' failed: boom",
        "Finished 'A2' in 5.0 s, 1 tool",
    ]
    assert len({end.task_id for end in played.ends}) == 3


def test_a_crash_after_a_sub_agent_went_well_is_told_for_what_came_last() -> None:
    crashed = chat(4, 1, 6, 7, attributes={"gen_ai.operation.name": "chat"}, error="429 slow down")
    played = arrived(agent("B", 2, 1, 0, 5), crashed, wait=1_000)
    assert [(end.status, end.error) for end in played.ends] == [(FAILED, "429 slow down")]


def test_work_that_comes_after_the_verdict_is_not_told_any_more() -> None:
    played = arrived(agent("A", 1, None, 0, 5))
    before = len(played.reports)
    played.arrive([tool("late", 2, 1, 1, 2), tool("orphan", 4, 77, 3, 4)])
    played.pass_seconds(2_000)
    assert len(played.reports) == before


def test_a_child_that_ends_within_the_grace_time_still_counts() -> None:
    played = arrived(agent("A", 1, None, 0, 5), wait=1.0)
    played.arrive([tool("t", 2, 1, 1, 5.5)])
    played.pass_seconds(3)
    assert played.ends[0].content == "Finished 'A' in 5.0 s, 1 tool"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_one_call_that_two_instrumentations_tell_is_one_tool(order: tuple[int, ...]) -> None:
    outer = made("reporter.dig", 2, 1, 0.9, 2.1, {"openinference.span.kind": "TOOL", "tool.name": "dig"})
    spans = [tool("dig", 3, 2, 1, 2, error="boom"), outer, agent("A", 1)]
    assert arrived(*(spans[index] for index in order)).ends[0].content == "Finished 'A' in 9.0 s, 1 tool, 1 problem"


def test_an_agent_span_around_the_same_agents_is_no_sub_agent() -> None:
    played = arrived(agent("A", 2, 1), made("A.run", 1, None, 0, 9, {"openinference.span.kind": "AGENT"}))
    assert contents(played)[1:] == ["Finished 'A' in 9.0 s"]


def pending(of: int, parent: int | None, span_id: int, attributes: dict[str, Any], at: float) -> ReadableSpan:
    more = {"logfire.span_type": "pending_span", "logfire.pending_parent_id": f"{parent or 0:016x}", **attributes}
    return made("pending", span_id, of, at, at, more)


def test_pending_spans_tell_starts_and_are_no_spans_themselves() -> None:
    named = {**AGENT, "gen_ai.agent.name": "A"}
    digs = {**TOOL, "gen_ai.tool.name": "dig"}
    played = Played()
    played.arrive([pending(1, None, 101, {}, 0)])
    played.arrive([pending(2, 1, 102, named, 0.1)])
    assert contents(played) == ["Started 'A'"]
    played.arrive([pending(3, 2, 103, digs, 1)])
    assert contents(played)[1:] == ["Using tool dig"]
    played.arrive([tool("dig", 3, 2, 1, 2)])
    played.arrive([agent("A", 2, 1, 0.1, 3), made("job", 1, None, 0, 3.1)])
    played.pass_seconds(3)
    assert contents(played)[2:] == ["Used tool dig (1.0 s); 1 tool used", "Finished 'A' in 2.9 s, 1 tool"]
    assert len({report.task_id for report in played.reports}) == 1


def test_a_program_that_dies_after_a_pending_start_is_lost() -> None:
    played = arrived(pending(1, None, 101, {**AGENT, "gen_ai.agent.name": "A"}, 0), wait=1_000)
    assert [end.content for end in played.ends] == ["'A' failed: lost, no news for 15 min"]


def test_parents_that_go_in_a_circle_end_too() -> None:
    agents = [agent("A", 1, 2), agent("B", 2, 3), agent("C", 3, 1)]
    played = arrived(*agents, made("p", 4, 5), made("q", 5, 4), tool("t", 6, 4))
    played.tracker.finish()
    assert played.tracker.open_tasks == 0


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("below", [False, True], ids=["alone", "with a call below"])
def test_a_circle_of_any_length_is_no_trap_in_any_order(length: int, below: bool) -> None:
    spans = [agent(f"A{n}", n, n % length + 1) for n in range(1, length + 1)]
    for order in itertools.permutations([*spans, tool("t", 9, 1)] if below else spans):
        played = arrived(*order)
        played.tracker.finish()
        assert played.tracker.open_tasks == 0


# -- verdicts --------------------------------------------------------------------------------------------------------


def verdict(*spans: ReadableSpan) -> tuple[TaskStatus, str]:
    played = arrived(*spans)
    assert len(played.ends) == 1
    return played.ends[0].status, played.ends[0].content


def test_a_failed_root_fails_the_task() -> None:
    assert verdict(agent("A", 1, error="ValueError: no such row")) == (FAILED, "'A' failed: no such row")


@pytest.mark.parametrize("status", ["error.type", "gen_ai.tool.status"])
def test_a_root_can_fail_without_an_error_status(status: str) -> None:
    value = "TimeoutError" if status == "error.type" else "error"
    assert verdict(agent("A", 1, attributes={status: value}))[0] is FAILED


def test_a_tool_that_the_agent_recovered_from_is_a_problem_only() -> None:
    spans = [chat(2, 1), tool("t", 3, 1, 2, 3, error="boom"), chat(4, 1, 4, 5), agent("A", 1)]
    assert verdict(*spans) == (COMPLETED, "Finished 'A' in 9.0 s, 1 tool, 1 problem")


def test_a_last_agent_that_failed_fails_the_task_though_its_root_says_nothing() -> None:
    spans = [agent("B", 2, 1, 1, 8, error="boom"), made("invoke_workflow W", 1, None, 0, 9, WORKFLOW)]
    assert verdict(*spans) == (FAILED, "'W' failed: boom")


def test_a_sub_agent_that_failed_is_recovered_from_by_an_answer_after_it() -> None:
    spans = [chat(5, 1, 0, 1), agent("B", 2, 1, 1, 4, error="boom"), chat(3, 1, 5, 6), agent("A", 1)]
    assert verdict(*spans)[0] is COMPLETED


def test_a_last_model_call_that_failed_fails_the_task() -> None:
    spans = [chat(2, 1), chat(3, 1, 2, 3, attributes={"gen_ai.operation.name": "chat"}, error="429 slow down")]
    assert verdict(*spans, agent("A", 1)) == (FAILED, "'A' failed: 429 slow down")


def test_a_last_tool_that_failed_is_no_failure_where_model_calls_are_not_traced() -> None:
    assert verdict(tool("t", 2, 1, error="boom"), agent("A", 1))[0] is COMPLETED


def test_a_last_model_call_without_an_answer_is_a_stop() -> None:
    unanswered = {"gen_ai.operation.name": "chat"}
    spans = [chat(2, 1), chat(3, 1, 2, 3, attributes=unanswered), agent("A", 1)]
    assert verdict(*spans) == (FAILED, "'A' stopped: it ended without an answer")
    side_by_side = [chat(2, 1, 2, 4), chat(3, 1, 3, 5, attributes=unanswered), agent("A", 1)]
    assert verdict(*side_by_side)[0] is COMPLETED


def test_a_failed_part_of_a_tool_call_fails_the_call() -> None:
    part = made("execution", 3, 2, 1, 2, error="McpToolCallError")
    played = arrived(chat(4, 1), part, tool("t", 2, 1), chat(5, 1, 3, 4), agent("A", 1))
    assert "Tool t failed: McpToolCallError; 1 tool used" in contents(played)
    assert played.ends[0].content == "Finished 'A' in 9.0 s, 1 tool, 1 problem"


def test_a_request_that_a_tool_made_in_vain_is_no_failure_of_the_tool() -> None:
    part = made("GET", 3, 2, 1, 2, error="404", kind=SpanKind.CLIENT)
    played = arrived(part, tool("t", 2, 1), chat(4, 1, 3, 4), agent("A", 1))
    assert played.ends[0].content == "Finished 'A' in 9.0 s, 1 tool"


def test_a_reason_that_says_nothing_is_replaced_by_its_cause() -> None:
    spans = [chat(2, 1, error="Error code: 500 - overloaded"), agent("A", 1, error="run status: error")]
    assert verdict(*spans) == (FAILED, "'A' failed: Error code: 500 - overloaded")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("ValueError: bad row 1043", "bad row 1043"),
        ("RuntimeError('no space left')Traceback (most recent call last):\n  File \"x.py\"", "no space left"),
        ('Traceback (most recent call last):\n  File "x.py"\nValueError: secret', ""),
        ("first line\nsecond line", "first line"),
        ("{'message': 'Error in agent run', 'data': {'error': 'Error code: 500 - down'}}", "Error code: 500 - down"),
        ("Error in agent run: {'error': 'Error code: 500 - down'}", "Error code: 500 - down"),
        (
            "Error running tool: {'tool_name': 'mail', 'error': 'server: \\'my prompt\\' refused'}",
            "server: '…' refused",
        ),
        ("Error running tool: {'error': 'down', 'input': 'my prompt'}", "Error running tool: {…}"),
        ("Error code: 400 - {'error': {'message': 'too long', 'param': 'my prompt'}}", "Error code: 400 - too long"),
        (
            "Error executing tool 'mail' with arguments {'to': 'a@b.example'}: down",
            "Error executing tool '…' with arguments {…}: down",
        ),
        ("404 for url 'https://x.example/ask?q=my%20prompt'", "404 for url '…'"),
        ("404 for https://x.example/ask?q=my%20prompt", "404 for https://x.example/ask?…"),
        ("cannot mail a.b@c.example now", "cannot mail … now"),
        ("1 validation error: input_value='my prompt', input_type=str", "1 validation error: input_value= …"),
        ("unterminated 'my prompt", "unterminated '…'"),
        ("KeyError('my prompt')", ""),
        ("can't open the file, it isn't there", "can't open the file, it isn't there"),
        ("invalid value “my prompt” or «my prompt»", "invalid value '…' or '…'"),
        ("bad 「my prompt」 and ‘my prompt’", "bad '…' and '…'"),
        ("bad <query a='1'>my prompt</query> here", "bad <…> here"),
        ("no such file: /home/prompt/x.txt", "no such file: ~/x.txt"),
        ("open C:\\Users\\prompt\\x.txt failed", "open ~\\x.txt failed"),
        ("user_id: prompt is not allowed", "user_id: …"),
        ("BadRequest(message=my prompt)", "BadRequest(message= …"),
        ("run status: error", ""),
    ],
)
def test_reasons_are_one_line_without_what_they_quote(raw: str, text: str) -> None:
    reason = clean_reason(raw)
    assert reason.text == text
    assert "prompt" not in str(reason)


@pytest.mark.parametrize("kind", ["Refused", "mail.client.Refused"])
@pytest.mark.parametrize("prefix", ["Refused: ", "mail.client.Refused: ", ""])
def test_a_type_in_front_of_an_errors_text_is_not_said_twice_whatever_its_name(kind: str, prefix: str) -> None:
    reason = clean_reason(f"{prefix}the mail server refused it", kind)
    assert (reason.kind, reason.text) == ("Refused", "the mail server refused it")
    assert reason.full == "Refused: the mail server refused it"


@given(st.text(max_size=300))
def test_any_error_text_gives_one_line(raw: str) -> None:
    for text in (raw, f"Error code: 500 - {{{raw}", f"{{'message': {raw!r}}}", f"E('{raw}')"):
        line = str(clean_reason(text))
        assert len(line) <= 200
        assert "\n" not in line


# -- what is told ----------------------------------------------------------------------------------------------------


def test_a_span_name_that_is_a_prompt_is_not_told() -> None:
    prompt = "Find the documents on quarterly revenue and send the report"
    mark = {"gen_ai.operation.name": "invoke_agent", "traceloop.span.kind": "workflow"}
    for name, more in ((f"{prompt}.task", {}), ("Sell my house", {"traceloop.entity.input": "Please: Sell my house"})):
        for attributes in ({**mark, **more}, {**mark, **more, "traceloop.entity.name": name}):
            played = arrived(made(name, 1, None, 0, 9, attributes))
            assert "revenue" not in everything_sent(played.reports)
            assert "house" not in everything_sent(played.reports)
            assert played.ends[0].content == "Finished 'unnamed agent' in 9.0 s"


@pytest.mark.parametrize(
    "name",
    [
        "invoke_agent Sell my house please now",
        "Who is Bob Smith?",
        "四半期の収益に関する文書を検索して報告書を送ってください",
        "ค้นหาเอกสารเกี่ยวกับรายได้ประจำไตรมาสนี้",
        "bob@example.com",
    ],
)
def test_a_span_name_that_is_a_short_prompt_or_a_person_is_not_told(name: str) -> None:
    played = arrived(made(name, 1, None, 0, 9, AGENT))
    assert [end.content for end in played.ends] == ["Finished 'unnamed agent' in 9.0 s"]


@pytest.mark.parametrize("name", ["Senior Data Researcher", "四半期レポート作成", "Dr. No's agent", "a/b?", "get_x"])
def test_a_name_is_told(name: str) -> None:
    assert arrived(agent(name, 1)).ends[0].name.startswith(name.rstrip("?")[:3])


def test_an_address_in_a_name_keeps_no_query_password_or_person() -> None:
    names = ["fetch https://bob:pw@host/x?q=house", "mail to bob@example.com"]
    played = arrived(*(tool(name, n + 2, 1) for n, name in enumerate(names)), agent("A", 1))
    assert tools(played.reports) == ["fetch https://host/x?…", "mail to …"]


@pytest.mark.parametrize("attribute", ["error.type", "exception"])
def test_an_error_type_that_is_a_text_is_not_told(attribute: str) -> None:
    text = "User bob said: Buy my house. Now buy it"
    if attribute == "exception":
        failed = agent("A", 1, error="", events=(("exception", {"exception.type": text}),))
    else:
        failed = agent("A", 1, attributes={attribute: text})
    played = arrived(failed)
    assert (played.ends[0].status, played.ends[0].content) == (FAILED, "'A' failed")
    assert "house" not in everything_sent(played.reports)
    assert "buy" not in everything_sent(played.reports)


@pytest.mark.parametrize("value", ["bob@example.com", "please sell my house to Bob for a dollar"])
def test_a_conversation_id_that_names_a_person_or_is_a_text_is_none_unless_it_was_chosen(value: str) -> None:
    for attribute in ("gen_ai.conversation.id", "session.id"):
        one = agent("A", 1, attributes={attribute: value})
        assert arrived(one).ends[0].chat_id == f"{1:032x}"
        assert arrived(one, chat_attributes=[attribute]).ends[0].chat_id == value
    assert arrived(agent("A", 1, attributes={"letta.chat.id": value})).ends[0].chat_id == value


def test_a_log_line_about_an_agents_span_does_not_quote_a_prompt(caplog: pytest.LogCaptureFixture) -> None:
    bad = {**AGENT, "letta.task.progress": "half", "letta.agent.id": "agent-other"}
    arrived(made("Find the documents on quarterly revenue and send them", 1, None, 0, 9, bad))
    assert len(caplog.records) == 2
    assert "revenue" not in caplog.text


def test_reading_a_dictionary_in_an_error_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    for text in (r"{'message': 'C:\d \400 \w'}", "{'message': 1or 2}"):
        clean_reason(text)
    assert [str(warning.message) for warning in recwarn] == []


def test_content_is_told_field_by_field_where_the_settings_ask_for_it() -> None:
    spans = [
        tool("t", 2, 1, attributes={"gen_ai.tool.call.arguments": '{"a": 1}', "gen_ai.tool.call.result": "fine"}),
        agent("A", 1, attributes={"gen_ai.input.messages": "do it", "final_result": "done it"}),
    ]
    for text in ("do it", "done it", "fine", '"a"'):
        assert text not in everything_sent(arrived(*spans).reports)
    only = arrived(*spans, content=("arguments",))
    assert 'Used tool t (1.0 s); arguments: {"a": 1}; 1 tool used' in contents(only)
    assert "fine" not in everything_sent(only.reports)
    full = arrived(*spans, content=tuple(CONTENT_FIELDS))
    assert full.ends[0].result == "done it"
    assert "do it" in full.ends[0].content
    assert "fine" in everything_sent(full.reports)


TODOS = '{"todos": [{"content": "secret", "status": "completed"}, {"content": "b", "status": "in_progress"}]}'
PLAN = '{"command": "plan", "task_list": [{"title": "secret", "status": "done"}, {"title": "b", "status": "todo"}]}'


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.tool.call.arguments": TODOS},
        {"input.value": TODOS},
        {"tool.parameters": TODOS.replace('"', "'")},
        {"lmnr.span.type": "TOOL", "lmnr.span.output": PLAN},
        {"progress": 5, "total": 10},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_plan_tells_how_much_is_done(attributes: dict[str, Any]) -> None:
    played = arrived(tool("write_todos", 2, 1, attributes=attributes))
    assert played.reports[-1].progress == 0.5
    assert "secret" not in everything_sent(played.reports)


def test_progress_events_of_a_tool_tell_how_much_is_done() -> None:
    played = arrived(tool("t", 2, 1, events=(("progress", {"progress": 3, "total": 4}),)))
    assert played.reports[-1].progress == 0.75


def test_a_plan_never_goes_backwards_and_is_never_complete_before_the_end() -> None:
    def plan(done: int, total: int, span_id: int) -> ReadableSpan:
        todos = [{"status": "completed" if n < done else "pending"} for n in range(total)]
        return tool("write_todos", span_id, 1, span_id, span_id + 1, attributes={"input.value": str({"todos": todos})})

    played = arrived(plan(1, 2, 2), plan(1, 4, 3), plan(4, 4, 4), tool("t", 5, 1, 5, 6), agent("A", 1))
    shown = [report.progress for report in played.reports]
    assert shown == sorted(shown)
    assert shown[-2:] == [0.99, 1.0]


def test_without_a_plan_progress_stays_and_the_text_counts_tools() -> None:
    played = arrived(*(tool("t", n, 1, n, n + 1) for n in (2, 3, 4)))
    assert {report.progress for report in played.reports} == {0.0}
    assert contents(played)[-1] == "Used tool t (1.0 s); 3 tools used"


@pytest.mark.parametrize(
    ("attributes", "chat_id"),
    [
        ({"letta.chat.id": "a", "gen_ai.conversation.id": "b", "session.id": "c"}, "a"),
        ({"gen_ai.conversation.id": "b", "session.id": "c", "app.thread": "e"}, "b"),
        ({"session.id": "c", "traceloop.association.properties.session_id": "d"}, "c"),
        ({"traceloop.association.properties.session_id": "d", "app.thread": "e"}, "d"),
        ({"traceloop.association.properties.thread_id": "d", "app.thread": "e"}, "d"),
        ({"app.thread": "e"}, "e"),
        ({"other": "f"}, f"{1:032x}"),
    ],
    ids=str,
)
def test_the_chat_id_is_the_best_that_the_task_gives(attributes: dict[str, Any], chat_id: str) -> None:
    played = arrived(agent("A", 1, attributes=attributes), chat_attributes=["app.thread"])
    assert {report.chat_id for report in played.reports} == {chat_id}


def test_the_chat_id_may_stand_on_any_span_of_the_task_and_the_roots_wins() -> None:
    inner = chat(2, 1, attributes={**CHAT, "gen_ai.conversation.id": "inner"})
    assert arrived(inner, agent("A", 1)).ends[0].chat_id == "inner"
    assert arrived(inner, agent("A", 1, attributes={"gen_ai.conversation.id": "own"})).ends[0].chat_id == "own"


def test_only_failed_and_long_tasks_are_worth_waking_an_agent() -> None:
    assert [end.wakes for end in arrived(agent("A", 1, None, 0, 59)).ends] == [False]
    assert [end.wakes for end in arrived(agent("A", 1, None, 0, 61)).ends] == [True]
    assert [end.wakes for end in arrived(agent("A", 1, None, 0, 1, error="x")).ends] == [True]
    assert [end.wakes for end in arrived(agent("A", 1, None, 0, 5), wake_after=4).ends] == [True]
    assert [end.wakes for end in arrived(agent("A", 1, attributes={"letta.message.id": "m"})).ends] == [True]


# -- declared tasks and agents ---------------------------------------------------------------------------------------


def declared(span_id: int, parent: int | None = None, start: float = 0.0, end: float = 10.0, **more: Any) -> Any:
    return made("my task", span_id, parent, start, end, {"letta.task.name": "Mine", **more})


def test_agents_inside_a_declared_task_are_its_steps() -> None:
    spans = [chat(4, 3), tool("t", 5, 3, error="boom"), agent("A", 3, 2), made("helper", 2, 1), declared(1)]
    for order in (spans, spans[::-1]):
        played = arrived(*order, wait=2_000)
        assert [(end.name, end.content, end.wakes) for end in played.ends][:1] == [
            ("Mine", played.ends[0].content, True)
        ]
        assert len(played.ends) == 1
        assert len({report.key for report in played.reports}) == 1
        assert [report.sequence for report in played.reports] == list(range(1, len(played.reports) + 1))


def test_a_declared_task_that_waits_for_a_parent_that_never_comes_is_not_told_as_its_agent_first() -> None:
    spans = [chat(4, 3), agent("A", 3, 1, 0, 8), declared(1, 99)]
    ended, waited = arrived(*spans), arrived(*spans)
    ended.tracker.finish()
    for _ in range(5):
        waited.pass_seconds(900)
    stopped = arrived(*spans)
    stopped.tracker.shutdown()
    for played in (ended, waited, stopped):
        assert [(end.name, end.wakes) for end in played.ends] == [("Mine", True)]
        assert played.reports[-1] is played.ends[0]


def test_what_was_told_of_an_agent_goes_on_under_the_same_id_when_a_task_turns_out_to_be_around_it() -> None:
    played = arrived(tool("t", 5, 3), agent("A", 3, 2), made("helper", 2, 1), declared(1), wait=4_000)
    assert len({report.task_id for report in played.reports}) == 1
    assert [report.sequence for report in played.reports] == list(range(1, len(played.reports) + 1))


def test_a_task_whose_agent_was_given_up_long_before_it_ended_is_another_one() -> None:
    played = arrived(agent("A", 2, 1, 0, 3), wait=1_000)
    played.arrive([declared(1, None, 0, 1_000)])
    played.pass_seconds(4_000)
    assert [(end.name, end.run) for end in played.ends] == [("A", 1), ("Mine", 1)]
    assert [report.sequence for report in played.reports] == [1, 2, 1]


def test_what_an_agent_inside_a_request_declares_is_its_own_word_in_any_order() -> None:
    words = {"letta.task.name": "Night run", "letta.task.status": "failed", "letta.task.result": "half of it"}
    prompt = {"gen_ai.input.messages": "do it", "final_result": "did half"}
    spans = [agent("A", 2, 1, attributes=words | prompt), made("POST /", 1, None, 0, 9.5, kind=SpanKind.SERVER)]
    for order in (spans, spans[::-1]):
        (end,) = arrived(*order).ends
        assert (end.name, end.status, end.result) == ("Night run", FAILED, "half of it")
    unsaid = [agent("A", 2, 1, attributes=prompt), spans[1]]
    for order in (unsaid, unsaid[::-1]):
        (end,) = arrived(*order, content=("prompt", "answer")).ends
        assert (end.result, "asked: do it" in end.content) == ("did half", True)


def test_what_is_declared_inside_an_agents_work_is_about_the_agents_task() -> None:
    step = made("import", 3, 2, 1, 2, {"letta.task.progress": 0.5, "letta.task.content": "half of it"})
    for order in ([step, tool("t", 2, 1), agent("A", 1)], [agent("A", 1), tool("t", 2, 1), step]):
        played = arrived(*order, wait=2_000)
        assert [(end.name, end.wakes) for end in played.ends] == [("A", True)]


def test_a_task_with_an_id_of_its_own_inside_an_agents_work_is_a_task_of_its_own() -> None:
    step = made("import", 3, 2, 1, 2, {"letta.task.id": "import-1"})
    played = arrived(step, tool("t", 2, 1), agent("A", 1), wait=2_000)
    assert sorted(end.name for end in played.ends) == ["A", "import"]


def test_ids_on_every_span_as_baggage_puts_them_make_no_task_of_each() -> None:
    played = Played()
    for batch in batches("strands.native.success"):
        for span in batch.spans:
            span._attributes = {**(span.attributes or {}), "letta.chat.id": "c-1"}  # type: ignore[assignment]
        played.arrive(batch.spans)
    played.pass_seconds(5_000)
    assert [(end.name, end.chat_id) for end in played.ends] == [("reporter", "c-1")]
    assert {report.task_id for report in played.reports} == {played.ends[0].task_id}


# -- live ------------------------------------------------------------------------------------------------------------


def test_a_live_agent_is_told_from_its_start_and_ends_without_waiting() -> None:
    live = Live()
    with live.tracer.start_as_current_span("POST /chat"):
        with live.tracer.start_as_current_span("invoke_agent A", attributes={**AGENT, "gen_ai.agent.name": "A"}):
            assert contents(live) == ["Started 'A'"]
            with live.tracer.start_as_current_span("x", attributes={**TOOL, "gen_ai.tool.name": "dig"}):
                assert contents(live)[1:] == ["Using tool dig"]
            assert contents(live)[2] == "Used tool dig (0.0 s); 1 tool used"
        assert contents(live)[3].startswith("Finished 'A' in ")
    assert len(live.reports) == 4


def test_two_live_agents_in_one_trace_are_two_tasks_from_the_start() -> None:
    live = Live()
    with live.tracer.start_as_current_span("job"):
        for name in "AB":
            with live.tracer.start_as_current_span(name, attributes=AGENT):
                live.tracer.start_span("x", attributes={**TOOL, "gen_ai.tool.name": "dig"}).end()
    assert [end.name for end in live.ends] == ["A", "B"]
    assert len({report.task_id for report in live.reports}) == 2


def test_a_live_child_that_outlives_its_root_is_waited_for_only_so_long() -> None:
    live = Live()
    root = live.tracer.start_span("A", attributes=AGENT)
    with live.tracer.start_as_current_span("A2", context=_within(root), attributes=TOOL):
        root.end()
        assert live.ends == []
        for seconds in (2.5, 3_600.0):
            live.clock.pass_seconds(seconds)
            live.tracker.tick()
            assert live.ends == []
        live.clock.pass_seconds(3_600.0)
        live.tracker.tick()
        assert len(live.ends) == 1
    assert len(live.ends) == 1


def test_a_live_agent_that_is_cancelled_fails_for_that_reason() -> None:
    live = Live()
    live.aborted = lambda span: "cancelled or timed out"  # type: ignore[method-assign]
    live.tracer.start_span("A", attributes=AGENT).end()
    assert live.ends[0].content == "'A' failed: cancelled or timed out"


def test_what_is_cut_off_after_its_root_has_ended_well_fails_nothing() -> None:
    """An event loop that closes cuts off what nobody read to its end."""
    for well in (True, False):
        live = Live()
        live.aborted = lambda span: "cancelled or timed out" if span.name == "B" else None  # type: ignore[method-assign]
        root = live.tracer.start_span("A", attributes=AGENT)
        below = live.tracer.start_span("B", context=_within(root), attributes={**AGENT, "gen_ai.agent.name": "B"})
        if well:
            root.set_status(StatusCode.OK)
        root.end()
        below.end()
        assert live.ends[0].status is (COMPLETED if well else FAILED)


def test_an_open_live_agent_is_never_lost_but_its_silence_is_told_once() -> None:
    live = Live(idle_timeout=100)
    root = live.tracer.start_span("A", attributes=AGENT)
    for _ in range(5):
        live.clock.pass_seconds(60)
        live.tracker.tick()
    assert contents(live) == ["Started 'A'", "No news from 'A' for 1 min 40 s"]
    root.end()
    assert live.ends[0].status is COMPLETED


def test_a_live_agent_inside_a_declared_task_is_its_step() -> None:
    live = Live()
    start = live.tracer.start_as_current_span
    inside = {**AGENT, "gen_ai.agent.name": "A"}
    with start("job", attributes={"letta.task.name": "Mine"}), start("A", attributes=inside):
        live.tracer.start_span("x", attributes={**TOOL, "gen_ai.tool.name": "dig"}).end()
    assert {report.name for report in live.reports} == {"Mine"}
    assert "Used tool dig (0.0 s)" in contents(live)
    assert len(live.ends) == 1


def test_progress_that_a_tool_declares_is_its_agents() -> None:
    live = Live()
    with live.tracer.start_as_current_span("A", attributes=AGENT):
        with live.tracer.start_as_current_span("x", attributes={**TOOL, "gen_ai.tool.name": "dig"}) as dig:
            dig.set_attribute("letta.task.progress", 0.4)
            live.look()
            assert live.last.progress == 0.4
        with live.tracer.start_as_current_span("plain") as plain:
            plain.set_attribute("letta.task.progress", 0.6)
            live.look()
    assert [(end.name, end.wakes) for end in live.ends] == [("A", True)]
    assert max(report.progress for report in live.reports[:-1]) == 0.6


@contextmanager
def late(live: Live, name: str, kind: str | None, *, scope: str = "langchain", **more: str) -> Iterator[Any]:
    """A span that says what it is only when it ends."""
    with live.provider.get_tracer(scope).start_as_current_span(name) as span:
        yield span
        if kind is not None:
            span.set_attributes({"openinference.span.kind": kind, "session.id": "c-1", **more})


def run_late(live: Live, kind: str | None = "CHAIN", name: str = "reporter") -> None:
    with late(live, name, kind):
        with late(live, "model", "CHAIN"), late(live, "ChatOpenAI", "LLM", **{"output.value": "x"}):
            pass
        for tool_name, error in (("search", None), ("send", "boom")):
            with late(live, "tools", "CHAIN"), late(live, tool_name, "TOOL", **{"tool.name": tool_name}) as span:
                if error:
                    span.set_status(Status(StatusCode.ERROR, error))
        with late(live, "model", "CHAIN"), late(live, "ChatOpenAI", "LLM", **{"output.value": "x"}):
            pass


LATE_RUN = [
    "Started 'reporter'",
    "Used tool search (0.0 s); 1 tool used",
    "Tool send failed: boom; 2 tools used",
    "Finished 'reporter' in 0.0 s, 2 tools, 1 problem",
]


def test_spans_that_say_only_at_their_end_what_they_are_make_one_task_that_is_told_as_it_goes() -> None:
    live = Live()
    run_late(live)
    assert contents(live) == LATE_RUN
    assert {(report.name, report.chat_id) for report in live.reports} == {("reporter", "c-1")}
    assert len({report.task_id for report in live.reports}) == 1
    assert live.tracker.open_tasks == 0
    assert live.tracker.tree.traces == {}


@pytest.mark.parametrize("scope", ["http", "mine"])
def test_such_a_run_inside_a_span_of_another_scope_ends_without_waiting_for_that(scope: str) -> None:
    live = Live()
    with live.provider.get_tracer(scope).start_as_current_span("POST /chat"):
        run_late(live)
        assert contents(live) == LATE_RUN
        run_late(live)
    assert contents(live) == LATE_RUN * 2
    assert len({report.task_id for report in live.reports}) == 2


def test_such_runs_side_by_side_in_one_trace_are_a_task_each() -> None:
    live = Live()
    tracer = live.provider.get_tracer("langchain")
    with live.tracer.start_as_current_span("both"):
        roots = {name: tracer.start_span(name) for name in "AB"}
        for round_trip in "12":
            for name, root in roots.items():
                step = tracer.start_span("tools", context=_within(root))
                call = tracer.start_span("x", context=_within(step))
                call.set_attributes({"openinference.span.kind": "TOOL", "tool.name": f"{name}{round_trip}"})
                call.end()
                step.set_attributes(CHAIN)
                step.end()
        for root in roots.values():
            root.set_attributes(CHAIN)
            root.end()
    for name in "AB":
        assert [timeless(report.content) for report in live.reports if report.name == name] == [
            f"Started '{name}'",
            f"Used tool {name}1 (0.0 s); 1 tool used",
            f"Used tool {name}2 (0.0 s); 2 tools used",
            f"Finished '{name}' in 0.0 s, 2 tools",
        ]
    assert len(live.reports) == 8


def test_a_users_own_span_between_such_spans_is_looked_through() -> None:
    live = Live()
    start = live.tracer.start_as_current_span
    dig = {"tool.name": "dig"}
    with late(live, "reporter", "CHAIN"), late(live, "node", "CHAIN"), start("mine"), late(live, "x", "TOOL", **dig):
        pass
    assert contents(live) == [
        "Started 'reporter'",
        "Used tool dig (0.0 s); 1 tool used",
        "Finished 'reporter' in 0.0 s, 1 tool",
    ]


def test_if_the_outermost_such_span_is_none_in_the_end_the_next_one_with_a_role_is_the_root() -> None:
    live = Live()
    with late(live, "prompt template", None):
        run_late(live)
    assert contents(live)[:3] == ["Started 'prompt template'", *LATE_RUN[1:3]]
    assert [(end.name, timeless(end.content)) for end in live.ends] == [("reporter", LATE_RUN[-1])]
    assert len({report.task_id for report in live.reports}) == 1
    assert live.tracker.tree.traces == {}


def test_a_tool_in_such_a_span_that_is_none_in_the_end_leaves_no_task_open() -> None:
    live = Live()
    live.clock.now = time.time_ns()  # as the spans' times are
    with late(live, "outer", None), late(live, "inner", None), late(live, "x", "TOOL", **{"tool.name": "dig"}):
        pass
    live.clock.pass_seconds(5)  # a call of a model may belong to the same run
    live.tracker.tick()
    assert [(end.status, end.wakes) for end in live.ends] == [(COMPLETED, False)]
    assert live.tracker.tree.traces == {}


@pytest.mark.parametrize("kind", ["CHAIN", None])
def test_such_a_run_that_outlives_the_agent_around_it_ends_once(kind: str | None) -> None:
    live = Live()
    tracer = live.provider.get_tracer("langchain")
    outer = live.tracer.start_span("outer")
    root = tracer.start_span("reporter", context=_within(outer))
    step = tracer.start_span("model", context=_within(root))
    step.set_attributes(CHAIN)
    step.end()
    outer.set_attributes({**AGENT, "gen_ai.agent.name": "A"})
    outer.end()
    if kind is not None:
        root.set_attribute("openinference.span.kind", kind)
    root.end()
    assert [end.name for end in live.ends] == ["A", "reporter" if kind else "model"]
    assert live.tracker.open_tasks == 0


def test_a_run_around_which_an_agent_shows_up_is_its_step_from_then_on() -> None:
    live = Live()
    live.clock.now = time.time_ns()
    with live.provider.get_tracer("mine").start_as_current_span("outer") as outer:
        with late(live, "reporter", "CHAIN"):
            with late(live, "search", "TOOL"):
                pass
            outer.set_attributes({**AGENT, "gen_ai.agent.name": "A"})
            live.look()
        assert [(end.name, end.status, end.wakes) for end in live.ends] == [("reporter", COMPLETED, False)]
    assert [end.name for end in live.ends] == ["reporter", "A"]
    assert contents(live)[-1] == "Finished 'A' in 0.0 s, 1 tool"
    assert live.tracker.open_tasks == 0


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("end", ["collected", "shut down"])
def test_a_run_whose_outermost_such_span_never_ends_fails(end: str, failed: bool) -> None:
    import gc

    live = Live()
    tracer = live.provider.get_tracer("langchain")
    root = tracer.start_span("reporter")
    step = tracer.start_span("model", context=_within(root), attributes=None)
    step.set_attributes({**CHAIN, "session.id": "c-1"})
    if failed:
        step.set_status(Status(StatusCode.ERROR, "on strike"))
    step.end()
    if end == "shut down":
        live.stop()
    else:
        del root
        gc.collect()
        live.look()
    lost = "its span was never ended (lost)"
    if end == "shut down":
        lost = "the program shut down while the task was still open"
    assert [report.content for report in live.ends] == [f"'reporter' failed: {'on strike' if failed else lost}"]
    assert live.tracker.tree.traces == {}


def test_the_silence_of_such_a_run_is_told_and_it_is_not_given_up() -> None:
    live = Live(idle_timeout=100)
    with late(live, "reporter", "CHAIN"):
        with late(live, "model", "CHAIN"):
            pass
        for _ in range(5):
            live.clock.pass_seconds(60)
            live.tracker.tick()
    assert contents(live)[:2] == ["Started 'reporter'", "No news from 'reporter' for 1 min 40 s"]
    assert [end.status for end in live.ends] == [COMPLETED]


def test_the_name_of_such_a_span_is_not_told_if_a_span_below_shows_that_it_is_a_prompt() -> None:
    live = Live()
    asked = {"input.value": "[user] please fire all staff today"}
    with late(live, "fire all staff", "CHAIN", **asked), late(live, "model", "CHAIN", **asked):
        pass
    assert len(live.ends) == 1
    assert "fire" not in everything_sent(live.reports)


def test_a_live_agent_that_is_collected_without_an_end_is_lost() -> None:
    import gc

    live = Live()
    span = live.tracer.start_span("A", attributes=AGENT)
    del span
    gc.collect()
    live.look()
    assert live.ends[0].content == "'A' failed: its span was never ended (lost)"


@pytest.mark.parametrize("end", ["collected", "shut down"])
def test_a_live_agent_that_never_ends_failed_for_what_failed_last_below_it(end: str) -> None:
    import gc

    live = Live()
    root = live.tracer.start_span("A", attributes=AGENT)
    live.tracer.start_span("t", context=_within(root), attributes={**TOOL, "gen_ai.tool.name": "t"}).end()
    step = live.tracer.start_span("Step 2", context=_within(root), attributes=CHAIN)
    model = live.tracer.start_span("generate", context=_within(step), attributes={"openinference.span.kind": "LLM"})
    model.set_status(Status(StatusCode.ERROR, "InternalServerError: Error code: 500 - on strike"))
    model.end()
    step.set_status(Status(StatusCode.ERROR))
    step.end()
    if end == "shut down":
        live.stop()
    else:
        del root, step, model
        gc.collect()
        live.look()
    assert [(report.content, report.error) for report in live.ends] == [
        ("'A' failed: Error code: 500 - on strike", "InternalServerError: Error code: 500 - on strike")
    ]


@pytest.mark.parametrize(("failing", "later"), [(CHAIN, CHAIN), (TOOL, CHAT), (TOOL, None)])
def test_a_failure_that_something_came_after_is_not_why_an_agent_never_ended(failing: Any, later: Any) -> None:
    live = Live()
    root = live.tracer.start_span("A", attributes=AGENT)
    failed = live.tracer.start_span("x", context=_within(root), attributes=failing)
    failed.set_status(Status(StatusCode.ERROR, "boom"))
    failed.end()
    # Without any span of a model nobody knows what came after a tool.
    still_open = live.tracer.start_span("y", context=_within(root), attributes=later)
    live.stop()
    assert live.ends[0].error == "the program shut down while the task was still open"
    still_open.end()


def test_what_is_open_at_shutdown_fails() -> None:
    live = Live()
    span = live.tracer.start_span("A", attributes=AGENT)
    live.stop()
    assert live.ends[0].content == "'A' failed: the program shut down while the task was still open"
    span.end()
    assert len(live.ends) == 1


def _within(span: Any) -> Any:
    from opentelemetry import trace

    return trace.set_span_in_context(span)


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_more_traces_than_are_kept_give_up_the_oldest_and_count_it() -> None:
    played = Played(most_tasks=10)
    for n in range(1, 26):
        played.arrive([tool("t", 2, 1, n, n + 1, trace_id=n)])
    assert played.tracker.open_tasks == 10
    assert played.tracker.evicted == 15
    assert {end.content for end in played.ends} == {"'unnamed agent' failed: lost, more tasks at once than are kept"}


def test_traces_that_show_no_task_go_before_those_that_do() -> None:
    played = Played(most_tasks=10)
    played.arrive([tool("t", 2, 1, 0, 1, trace_id=99)])
    for n in range(1, 50):
        played.arrive([chat(2, 1, n, n + 1, trace_id=n)])
    assert played.ends == []
    assert played.tracker.open_tasks == 1


def test_a_task_of_very_many_spans_keeps_only_the_last_and_counts_all_of_its_tools() -> None:
    played = Played()
    played.arrive([pending(1, None, 999_999, {**AGENT, "gen_ai.agent.name": "A"}, 0)])
    for n in range(2, 12_000):
        played.arrive([tool("t", n, 1, n, n + 1)])
    trace = next(iter(played.tracker.tree.traces.values()))
    assert len(trace.nodes) <= 4_097
    played.arrive([agent("A", 1, None, 0, 12_001)])
    played.pass_seconds(3)
    assert played.ends[0].content == "Finished 'A' in 3 h 20 min, 11998 tools"


def test_tools_that_come_before_their_agent_are_all_counted_however_many() -> None:
    played = Played()
    for n in range(2, 10_000):
        played.arrive([tool("t", n, 1, n, n + 1)])
    assert len(next(iter(played.tracker.tree.traces.values())).nodes) <= 4_097
    played.arrive([agent("A", 1, None, 0, 10_001)])
    played.pass_seconds(3)
    assert played.ends[0].content.endswith(", 9998 tools")


def test_forgetting_a_span_in_the_middle_leaves_what_is_below_it_in_the_task() -> None:
    played = Played()
    played.arrive([agent("A", 1, None, 0, 9)])
    step = made("step", 2, 1, 1, 2, CHAIN)
    played.arrive([step, tool("deep", 3, 2), *(tool("t", n, 1, 2, 3) for n in range(10, 4_200))])
    assert all(node.key[1] != 2 for node in next(iter(played.tracker.tree.traces.values())).nodes.values())
    played.pass_seconds(3)
    assert played.ends[0].content == "Finished 'A' in 9.0 s, 4191 tools"
    assert played.tracker.tree.size == 0


@pytest.mark.parametrize("shape", ["plain line", "deep agents", "remote agents"])
def test_work_grows_with_the_number_of_spans_and_not_with_its_square(shape: str) -> None:
    def steps(size: int) -> int:
        if shape == "plain line":
            leaves = [tool("t", 10_000 + n, size, 0, 1) for n in range(size)]
            spans = [*leaves, *(made("plain", n, n - 1, 0, 1) for n in range(size, 1, -1)), agent("A", 1)]
        elif shape == "deep agents":
            spans = [agent("a", n, n - 1 or None, 0, 1) for n in range(size, 0, -1)]
        else:
            spans = [agent("a", n, n + 10_000, 0, 1, remote=True) for n in range(1, size)]
        return lines_run(lambda: arrived(*spans, wait=3).pass_seconds(10))

    # Placing leaves again for each span of the line above is allowed, once; walking that line for each is not.
    few, many = steps(40), steps(160)
    assert many < few * (4 if shape != "plain line" else 16) * 1.5


def lines_run(work: Any) -> int:
    """Lines of this package's tracking that work runs through: a measure that no machine's speed changes."""
    import sys

    number = 0

    def count(frame: Any, event: str, argument: object) -> Any:
        nonlocal number
        if "tracking" not in frame.f_code.co_filename:
            return None
        number += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return number


def test_alarms_of_traces_that_are_over_do_not_pile_up_behind_one_that_stays() -> None:
    live = Live()
    root = live.tracer.start_span("A", attributes=AGENT)
    for _ in range(3_000):
        live.tracer.start_span("B", context=Context(), attributes=AGENT).end()
        live.tracker.tick()
    assert live.tracker.tree.alarms < 1_100
    root.end()


def test_after_everything_is_over_nothing_is_kept_but_what_is_bounded() -> None:
    played = Played()
    for n in range(1, 500):
        played.arrive([chat(3, 1, n, n + 1, trace_id=n), agent("A", 1, None, n, n + 2, trace_id=n)])
    played.pass_seconds(5)
    tree = played.tracker.tree
    assert (len(tree.traces), tree.size, len(tree.busy), len(tree.faint)) == (0, 0, 0, 0)
    assert played.tracker.tick() is None


@pytest.mark.parametrize("end", [-5, 0, 2**70])
def test_an_end_at_an_impossible_time_is_an_end(end: int) -> None:
    live, played = Live(), Played()
    live.tracer.start_span("A", attributes=AGENT).end(end)
    span = agent("A", 1)
    span._end_time = end
    played.tracker.ended_alone(Reading.of(span))
    played.pass_seconds(3)
    for ends in (live.ends, played.ends):
        assert [one.status for one in ends] == [COMPLETED]


def test_a_start_that_is_read_late_ends_nothing() -> None:
    live = Live()
    with live.tracer.start_as_current_span("A", attributes=AGENT) as root:
        record = live.open.get((root.get_span_context().trace_id, root.get_span_context().span_id))
        assert record is not None
        read_after_its_end = Reading.of(root)  # type: ignore[arg-type]
        read_after_its_end.end = live.clock.now
        live.tracker.started(read_after_its_end, *live.open.above(record))
        live.tracer.start_span("x", attributes={**TOOL, "gen_ai.tool.name": "dig"}).end()
        assert live.ends == []
    assert live.ends[0].content.endswith(", 1 tool")


def test_a_lone_tool_inside_a_request_is_no_task() -> None:
    assert arrived(tool("t", 2, 1), made("POST /", 1, None, 0, 3, kind=SpanKind.SERVER)).reports == []


def test_a_lone_tool_inside_a_request_that_was_taken_for_an_agents_ends_quietly_when_the_request_comes() -> None:
    played = arrived(tool("t", 2, 1))
    played.arrive([made("POST /", 1, None, 0, 30, kind=SpanKind.SERVER)])
    played.pass_seconds(3)
    assert [(end.status, end.wakes) for end in played.ends] == [(COMPLETED, False)]
    played.pass_seconds(2_000)
    assert len(played.ends) == 1
    assert played.tracker.open_tasks == 0


def test_a_live_model_call_that_is_no_agents_is_none_for_an_exporter_either() -> None:
    live = Live()
    named = {**CHAT, "gen_ai.conversation.id": "c"}
    with live.tracer.start_as_current_span("POST /"):
        span = live.tracer.start_span("chat m", attributes=named)
        span.end()
    live.tracker.ended_alone(Reading.of(span))  # type: ignore[arg-type]
    live.tracker.finish()
    assert live.reports == []


# -- hostile spans ---------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=10),
    st.lists(st.text(max_size=5), max_size=3),
    st.sampled_from(["invoke_agent", "execute_tool", "chat", "AGENT", "TOOL", "LLM", "CHAIN", "pending_span", "tool"]),
    st.just("0" * 16),
    st.just(hostile_text("x")),
)
KEYS = st.sampled_from(
    [
        "gen_ai.operation.name",
        "openinference.span.kind",
        "traceloop.span.kind",
        "lmnr.span.type",
        "gen_ai.tool.name",
        "gen_ai.agent.name",
        "gen_ai.conversation.id",
        "gen_ai.tool.call.arguments",
        "gen_ai.request.model",
        "input.value",
        "error.type",
        "tool.status",
        "progress",
        "total",
        "done",
        "logfire.span_type",
        "logfire.pending_parent_id",
        "letta.task.id",
        "letta.task.progress",
        "letta.chat.id",
        "mcp.method.name",
        "traceloop.entity.name",
    ]
)
SPANS = st.builds(
    lambda span_id, parent, start, end, attributes, remote, error, trace_id: made(
        "x", span_id, parent or None, start, end, attributes, remote=remote, error=error, trace_id=trace_id
    ),
    st.integers(1, 6),
    st.integers(0, 7),
    st.integers(0, 5),
    st.integers(0, 9),
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.booleans(),
    st.none() | st.text(max_size=30),
    st.integers(1, 2),
)


@settings(max_examples=400)
@given(st.lists(SPANS, max_size=14), st.booleans())
def test_any_spans_in_any_order_end_each_task_once_and_leave_nothing_open(spans: list[Any], full: bool) -> None:
    played = Played(content=tuple(CONTENT_FIELDS) if full else ())
    for span in spans:
        played.arrive([span])
        played.pass_seconds(1)
    played.tracker.finish()
    assert played.tracker.open_tasks == 0
    for key in {report.key for report in played.reports}:
        mine = [report for report in played.reports if report.key == key]
        assert mine[-1].status.is_terminal
        assert all(0.0 <= report.progress <= 1.0 for report in mine)
        assert all(report.content and "\x00" not in report.content for report in mine)
    assert (len(played.tracker.tree.traces), played.tracker.tree.size) == (0, 0)
