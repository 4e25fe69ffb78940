"""With the SDK's switch for internal metrics, exporter and processor count what they do, in the SDK's own names."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult

from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.testing import InMemoryLetta
from tests.support.waiting import until

SWITCH = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
EXPORTED = "otel.sdk.exporter.span.exported"
INFLIGHT = "otel.sdk.exporter.span.inflight"
DURATION = "otel.sdk.exporter.operation.duration"
PROCESSED = "otel.sdk.processor.span.processed"
TASK = {"letta.task.id": "task-1"}


class World:
    """A provider, the Letta that it reports to, and what was measured."""

    def __init__(self, letta: InMemoryLetta) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.tracer = self.provider.get_tracer("test")

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "base_url": self.letta.base_url,
            "agent_id": self.agent,
            "delivery": "messages",
            "message_interval": 0,
            "shutdown_timeout": 1,
            "meter_provider": self.meter_provider,
            **more,
        }

    def exporter(self, **more: Any) -> LettaSpanExporter:
        exporter = LettaSpanExporter(**self.options(**more))
        self.provider.add_span_processor(SimpleSpanProcessor(exporter))
        return exporter

    def processor(self, **more: Any) -> LettaSpanProcessor:
        processor = LettaSpanProcessor(**self.options(**more))
        self.provider.add_span_processor(processor)
        return processor

    def do(self, name: str, attributes: dict[str, Any] | None = None) -> None:
        with self.tracer.start_as_current_span(name, attributes=TASK if attributes is None else attributes):
            pass

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "opentelemetry-sdk"
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def count(self, name: str, error: str | None = None, kind: str = "LettaSpanExporter") -> float:
        """The sum of a counter for one kind of component and error."""
        return sum(
            point.value
            for point in self.points(name)
            if point.attributes.get("error.type") == error
            and point.attributes["otel.component.type"] == f"otel_letta.{kind}"
        )


@pytest.fixture
def world(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv(SWITCH, "true")
    world = World(letta)
    yield world
    letta.recover()
    letta.resume_listening()
    world.provider.shutdown()
    world.meter_provider.shutdown()


# -- exporter -------------------------------------------------------------------------------------------------------


def test_spans_that_an_exporter_takes_over_are_exported(world: World) -> None:
    exporter = world.exporter()
    world.do("task", TASK)
    world.do("no task", {})
    world.do("somebody else's status", {"status": "200"})
    assert exporter.force_flush()
    assert world.count(EXPORTED) == 1


def test_the_component_is_named_as_the_conventions_want(world: World) -> None:
    exporter = world.exporter()
    world.do("task")
    assert exporter.force_flush()
    (point,) = world.points(EXPORTED)
    host, _, port = world.letta.base_url.removeprefix("http://").partition(":")
    assert point.attributes["otel.component.type"] == "otel_letta.LettaSpanExporter"
    assert point.attributes["otel.component.name"].startswith("otel_letta.LettaSpanExporter/")
    assert (point.attributes["server.address"], point.attributes["server.port"]) == (host, int(port))


def test_two_components_have_two_names(world: World) -> None:
    world.exporter()
    world.exporter()
    world.do("task")
    assert until(lambda: len({point.attributes["otel.component.name"] for point in world.points(EXPORTED)}) == 2)


def test_each_request_is_timed(world: World) -> None:
    exporter = world.exporter()
    world.do("task")
    assert exporter.force_flush()
    (point,) = world.points(DURATION)
    assert point.count == 1
    assert 0 < point.sum < 5
    assert "error.type" not in point.attributes


def test_a_failed_request_is_timed_with_its_cause(world: World) -> None:
    world.letta.fail_next(503, method="POST", path="/messages")
    exporter = world.exporter(probe_interval=0.05)
    world.do("task")
    assert world.letta.wait_for(lambda: len(world.letta.requests) > 0)
    assert until(lambda: len(world.points(DURATION)) > 0)
    failed = [point for point in world.points(DURATION) if "error.type" in point.attributes]
    assert [(p.count, p.attributes["error.type"], p.attributes["http.response.status_code"]) for p in failed] == [
        (1, "LettaServerError", 503)
    ]
    exporter.shutdown()


def test_reports_are_inflight_until_letta_has_them(world: World) -> None:
    exporter = world.exporter()
    with world.letta.hold(world.agent):
        world.do("task")
        assert until(lambda: world.count(INFLIGHT) == 1)
    assert exporter.force_flush()
    assert until(lambda: world.count(INFLIGHT) == 0)


def test_an_end_that_letta_refuses_counts_as_failed(world: World) -> None:
    world.letta.refuse(lambda content: "poison" in content)
    exporter = world.exporter()
    world.do("task", {"letta.task.content": "poison"})
    exporter.force_flush()
    assert world.count(EXPORTED) == 1, "it was taken over, and"
    assert world.count(EXPORTED, "refused_by_letta") == 1, "given up later"


def test_an_end_that_is_not_delivered_before_shutdown_counts_as_failed(world: World) -> None:
    world.letta.stop_listening()
    exporter = world.exporter(shutdown_timeout=0.3)
    world.do("task")
    assert until(lambda: [lane["waiting"] for lane in exporter.stats()["lanes"].values()] == [1])
    exporter.shutdown()
    assert world.count(EXPORTED, "not_delivered_before_shutdown") == 1


def test_after_shutdown_spans_are_refused(world: World) -> None:
    exporter = world.exporter()
    world.do("task")
    exporter.shutdown()
    world.provider.force_flush()
    with world.tracer.start_as_current_span("late", attributes=TASK) as span:
        pass
    assert exporter.export([span]) is SpanExportResult.FAILURE  # type: ignore[list-item]
    assert world.count(EXPORTED, "already_shutdown") >= 1


def test_without_settings_nothing_is_exported_and_the_metric_says_why(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = LettaSpanExporter(meter_provider=world.meter_provider)
    world.provider.add_span_processor(SimpleSpanProcessor(exporter))
    world.do("task")
    assert world.count(EXPORTED) == 0
    assert world.count(EXPORTED, "LettaConfigurationError") == 1


# -- processor ------------------------------------------------------------------------------------------------------


def test_a_live_processor_counts_the_task_spans_that_end_in_it(world: World) -> None:
    processor = world.processor()
    world.do("task")
    world.do("no task", {})
    assert until(lambda: world.count(PROCESSED, kind="LettaSpanProcessor") == 1)
    processor.shutdown()
    assert world.count(PROCESSED, kind="LettaSpanProcessor") == 1
    world.do("late")
    assert world.count(PROCESSED, "already_shutdown", kind="LettaSpanProcessor") == 1
    (point, *_) = world.points(PROCESSED)
    assert "server.address" not in point.attributes


def test_a_live_processor_alone_measures_its_delivery_under_its_name(world: World) -> None:
    processor = world.processor()
    world.do("task")
    assert processor.force_flush()
    (point,) = world.points(DURATION)
    assert point.attributes["otel.component.type"] == "otel_letta.LettaSpanProcessor"
    assert not world.points(EXPORTED), "it has nothing that could be called an export"


def test_components_that_share_a_pipeline_measure_its_delivery_once(world: World) -> None:
    processor = world.processor()
    exporter = world.exporter()
    world.do("task")
    assert processor.force_flush()
    assert exporter.force_flush()
    durations = world.points(DURATION)
    assert {point.attributes["otel.component.type"] for point in durations} == {"otel_letta.LettaSpanProcessor"}
    assert sum(point.count for point in durations) == len(
        [request for request in world.letta.requests if request.method == "POST" and world.agent in request.path]
    )


# -- beside the SDK's own -------------------------------------------------------------------------------------------


def test_the_sdks_own_metrics_keep_their_instruments(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Instruments of one name that differ in anything are an error of whoever registers the second."""
    pytest.importorskip(
        "opentelemetry.exporter.otlp.common._exporter_metrics", reason="this SDK has no metrics of its own yet"
    )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    caplog.set_level(logging.WARNING)
    exporter = OTLPSpanExporter(endpoint=world.letta.base_url, meter_provider=world.meter_provider)
    theirs = BatchSpanProcessor(exporter, meter_provider=world.meter_provider)
    world.exporter()
    world.processor()
    world.provider.add_span_processor(theirs)
    world.do("task")
    theirs.force_flush()
    ours = {"otel_letta.LettaSpanExporter"}
    assert until(lambda: {point.attributes["otel.component.type"] for point in world.points(EXPORTED)} > ours)
    assert world.points("otel.sdk.processor.span.queue.size"), "theirs, which is registered once"
    assert not [record for record in caplog.records if "metrics" in record.name]


