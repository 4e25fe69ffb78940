"""What an agent answers comes back: to callbacks, on a thread of its own, whatever stands in it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_letta
from otel_letta import Answer, Instruction, LettaReporter, LettaSpanExporter, LettaSpanProcessor, ProgressReport
from otel_letta.testing import InMemoryLetta
from tests.support.program import until

MESSAGES: dict[str, Any] = {"delivery": "messages", "message_interval": 0.0}


class Heard:
    """A callback that keeps what it is called with, and on which thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[ProgressReport, Answer]] = []
        self.threads: set[str] = set()
        self.then: Callable[[ProgressReport, Answer], object] = lambda report, answer: None

    def __call__(self, report: ProgressReport, answer: Answer) -> object:
        self.threads.add(threading.current_thread().name)
        self.calls.append((report, answer))
        return self.then(report, answer)

    @property
    def texts(self) -> list[str]:
        return [answer.text for _, answer in self.calls]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def _options(letta: InMemoryLetta, agent: str, **more: Any) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, **MESSAGES, **more}


def _do(provider: TracerProvider, name: str = "Import", **attributes: Any) -> None:
    with provider.get_tracer("program").start_as_current_span(name, attributes={"letta.task.name": name, **attributes}):
        pass


# -- what comes back -------------------------------------------------------------------------------------------------


def test_an_end_brings_the_agents_answer(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard
) -> None:
    letta.answer_next(
        'Well done.\n<task-instruction task_id="t-1" action="continue">Now the second file.</task-instruction>',
        calls=[("send_mail", {"to": "ops"}), ("instruct_task", {"task_id": "t-1", "action": "reject", "text": "no"})],
        reasoning="It looks good.",
    )
    provider.add_span_processor(SimpleSpanProcessor(LettaSpanExporter(on_answer=heard, **_options(letta, agent))))

    _do(provider, **{"letta.task.id": "t-1"})
    until(lambda: heard.calls, "the answer came back")

    [(report, answer)] = heard.calls
    assert (report.name, report.task_id, report.status) == ("Import", "t-1", "completed")
    assert answer.agent_id == agent
    assert answer.text.startswith("Well done.")
    assert answer.tools == ("send_mail", "instruct_task")
    assert answer.instructions == (
        Instruction(task_id="t-1", action="reject", text="no"),
        Instruction(task_id="t-1", action="continue", text="Now the second file."),
    )
    assert answer.run_id is not None
    assert answer.run_id.startswith("run-")
    assert answer.stop_reason == "end_turn"
    assert answer.usage["total_tokens"] > 0
    assert answer.reasoning is None, "nobody asked for it"
    assert heard.threads == {"otel_letta answers"}


def test_reasoning_comes_where_it_was_asked_for(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard
) -> None:
    letta.answer_next("Fine.", reasoning="It looks good.")
    provider.add_span_processor(LettaSpanProcessor(on_answer=heard, **_options(letta, agent, answer_reasoning=True)))

    _do(provider)
    until(lambda: heard.calls, "the answer came back")

    assert heard.calls[0][1].reasoning == "It looks good."


