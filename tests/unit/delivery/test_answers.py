"""Answers of agents: which report gets which, in what order, and that delivery never waits for whoever gets them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from otel_letta import errors
from otel_letta.answer import Answer
from otel_letta.delivery import answers as answers_module
from otel_letta.delivery.answers import Answers, Callbacks
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew
from otel_letta.letta.transport import Lane, Message
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from tests.support.fake_transport import CONVERSATION, FakeTransport, end, finish, flush, progress, settings
from tests.support.program import until

REPORT = end("task")


class Asked:
    """A courier, and a callback that keeps what it is called with."""

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.calls: list[tuple[str, str]] = []
        self.stats = Stats()
        self.callbacks = Callbacks()
        self.take_back = self.callbacks.add(lambda report, answer: self.calls.append((report.content, answer.text)))
        self.answers = Answers(self.callbacks, self.stats)
        self.courier = Courier(transport, settings(), self.stats, Crew(), answers=self.answers)

    def flush(self) -> None:
        assert flush(self.courier, 30.0)
        self.answers.wait(Deadline.after(30.0))

    def close(self) -> None:
        finish(self.courier)
        self.answers.close(Deadline.after(30.0))


@pytest.fixture
def asked() -> Any:
    transport = FakeTransport()
    transport.answers = _numbered()
    asked = Asked(transport)
    yield asked
    asked.close()


def _numbered() -> Callable[[Sequence[Message]], dict[str, Any]]:
    numbers = iter(range(1, 1_000))
    return lambda messages: _said(f"answer {next(numbers)}")


def _said(text: str) -> dict[str, Any]:
    return {"messages": [{"message_type": "assistant_message", "content": text}]}


def _answer(text: str = "") -> Answer:
    return Answer(agent_id="agent-1", text=text)


# -- which report gets which answer ----------------------------------------------------------------------------------


def test_each_delivered_report_gets_its_answer_in_the_order_of_its_lane(asked: Asked) -> None:
    for n in range(5):
        asked.courier.put(progress(f"task {n}", 0.0, f"begun {n}"))
        asked.flush()
        asked.courier.put(end(f"task {n}", f"over {n}", chat_id=CONVERSATION))
        asked.flush()
    contents = [f"{what} {n}" for n in range(5) for what in ("begun", "over")]
    assert asked.calls == [(content, f"answer {n}") for n, content in enumerate(contents, 1)]
    assert asked.stats.snapshot()["answers"] == 10


def test_a_report_that_was_erased_and_sent_again_gets_the_last_answer_alone(asked: Asked) -> None:
    transport = asked.transport
    transport.agent_id = "agent-of-several"  # for two minutes its lane counts as one that others send to

    def forget_the_first(lane: Lane, messages: Sequence[Message]) -> None:
        transport.forgotten = {message.otid for message in messages} if len(transport.requests) == 1 else set()

    transport.on_send = forget_the_first
    asked.courier.put(end("task", "over"))
    asked.flush()
    assert len(transport.requests) == 2
    assert asked.calls == [("over", "answer 2")]


def test_halves_of_a_refused_request_get_an_answer_each_and_the_refused_report_none(asked: Asked) -> None:
    asked.transport.refuses = lambda content: errors.LettaRequestError(status=400) if "poison" in content else None
    with asked.courier.lock:
        for name in ("one", "poison", "three"):
            asked.courier.put(end(name, name))
    asked.flush()
    assert sorted(content for content, _ in asked.calls) == ["one", "three"]


def test_a_report_that_had_landed_gets_the_answer_that_is_stored(asked: Asked) -> None:
    transport = asked.transport
    lost = errors.LettaTimeoutError(may_have_landed=True)

    def land(lane: Lane, messages: Sequence[Message]) -> None:
        transport.store(messages)
        transport.kept = dict.fromkeys([message.otid for message in messages], _said("stored"))

    transport.on_send = land
    transport.failures = [lost]
    asked.courier.put(end("task", "over"))
    asked.flush()
    assert len(transport.requests) == 1
    assert asked.calls == [("over", "stored")]


def test_where_none_is_stored_or_the_search_fails_there_is_none_and_the_report_is_delivered(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = asked.transport
    transport.on_send = lambda lane, messages: transport.store(messages)
    transport.failures = [errors.LettaTimeoutError(may_have_landed=True)]
    asked.courier.put(end("task", "over"))
    asked.flush()

    def fail(*_: object, **__: object) -> dict[str, dict[str, Any]]:
        raise errors.LettaServerError(status=500)

    monkeypatch.setattr(transport, "stored_answers", fail)
    transport.failures = [errors.LettaTimeoutError(may_have_landed=True)]
    asked.courier.put(end("other", "over too"))
    asked.flush()

    assert asked.calls == []
    assert asked.stats.snapshot()["sent"] == 2
    assert len(transport.requests) == 2, "none was sent again for it"


def test_an_answer_that_cannot_be_read_hurts_no_delivery(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Answer:
        raise RuntimeError("a bug")

    monkeypatch.setattr(asked.transport, "answer", broken)
    asked.courier.put(end("task", "over"))
    asked.flush()
    assert asked.stats.snapshot()["sent"] == 1
    assert "an answer got lost: unexpected RuntimeError" in caplog.text


def test_nobody_who_did_not_ask_is_asked_for_anything() -> None:
    transport = FakeTransport()
    transport.on_send = lambda lane, messages: transport.store(messages)
    transport.failures = [errors.LettaTimeoutError(may_have_landed=True)]
    asked = Asked(transport)
    asked.take_back()
    asked.courier.put(end("task", "over"))
    asked.flush()
    assert "stored_answers" not in transport.calls
    assert asked.answers._thread is None
    asked.close()


# -- the thread ------------------------------------------------------------------------------------------------------


def test_there_is_no_thread_before_there_is_an_answer_and_none_after_the_end() -> None:
    callbacks = Callbacks()
    threads: list[threading.Thread] = []
    callbacks.add(lambda report, answer: threads.append(threading.current_thread()))
    answers = Answers(callbacks, Stats())
    assert answers._thread is None
    answers.put([REPORT], _answer())
    answers.close(Deadline.after(30.0))
    [thread] = threads
    assert thread is not threading.current_thread()
    thread.join(30.0)
    assert not thread.is_alive()


def test_a_slow_callback_costs_the_oldest_answers_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answers_module, "_MOST_WAITING", 3)
    begun, release, texts = threading.Event(), threading.Event(), []

    def slow(report: ProgressReport, answer: Answer) -> None:
        texts.append(answer.text)
        begun.set()
        assert release.wait(60)

    callbacks, stats = Callbacks(), Stats()
    callbacks.add(slow)
    answers = Answers(callbacks, stats)
    answers.put([REPORT], _answer("0"))
    assert begun.wait(30)
    for n in range(1, 9):
        answers.put([REPORT], _answer(str(n)))
    release.set()
    answers.close(Deadline.after(30.0))
    assert texts == ["0", "6", "7", "8"]
    assert stats.snapshot()["answers_dropped"] == 5
    assert stats.snapshot()["dropped"] == {}, "no report was"
    assert caplog.text.count("on_answer is too slow") == 1


def test_where_no_thread_can_begin_the_end_gives_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 starts no thread while the interpreter shuts down."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    texts: list[str] = []
    callbacks = Callbacks()
    callbacks.add(lambda report, answer: texts.append(answer.text))
    answers = Answers(callbacks, Stats())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        answers.put([REPORT], _answer("last"))
        answers.close(Deadline.after(30.0))
    assert texts == ["last"]


def test_what_comes_after_the_end_is_counted() -> None:
    callbacks, stats = Callbacks(), Stats()
    callbacks.add(lambda report, answer: None)
    answers = Answers(callbacks, stats)
    answers.close(Deadline.after(1.0))
    answers.close(Deadline.after(1.0))
    answers.put([REPORT], _answer())
    assert stats.snapshot()["answers_dropped"] == 1


def test_a_callback_may_close_and_the_rest_is_given_when_it_has_returned() -> None:
    texts: list[str] = []
    callbacks = Callbacks()
    both = threading.Event()

    def on_answer(report: ProgressReport, answer: Answer) -> None:
        assert both.wait(30)
        texts.append(answer.text)
        answers.close(Deadline.after(60.0))

    callbacks.add(on_answer)
    answers = Answers(callbacks, Stats())
    answers.put([REPORT], _answer("1"))
    answers.put([REPORT], _answer("2"))
    both.set()
    until(lambda: texts == ["1", "2"], "both were given")


def test_what_async_callbacks_left_running_is_cancelled_with_the_loop() -> None:
    import asyncio

    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    kept: list[Any] = []

    async def on_answer(report: ProgressReport, answer: Answer) -> None:
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    callbacks = Callbacks()
    callbacks.add(on_answer)
    answers = Answers(callbacks, Stats())
    answers.put([REPORT], _answer())
    answers.close(Deadline.after(30.0))
    until(lambda: ended == ["cancelled"], "the task was cancelled")


def test_equal_callbacks_are_called_once_until_the_last_of_them_is_taken_back() -> None:
    class Object:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def on_answer(self, report: ProgressReport, answer: Answer) -> None:
            self.texts.append(answer.text)

    one = Object()
    callbacks = Callbacks()
    take_back = callbacks.add(one.on_answer)
    take_back_too = callbacks.add(one.on_answer)  # another bound method, and the same callback
    answers = Answers(callbacks, Stats())
    answers.put([REPORT], _answer("1"))
    answers.wait(Deadline.after(30.0))
    take_back()
    answers.put([REPORT], _answer("2"))
    answers.wait(Deadline.after(30.0))
    take_back()
    assert answers.wanted, "that was taken back already"
    take_back_too()
    assert not answers.wanted
    assert one.texts == ["1", "2"]
    answers.close(Deadline.after(1.0))


def test_the_log_holds_nothing_that_a_terminal_obeys(caplog: pytest.LogCaptureFixture) -> None:
    def fail(report: ProgressReport, answer: Answer) -> None:
        raise ValueError(answer.text)

    callbacks = Callbacks()
    callbacks.add(fail)
    answers = Answers(callbacks, Stats())
    caplog.set_level(logging.INFO)
    answers.put([REPORT], _answer("\x1b[31mred\x1b]0;title\x07 password=hunter2-hunter2"))
    answers.close(Deadline.after(30.0))
    assert "raised ValueError: red" in caplog.text
    assert "\x1b" not in caplog.text
    assert "hunter2" not in caplog.text


def test_callbacks_come_and_go_on_several_threads_and_none_gets_lost() -> None:
    callbacks = Callbacks()
    kept = [callbacks.add(lambda report, answer: None) for _ in range(3)]

    def come_and_go() -> None:
        for _ in range(2_000):
            callbacks.add(lambda report, answer: None)()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(callbacks.on_answer) == 3
    for take_back in kept:
        take_back()
    assert callbacks.on_answer == []


def test_a_bug_in_the_search_for_a_lost_answer_hurts_no_delivery(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> dict[str, dict[str, Any]]:
        raise RuntimeError("a bug")

    transport = asked.transport
    monkeypatch.setattr(transport, "stored_answers", broken)
    transport.on_send = lambda lane, messages: transport.store(messages)
    transport.failures = [errors.LettaTimeoutError(may_have_landed=True)]
    asked.courier.put(end("task", "over"))
    asked.flush()
    assert asked.stats.snapshot()["sent"] == 1
    assert "an answer got lost: unexpected RuntimeError" in caplog.text
    assert "unexpected error while sending" not in caplog.text


def test_an_error_that_cannot_even_be_shown_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    texts: list[str] = []

    def on_answer(report: ProgressReport, answer: Answer) -> None:
        texts.append(answer.text)
        raise Unspeakable

    callbacks = Callbacks()
    callbacks.add(on_answer)
    answers = Answers(callbacks, Stats())
    answers.put([REPORT], _answer("1"))
    answers.put([REPORT], _answer("2"))
    answers.close(Deadline.after(30.0))
    assert texts == ["1", "2"]
