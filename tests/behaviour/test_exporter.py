"""`LettaSpanExporter`: ended spans of any TracerProvider become reports, beside any other exporter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status, StatusCode

from otel_letta import LettaSpanExporter
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sink import OtlpSink
from tests.support.waiting import until

TASK = {"letta.chat.id": "chat-1"}


class World:
    """An exporter under a processor of the SDK, and the Letta that it reports to."""

    def __init__(self, letta: InMemoryLetta) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self._providers: list[TracerProvider] = []

    def exporter(self, **more: Any) -> LettaSpanExporter:
        options: dict[str, Any] = {
            "base_url": self.letta.base_url,
            "agent_id": self.agent,
            "delivery": "messages",
            "shutdown_timeout": 2,
        }
        return LettaSpanExporter(**(options | more))

    def tracer(self, *processors: SpanProcessor, **more: Any) -> trace.Tracer:
        provider = TracerProvider(shutdown_on_exit=False, **more)
        for processor in processors:
            provider.add_span_processor(processor)
        self._providers.append(provider)
        return provider.get_tracer("test")

    def shutdown(self) -> None:
        for provider in self._providers:
            provider.shutdown()

    def ended(self) -> list[tuple[str, str]]:
        return [(r["task"], r["status"]) for r in self.letta.reports(self.agent)]

    def report(self) -> dict[str, Any]:
        (report,) = self.letta.reports(self.agent)
        return report


@pytest.fixture
def world(letta: InMemoryLetta) -> Iterator[World]:
    world = World(letta)
    yield world
    letta.recover()
    letta.resume_listening()
    letta.password = None
    world.shutdown()


@pytest.fixture
def otlp() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


Wrapping = Callable[[SpanExporter], SpanProcessor]
BOTH = pytest.mark.parametrize("wrapped_in", [BatchSpanProcessor, SimpleSpanProcessor], ids=["batch", "simple"])


def _ended_span(tracer: trace.Tracer, name: str = "task", **attributes: Any) -> ReadableSpan:
    span = tracer.start_span(name, attributes={**TASK, **attributes})
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


# -- under the SDK's processors -------------------------------------------------------------------------------------


@BOTH
def test_ended_tasks_are_told(world: World, wrapped_in: Wrapping) -> None:
    exporter = world.exporter()
    processor = wrapped_in(exporter)
    tracer = world.tracer(processor)
    for number in range(3):
        with tracer.start_as_current_span(f"task {number}", attributes=TASK):
            pass
    assert processor.force_flush()
    assert exporter.force_flush()
    assert world.ended() == [(f"task {number}", "completed") for number in range(3)]


@BOTH
@pytest.mark.parametrize("otlp_first", [True, False])
def test_it_works_beside_an_otlp_exporter(world: World, otlp: OtlpSink, wrapped_in: Wrapping, otlp_first: bool) -> None:
    exporter = world.exporter()
    both = [wrapped_in(OTLPSpanExporter(endpoint=otlp.endpoint)), wrapped_in(exporter)]
    tracer = world.tracer(*(both if otlp_first else both[::-1]))
    with tracer.start_as_current_span("task", attributes=TASK), tracer.start_as_current_span("plain"):
        pass
    world.shutdown()
    assert world.ended() == [("task", "completed")]
    assert otlp.requests >= 1


@BOTH
def test_a_letta_that_is_down_leaves_the_otlp_exporter_alone(
    world: World, otlp: OtlpSink, wrapped_in: Wrapping
) -> None:
    world.letta.stop_listening()
    exporter = world.exporter(shutdown_timeout=0.2)
    tracer = world.tracer(wrapped_in(exporter), wrapped_in(OTLPSpanExporter(endpoint=otlp.endpoint)))
    with tracer.start_as_current_span("task", attributes=TASK):
        pass
    world.shutdown()
    assert otlp.requests == 1


@BOTH
def test_shutting_the_provider_down_delivers_what_is_left(world: World, wrapped_in: Wrapping) -> None:
    tracer = world.tracer(wrapped_in(world.exporter()))
    for number in range(20):
        with tracer.start_as_current_span(f"task {number}", attributes=TASK):
            pass
    world.shutdown()
    assert sorted(world.ended()) == sorted((f"task {number}", "completed") for number in range(20))


def test_several_providers_share_one_agent_without_talking_at_once(world: World) -> None:
    tracers = [world.tracer(SimpleSpanProcessor(world.exporter())) for _ in range(3)]
    for number, tracer in enumerate(tracers):
        with tracer.start_as_current_span(f"task {number}", attributes=TASK):
            pass
    world.shutdown()
    assert sorted(world.ended()) == [(f"task {number}", "completed") for number in range(3)]
    assert world.letta.in_flight_max(world.agent) == 1


# -- what is told ---------------------------------------------------------------------------------------------------


def test_a_task_gives_its_ids_result_and_trace(world: World) -> None:
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter), resource=Resource({"service.name": "importer"}))
    span = _ended_span(tracer, **{"letta.message.id": "msg-1", "letta.task.result": "12 rows"})
    assert exporter.force_flush()
    report = world.report()
    assert span.context is not None
    expected = {
        "task": "task",
        "chat_id": "chat-1",
        "message_id": "msg-1",
        "status": "completed",
        "progress": "100%",
        "result": "12 rows",
        "service": "importer",
        "trace_id": f"{span.context.trace_id:032x}",
    }
    assert {name: report.get(name) for name in expected} == expected


def test_plain_spans_are_ignored(world: World) -> None:
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter))
    with tracer.start_as_current_span("GET /", attributes={"http.request.method": "GET", "status": "200"}):
        pass
    assert exporter.force_flush()
    assert world.ended() == []


def test_an_error_is_a_failure_with_its_type_and_text(world: World) -> None:
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter))
    with pytest.raises(ValueError, match="bad row"), tracer.start_as_current_span("task", attributes=TASK):
        raise ValueError("bad row 1043")
    assert exporter.force_flush()
    assert world.report()["status"] == "failed"
    assert world.report()["content"] == "Task failed: ValueError: bad row 1043"


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ("completed", StatusCode.ERROR, "completed"),
        ("failed", StatusCode.OK, "failed"),
        ("in_progress", StatusCode.UNSET, "completed"),
        ("nonsense", StatusCode.ERROR, "failed"),
    ],
)
def test_an_explicit_status_wins_if_it_is_an_end(world: World, said: str, status: StatusCode, told: str) -> None:
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter))
    with tracer.start_as_current_span("task", attributes={**TASK, "letta.task.status": said}) as span:
        span.set_status(Status(status))
    assert exporter.force_flush()
    assert world.report()["status"] == told


def test_content_of_the_tasks_own_is_told(world: World) -> None:
    exporter = world.exporter()
    _ended_span(world.tracer(SimpleSpanProcessor(exporter)), **{"letta.task.content": "all 12 files done"})
    assert exporter.force_flush()
    assert world.report()["content"] == "all 12 files done"


# -- children before parents ----------------------------------------------------------------------------------------


def _tree(tracer: trace.Tracer, **child: Any) -> tuple[ReadableSpan, ReadableSpan]:
    with tracer.start_as_current_span("parent", attributes=TASK) as parent:
        inner = tracer.start_span("child", attributes=child)
        inner.end()
    assert isinstance(inner, ReadableSpan)
    assert isinstance(parent, ReadableSpan)
    return inner, parent


def test_a_child_exported_before_its_parent_is_a_step_of_it(world: World) -> None:
    exporter = world.exporter()
    child, parent = _tree(world.tracer(), **{"letta.task.progress": 0.5})
    exporter.export([child])
    exporter.export([parent])
    assert exporter.force_flush()
    assert world.ended() == [("parent", "completed")]
    exporter.shutdown()


def test_a_child_is_a_step_across_a_plain_span_between(world: World) -> None:
    exporter = world.exporter()
    tracer = world.tracer()
    with (
        tracer.start_as_current_span("parent", attributes=TASK) as parent,
        tracer.start_as_current_span("plain") as plain,
        tracer.start_as_current_span("child", attributes={"letta.task.progress": 0.5}) as child,
    ):
        pass
    for span in (child, plain, parent):
        assert isinstance(span, ReadableSpan)
        exporter.export([span])
    assert exporter.force_flush()
    assert world.ended() == [("parent", "completed")]
    exporter.shutdown()


@pytest.mark.parametrize("own", [{"letta.task.id": "t-2"}, {"letta.chat.id": "chat-2"}])
def test_a_child_with_an_id_or_chat_of_its_own_is_a_task(world: World, own: dict[str, str]) -> None:
    exporter = world.exporter()
    child, parent = _tree(world.tracer(), **own)
    exporter.export([child])
    exporter.export([parent])
    assert exporter.force_flush()
    assert sorted(world.ended()) == [("child", "completed"), ("parent", "completed")]
    exporter.shutdown()


def test_spans_of_several_traces_are_one_task_only_by_an_explicit_id(world: World) -> None:
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter))
    for attributes in ({}, {}, {"letta.task.id": "t-1"}):
        _ended_span(tracer, **attributes)
    assert exporter.force_flush()
    assert len({report["task_id"] for report in world.letta.reports(world.agent)}) == 3


def test_a_flush_delivers_a_task_whose_parent_is_still_open(world: World) -> None:
    """Whoever flushes may be frozen or gone when the parent ends, so flush must not say True about what it held."""
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter))
    with tracer.start_as_current_span("main"):
        with tracer.start_as_current_span("task", attributes=TASK):
            pass
        assert exporter.force_flush()
        assert world.ended() == [("task", "completed")]
    assert exporter.force_flush()
    assert world.ended() == [("task", "completed")]


# -- never a wait ---------------------------------------------------------------------------------------------------


@BOTH
def test_export_does_not_wait_for_letta(world: World, wrapped_in: Wrapping) -> None:
    exporter = world.exporter()
    tracer = world.tracer(wrapped_in(exporter))
    spans = [_ended_span(world.tracer()) for _ in range(200)]
    with world.letta.hold():
        _ended_span(tracer)
        exporter.export(spans[:1])
        assert world.letta.wait_for(lambda: world.letta.in_flight(world.agent) == 1)
        began = time.monotonic()
        assert exporter.export(spans) is SpanExportResult.SUCCESS
        assert time.monotonic() - began < 1  # a turn is being held all the while


# -- force_flush says the truth -------------------------------------------------------------------------------------


def test_flush_with_nothing_to_do_is_true_at_once(world: World) -> None:
    exporter = world.exporter()
    assert exporter.force_flush(0) is True
    exporter.shutdown()


def test_flush_is_true_when_letta_has_everything(world: World) -> None:
    exporter = world.exporter()
    _ended_span(world.tracer(SimpleSpanProcessor(exporter)))
    assert exporter.force_flush(60_000) is True
    assert world.ended() == [("task", "completed")]


def test_flush_gives_up_within_its_time(world: World) -> None:
    exporter = world.exporter()
    with world.letta.hold():
        _ended_span(world.tracer(SimpleSpanProcessor(exporter)))
        began = time.monotonic()
        assert exporter.force_flush(200) is False
        assert 0.15 < time.monotonic() - began < 2
    assert exporter.force_flush(60_000) is True
    assert world.ended() == [("task", "completed")]


def test_flush_is_false_while_the_server_is_down_and_true_when_it_is_back(world: World) -> None:
    world.letta.stop_listening()
    exporter = world.exporter()
    _ended_span(world.tracer(SimpleSpanProcessor(exporter)))
    began = time.monotonic()
    assert exporter.force_flush(300) is False
    assert time.monotonic() - began < 2
    world.letta.resume_listening()
    assert exporter.force_flush(60_000) is True
    assert world.ended() == [("task", "completed")]


def test_flush_of_a_parked_lane_is_false_without_waiting(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.letta.password = "right"
    exporter = world.exporter(password="wrong")
    _ended_span(world.tracer(SimpleSpanProcessor(exporter)))
    assert exporter.force_flush(5_000) is False
    began = time.monotonic()
    assert exporter.force_flush(30_000) is False  # it is tried once a minute: waiting cannot help
    assert time.monotonic() - began < 2
    assert any("LETTA_PASSWORD" in record.message for record in caplog.records)


def test_flush_is_false_when_an_end_was_given_up(world: World) -> None:
    world.letta.refuse(lambda content: "poison" in content)
    exporter = world.exporter()
    _ended_span(world.tracer(SimpleSpanProcessor(exporter)), "poison")
    assert exporter.force_flush(5_000) is False


def test_several_threads_may_flush_at_once(world: World) -> None:
    exporter = world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(exporter))
    for number in range(10):
        _ended_span(tracer, f"task {number}")
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(exporter.force_flush(60_000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert len(world.ended()) == 10


# -- shutdown -------------------------------------------------------------------------------------------------------


def test_shutdown_delivers_what_is_left(world: World) -> None:
    exporter = world.exporter()
    exporter.export([_ended_span(world.tracer())])
    exporter.shutdown()
    assert world.ended() == [("task", "completed")]


def test_shutdown_tells_a_child_whose_parent_never_came(world: World) -> None:
    exporter = world.exporter()
    child, _ = _tree(world.tracer(), **{"letta.task.progress": 0.5})
    exporter.export([child])
    exporter.shutdown()
    assert world.ended() == [("child", "completed")]


def test_shutdown_twice_is_quiet(world: World, caplog: pytest.LogCaptureFixture) -> None:
    exporter = world.exporter()
    exporter.shutdown()
    exporter.shutdown()
    exporter.shutdown(timeout_millis=10)
    assert caplog.records == []


def test_export_after_shutdown_fails(world: World) -> None:
    exporter = world.exporter()
    exporter.shutdown()
    assert exporter.export([_ended_span(world.tracer())]) is SpanExportResult.FAILURE
    assert exporter.force_flush() is True
    assert world.ended() == []


def test_shutdown_takes_the_batch_processors_timeout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK passes it only to exporters whose ``shutdown`` has an argument of that name."""
    taken: list[float | None] = []
    exporter = world.exporter()
    original = LettaSpanExporter._close
    monkeypatch.setattr(
        LettaSpanExporter, "_close", lambda self, millis: (taken.append(millis), original(self, millis))[1]
    )
    BatchSpanProcessor(exporter).shutdown()
    assert len(taken) == 1
    assert taken[0] is None or 0 < taken[0] <= 30_000


