"""What becomes of spans when something breaks behind the gateway: the backend has each once, and the agent each end."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_letta.testing import InMemoryLetta
from tests.support.collector_run import Bridge, Sink, gateway, send
from tests.support.collector_tasks import PATIENCE, ends, every_end_once, gave_up, ids, once, tasks
from tests.support.waiting import until

_IMPATIENT = Path(__file__).with_name("impatient.yaml")
_MANY = 60
"""Tasks of a run; each is a trace of three spans."""


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
        every_end_once(letta, agent, _MANY)
        once(running.backend, 2 * _MANY)


def test_a_bridge_that_is_killed_and_away_for_a_while_loses_no_end(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        requests = tasks(range(_MANY))
        for request in requests[:20]:
            send(running.http, request)
        assert until(lambda: ends(letta, agent), PATIENCE)
        bridge.kill()
        for request in requests[20:40]:
            send(running.http, request)
        once(running.backend, 3 * 40)  # the backend waits for nobody
        bridge.start()
        for request in requests[40:]:
            send(running.http, request)
        every_end_once(letta, agent, _MANY, unsure=range(20))
        once(running.backend, 3 * _MANY)


# --- Beside it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429])
def test_a_bridge_that_cannot_take_more_gets_it_later_and_the_backend_now(status: int, tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.status = status
        for request in tasks(range(_MANY)):
            send(running.http, request)
        assert until(lambda: bridge.refused >= 1, PATIENCE)
        once(running.backend, 3 * _MANY)
        assert not bridge.spans
        bridge.status = 200
        once(bridge, 3 * _MANY)


def test_a_full_queue_drops_on_letta_s_branch_alone(tmp_path: Path) -> None:
    """Without the hop the client sends again, and the backend gets all of it twice and more."""
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT, LETTA_QUEUE_SIZE="600") as running:
        bridge.status = 503
        count = 200
        for request in tasks(range(count), spans=50):
            send(running.http, request)
        once(running.backend, 50 * count)
        assert until(lambda: gave_up(running), PATIENCE)
        bridge.status = 200
        send(running.http, tasks(range(count, count + 1))[0])
        assert until(lambda: len(bridge.spans) >= 1, PATIENCE)
        once(running.backend, 50 * count + 3)
        found = ids(bridge)
        assert set(found.values()) == {1}
        assert len(found) < 50 * count, "the queue was never full"


def test_a_backend_that_is_away_keeps_nothing_from_the_agent(tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        running.backend_collector.kill()
        for request in tasks(range(_MANY)):
            send(running.http, request)
        once(bridge, 3 * _MANY)
        running.backend_collector.start()
        once(running.backend, 3 * _MANY)