def test_each_report_of_a_turn_gets_the_turns_answer(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard
) -> None:
    exporter = LettaSpanExporter(on_answer=heard, **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    with letta.hold(turns=1):
        _do(provider, "first")
        assert letta.wait_for(lambda: letta.turns == 1, 60)
        _do(provider, "second")
        _do(provider, "third")
        until(lambda: exporter.stats()["reports"] == 3, "the others wait behind the first")
    assert exporter.force_flush()
    until(lambda: len(heard.calls) == 3, "all came")

    assert [(report.name, answer.text) for report, answer in heard.calls] == [
        ("first", "ack 1"),
        ("second", "ack 2"),
        ("third", "ack 2"),
    ]
    assert heard.calls[1][1] is heard.calls[2][1]


def test_configure_and_reporter_take_a_callback_and_a_coroutine_function(letta: InMemoryLetta, agent: str) -> None:
    heard, loops = Heard(), set()

    async def on_answer(report: ProgressReport, answer: Answer) -> None:
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        heard(report, answer)

    provider = TracerProvider(shutdown_on_exit=False)
    reporting = otel_letta.configure(tracer_provider=provider, on_answer=on_answer, **_options(letta, agent))
    _do(provider)
    reporting.shutdown()
    assert heard.texts[-1].startswith("ack")
    assert len(loops) == 1, "one loop, so that what a callback keeps open goes on"

    before = len(heard.calls)
    with LettaReporter(on_answer=on_answer, **_options(letta, agent)) as reporter:
        raw = reporter.send_progress_report_sync("chat-1", "msg-1", "half", 0.5)
    assert len(heard.calls) == before + 1
    assert heard.calls[-1][0].content == "half"
    assert heard.calls[-1][1].text == raw["messages"][-1]["content"]


def test_configured_again_the_new_callback_takes_the_place_of_the_old(letta: InMemoryLetta, agent: str) -> None:
    first, second = Heard(), Heard()
    provider = TracerProvider(shutdown_on_exit=False)
    options = _options(letta, agent)
    reporting = otel_letta.configure(tracer_provider=provider, on_answer=first, **options)
    assert otel_letta.configure(tracer_provider=provider, on_answer=second, **options) is reporting

    _do(provider)
    reporting.shutdown()

    assert not first.calls
    assert second.calls


@pytest.mark.parametrize("with_callback", [True, False])
def test_a_reporters_caller_gets_lettas_own_answer_as_before(
    letta: InMemoryLetta, agent: str, heard: Heard, with_callback: bool
) -> None:
    body = {
        "messages": [{"message_type": "assistant_message", "content": "a\x1b[31mb", "run_id": "run-1", "extra": [1]}],
        "stop_reason": {"stop_reason": "end_turn"},
        "usage": {"total_tokens": 3, "deep": {"er": None}},
        "turns": None,
    }
    letta.fail_next(200, body, method="POST")

    async def send() -> dict[str, Any]:
        more: dict[str, Any] = {"on_answer": heard} if with_callback else {}
        async with LettaReporter(**more, **_options(letta, agent)) as reporter:
            return await reporter.send_progress_report("chat-1", "msg-1", "half", 0.5)

    assert asyncio.run(send()) == body
    assert heard.texts == (["ab"] if with_callback else [])


def test_components_that_share_a_pipeline_each_get_all_answers_and_the_same_callback_once(
    letta: InMemoryLetta, agent: str, provider: TracerProvider
) -> None:
    one, both = Heard(), Heard()
    processor = LettaSpanProcessor(on_answer=both, **_options(letta, agent))
    exporter = LettaSpanExporter(on_answer=both, **_options(letta, agent))
    third = LettaSpanExporter(on_answer=one, **_options(letta, agent))
    provider.add_span_processor(processor)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    _do(provider, "first")
    assert processor.force_flush()
    until(lambda: one.calls and both.calls, "both came")
    assert [report for report, _ in one.calls] == [report for report, _ in both.calls]

    third.shutdown()  # its callback goes with it, the others' stays
    n = len(one.calls)
    _do(provider, "second")
    assert processor.force_flush()
    until(lambda: any(report.name == "second" for report, _ in both.calls), "the second one came")
    assert len(one.calls) == n


# -- whatever the callback does --------------------------------------------------------------------------------------


def test_shutdown_waits_for_the_callback_and_gives_up_in_time(letta: InMemoryLetta, agent: str) -> None:
    release, heard = threading.Event(), Heard()
    heard.then = lambda report, answer: release.wait(60)
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LettaSpanProcessor(on_answer=heard, **_options(letta, agent, shutdown_timeout=0.5))
    provider.add_span_processor(processor)
    _do(provider, "first")
    assert processor.force_flush()
    until(lambda: heard.calls, "the callback began")
    _do(provider, "second")
    assert processor.force_flush()

    provider.shutdown()  # returns, though the callback does not

    assert processor.stats()["answers_dropped"] >= 1
    n = len(heard.calls)
    release.set()
    assert len(heard.calls) == n, "none is called after the shutdown"


def test_a_callback_may_shut_down_make_tasks_and_call_the_reporter(letta: InMemoryLetta, agent: str) -> None:
    done = threading.Event()
    provider = TracerProvider(shutdown_on_exit=False)

    with LettaReporter(**_options(letta, agent)) as reporter:

        def on_answer(report: ProgressReport, answer: Answer) -> None:
            if report.name == "first" and report.status.is_terminal:
                _do(provider, "follow-up")
                processor.force_flush()
                reporter.send_progress_report_sync("chat-1", "msg-1", "from the callback")
                provider.shutdown()
                done.set()

        processor = LettaSpanProcessor(on_answer=on_answer, **_options(letta, agent))
        provider.add_span_processor(processor)
        _do(provider, "first")
        assert done.wait(60)

    told = [report.get("task") or report["content"] for report in letta.reports(agent)]
    assert "follow-up" in told
    assert "from the callback" in told


@pytest.mark.parametrize("error", [ValueError("\x1b[31mred\nhot"), SystemExit(1), asyncio.CancelledError()])
def test_a_callback_that_fails_is_logged_once_and_the_next_answers_come(
    letta: InMemoryLetta,
    agent: str,
    provider: TracerProvider,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    def fail(report: ProgressReport, answer: Answer) -> None:
        raise error

    heard.then = fail
    processor = LettaSpanProcessor(on_answer=heard, **_options(letta, agent))
    provider.add_span_processor(processor)
    for name in ("first", "second", "third"):
        _do(provider, name)
        assert processor.force_flush()
    until(lambda: len(heard.calls) >= 3, "all came")
    provider.shutdown()

    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR and "on_answer" in r.getMessage()]
    assert len(lines) == 1
    assert type(error).__name__ in lines[0]
    assert "\x1b" not in lines[0]
    assert processor.stats()["answers_failed"] == len(heard.calls)


def test_what_is_no_callback_is_an_error_and_reporting_goes_on(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    nonsense: Any = "print"
    processor = LettaSpanProcessor(on_answer=nonsense, **_options(letta, agent))
    provider.add_span_processor(processor)
    _do(provider)
    assert processor.force_flush()
    assert letta.reports(agent)[-1]["status"] == "completed"
    assert "ignores on_answer: str is not callable" in caplog.text
    with pytest.raises(otel_letta.LettaConfigurationError, match="on_answer is not callable"):
        LettaReporter(on_answer=nonsense, **_options(letta, agent))


def test_spans_of_a_callback_are_the_programs_own(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard
) -> None:
    from opentelemetry import context

    from otel_letta.runtime.suppress import is_suppressed, on_own_thread

    seen: list[Any] = []
    heard.then = lambda report, answer: seen.append((is_suppressed(), on_own_thread(), dict(context.get_current())))
    processor = LettaSpanProcessor(on_answer=heard, **_options(letta, agent))
    provider.add_span_processor(processor)
    _do(provider)
    until(lambda: seen, "the answer came back")
    assert seen[0] == (False, False, {})


# -- what is lost on the way -----------------------------------------------------------------------------------------


def test_an_answer_that_got_lost_is_looked_up(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard
) -> None:
    letta.answer_next("Use the second ledger.", calls=[("send_mail", {})])
    letta.drop_next(path="/messages$", method="POST", after_processing=True)
    exporter = LettaSpanExporter(on_answer=heard, **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    _do(provider)
    until(lambda: heard.calls, "the answer came back")

    [(report, answer)] = heard.calls
    assert report.status == "completed"
    assert (answer.text, answer.tools) == ("Use the second ledger.", ("send_mail",))
    assert letta.turns == 1, "the turn was not repeated for it"
    assert answer.usage == {}


# -- whatever is answered --------------------------------------------------------------------------------------------

_SAID = {"message_type": "assistant_message", "content": "x"}
HOSTILE: dict[str, Any] = {
    "nothing": {"messages": []},
    "a megabyte": {"messages": [{**_SAID, "content": "x" * 1_000_000}]},
    "thousands of messages": {"messages": [_SAID] * 5_000},
    "thousands of calls": {
        "messages": [{"message_type": "tool_call_message", "tool_call": {"name": "n" * 500}}] * 2_000
    },
    "control characters": {"messages": [{**_SAID, "content": "\x00\x1b[2J\x1b]0;title\x07\u202e\ud800"}]},
    "nested blocks": {"messages": [{**_SAID, "content": '<task-instruction task_id="t" action="continue">' * 10_000}]},
    "deep": {"messages": [{**_SAID, "content": [[[[[[[["x"]]]]]]]]}], "usage": {"a": {"b": {"c": []}}}},
    "wrong types": {
        "messages": [7, None, "x", [], {"message_type": 7}, {"message_type": "tool_call_message"}],
        "usage": 7,
    },
    "wrong types within": {
        "messages": [{"message_type": "tool_call_message", "tool_call": 7, "tool_calls": {"name": 7}, "run_id": []}],
        "stop_reason": [1],
        "usage": {"total_tokens": "many", "prompt_tokens": -1, "completion_tokens": True},
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_hurts_no_delivery(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard, kind: str
) -> None:
    letta.fail_next(200, HOSTILE[kind], method="POST", path="/messages", after_processing=True)
    exporter = LettaSpanExporter(on_answer=heard, **_options(letta, agent))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    _do(provider, "first")
    assert exporter.force_flush()
    _do(provider, "second")
    assert exporter.force_flush()
    until(lambda: len(heard.calls) == 2, "both were answered")

    assert [report["task"] for report in letta.reports(agent)] == ["first", "second"]
    assert [report.name for report, _ in heard.calls] == ["first", "second"]
    answer = heard.calls[0][1]
    assert len(answer.text) <= 100_000
    assert len(answer.tools) <= 100
    assert "\x1b" not in answer.text
    assert heard.texts[1] == "ack 2"
    assert exporter.stats()["dropped"] == {}


def test_what_was_said_is_in_no_log(
    letta: InMemoryLetta, agent: str, provider: TracerProvider, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    letta.answer_next(
        "open sesame", calls=[("open_sesame", {"word": "open sesame"})], reasoning="open sesame", times=None
    )
    exporter = LettaSpanExporter(on_answer=heard, **_options(letta, agent, answer_reasoning=True, answer_spans=True))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    _do(provider)
    with LettaReporter(on_answer=heard, **_options(letta, agent)) as reporter:
        reporter.send_progress_report_sync("chat-1", "msg-1", "half", 0.5)
    until(lambda: len(heard.calls) == 2, "both were answered")
    provider.shutdown()
    assert heard.texts == ["open sesame", "open sesame"]
    assert "otel_letta" in caplog.text
    assert "sesame" not in caplog.text