@pytest.mark.parametrize(
    ("setting", "argument"), [(0.3, None), (30, 300), (0.3, 60_000)], ids=["setting", "argument", "smaller of both"]
)
def test_shutdown_stays_within_its_budget(world: World, setting: float, argument: float | None) -> None:
    exporter = world.exporter(shutdown_timeout=setting)
    with world.letta.hold():
        exporter.export([_ended_span(world.tracer())])
        assert world.letta.wait_for(lambda: world.letta.in_flight(world.agent) == 1)
        began = time.monotonic()
        exporter.shutdown(timeout_millis=argument)
        assert time.monotonic() - began < 2


def test_shutdown_interrupts_backoff(world: World) -> None:
    """What waits for its next try is tried at once, and a server that is back by then gets it."""
    exporter = world.exporter()
    world.letta.fail_next(503, path=f"{world.agent}/messages", headers={"Retry-After": "3600"})
    exporter.export([_ended_span(world.tracer())])
    assert exporter.force_flush(5_000) is False
    began = time.monotonic()
    exporter.shutdown()
    assert time.monotonic() - began < 2
    assert world.ended() == [("task", "completed")]


def test_shutdown_with_a_dead_server_says_what_was_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    exporter = world.exporter(shutdown_timeout=0.3)
    world.letta.stop_listening()
    exporter.export([_ended_span(world.tracer()) for _ in range(3)])
    assert until(lambda: [lane["waiting"] for lane in exporter.stats()["lanes"].values()] == [3])
    exporter.shutdown()
    assert any("3 task end(s) not delivered" in record.message for record in caplog.records)