# -- off ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "false", "1", ""])
def test_without_the_switch_there_are_no_metrics(
    value: str | None, letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    world = World(letta)
    exporter, processor = world.exporter(), world.processor()
    world.do("task")
    assert exporter.force_flush()
    assert exporter._metrics is None
    assert processor._metrics is None
    assert world.reader.get_metrics_data() is None
    world.provider.shutdown()


def test_without_the_switch_the_module_is_not_even_imported() -> None:
    code = (
        "import sys, otel_letta; otel_letta.LettaSpanExporter(agent_id='a')\n"
        "assert 'otel_letta.otel.selfmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_switch_is_read_when_a_component_is_made(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(letta)
    exporter = world.exporter()
    monkeypatch.setenv(SWITCH, "true")
    world.do("task")
    assert exporter.force_flush()
    assert world.reader.get_metrics_data() is None
    world.provider.shutdown()


# -- a meter provider that fails ------------------------------------------------------------------------------------


class BrokenInstrument:
    def add(self, *_: object) -> None:
        raise OSError("add")

    record = add


class BrokenMeter:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: BrokenInstrument()


class BrokenMeterProvider:
    def get_meter(self, name: str) -> BrokenMeter:
        return BrokenMeter()


def test_metrics_that_fail_hurt_nothing(world: World) -> None:
    broken: Any = BrokenMeterProvider()
    exporter = world.exporter(meter_provider=broken)
    world.do("task")
    assert exporter.force_flush()
    assert [report["status"] for report in world.letta.reports(world.agent)] == ["completed"]


def test_a_meter_provider_that_is_none_costs_only_the_metrics(world: World, caplog: pytest.LogCaptureFixture) -> None:
    nonsense: Any = object()
    exporter = world.exporter(meter_provider=nonsense)
    world.do("task")
    assert exporter.force_flush()
    assert "LettaSpanExporter has no metrics: the meter provider failed" in caplog.messages
    assert [report["status"] for report in world.letta.reports(world.agent)] == ["completed"]
