"""OTLP/gRPC: the same bodies in other envelopes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from otel_letta.serve.answers import RETRY_AFTER
from otel_letta.serve.http import Bounds
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import serving
from tests.support.waiting import until

PATIENCE = 60


def request(name: str, *, trace_id: bytes = bytes(15) + b"\1") -> ExportTraceServiceRequest:
    found = ExportTraceServiceRequest()
    span = found.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = trace_id, bytes(7) + b"\1", name
    span.start_time_unix_nano, span.end_time_unix_nano = 1795946400000000000, 1795946401500000000
    pair = span.attributes.add()
    pair.key, pair.value.string_value = "letta.chat.id", "c1"
    return found


@pytest.fixture
def receiver(letta: InMemoryLetta, agent: str, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "tokens").write_text("own agent=agent-1\n")
    bounds, more = Bounds(body=50_000), {"token_file": tmp_path / "tokens"}
    with serving(letta.base_url, agent, grpc_port=0, tokens=("t",), bounds=bounds, **more) as service:
        yield service


@pytest.fixture
def channel(receiver: Service) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{receiver.rpc_port}") as found:
        yield found


def export(channel: Any, body: Any, token: str | None = "t", **more: Any) -> Any:
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    stub = {
        ExportTraceServiceRequest: TraceServiceStub,
        ExportLogsServiceRequest: LogsServiceStub,
        ExportMetricsServiceRequest: MetricsServiceStub,
    }[type(body)](channel)
    return stub.Export(body, metadata=metadata, timeout=PATIENCE, wait_for_ready=True, **more)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_spans_become_reports(channel: Any, letta: InMemoryLetta, agent: str, compression: Any) -> None:
    answer = export(channel, request("Import"), compression=compression)
    assert answer.partial_success.rejected_spans == 0
    assert until(lambda: [report["task"] for report in letta.reports(agent)] == ["Import"])


def test_logs_and_metrics_are_taken_too(channel: Any) -> None:
    export(channel, ExportLogsServiceRequest())
    export(channel, ExportMetricsServiceRequest())


def test_what_can_never_be_accepted_is_counted(channel: Any) -> None:
    answer = export(channel, request("no id", trace_id=b""))
    assert answer.partial_success.rejected_spans == 1
    assert "no id" in answer.partial_success.error_message


@pytest.mark.parametrize("token", [None, "other"])
def test_a_token_is_needed(channel: Any, token: str | None) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        export(channel, request("x"), token)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_of_an_agent_opens_nothing_here(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        export(channel, request("x"), "own")
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_cannot_be_decoded_is_the_senders_fault(channel: Any) -> None:
    call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"\xff\xff", metadata=[("authorization", "Bearer t")], timeout=PATIENCE, wait_for_ready=True)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_longer_body_than_may_be_is_refused(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        export(channel, request("x" * 60_000))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_may_be_different_the_next_time_is_unavailable(
    receiver: Service, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(receiver.intake.feed, "take", broken)
    for draining in (False, True):
        receiver.intake.draining = draining
        with pytest.raises(grpc.RpcError) as raised:
            export(channel, request("x"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert retry_delay(raised.value) == RETRY_AFTER


def test_more_than_can_be_worked_on_is_asked_to_come_back_and_not_told_that_it_is_too_much_for_good(
    receiver: Service, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, taken = threading.Event(), receiver.intake.take

    def slow(*args: Any) -> Any:
        assert go_on.wait(PATIENCE)
        return taken(*args)

    monkeypatch.setattr(receiver.intake, "take", slow)
    stub, crowd = TraceServiceStub(channel), 120
    calls = [
        stub.Export.future(request(f"T{number}"), metadata=[("authorization", "Bearer t")], timeout=PATIENCE)
        for number in range(crowd)
    ]
    try:
        assert until(lambda: sum(call.done() for call in calls) >= crowd - 64)
    finally:
        go_on.set()

    codes = [call.code() for call in calls]
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert 60 <= codes.count(grpc.StatusCode.OK) <= 68  # some are on their way between the count and the queue
    refused = calls[codes.index(grpc.StatusCode.UNAVAILABLE)]
    assert retry_delay(refused) == RETRY_AFTER


def retry_delay(error: Any) -> int:
    """Return the seconds after which an answer asks to come back."""
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    (detail,) = Status.FromString(details).details
    info = RetryInfo()
    assert detail.Unpack(info)
    return int(info.retry_delay.seconds)


def test_a_port_that_is_taken_ends_the_program_with_a_clear_word(
    receiver: Service, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    from otel_letta.serve.server import CannotListenError, listen

    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(CannotListenError, match="--grpc-port"),
        serving(letta.base_url, agent, grpc_port=taken.getsockname()[1]),
    ):
        pass
