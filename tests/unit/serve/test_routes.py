"""Of several processes behind one address, one gets all that a program sends, whatever connections it uses."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_letta.otlp.batch import Batch, UndecodableError
from otel_letta.otlp.first_resource import first_resource
from otel_letta.runtime.deadline import Deadline
from otel_letta.serve import routes
from otel_letta.serve.answers import Refusal
from otel_letta.serve.routes import Router, place_of
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, progress_event, request_of, span_of
from tests.support.waiting import until
from tests.unit.serve.test_durable import ends, program
from tests.unit.serve.test_program import _children

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets there")


# -- whose a request is ------------------------------------------------------------------------------------------------


def test_an_agent_or_else_a_process_is_one_place() -> None:
    here = {"service.name": "shop", "service.instance.id": "1", "host.name": "h", "process.pid": 7}
    assert place_of(here, 64) == place_of({**here, "host.name": "other"}, 64)
    assert place_of(here, 64) != place_of({**here, "service.instance.id": "2"}, 64)
    no_instance = {"service.name": "shop", "host.name": "h", "process.pid": 7}
    assert place_of(no_instance, 64) != place_of({**no_instance, "process.pid": 8}, 64)
    agents = {place_of({**here, "letta.agent.id": "agent-1", "service.instance.id": str(n)}, 64) for n in range(20)}
    assert len(agents) == 1
    assert {place_of({**here, "service.instance.id": str(n)}, 2) for n in range(50)} == {0, 1}


@pytest.mark.parametrize("resource", [{}, {"service.name": "shop"}, {"service.name": "shop", "process.pid": 7}])
def test_what_nothing_tells_apart_has_no_place(resource: dict[str, Any]) -> None:
    assert place_of(resource, 2) is None


@pytest.mark.parametrize("signal", ["traces", "logs"])
def test_the_first_resource_is_had_from_either_encoding(signal: str) -> None:
    body = request_of(span_of("x"), logs=signal == "logs", service__name="shop")
    assert first_resource(body, True, signal) == {"service.name": "shop"}
    request = ExportTraceServiceRequest() if signal == "traces" else ExportLogsServiceRequest()
    group = request.resource_spans.add() if signal == "traces" else request.resource_logs.add()  # type: ignore[attr-defined]
    pair = group.resource.attributes.add()
    pair.key, pair.value.string_value = "service.name", "shop"
    assert first_resource(request.SerializeToString(), False, signal) == {"service.name": "shop"}
    assert first_resource(b"", False, signal) == {}
    assert first_resource(b"{}", True, signal) == {}


@pytest.mark.parametrize(("body", "is_json"), [(b"\xff", False), (b"{", True), (b"[]", True), (b"[" * 100_000, True)])
def test_of_no_request_there_is_none(body: bytes, is_json: bool) -> None:
    for signal in ("traces", "logs"):
        with pytest.raises(UndecodableError):
            first_resource(body, is_json, signal)


# -- handing over ------------------------------------------------------------------------------------------------------


class Two:
    """Two routers in one process, and what each took in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: list[list[tuple[str, bool, bytes]]] = [[], []]
        self.refusal: Refusal | None = None
        self.routers = [self.router(place) for place in (0, 1)]

    def router(self, place: int) -> Router:
        made = Router(self.folder, place, 2, self.take(place))
        made.listen()
        return made

    def take(self, place: int) -> Any:
        def take(signal: str, is_json: bool, body: bytes) -> Batch:
            if self.refusal is not None:
                raise self.refusal
            self.taken[place].append((signal, is_json, body))
            return Batch(broken=["one is broken"])

        return take


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    for router in made.routers:
        router.close()


def body_for(place: int) -> bytes:
    for number in range(100):
        if place_of({"letta.agent.id": f"agent-{number}"}, 2) == place:
            return request_of(span_of("x"), letta__agent__id=f"agent-{number}")
    raise AssertionError


def hand_over(router: Router, body: bytes) -> Batch | None:
    """Hand a body over. None if it is for the router's own process, or the other one stays away."""
    work = router.route("traces", True, body)
    return None if work is None else work()


def test_a_body_for_another_process_comes_there_and_its_answer_back(two: Two) -> None:
    body = body_for(1)
    for _ in range(3):
        batch = hand_over(two.routers[0], body)
        assert batch is not None
        assert batch.broken == ["one is broken"]
    assert two.taken == [[], [("traces", True, body)] * 3]
    assert hand_over(two.routers[1], body) is None  # it is here


