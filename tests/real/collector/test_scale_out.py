"""Several replicas behind `collector/scale-out.yaml`: one agent, one PostgreSQL, and a replica that is killed."""

from __future__ import annotations

import random
import re
import ssl
import urllib.error
import urllib.request
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import trustme
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.testing import InMemoryLetta
from tests.support.affinity import KEYS, SHIPPED
from tests.support.collector_run import TOKEN, Bridge, Sink, gateway, ports, send
from tests.support.collector_tasks import PATIENCE, check_ends, ends, tasks
from tests.support.postgres import Cluster
from tests.support.waiting import until

_TASKS = 24


def _part(number: int, ended: bool) -> dict[str, Any]:
    """One half of a task: a step of it first, and its own span at the end, each in a request of its own."""
    times = {"startTimeUnixNano": "1795946400000000000", "endTimeUnixNano": "1795946401000000000"}
    span: dict[str, Any] = {"traceId": f"{number + 1:032x}", "spanId": f"{2 * number + 1:016x}", **times}
    if ended:
        span |= {"name": f"task {number}", "attributes": [_text("letta.task.id", f"t{number}")]}
    else:
        span |= {"name": "part", "spanId": f"{2 * number + 2:016x}", "parentSpanId": f"{2 * number + 1:016x}"}
    process = [_text("service.name", "fleet"), _text("service.instance.id", f"process {number}")]
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
        assert until(lambda: sum(_taken(replica, ca) for replica in replicas) >= _TASKS, PATIENCE)
        assert all(_taken(replica, ca) for replica in replicas), "each has tasks under way"
        for number in range(_TASKS // 2):
            send(running.http, _part(number, ended=True))
        assert until(lambda: ends(letta, agent), PATIENCE), replicas[0].log[-2000:] + running.collector.log[-2000:]
        replicas[1].kill()
        for number in range(_TASKS // 2, _TASKS):
            send(running.http, _part(number, ended=True))
        replicas[1].start()
        wanted = {f"task {number}" for number in range(_TASKS)}
        assert until(lambda: ends(letta, agent).keys() >= wanted, PATIENCE), wanted - ends(letta, agent).keys()
        check_ends(ends(letta, agent), _TASKS, unsure=range(_TASKS // 2))
        assert until(lambda: len(running.backend.spans) >= 2 * _TASKS, PATIENCE)
        assert len(running.backend.spans) == 2 * _TASKS


def _taken(replica: Bridge, ca: Path) -> float:
    """Return how many spans a replica has taken in; 0 before it listens."""
    url = replica.url.replace("http://127.0.0.1", "https://localhost")
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return 0.0
    found = re.search(r'^otel_letta_items_total\{signal="traces"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


# --- The key ----------------------------------------------------------------------------------------------------------

_NAMED = {"service.name": "fleet"}
_RESOURCES: list[dict[str, str]] = [
    {},
    _NAMED,
    {"service.name": "other"},
    {**_NAMED, "service.instance.id": "1"},
    {**_NAMED, "service.instance.id": "2"},
    {**_NAMED, "service.instance.id": "1", "host.name": "a", "process.pid": "7"},
    {**_NAMED, "host.name": "a", "process.pid": "7"},
    {**_NAMED, "host.name": "a", "process.pid": "8"},
    {**_NAMED, "host.name": "b", "process.pid": "7"},
    {**_NAMED, "host.name": "a"},
    {**_NAMED, "service.instance.id": "1", "letta.agent.id": "agent-1"},
    {"service.name": "other", "letta.agent.id": "agent-1"},
    {**_NAMED, "letta.agent.id": "agent-2", "letta.route": "of the program's own making"},
    {**_NAMED, "letta.route": "of the program's own making"},
]


def test_the_collector_makes_the_key_that_was_measured(tmp_path: Path) -> None:
    """`tests.support.affinity` splits recordings by a key of its own: the two tell the same resources apart."""
    with Sink() as bridge, gateway(tmp_path, bridge.url, Path(__file__).with_name("routed.yaml")) as running:
        for number, resource in enumerate(_RESOURCES):
            (request,) = tasks(range(number, number + 1), spans=1)
            attributes = [_text(key, value) for key, value in resource.items()]
            request["resourceSpans"][0]["resource"] = {"attributes": attributes}
            send(running.http, request)
        assert until(lambda: len(bridge.spans) >= len(_RESOURCES), PATIENCE)
    made = {
        span.name: next(each.value.string_value for each in part.resource.attributes if each.key == "letta.route")
        for request in bridge.traces
        for part in request.resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    }
    routes = [made[f"task {number}"] for number in range(len(_RESOURCES))]
    spans = [ReadableSpan("span", resource=Resource(resource)) for resource in _RESOURCES]
    keys = [KEYS[SHIPPED](span, random.Random(1)) for span in spans]
    same = [(one, two) for one, two in combinations(range(len(keys)), 2) if keys[one] == keys[two]]
    assert [(one, two) for one, two in combinations(range(len(routes)), 2) if routes[one] == routes[two]] == same
    assert 0 < len(same) < len(keys)
