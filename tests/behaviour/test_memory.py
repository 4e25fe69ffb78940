"""What a pipeline keeps of tasks that are over: nothing that grows with their number, whatever the mode of delivery."""

from __future__ import annotations

import gc
import itertools
import logging
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from otel_letta import LettaSpanProcessor
from otel_letta.delivery import courier, mailbox
from otel_letta.errors import LettaConnectionError
from otel_letta.recent import Recent
from otel_letta.tracking import parked
from tests.support.fake_transport import SERVER, WithBlocks
from tests.support.memory import reachable
from tests.support.waiting import until

_KEPT = 20
"""The most entries of each memory that is bounded by number, so that all are full soon."""
_FIRST, _LAST = 4_000, 12_000
_MORE = {"objects": 4_000}
"""Objects, and entries of any kind of container (else 800), that may be more at the second count: what is under way
just then, such as lanes, a few dozen of them. A task in eight that leaves an entry behind makes a thousand more."""


@pytest.fixture(autouse=True)
def _small_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recent.__init__
    monkeypatch.setattr(Recent, "__init__", lambda self, most=1_000: real(self, min(most, _KEPT)))
    monkeypatch.setattr(parked, "_MOST", _KEPT)
    monkeypatch.setattr(mailbox, "_MOST_STALE", _KEPT)
    monkeypatch.setattr(courier, "_HOUR", 0.0)  # turns of the last hour are remembered, as many as the wake budget


def work(tracer: Tracer, n: int) -> None:
    """Make one task of every kind in turn, and end it, or let it wait for a person who never comes."""
    kind = n % 8
    attributes: dict[str, Any] = {"letta.task.name": f"t{n}"}
    if kind == 1:
        attributes["letta.task.id"] = f"id-{n}"
    if kind == 2:
        attributes["letta.chat.id"] = f"conv-11111111-1111-4111-8111-{n:012}"
    if kind == 3:
        attributes["letta.task.waiting"] = True
    if kind == 4:
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"a{n}"}
    with tracer.start_as_current_span("work", attributes=attributes) as span:
        if kind == 4:
            with tracer.start_as_current_span("tool", attributes={"gen_ai.operation.name": "execute_tool"}):
                pass
        if kind == 5:
            span.set_attribute("letta.task.progress", 0.5)
            with tracer.start_as_current_span("step", attributes={"letta.task.progress": 0.7}):
                pass
        if kind == 6:
            span.set_status(Status(StatusCode.ERROR, "it broke"))
        if kind == 7:
            span.set_attribute("letta.chat.id", f"conv-22222222-2222-4222-8222-{n:012}")


def sizes(top: object, *without: object) -> Counter[str]:
    """Count the entries of all containers that something keeps, by the containers' types, and the objects there."""
    found: Counter[str] = Counter()
    for each in reachable(top, *without):
        found["objects"] += 1
        if isinstance(each, (dict, list, set, Recent)) or type(each).__name__ == "deque":
            found[type(each).__name__] += len(each) if isinstance(each, Sized) else 0
    return found


def settle(processor: LettaSpanProcessor, letta: WithBlocks) -> None:
    """Have everything read and, if the server takes it, delivered."""
    assert processor._pipeline is not None
    assert processor._pipeline._work_off(60.0)
    if letta.always is None:
        assert processor.force_flush(60_000)
    letta.forget()


@pytest.fixture(params=["messages", "auto", "board", "outbox", "outbox away", "server away"])
def processor(
    request: pytest.FixtureRequest, tmp_path: Path, letta: WithBlocks, caplog: pytest.LogCaptureFixture
) -> Iterator[LettaSpanProcessor]:
    caplog.set_level(logging.CRITICAL, "otel_letta")  # records that are kept would be counted
    options: dict[str, Any] = {"delivery": request.param if request.param in ("auto", "board") else "messages"}
    if request.param == "outbox":
        options["outbox"] = str(tmp_path / "outbox.db")
    if request.param == "outbox away":
        options["outbox"] = str(tmp_path / "missing" / "outbox.db")
    if request.param == "server away":
        letta.always = LettaConnectionError("nobody listens")
        options["max_pending_tasks"] = _KEPT
    made = LettaSpanProcessor(
        transport=letta,  # type: ignore[arg-type]
        base_url=SERVER,
        agent_id="agent-1",
        wake_budget=1_000_000,
        grace=0.0,
        message_interval=3_600.0,
        shutdown_timeout=5.0,
        **options,
    )
    yield made
    made.shutdown()


@pytest.fixture
def letta() -> WithBlocks:
    return WithBlocks()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="walks CPython's objects")
def test_what_is_over_takes_no_room_for_good(processor: LettaSpanProcessor, letta: WithBlocks) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer, numbers = provider.get_tracer("memory"), itertools.count()

    def work_until(end: int) -> None:
        while (n := next(numbers)) < end:
            work(tracer, n)
            if not n % 250:
                settle(processor, letta)
        settle(processor, letta)

    work_until(_FIRST)
    first = sizes(processor._pipeline, letta)
    work_until(_LAST)

    def grown() -> dict[str, int]:
        settle(processor, letta)
        last = sizes(processor._pipeline, letta)
        return {
            kind: number - first[kind] for kind, number in last.items() if number > first[kind] + _MORE.get(kind, 800)
        }

    # What threads are about just now goes by itself.
    assert until(lambda: not grown(), 30.0), (first, grown())


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts CPython's bytes")
@pytest.mark.parametrize("processor", ["server away"], indirect=True)
def test_an_open_task_takes_less_than_800_bytes(processor: LettaSpanProcessor, letta: WithBlocks) -> None:
    """Beside its span: so 100,000 take some 100 MB with what waits, see `docs/limits.md`; `benchmarks` measures it."""

    def open_tasks(number: int, provider: TracerProvider) -> tuple[float, list[Span]]:
        """Bytes for each, and the spans."""
        tracer = provider.get_tracer("memory")
        before = tracemalloc.get_traced_memory()[0]
        spans = [tracer.start_span("work", attributes={"letta.task.name": "t"}) for _ in range(number)]
        if provider is ours:
            settle(processor, letta)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / number, spans

    bare, ours = TracerProvider(shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    ours.add_span_processor(processor)
    open_tasks(500, ours)  # what all of them share
    tracemalloc.start()
    try:
        without, kept = open_tasks(4_000, bare)
        with_it, more = open_tasks(4_000, ours)
    finally:
        tracemalloc.stop()
    assert 200 < with_it - without < 800
    for span in kept + more:
        span.end()