def test_what_the_other_refuses_is_refused(two: Two) -> None:
    two.refusal = Refusal(503, "the spool is full")
    with pytest.raises(Refusal, match="the spool is full") as raised:
        hand_over(two.routers[0], body_for(1))
    assert raised.value.status == 503


def test_many_hand_over_at_once(two: Two) -> None:
    bodies = [body_for(1) + b" " * number for number in range(40)]
    threads = [threading.Thread(target=hand_over, args=(two.routers[0], body)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(body for _, _, body in two.taken[1]) == sorted(bodies)


def test_while_the_other_is_replaced_senders_are_asked_to_come_back(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken in here, a task's parts would be in two processes: it would end in one and be lost in the other."""
    now = 1_000.0
    monkeypatch.setattr(routes, "time", SimpleNamespace(monotonic=lambda: now))
    body = body_for(1)
    for _ in range(2):  # each absence counts anew
        assert hand_over(two.routers[0], body) is not None
        two.routers[1].close()
        # The connection of before still has its thread: a process that is gone has none.
        two.routers[0]._forget(1)
        for _ in range(2):
            with pytest.raises(Refusal, match="is being replaced") as raised:
                hand_over(two.routers[0], body)
            assert raised.value.status == 503
            now += 15.0
        assert hand_over(two.routers[0], body) is None, "it does not come back"
        two.routers[1] = two.router(1)
    assert hand_over(two.routers[0], body) is not None


def test_who_is_first_waits_for_the_others(tmp_path: Path) -> None:
    first, second = (Router(tmp_path, place, 2, lambda signal, is_json, body: Batch()) for place in (0, 1))
    first.listen()
    first.wait_for_others(Deadline.after(0.0))  # in vain
    with pytest.raises(Refusal):
        hand_over(first, body_for(1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.wait_for_others, Deadline.after(60.0))
        second.listen()
        waiting.result(60)
    assert hand_over(first, body_for(1)) is not None
    first.close()
    second.close()


def test_a_task_and_its_end_meet_whatever_connections_they_come_by(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    """The span says nothing by itself: only who has got the log event knows what ends with it."""
    with program(letta, agent, "--workers", "2", TMPDIR=str(tmp_path)) as running:
        assert until(lambda: len(_children(running.process.pid)) == 2, 60)
        assert until(lambda: len(list(tmp_path.glob("*/*.sock"))) == 2, 60)
        names = [f"task {number}" for number in range(1, 13)]
        for number, name in enumerate(names, 1):
            source = {"service__name": "shop", "service__instance__id": f"{number}"}
            event = progress_event(number, letta__task__name=name)
            assert post(running.port, "/v1/logs", request_of(event, logs=True, **source)).status == 200
            end = span_of(name, number, attributes=[])
            assert post(running.port, "/v1/traces", request_of(end, **source)).status == 200
        assert until(lambda: sorted(ends(letta, agent)) == sorted(names), 60)
        assert running.stop() == 0


def test_a_worker_that_is_killed_leaves_no_part_of_a_task_with_another_one(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    environ = {"TMPDIR": str(tmp_path), "OTEL_LETTA_OUTBOX": str(tmp_path / "outbox.db")}
    with program(letta, agent, "--workers", "2", **environ) as running:

        def send(path: str, body: bytes) -> None:
            def is_taken() -> bool:
                with contextlib.suppress(OSError):  # the connection was the killed one's
                    return post(running.port, path, body).status == 200
                return False

            assert until(is_taken, 60)

        assert until(lambda: len(list(tmp_path.glob("*/*.sock"))) == 2, 60)
        names = [f"task {number}" for number in range(1, 13)]
        for number, name in enumerate(names, 1):
            source = {"service__name": "shop", "service__instance__id": f"{number}"}
            event = progress_event(number, letta__task__name=name)
            send("/v1/logs", request_of(event, logs=True, **source))
            if number == 6:
                os.kill(_children(running.process.pid)[0], SIGKILL)
            send("/v1/traces", request_of(span_of(name, number, attributes=[]), **source))
        assert until(lambda: sorted(ends(letta, agent)) == sorted(names), 60)

        def are_over() -> bool:
            shown = httpx.get(f"http://127.0.0.1:{running.port}/tasks.json", timeout=60).json()
            return bool(shown["ended"] and not shown["waiting"] and not shown["working"])

        assert until(are_over, 60)  # processes show one another's with a delay