def test_an_exporter_made_after_a_shutdown_works(world: World) -> None:
    first = world.exporter()
    first.shutdown()
    second = world.exporter()
    second.export([_ended_span(world.tracer())])
    second.shutdown()
    assert world.ended() == [("task", "completed")]


def test_two_exporters_alike_tell_a_span_once(world: World) -> None:
    first, second = world.exporter(), world.exporter()
    tracer = world.tracer(SimpleSpanProcessor(first), SimpleSpanProcessor(second))
    _ended_span(tracer)
    first.shutdown()
    second.shutdown()
    assert world.ended() == [("task", "completed")]


def test_one_of_two_exporters_alike_may_shut_down_first(world: World) -> None:
    first, second = world.exporter(), world.exporter()
    first.shutdown()
    second.export([_ended_span(world.tracer())])
    assert second.force_flush(60_000)
    assert world.ended() == [("task", "completed")]
    second.shutdown()


# -- settings -------------------------------------------------------------------------------------------------------


@BOTH
def test_missing_settings_are_one_error_and_the_program_goes_on(
    otlp: OtlpSink, caplog: pytest.LogCaptureFixture, wrapped_in: Wrapping
) -> None:
    exporter = LettaSpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(wrapped_in(exporter))
    provider.add_span_processor(wrapped_in(OTLPSpanExporter(endpoint=otlp.endpoint)))
    with provider.get_tracer("t").start_as_current_span("task", attributes=TASK):
        pass
    assert exporter.force_flush() is True
    provider.shutdown()
    assert otlp.requests == 1
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "LETTA_AGENT_ID" in errors[0].message
    assert errors[0].name.startswith("otel_letta")


