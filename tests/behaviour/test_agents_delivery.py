"""Agents' spans from a program to a Letta: through the live processor, the exporter, and both; and tasks by opt-in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from otel_letta.tracking.conventions import CONTENT_FIELDS
from otel_letta.tracking.opt_in import OptIn
from tests.support.tracked import hostile_text

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "A", "gen_ai.conversation.id": "c-1"}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "dig"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "r"}


def run_late(world: World) -> None:
    """An agent whose spans say only at their end what they are, inside one of the same scope that never says so."""
    start = world.provider.get_tracer("langchain").start_as_current_span
    with start("outer"), start("reporter") as root:
        for name in ("search", "send"):
            with start("branch"), start("plain"), start("tools") as step:
                with start(name) as tool:
                    tool.set_attributes({"openinference.span.kind": "TOOL", "tool.name": name, "session.id": "c-1"})
                step.set_attributes({"openinference.span.kind": "CHAIN", "session.id": "c-1"})
            if name == "search":
                world.flush()  # half of it is known while the rest is open, the rest perhaps all at once
        root.set_attributes({"openinference.span.kind": "CHAIN", "session.id": "c-1"})
        root.set_status(Status(StatusCode.ERROR, "boom"))


class World:
    """A provider, and the agent that hears of its spans."""

    def __init__(self, letta: InMemoryLetta, ways: str, **options: Any) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self.options: dict[str, Any] = {
            "base_url": letta.base_url,
            "agent_id": self.agent,
            "message_interval": 0,
            "board_interval": 0,
            "poll_interval": 0.01,
            "shutdown_timeout": 30,
        } | options
        self.provider = TracerProvider(resource=Resource({"service.name": "jobs"}), shutdown_on_exit=False)
        self.parts: list[LettaSpanProcessor | LettaSpanExporter] = []
        if "live" in ways:
            live = LettaSpanProcessor(**self.options)
            self.provider.add_span_processor(live)
            self.parts.append(live)
        if "exporter" in ways:
            exporter = LettaSpanExporter(**self.options)
            self.provider.add_span_processor(SimpleSpanProcessor(exporter))
            self.parts.append(exporter)
        if "batch" in ways:
            exporter = LettaSpanExporter(**self.options)
            self.provider.add_span_processor(BatchSpanProcessor(exporter))
            self.parts.append(exporter)
        self.tracer = self.provider.get_tracer("tests")

    def run_agent(self, *, error: bool = False, **attributes: Any) -> None:
        """An agent that uses a tool, inside a request."""
        start = self.tracer.start_as_current_span
        with start("POST /", kind=SpanKind.SERVER), start("invoke_agent A", attributes=AGENT | attributes) as root:
            self.tracer.start_span("chat m", attributes=CHAT).end()
            with start("execute_tool dig", attributes=TOOL), start("SELECT", kind=SpanKind.CLIENT):
                pass
            self.tracer.start_span("chat m", attributes=CHAT).end()
            if error:
                root.set_status(Status(StatusCode.ERROR, "ValueError: no such row"))

    def flush(self) -> None:
        assert self.provider.force_flush(60_000)
        for part in self.parts:
            assert part.force_flush(60_000)

    def messages(self) -> list[tuple[str, str]]:
        """Status and content of what the agent was told in messages."""
        self.flush()
        return [(report["status"], report["content"]) for report in self.letta.reports(self.agent)]

    def board(self) -> str:
        self.flush()
        return self.letta.board(self.agent) or ""

    def close(self) -> None:
        self.provider.shutdown()


@pytest.fixture
def world(letta: InMemoryLetta) -> Iterator[Any]:
    made: list[World] = []

    def make(ways: str, **options: Any) -> World:
        made.append(World(letta, ways, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


WAYS = pytest.mark.parametrize("ways", ["live", "exporter", "batch", "live exporter", "exporter live", "live batch"])


@WAYS
def test_a_failed_agent_is_told_once_as_a_message_and_on_the_board(world: Any, ways: str) -> None:
    one = world(ways)
    one.run_agent(error=True)
    assert one.messages() == [("failed", "'A' failed: no such row")]
    assert "'A' failed: no such row" in one.board()
    assert one.parts[0].stats()["open_tasks"] == 0


@WAYS
def test_a_run_without_an_agents_span_is_told_once(world: Any, ways: str) -> None:
    one = world(ways)
    start = one.tracer.start_as_current_span
    with start("POST /", kind=SpanKind.SERVER), start("job"):
        one.tracer.start_span("chat m", attributes=CHAT).end()
        with start("execute_tool dig", attributes=TOOL):
            one.flush()  # both take their time, and so they are known while the job is open
        with start("chat m", attributes=CHAT) as last:
            one.flush()
            last.set_status(Status(StatusCode.ERROR, "HTTP 500"))
    assert one.messages() == [("failed", "'jobs' failed: HTTP 500")]
    assert "In progress: none" in one.board()
    assert one.parts[0].stats()["open_tasks"] == 0


@WAYS
def test_a_short_agent_that_went_well_ends_on_the_board_alone(world: Any, ways: str) -> None:
    one = world(ways)
    one.run_agent()
    assert one.messages() == []
    assert "completed" in one.board()
    assert "1 tool" in one.board()
    assert "(chat c-1)" in one.board()
    assert "In progress: none" in one.board()


@WAYS
def test_a_long_agent_that_went_well_wakes_the_agent(world: Any, ways: str) -> None:
    one = world(ways, wake_after=0)
    one.run_agent()
    assert [status for status, _ in one.messages()] == ["completed"]


@WAYS
def test_an_addressed_agent_always_wakes(world: Any, ways: str) -> None:
    one = world(ways)
    one.run_agent(**{"letta.chat.id": "chat-7"})
    assert [status for status, _ in one.messages()] == ["completed"]


@WAYS
def test_an_agent_whose_spans_say_late_what_they_are_is_told_once(world: Any, ways: str) -> None:
    one = world(ways)
    run_late(one)
    assert one.messages() == [("failed", "'reporter' failed: boom")]
    assert "'tools'" not in one.board()
    assert "In progress: none" in one.board()
    assert one.parts[0].stats()["open_tasks"] == 0


def test_such_an_agent_is_told_once_if_its_spans_reach_an_exporter_first(world: Any) -> None:
    one = world("exporter")
    one.parts.append(LettaSpanProcessor(**one.options))
    one.provider.add_span_processor(one.parts[-1])
    run_late(one)
    assert one.messages() == [("failed", "'reporter' failed: boom")]
    assert "'tools'" not in one.board()
    assert "In progress: none" in one.board()
    assert one.parts[0].stats()["open_tasks"] == 0


def test_with_messages_alone_short_agents_that_went_well_tell_nothing(world: Any) -> None:
    one = world("live", delivery="messages")
    one.run_agent()
    assert one.messages() == []
    assert one.parts[0].stats()["held"] > 0
    one.run_agent(error=True)
    assert [status for status, _ in one.messages()] == ["failed"]


def test_with_messages_alone_long_agents_tell_as_other_tasks_do(world: Any) -> None:
    one = world("live", delivery="messages", wake_after=0)
    one.run_agent()
    assert [status for status, _ in one.messages()][-1] == "completed"


def test_without_turns_a_failed_agent_is_on_the_board_alone(world: Any) -> None:
    one = world("live", delivery="board")
    one.run_agent(error=True)
    assert one.messages() == []
    assert "no such row" in one.board()


def test_a_start_stands_on_the_board_while_the_agent_works(world: Any) -> None:
    one = world("live")
    with one.tracer.start_as_current_span("invoke_agent A", attributes=AGENT):
        assert "Started 'A'" in one.board()
        with one.tracer.start_as_current_span("execute_tool dig", attributes=TOOL):
            assert "Using tool dig" in one.board()
        assert "Used tool dig" in one.board()


def test_a_span_that_becomes_an_agent_late_is_one(world: Any) -> None:
    one = world("live")
    with one.tracer.start_as_current_span("request"), one.tracer.start_as_current_span("x") as span:
        span.set_attributes(AGENT)
        one.tracer.start_span("execute_tool dig", attributes=TOOL).end()
    assert "completed" in one.board()
    assert "1 tool" in one.board()


@WAYS
def test_web_servers_and_databases_tell_nothing(world: Any, ways: str) -> None:
    one = world(ways)
    for _ in range(3):
        start = one.tracer.start_as_current_span
        with start("GET /", kind=SpanKind.SERVER, attributes={"http.route": "/"}) as request:
            with start("SELECT", kind=SpanKind.CLIENT, attributes={"db.system": "sqlite"}):
                pass
            request.set_status(Status(StatusCode.ERROR, "500"))
    assert (one.messages(), one.board(), one.parts[0].stats()["reports"]) == ([], "", 0)


def test_an_exporter_alone_tells_of_an_open_agent_when_the_program_ends(world: Any) -> None:
    one = world("exporter")
    with one.tracer.start_as_current_span("invoke_agent A", attributes=AGENT):
        one.tracer.start_span("execute_tool dig", attributes=TOOL).end()
        one.parts[0].shutdown()
    reports = one.letta.reports(one.agent)
    assert [(report["status"], "shut down" in report["content"]) for report in reports] == [("failed", True)]


# -- opt-in ----------------------------------------------------------------------------------------------------------


def celery(one: World, *, error: bool = False) -> None:
    """What opentelemetry-instrumentation-celery makes of a task."""
    tracer = one.provider.get_tracer("opentelemetry.instrumentation.celery")
    tracer.start_span("apply_async/nightly.import", kind=SpanKind.PRODUCER).end()
    with tracer.start_as_current_span("run/nightly.import", kind=SpanKind.CONSUMER) as span:
        span.add_event("progress", {"done": 400, "total": 1200})
        one.tracer.start_span("download file").end()
        if error:
            span.set_status(Status(StatusCode.ERROR, "bad row 1043: price is not a number"))


@WAYS
def test_a_scope_that_the_settings_name_makes_tasks(world: Any, ways: str) -> None:
    one = world(ways, tasks="scope:opentelemetry.instrumentation.celery*")
    celery(one)
    assert one.messages() == []
    celery(one, error=True)
    ((status, content),) = one.messages()
    assert status == "failed"
    assert "bad row 1043" in content
    assert [report["progress"] for report in one.letta.reports(one.agent)] == ["33%"]
    assert "run/nightly.import" in one.board()
    assert "apply_async" not in one.board()


@WAYS
def test_a_span_name_that_the_settings_name_makes_tasks(world: Any, ways: str) -> None:
    one = world(ways, tasks=["name:nightly *"], wake_after=0)
    for name in ("nightly backup", "hourly backup"):
        one.tracer.start_span(name).end()
    assert [status for status, _ in one.messages()] == ["completed"]
    assert "nightly backup" in one.board()
    assert "hourly" not in one.board()


@WAYS
def test_a_filter_makes_tasks_and_may_name_them(world: Any, ways: str) -> None:
    def task_filter(span: ReadableSpan) -> bool | str:
        if span.name == "build":
            return f"Build of {(span.attributes or {})['branch']}"
        return span.name == "deploy"

    one = world(ways, task_filter=task_filter)
    for name in ("build", "deploy", "lint"):
        one.tracer.start_span(name, attributes={"branch": "main"}).end()
    one.run_agent()
    board = one.board()
    assert "Build of main" in board
    assert " deploy" in board
    assert "lint" not in board
    assert "Finished 'A'" in board


@WAYS
def test_a_filter_that_raises_is_logged_once_and_ignored(
    world: Any, ways: str, caplog: pytest.LogCaptureFixture
) -> None:
    def task_filter(span: ReadableSpan) -> bool:
        raise RuntimeError("a secret of the program")

    one = world(ways, task_filter=task_filter)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            one.tracer.start_span("build").end()
        one.run_agent()
        one.flush()
    lines = [record.getMessage() for record in caplog.records if record.name == "otel_letta.tracking.opt_in"]
    assert lines == ["task_filter raised RuntimeError and is ignored for such spans"]
    assert "Finished 'A'" in one.board()


@WAYS
def test_naming_an_agent_or_a_job_inside_one_by_a_filter_does_not_make_it_wake(world: Any, ways: str) -> None:
    def task_filter(span: ReadableSpan) -> bool | str:
        return "Night run" if span.name.startswith("invoke_agent") else span.name == "SELECT"

    one = world(ways, task_filter=task_filter)
    one.run_agent()
    assert one.messages() == []
    assert "Finished 'Night run'" in one.board()


def test_a_filters_answer_of_a_hostile_kind_of_text_is_a_text() -> None:
    assert OptIn([], lambda span: hostile_text("deploy")).name_of(ReadableSpan(name="x")) == "deploy"


def test_an_agent_inside_an_opted_in_job_is_its_step(world: Any) -> None:
    one = world("live", tasks="name:job", wake_after=0)
    with one.tracer.start_as_current_span("job"):
        one.run_agent()
    assert len(one.messages()) == 1
    assert one.parts[0].stats()["open_tasks"] == 0


# -- settings --------------------------------------------------------------------------------------------------------


def resolved(**keywords: Any) -> Settings:
    return Settings.resolve(environ={}, require_agent=False, **keywords)


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("names", ()),
        ("full", ("arguments", "results", "prompt", "answer", "errors")),
        ("prompt, Arguments", ("arguments", "prompt")),
        (["results"], ("results",)),
        ("names,answer", ("answer",)),
    ],
)
def test_content_is_opted_into_field_by_field(value: Any, fields: tuple[str, ...]) -> None:
    assert resolved(content=value).content == fields


@pytest.mark.parametrize(
    "bad", [{"content": "everything"}, {"tasks": "celery*"}, {"tasks": "kind:x"}, {"tasks": "name:"}, {"grace": -1}]
)
def test_a_setting_that_cannot_be_meant_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(LettaConfigurationError):
        resolved(**bad)


def test_every_field_of_content_is_one_that_tracking_knows() -> None:
    assert resolved(content="full").content == tuple(CONTENT_FIELDS)


def test_patterns_may_hold_colons_and_spaces() -> None:
    patterns = resolved(tasks="scope: a.*, name:nightly: the *").tasks
    assert patterns == (("scope", "a.*"), ("name", "nightly: the *"))
