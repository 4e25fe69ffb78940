"""A Collector on each host in front of the gateway: `collector/agent.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otel_letta.testing import InMemoryLetta
from tests.support.collector import Collector
from tests.support.collector_keys import FOLDER
from tests.support.collector_run import Bridge, Gateway, gateway, ports, send
from tests.support.collector_tasks import every_end_once, once, tasks

_HERE = Path(__file__).parent
_MANY = 60


@contextmanager
def _host(folder: Path, gateway: Gateway) -> Iterator[tuple[Collector, str]]:
    """Run the Collector of a host, and return it with the URL for the host's programs."""
    grpc, http, health = (f"127.0.0.1:{port}" for port in ports(3))
    environ = {
        "AGENT_GRPC_LISTEN": grpc,
        "AGENT_HTTP_LISTEN": http,
        "AGENT_QUEUE_DIR": str(folder / "agent-queue"),
        "GATEWAY_ENDPOINT": gateway.environ["OTLP_GRPC_LISTEN"],
        "GATEWAY_INSECURE": "true",
        "HEALTH_ENDPOINT": health,
    }
    with Collector([FOLDER / "agent.yaml", _HERE / "impatient_agent.yaml"], environ, folder / "agent.log") as collector:
        yield collector, f"http://{http}"


def test_a_host_s_spans_come_to_the_backend_and_to_the_agent(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with (
        Bridge(letta, agent, tmp_path) as bridge,
        gateway(tmp_path, bridge.url, _HERE / "impatient.yaml") as running,
        _host(tmp_path, running) as (_, http),
    ):
        bridge.start()
        for request in tasks(range(_MANY)):
            send(http, request)
        every_end_once(letta, agent, _MANY)
        once(running.backend, 3 * _MANY)


def test_a_gateway_that_is_away_and_a_host_s_collector_that_is_killed_meanwhile_lose_nothing(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with (
        Bridge(letta, agent, tmp_path) as bridge,
        gateway(tmp_path, bridge.url, _HERE / "impatient.yaml") as running,
        _host(tmp_path, running) as (host, http),
    ):
        bridge.start()
        running.collector.kill()
        for request in tasks(range(_MANY)):
            send(http, request)
        host.kill()
        host.start()
        running.collector.start()
        every_end_once(letta, agent, _MANY)
        once(running.backend, 3 * _MANY)