@pytest.mark.parametrize(
    "options",
    [
        {"agent_id": "agent-1", "base_url": "ftp://nowhere"},
        {"agent_id": "agent-1", "delivery": "pigeon"},
        {"agent_id": 3.5, "base_url": object()},
    ],
)
def test_bad_settings_are_one_error_and_no_exception(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    exporter = LettaSpanExporter(**options)
    assert exporter.export([]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_an_unknown_option_is_one_warning_and_reporting_goes_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A slip in a YAML file must not switch everything off."""
    exporter = world.exporter(no_such_setting=1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no_such_setting" in caplog.records[0].message
    exporter.export([_ended_span(world.tracer())])
    exporter.shutdown()
    assert world.ended() == [("task", "completed")]


def test_settings_come_from_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.letta.password = "secret"
    monkeypatch.setenv("LETTA_BASE_URL", world.letta.base_url)
    monkeypatch.setenv("LETTA_AGENT_ID", world.agent)
    monkeypatch.setenv("LETTA_PASSWORD", "secret")
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", "messages")
    exporter = LettaSpanExporter()
    exporter.export([_ended_span(world.tracer())])
    exporter.shutdown()
    assert world.ended() == [("task", "completed")]


def test_otel_sdk_disabled_means_nothing_happens(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    span = _ended_span(world.tracer())
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    exporter = world.exporter()
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert exporter.force_flush() is True
    exporter.shutdown()
    assert world.ended() == []
    assert world.letta.wait_for(lambda: True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_bug_of_ours_is_a_failure_and_no_exception(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = world.exporter()

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug of ours")

    span = _ended_span(world.tracer())
    monkeypatch.setattr("otel_letta.pipeline.pipeline.Pipeline.export", broken)
    assert exporter.export([span]) is SpanExportResult.FAILURE
    exporter.shutdown()


def test_stats_say_what_happened(world: World) -> None:
    exporter = world.exporter()
    exporter.export([_ended_span(world.tracer()) for _ in range(3)])
    assert exporter.force_flush(60_000)
    stats = exporter.stats()
    assert (stats["reports"], stats["sent"], stats["dropped"]) == (3, 3, {})
    assert stats["requests"] >= 1
    exporter.shutdown()
