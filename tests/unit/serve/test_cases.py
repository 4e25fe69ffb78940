"""Requests that real senders send to receivers, over a real socket, and the right answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import Answer, Connection, cases, exchange, serving
from tests.support.waiting import until

TOKEN = "tok-1"
CASES = {case["id"]: case for case in cases()}


@pytest.fixture(scope="module")
def letta() -> Iterator[InMemoryLetta]:  # one for all: the cases are independent of one another
    with InMemoryLetta() as server:
        yield server


@pytest.fixture(scope="module", params=["memory", "spool"])
def spool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return tmp_path_factory.mktemp("spool") / "bodies" if request.param == "spool" else None


@pytest.fixture(scope="module")
def agent(letta: InMemoryLetta, spool: Path | None) -> str:
    return letta.create_agent()


@pytest.fixture(scope="module")
def receiver(letta: InMemoryLetta, agent: str, spool: Path | None) -> Iterator[Service]:
    with serving(letta.base_url, agent, tokens=(TOKEN,), spool=spool) as service:
        yield service


def _tasks(letta: InMemoryLetta, agent: str) -> list[tuple[str, str]]:
    found = letta.reports(agent)
    return [(report["task"], report["status"]) for report in found if report["status"] != "in_progress"]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_request_gets_the_right_answer_and_its_tasks_are_reported_once(
    case: dict[str, Any], receiver: Service, letta: InMemoryLetta, agent: str
) -> None:
    answers = []
    for _ in range(case.get("repeat", 1)):
        connection = Connection(receiver.options.port)
        with connection:
            answer = exchange(connection, case, TOKEN)
            assert answer.status in case["expect_status"]
            _check(answer, case)
            answers.append(answer)
            if then := case.get("then"):
                assert connection.open
                answers.append(exchange(connection, then, TOKEN))
                assert answers[-1].status in then["expect_status"]
    taken = any(answer.status == 200 and not _rejected(answer) for answer in answers)
    expected = [(task["name"], task["status"]) for task in case["expect_tasks"]] if taken else []
    assert until(lambda: all(task in _tasks(letta, agent) for task in expected))
    assert receiver.pipeline.flush(60)
    names = {task["name"] for task in case["expect_tasks"]}
    assert [task for task in _tasks(letta, agent) if task[0] in names] == expected or not taken


def _check(answer: Answer, case: dict[str, Any]) -> None:
    wanted = case["expect_answer"]
    if answer.status == 401:
        assert answer.headers["www-authenticate"]
    if answer.status == 503:
        assert int(answer.headers["retry-after"]) > 0
    if not wanted or answer.status in (0, 404, 405, 415):
        return
    assert answer.type == {"json": "application/json", "proto": "application/x-protobuf"}[wanted]
    if answer.status != 200:
        message = answer.json["message"] if wanted == "json" else _message_of(answer.body)
        assert message
    elif _rejected(answer):
        assert case.get("partial_ok")


def _rejected(answer: Answer) -> int:
    if answer.type == "application/json":
        return int(answer.json.get("partialSuccess", {}).get("rejectedSpans", 0))
    return ExportTraceServiceResponse.FromString(answer.body).partial_success.rejected_spans


def _message_of(body: bytes) -> str:
    from google.rpc.status_pb2 import Status

    return Status.FromString(body).message
