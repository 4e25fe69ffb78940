"""OTLP/HTTP beyond the recorded cases: doors, bounds, faults of our own, and what operating a receiver takes."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import ssl
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_letta.serve import connections
from otel_letta.serve.http import Bounds
from otel_letta.serve.server import CannotListenError, Options, Service, listen
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import Connection, exchange, post, request_of, serving, span_of
from tests.support.waiting import until

PROTOBUF = "application/x-protobuf"


@pytest.fixture
def receiver(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent) as service:
        yield service


def tasks(letta: InMemoryLetta, agent: str) -> list[str]:
    return [report["task"] for report in letta.reports(agent) if report["status"] != "in_progress"]


def get(port: int, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=60)


@pytest.mark.parametrize("compression", Compression)
def test_the_sdks_own_exporter_gets_through(
    receiver: Service, letta: InMemoryLetta, agent: str, compression: Compression
) -> None:
    url = f"http://127.0.0.1:{receiver.options.port}/v1/traces"
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(url, compression=compression)))
    with provider.get_tracer("t").start_as_current_span("Import", attributes={"letta.chat.id": "c"}):
        pass
    assert until(lambda: tasks(letta, agent) == ["Import"])
    provider.shutdown()


@pytest.mark.parametrize("path", ["/v1/traces/", "//v1/traces", "/v1//traces", "http://localhost/v1/traces"])
def test_an_address_may_be_a_little_wrong(receiver: Service, letta: InMemoryLetta, agent: str, path: str) -> None:
    assert post(receiver.options.port, path, request_of(span_of("one"))).status == 200
    assert until(lambda: tasks(letta, agent) == ["one"])


@pytest.mark.parametrize("path", ["/", "/v1/traces/v1/traces", "/v1/spans", "/V1/TRACES", "/v1/traces/x"])
def test_what_is_somewhere_else_is_nowhere(receiver: Service, path: str) -> None:
    answer = post(receiver.options.port, path, request_of(span_of("one")))
    assert (answer.status, answer.type) == (404, "application/json")


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "DELETE"])
def test_only_posts_are_taken_and_no_page_is_told_that_it_may(receiver: Service, method: str) -> None:
    answer = httpx.request(
        method, f"http://127.0.0.1:{receiver.options.port}/v1/traces", headers={"Origin": "http://evil.example"}
    )
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_a_page_of_anybody_cannot_post_where_no_token_is_needed(receiver: Service, headers: dict[str, str]) -> None:
    answer = post(receiver.options.port, "/v1/traces", request_of(span_of("planted")), **headers)
    assert answer.status == 403
    assert answer.json["message"]


def test_a_name_can_be_allowed(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent, hosts=("otel.example",)) as service:
        body = request_of(span_of("one"))
        assert post(service.options.port, "/v1/traces", body, Host="otel.example").status == 200


def test_with_a_token_it_alone_matters_and_not_the_host(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("one\ntwo\n")
    with serving(letta.base_url, agent, token_file=file) as service:
        port, body = service.options.port, request_of(span_of("one"))
        assert post(port, "/v1/traces", body, Authorization="Bearer%20two", Host="otel.example").status == 200
        assert post(port, "/v1/traces", body, Authorization="Bearer three").status == 401
        assert post(port, "/metrics", b"").status == 401
        assert get(port, "/metrics", Authorization="Bearer one").status_code == 200
        file.unlink()
        assert post(port, "/v1/traces", body, Authorization="Bearer one").status == 200
        later = post(port, "/v1/traces", body, Authorization="Bearer three")
        assert (later.status, later.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("lines", [["gzip", "identity"], ["identity", "gzip"], ["deflate", "gzip"], ["", "gzip"]])
def test_codings_in_several_lines_are_one_list(
    receiver: Service, letta: InMemoryLetta, agent: str, lines: list[str]
) -> None:
    body = request_of(span_of("Packed"))
    for coding in lines:
        body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding, bytes)(body)
    head = (
        f"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    for coding in lines:
        head += f"\r\nContent-Encoding: {coding}"

    with Connection(receiver.options.port) as connection:
        connection.send(head.encode() + b"\r\n\r\n" + body)

        assert connection.answer().status == 200
    assert until(lambda: tasks(letta, agent) == ["Packed"])


def test_the_bound_counts_before_and_after_unpacking(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent, bounds=Bounds(body=1_000)) as service:
        port = service.options.port
        big = request_of(span_of("x" * 2_000))
        assert post(port, "/v1/traces", big).status == 413
        assert post(port, "/v1/traces", gzip.compress(big), Content_Encoding="gzip").status == 413
        case = {"method": "POST", "path": "/v1/traces", "headers": {"Content-Type": PROTOBUF}, "chunked": True}
        with Connection(port) as connection:
            answer = exchange(connection, {**case, "body_b64": base64.b64encode(big).decode(), "chunk_size": 500}, None)
            assert (answer.status, answer.type) == (413, PROTOBUF)
            # The rest of the body is passed by, and the connection goes on.
            assert connection.open
            small = {**case, "chunked": False, "body_b64": ""}
            assert exchange(connection, small, None).status == 200


def test_all_bodies_together_are_bounded_too(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent, bounds=Bounds(bodies=1_000)) as service:
        answer = post(service.options.port, "/v1/traces", request_of(span_of("x" * 2_000)))
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert post(service.options.port, "/v1/traces", request_of(span_of("x"))).status == 200


def test_a_sender_that_falls_silent_is_cut_and_asked_to_come_back(letta: InMemoryLetta, agent: str) -> None:
    with (
        serving(letta.base_url, agent, bounds=Bounds(patience=0.05)) as service,
        Connection(service.options.port) as it,
    ):
        it.send(b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        it.send(b"Content-Length: 9\r\n\r\n{")
        answer = it.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")


def test_a_sender_whose_headers_do_not_come_is_cut(receiver: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HEAD_PATIENCE", 0.05)
    for head in (b"", b"POST /v1/traces HTTP/1.1\r\nHost:"):
        with Connection(receiver.options.port) as it:
            it.send(head)
            assert it.answer().status == 0


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"GET /" + b"a" * 100_000])
def test_headers_are_bounded(receiver: Service, head: bytes) -> None:
    with Connection(receiver.options.port) as it:
        it.send(head)
        assert it.answer().status in (431, 400)


def test_connections_are_bounded(receiver: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    with Connection(receiver.options.port) as first:
        first.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.answer().status == 200
        with Connection(receiver.options.port) as second:
            answer = second.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        first.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.answer().status == 200


def test_who_waits_to_be_asked_for_a_body_is_asked_or_the_connection_ends(receiver: Service) -> None:
    head = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    with Connection(receiver.options.port) as it:
        it.send(head + b"Content-Type: application/json\r\n\r\n")
        assert it._file.readline().startswith(b"HTTP/1.1 100")
        it._file.readline()
        it.send(b"{}")
        assert it.answer().status == 200
        it.send(head + b"Content-Type: text/plain\r\n\r\n")
        answer = it.answer()
        assert (answer.status, answer.headers["connection"]) == (415, "close")


def test_an_unforeseen_fault_is_never_a_500(
    receiver: Service,
    letta: InMemoryLetta,
    agent: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(receiver.intake.feed, "take", broken)
    kept = receiver.intake.spool.size()
    port, body = receiver.options.port, request_of(span_of("one"))
    answer = post(port, "/v1/traces", body)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "unexpected RuntimeError" in caplog.text
    assert "secret" not in caplog.text + answer.json["message"]
    assert until(lambda: receiver.intake.spool.size() == kept)  # it is not kept, since its sender comes again
    monkeypatch.undo()
    assert post(port, "/v1/traces", body).status == 200  # sent again, it is not taken for one that came before
    assert until(lambda: tasks(letta, agent) == ["one"])


def test_one_bad_span_costs_the_others_nothing(receiver: Service, letta: InMemoryLetta, agent: str) -> None:
    body = request_of(span_of("good"), {**span_of("bad", 2), "startTimeUnixNano": "soon"})
    answer = post(receiver.options.port, "/v1/traces", body)
    assert answer.status == 200
    assert answer.json["partialSuccess"]["rejectedSpans"] == "1"
    assert "startTimeUnixNano" in answer.json["partialSuccess"]["errorMessage"]
    assert until(lambda: tasks(letta, agent) == ["good"])
    records = request_of({"timeUnixNano": "soon"}, logs=True)
    assert post(receiver.options.port, "/v1/logs", records).json["partialSuccess"]["rejectedLogRecords"] == "1"


def test_many_agents_get_what_is_theirs(letta: InMemoryLetta) -> None:
    first, second, stranger = (letta.create_agent() for _ in range(3))

    def span_for(agent: str, number: int) -> dict[str, Any]:
        span = span_of(f"for {number}", number)
        span["attributes"].append({"key": "letta.agent.id", "value": {"stringValue": agent}})
        return span

    with serving(letta.base_url, first, settings={"agent_allow_list": second}) as service:
        spans = [span_for(agent, number) for number, agent in enumerate((first, second, stranger), 1)]
        assert post(service.options.port, "/v1/traces", request_of(*spans)).status == 200
        on_resource = request_of(span_of("by resource", 9), letta__agent__id=second)
        assert post(service.options.port, "/v1/traces", on_resource).status == 200
        assert until(lambda: sorted(tasks(letta, second)) == ["by resource", "for 2"])
        assert until(lambda: "for 1" in tasks(letta, first))
    assert tasks(letta, stranger) == []


def test_what_operating_takes_is_answered_without_a_token(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent, tokens=("t",)) as service:
        port = service.options.port
        assert get(port, "/healthz").json() == {"status": "alive"}
        assert get(port, "/readyz").json() == {"status": "ready"}
        assert post(port, "/v1/traces", request_of(span_of("one")), Authorization="Bearer t").status == 200
        written = get(port, "/metrics", Authorization="Bearer t").text
        for line in (
            'otel_letta_requests_total{signal="traces",status="200"} 1.0',
            'otel_letta_items_total{signal="traces"} 1.0',
            "otel_letta_open_tasks",
            "otel_letta_spooled_requests",
        ):
            assert line in written
        service.intake.draining = True
        assert get(port, "/readyz").status_code == 503
        refused = post(port, "/v1/traces", request_of(span_of("two")), Authorization="Bearer t")
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")


def test_a_port_that_is_taken_is_named_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListenError, match=rf"Port {port} .*Collector.*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(CannotListenError, match="no address"):
        listen("no.such.host.invalid", 0)


def test_a_stop_that_comes_before_it_runs_is_not_lost(letta: InMemoryLetta, agent: str) -> None:
    settings = Settings.resolve(base_url=letta.base_url, agent_id=agent)
    service = Service(Options(), settings)
    service.stop()
    assert service.run([listen("127.0.0.1", 0)])


def test_tls_is_spoken_where_a_certificate_is_given(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(letta.base_url, agent, certificate=certificate, key=key) as service:
        trusted = ssl.create_default_context(cafile=certificate)
        url = f"https://localhost:{service.options.port}/v1/traces"
        headers = {"Content-Type": "application/json"}
        assert httpx.post(url, content=request_of(span_of("one")), headers=headers, verify=trusted).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.post(url, content=b"{}", headers=headers)
        assert until(lambda: tasks(letta, agent) == ["one"])


def test_the_log_can_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from otel_letta.serve.logs import log_as

    root, ours = logging.getLogger(), logging.getLogger("otel_letta")
    before, level, own = root.handlers[:], root.level, ours.level
    try:
        log_as("json")
        logging.getLogger("otel_letta.serve").warning("a line\nand %s", "more")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        ours.setLevel(own)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("warning", "a line\nand more")
    assert datetime.datetime.fromisoformat(line["time"].replace("Z", "+00:00"))
