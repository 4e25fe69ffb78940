"""Instructions that come from a receiver, for tasks that a heartbeat processor reports to it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import Instruction, LettaHeartbeatProcessor, await_instruction, task, wait_for_instruction
from otel_letta.otel import fetching, waiting
from otel_letta.otlp.json import read_request

PATIENCE = 60.0

Answer = Callable[[httpx.Request], httpx.Response]


class Receiver:
    """A receiver of heartbeats that knows a task once it was told that it waits, as `otel-letta serve` does."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.told: list[dict[str, Any]] = []
        self.answers: list[Answer] = []
        """One for each look; then there is nothing more."""
        self.changed = threading.Condition()
        self.client = httpx.Client(transport=httpx.MockTransport(self._answer))

    def says(self, text: str, action: str = "continue") -> None:
        self.answers.append(lambda _: httpx.Response(200, json=instructions((action, text))))

    @property
    def waits(self) -> bool:
        return bool(self.told) and self.told[-1].get("letta.task.waiting") is True

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self.changed:
            if request.method == "POST":
                for record in read_request(request.content, "resourceLogs").records:
                    self.told.append(_attributes(record))
                self.changed.notify_all()
                return httpx.Response(200)
            self.asked.append(request)
            if not self.changed.wait_for(lambda: self.waits, 1.0):
                return httpx.Response(404, json={"message": "no such task"})
            if self.answers:
                return self.answers.pop(0)(request)
            self.changed.wait(0.05)
            return httpx.Response(200, json={"instructions": []})


def _attributes(record: Any) -> dict[str, Any]:
    (group,) = json.loads(record.span)["resourceSpans"]
    rows = group["scopeSpans"][0]["spans"][0].get("attributes", ())
    return {row["key"]: next(iter(row["value"].values())) for row in rows}


def instructions(*found: tuple[str, str]) -> dict[str, Any]:
    return {"instructions": [{"id": str(n), "action": action, "text": text} for n, (action, text) in enumerate(found)]}


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def provider(receiver: Receiver) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    headers = {"authorization": "Bearer of-the-program"}
    provider.add_span_processor(LettaHeartbeatProcessor("http://bridge:4318", headers, client=receiver.client))
    yield provider
    provider.shutdown()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.01)
    waiting._complained.clear()
    with caplog.at_level(logging.WARNING, "otel_letta"):
        yield caplog


@pytest.mark.parametrize("way", ["blocking", "in a loop"])
def test_the_instruction_of_a_task_that_waits_is_fetched(
    way: str, receiver: Receiver, provider: TracerProvider
) -> None:
    receiver.says("the second")
    with task("job", task_id="t/1 ä", tracer=provider.get_tracer("x")) as t:
        if way == "blocking":
            found = wait_for_instruction(t, PATIENCE, question="which?")
        else:
            found = asyncio.run(await_instruction(t, PATIENCE, question="which?"))
    assert found == Instruction(task_id="t/1 ä", action="continue", text="the second")
    request = receiver.asked[-1]
    assert request.url.raw_path.startswith(b"/api/tasks/t%2F1%20%C3%A4/instructions?wait=")
    assert request.headers["authorization"] == "Bearer of-the-program"
    asked = [told["letta.task.content"] for told in receiver.told if told.get("letta.task.waiting")]
    assert set(asked) == {"waits for an instruction: which?"}
    assert provider.force_flush()
    assert not receiver.waits


def test_a_task_without_an_id_is_asked_for_by_the_one_that_it_is_reported_by(
    receiver: Receiver, provider: TracerProvider
) -> None:
    receiver.says("go")
    with task("job", tracer=provider.get_tracer("x")) as t:
        context = t.span.get_span_context()
        assert wait_for_instruction(t, PATIENCE) is not None
    assert f"/api/tasks/{context.trace_id:032x}" in str(receiver.asked[-1].url)


def test_several_come_one_after_another(receiver: Receiver, provider: TracerProvider) -> None:
    both = instructions(("continue", "one"), ("reject", "two"))
    receiver.answers.append(lambda _: httpx.Response(200, json=both))
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        found = [wait_for_instruction(t, PATIENCE, question="which?") for _ in range(2)]
    assert [(each.action, each.text) for each in found if each is not None] == [("continue", "one"), ("reject", "two")]


@pytest.mark.parametrize(
    "trouble",
    [
        lambda request: httpx.Response(503),
        lambda request: httpx.Response(429),
        lambda request: httpx.Response(404),
    ],
)
def test_a_receiver_in_trouble_is_asked_again(trouble: Answer, receiver: Receiver, provider: TracerProvider) -> None:
    receiver.answers += [trouble, trouble]
    receiver.says("at last")
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        found = wait_for_instruction(t, PATIENCE)
    assert found is not None
    assert found.text == "at last"


def test_a_connection_that_breaks_is_made_again(
    receiver: Receiver, provider: TracerProvider, log: pytest.LogCaptureFixture
) -> None:
    def breaks(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    receiver.answers.append(breaks)
    receiver.says("at last")
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        assert wait_for_instruction(t, PATIENCE) is not None
    assert "ConnectError (tried again)" in log.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (httpx.Response(403), "status 403"),
        (httpx.Response(200, text="<html>"), "not otel-letta serve"),
        (httpx.Response(200, json=["x"]), "not otel-letta serve"),
        (httpx.Response(200, json={"instructions": [7]}), "not otel-letta serve"),
        (httpx.Response(200, json={"instructions": {"action": "accept"}}), "not otel-letta serve"),
        (httpx.Response(200, text="[" * 100_000), "not otel-letta serve"),
        (httpx.Response(200, text=" " * 1_000_001), "not otel-letta serve"),
    ],
)
def test_what_is_no_such_receiver_is_named_once_and_asked_no_more(
    answer: httpx.Response, why: str, receiver: Receiver, provider: TracerProvider, log: pytest.LogCaptureFixture
) -> None:
    receiver.answers += [lambda _: answer] * 5
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        assert wait_for_instruction(t, PATIENCE) is None
    errors = [record.getMessage() for record in log.records if record.levelno == logging.ERROR]
    assert [why in error for error in errors] == [True]
    assert len(receiver.answers) == 4


def test_what_is_no_instruction_is_left_out(receiver: Receiver, provider: TracerProvider) -> None:
    odd = instructions(("delete", "x"), ("continue", ""), ("continue", "good\x1b[2J"))
    receiver.answers.append(lambda _: httpx.Response(200, json=odd))
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        found = wait_for_instruction(t, PATIENCE)
    assert found == Instruction(task_id="t-1", action="continue", text="good")


def test_nobody_asks_any_more_when_the_wait_is_over(receiver: Receiver, provider: TracerProvider) -> None:
    receiver.says("go")
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        assert wait_for_instruction(t, PATIENCE) is not None
        fetchers = [thread for thread in threading.enumerate() if thread.name == "otel_letta instructions"]
        for thread in fetchers:
            thread.join(PATIENCE)
        assert [thread for thread in fetchers if thread.is_alive()] == []


def test_a_closed_processor_reports_nothing_and_so_nothing_is_waited_for(
    receiver: Receiver, provider: TracerProvider, log: pytest.LogCaptureFixture
) -> None:
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t:
        provider.shutdown()
        assert wait_for_instruction(t, PATIENCE) is None
    assert "nobody can instruct" in log.text
    assert Counter(request.method for request in receiver.asked) == {}
