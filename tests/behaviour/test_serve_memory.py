"""What a receiver keeps of tasks that are over: nothing that grows with their number, in memory or on the disk."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_letta.delivery import courier, mailbox
from otel_letta.recent import Recent
from otel_letta.serve import asking, feed, instructions, intake, live, told
from otel_letta.serve.asking import Asker
from otel_letta.serve.server import Options, Service
from otel_letta.settings import Settings
from otel_letta.tracking import parked
from tests.behaviour.test_memory import sizes
from tests.support.fake_transport import SERVER, WithBlocks
from tests.support.otlp_sender import request_of, span_of
from tests.support.waiting import until
from tests.unit.otlp.test_proto import in_protobuf

_KEPT = 20
"""The most entries of each memory that is bounded by number or age, so that all are full soon."""
_TOGETHER = 8
_FIRST, _LAST = 1_200, 3_600
_MORE = {"objects": 1_500, "files": 0, "bodies": 0}
"""As in `test_memory`: objects, and entries of containers (else 200), that may be more at the second count. A task in
eight that leaves an entry behind makes 300 more."""
ANYBODY = Asker(None, instructs=True, does_tasks=True)


@pytest.fixture
def letta() -> WithBlocks:
    return WithBlocks()


@pytest.fixture(params=["memory", "spool"])
def service(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    letta: WithBlocks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Service]:
    caplog.set_level(logging.CRITICAL, "otel_letta")  # records that are kept would be counted
    real = Recent.__init__
    monkeypatch.setattr(Recent, "__init__", lambda self, most=1_000: real(self, min(most, _KEPT)))
    for module, name in (
        (parked, "_MOST"),
        (mailbox, "_MOST_STALE"),
        (live, "_MOST_ENDED"),
        (told, "_MOST"),
        (intake, "_MOST_DIGESTS"),
        (instructions, "_MOST_TASKS"),
        (asking, "_MOST_CALLS"),
    ):
        monkeypatch.setattr(module, name, _KEPT)
    monkeypatch.setattr(intake, "KEPT_FOR", -1.0)
    monkeypatch.setattr(feed, "_YOUNG", 0)  # or each of the looks below waits for half a minute
    monkeypatch.setattr(courier, "_HOUR", 0.0)
    settings = Settings.resolve(
        base_url=SERVER,
        agent_id="agent-1",
        wake_budget=1_000_000,
        grace=0.0,
        message_interval=3_600.0,
        **({"outbox": str(tmp_path / "outbox.db")} if request.param == "spool" else {}),
    )
    options = Options(port=0, shared=True, siblings=tmp_path)
    made = Service(options, settings, letta)  # type: ignore[arg-type]
    tasks, plain = made.intake.tasks, made.intake.feed._plain
    tasks._most_open = tasks._most_ended = tasks._most_steps = plain._most = _KEPT
    yield made
    made.stop()
    made._close(5.0)


def text(name: str, value: str) -> dict[str, Any]:
    return {"key": name, "value": {"stringValue": value}}


def event(n: int, *attributes: dict[str, Any]) -> dict[str, Any]:
    """A log event about the span with this number, which is open."""
    span = span_of("", n)
    about = {name: span[name] for name in ("traceId", "spanId")}
    return {"timeUnixNano": f"{time.time_ns()}", "eventName": "letta.task.progress", **about, "attributes": attributes}


def send(service: Service, n: int) -> None:
    """Send one task of every kind in turn, from its start to its end."""
    kind = n % _TOGETHER
    spans = [span_of(f"task {n}", n, attributes=[text("letta.task.name", f"t{n}"), text("letta.task.id", f"id-{n}")])]
    if kind == 1:
        spans[0]["status"] = {"code": 2, "message": "it broke"}
    if kind == 2:
        of_run = [text("gen_ai.operation.name", "invoke_agent"), text("gen_ai.agent.name", f"a{n}")]
        tool = span_of("tool", n, attributes=[text("gen_ai.operation.name", "execute_tool")])
        spans = [
            span_of("run", n, attributes=of_run),
            {**tool, "spanId": f"{n + 2**32:016x}", "parentSpanId": f"{n:016x}"},
        ]
    if kind == 3:  # nobody's, and then a task below one of them after all
        plain = [span_of("plain", n, spanId=f"{n + place:016x}", attributes=[]) for place in (2**32, 2**33)]
        service.intake.take("traces", True, request_of(*plain))
        spans[0]["parentSpanId"] = plain[0]["spanId"]
    if kind == 4:
        service.intake.take("traces", True, request_of(span_of("plain", n, attributes=[])))
        return
    if kind >= 5:
        progress = event(n, text("letta.task.name", f"t{n}"), text("letta.task.id", f"id-{n}"))
        service.intake.take("logs", True, request_of(progress, logs=True))
    if kind == 6:
        assert until(lambda: service.intake.tasks.find(f"id-{n}") is not None)
        service.asking.instruct_task(ANYBODY, f"id-{n}", "continue", "go on")
        with service.asking.asked_for(ANYBODY, f"id-{n}") as ask:
            assert [each["text"] for each in ask() or ()] == ["go on"]
    if kind == 7:  # an instruction for which nobody comes
        assert until(lambda: service.intake.tasks.find(f"id-{n}") is not None)
        service.asking.instruct_task(ANYBODY, f"id-{n}", "continue", "go on")
    if n % 3:
        service.intake.take("traces", False, in_protobuf({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))
    else:
        service.intake.take("traces", True, request_of(*spans))


def settle(service: Service, letta: WithBlocks) -> None:
    """Have everything read, delivered and forgotten that is over."""
    assert service.pipeline.flush(60.0)
    own = service.intake.feed

    def is_settled() -> bool:
        own._next_sweep = 0
        service.pipeline.call(own._sweep)
        return not own.waiting()

    assert until(is_settled, 60.0)
    service.intake._settler.submit(service.intake._settle_now, ()).result(60)
    assert service._siblings is not None
    service._siblings.publish()
    service._siblings.show()
    letta.forget()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="walks CPython's objects")
def test_what_is_over_takes_no_room_for_good(service: Service, letta: WithBlocks, tmp_path: Path) -> None:
    numbers = itertools.count(1)

    def send_until(end: int) -> None:
        while (n := next(numbers)) < end:
            send(service, n)
            if not n % 200:
                settle(service, letta)
        settle(service, letta)

    def kept() -> dict[str, int]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        bodies, size = service.intake.spool.size()
        return {**sizes(service, letta), "files": len(files), "bodies": bodies, "spooled": size}

    send_until(_FIRST)
    assert service.intake.feed.waiting() == len(service.intake.feed.live) == 0
    first = kept()
    send_until(_LAST)

    def grown() -> dict[str, int]:
        settle(service, letta)
        return {
            kind: number - first[kind] for kind, number in kept().items() if number > first[kind] + _MORE.get(kind, 200)
        }

    # What threads are about just now goes by itself.
    assert until(lambda: not grown(), 30.0), (first, grown())
    waiting = [item for item in service.intake.spool.unsettled() if item.kind != instructions.KIND]
    assert waiting == []
    assert service.intake.tasks.show().more == 0
