"""Several replicas behind `collector/scale-out.yaml`: one agent, one PostgreSQL, and a replica that is killed."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trustme

from otel_letta.testing import InMemoryLetta
from tests.support.collector_run import Bridge, gateway, ports, send
from tests.support.postgres import Cluster
from tests.support.waiting import until

_PATIENCE = 240.0
_PROCESSES, _TASKS = 6, 24


def _part(number: int, ended: bool) -> dict[str, Any]:
    """One half of a task: a step of it first, and its own span at the end, each in a request of its own."""
    times = {"startTimeUnixNano": "1795946400000000000", "endTimeUnixNano": "1795946401000000000"}
    span: dict[str, Any] = {"traceId": f"{number + 1:032x}", "spanId": f"{2 * number + 1:016x}", **times}
    if ended:
        span |= {"name": f"task {number}", "attributes": [_text("letta.task.id", f"t{number}")]}
    else:
        span |= {"name": "part", "spanId": f"{2 * number + 2:016x}", "parentSpanId": f"{2 * number + 1:016x}"}
    process = [_text("service.name", "fleet"), _text("service.instance.id", f"process {number % _PROCESSES}")]
    return {"resourceSpans": [{"resource": {"attributes": process}, "scopeSpans": [{"spans": [span]}]}]}


def _text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def test_a_replica_that_is_killed_loses_no_end(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    authority, grpc = trustme.CA(), ports(3)
    certificate, ca = authority.issue_cert("localhost"), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    static = tmp_path / "static.yaml"
    hosts = ", ".join(f"localhost:{port}" for port in grpc)
    resolver = f"{{dns: null, static: {{hostnames: [{hosts}]}}}}"
    retries = "{initial_interval: 100ms, max_interval: 1s}"
    static.write_text(f"exporters: {{load_balancing/letta: {{resolver: {resolver}, retry_on_failure: {retries}}}}}\n")
    with ExitStack() as stack:
        outbox = stack.enter_context(Cluster()).url()
        pem = str(tmp_path / "server.pem")
        replicas = [
            stack.enter_context(
                Bridge(
                    *(letta, agent, tmp_path, "--grpc-port", str(port), "--tls-cert", pem, "--tls-key", pem),
                    *("--spool", str(tmp_path / f"spool-{port}")),
                    OTEL_LETTA_OUTBOX=outbox,
                )
            )
            for port in grpc
        ]
        for replica in replicas:
            replica.start()
        running = stack.enter_context(gateway(tmp_path, "", static, first="scale-out.yaml", LETTA_BRIDGE_CA=str(ca)))
        for number in range(_TASKS):
            send(running.http, _part(number, ended=False))
        for number in range(_TASKS // 2):
            send(running.http, _part(number, ended=True))
        assert until(lambda: _ends(letta, agent), _PATIENCE), replicas[0].log[-2000:] + running.collector.log[-2000:]
        replicas[1].kill()
        for number in range(_TASKS // 2, _TASKS):
            send(running.http, _part(number, ended=True))
        replicas[1].start()
        wanted = {f"task {number}" for number in range(_TASKS)}
        assert until(lambda: _ends(letta, agent).keys() >= wanted, _PATIENCE), wanted - _ends(letta, agent).keys()
        assert _ends(letta, agent) == Counter(wanted)
        assert until(lambda: len(running.backend.spans) >= 2 * _TASKS, _PATIENCE)
        assert len(running.backend.spans) == 2 * _TASKS


def _ends(letta: InMemoryLetta, agent: str) -> Counter[str]:
    return Counter(report["task"] for report in letta.reports(agent) if report["status"] != "in_progress")
