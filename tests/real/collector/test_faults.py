"""What becomes of spans when something breaks behind the gateway: the backend has each once, and the agent each end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_letta.testing import InMemoryLetta
from tests.support.collector_run import Bridge, Sink, gateway, send
from tests.support.waiting import until

_IMPATIENT = Path(__file__).with_name("impatient.yaml")
_PATIENCE = 240.0
_MANY = 60
"""Tasks of a run; each is a trace of three spans."""


def _traces(numbers: range, spans: int = 3) -> list[dict[str, Any]]:
    """Requests of one task each: the task's span, and others below it."""
    return [{"resourceSpans": [{"scopeSpans": [{"spans": _of_task(number, spans)}]}]} for number in numbers]


def _of_task(number: int, spans: int) -> list[dict[str, Any]]:
    trace = f"{number + 1:032x}"
    times = {"startTimeUnixNano": "1795946400000000000", "endTimeUnixNano": "1795946401000000000"}
    found = []
    for part in range(spans):
        span = {"traceId": trace, "spanId": f"{number * 1000 + part + 1:016x}", "name": f"part {part}", **times}
        if part:
            span["parentSpanId"] = f"{number * 1000 + 1:016x}"
        else:
            span["name"] = f"task {number}"
            span["attributes"] = [{"key": "letta.task.id", "value": {"stringValue": f"t{number}"}}]  # type: ignore[assignment]
        found.append(span)
    return found


def _ids(sink: Sink) -> Counter[tuple[bytes, bytes]]:
    return Counter((span.trace_id, span.span_id) for span in sink.spans)


def _once(sink: Sink, spans: int) -> None:
    assert until(lambda: len(_ids(sink)) >= spans, _PATIENCE), len(_ids(sink))
    found = _ids(sink)
    assert len(found) == spans
    assert set(found.values()) == {1}, "sent twice"


def _ends(letta: InMemoryLetta, agent: str) -> Counter[str]:
    return Counter(report["task"] for report in letta.reports(agent) if report["status"] != "in_progress")


def _every_end_once(letta: InMemoryLetta, agent: str, tasks: int) -> None:
    wanted = {f"task {number}" for number in range(tasks)}
    assert until(lambda: _ends(letta, agent).keys() >= wanted, _PATIENCE), wanted - _ends(letta, agent).keys()
    assert _ends(letta, agent) == Counter(wanted)


# --- With the bridge itself -----------------------------------------------------------------------------------------


def test_a_program_with_the_sdk_reports_through_the_gateway(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{running.http}/v1/traces")))
        tracer = provider.get_tracer("program")
        for number in range(_MANY):
            with (
                tracer.start_as_current_span(f"task {number}", attributes={"letta.task.id": f"t{number}"}),
                tracer.start_as_current_span("part", attributes={"prompt": "SECRET-prompt"}),
            ):
                pass
        provider.shutdown()
        _every_end_once(letta, agent, _MANY)
        _once(running.backend, 2 * _MANY)


def test_a_bridge_that_is_killed_and_away_for_a_while_loses_no_end(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        requests = _traces(range(_MANY))
        for request in requests[:20]:
            send(running.http, request)
        assert until(lambda: _ends(letta, agent), _PATIENCE)
        bridge.kill()
        for request in requests[20:40]:
            send(running.http, request)
        _once(running.backend, 3 * 40)  # the backend waits for nobody
        bridge.start()
        for request in requests[40:]:
            send(running.http, request)
        _every_end_once(letta, agent, _MANY)
        _once(running.backend, 3 * _MANY)


# --- Beside it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429])
def test_a_bridge_that_cannot_take_more_gets_it_later_and_the_backend_now(status: int, tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.status = status
        for request in _traces(range(_MANY)):
            send(running.http, request)
        assert until(lambda: bridge.refused >= 1, _PATIENCE)
        _once(running.backend, 3 * _MANY)
        assert not bridge.spans
        bridge.status = 200
        _once(bridge, 3 * _MANY)


def test_a_full_queue_drops_on_letta_s_branch_alone(tmp_path: Path) -> None:
    """Without the hop the client sends again, and the backend gets all of it twice and more."""
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT, LETTA_QUEUE_SIZE="600") as running:
        bridge.status = 503
        tasks = 200
        for request in _traces(range(tasks), spans=50):
            send(running.http, request)
        _once(running.backend, 50 * tasks)
        assert until(lambda: bridge.refused >= 1, _PATIENCE)
        bridge.status = 200
        send(running.http, _traces(range(tasks, tasks + 1))[0])
        assert until(lambda: len(bridge.spans) >= 1, _PATIENCE)
        _once(running.backend, 50 * tasks + 3)
        found = _ids(bridge)
        assert set(found.values()) == {1}
        assert len(found) < 50 * tasks, "the queue was never full"


def test_a_backend_that_is_away_keeps_nothing_from_the_agent(tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        running.backend_collector.kill()
        for request in _traces(range(_MANY)):
            send(running.http, request)
        _once(bridge, 3 * _MANY)
        running.backend_collector.start()
        _once(running.backend, 3 * _MANY)
