"""The helpers write plain attributes on plain spans, and the live processor hears of them at once."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from otel_letta import LettaSpanProcessor
from otel_letta.otel.helpers import TaskSpan, report_progress, task, track
from otel_letta.testing import InMemoryLetta


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A global provider whose ended spans can be read; the real one can be set only once in a process."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield memory
    provider.shutdown()


def the_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_task_is_a_span_with_plain_attributes(exporter: InMemorySpanExporter) -> None:
    with task("Refactor", chat_id="chat-1", message_id="msg-2", task_id="t-3", attributes={"team": "core"}) as t:
        assert trace.get_current_span() is t.span
        t.progress(0.5, "halfway")
        t.result("done")
    span = the_span(exporter)
    assert span.name == "Refactor"
    assert attributes(span) == {
        "letta.task.name": "Refactor",
        "letta.chat.id": "chat-1",
        "letta.message.id": "msg-2",
        "letta.task.id": "t-3",
        "team": "core",
        "letta.task.progress": 0.5,
        "letta.task.content": "halfway",
        "letta.task.result": "done",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_an_exception_fails_the_task_and_goes_on(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="bad row"), task("Import"):
        raise ValueError("bad row")
    assert the_span(exporter).status.description == "ValueError: bad row"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (asyncio.CancelledError(), "cancelled or timed out"),
        (KeyboardInterrupt(), "interrupted (Ctrl-C)"),
        (SystemExit(3), "the program exited with code 3"),
    ],
)
def test_what_opentelemetry_would_not_record_fails_the_task_too(
    exporter: InMemorySpanExporter, error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)), task("Import"):
        raise error
    assert (the_span(exporter).status.status_code, the_span(exporter).status.description) == (StatusCode.ERROR, reason)


def test_a_clean_exit_of_the_program_is_no_failure(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(SystemExit), task("Import"):
        sys.exit(0)
    assert the_span(exporter).status.status_code is StatusCode.UNSET


def test_it_decorates_functions_and_coroutines(exporter: InMemorySpanExporter) -> None:
    @task("Add", chat_id="c")
    def add(a: int, b: int) -> int:
        report_progress(0.5)
        return a + b

    @task()
    async def slow_add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        report_progress(0.25)
        return a + b

    async def both() -> list[int]:
        return await asyncio.gather(slow_add(1, 2), slow_add(3, 4))

    assert (add(1, 2), add(3, 4)) == (3, 7)
    assert asyncio.run(both()) == [3, 7]
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["Add", "Add", "slow_add", "slow_add"]
    assert [attributes(span)["letta.task.progress"] for span in spans] == [0.5, 0.5, 0.25, 0.25]
    assert add.__name__ == "add"


def test_a_generator_cannot_be_decorated() -> None:
    with pytest.raises(TypeError, match="generator"):

        @task("Loop")
        def loop() -> Iterator[int]:
            yield 1


def test_async_with_works(exporter: InMemorySpanExporter) -> None:
    async def main() -> None:
        async with task("Await") as t:
            t.content("waiting")

    asyncio.run(main())
    assert attributes(the_span(exporter))["letta.task.content"] == "waiting"


def test_tasks_nest_and_report_progress_finds_the_innermost(exporter: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer("test")
    with task("outer"):
        with task("inner"), tracer.start_as_current_span("plain"):
            report_progress(0.3)
        report_progress(0.6)
    progress = {span.name: attributes(span).get("letta.task.progress") for span in exporter.get_finished_spans()}
    assert progress == {"plain": None, "inner": 0.3, "outer": 0.6}


def test_report_progress_without_a_task_speaks_on_the_current_span(exporter: InMemorySpanExporter) -> None:
    report_progress(0.1)
    with trace.get_tracer("test").start_as_current_span("plain"):
        report_progress(0.7, "soon")
    assert attributes(the_span(exporter)) == {"letta.task.progress": 0.7, "letta.task.content": "soon"}


def test_track_reports_like_a_progress_bar(exporter: InMemorySpanExporter) -> None:
    with task("Count") as t:
        assert list(t.track([1, 2, 3, 4])) == [1, 2, 3, 4]
    assert attributes(the_span(exporter))["letta.task.progress"] == 1.0
    assert attributes(the_span(exporter))["letta.task.content"] == "4/4"


def test_track_says_how_far_it_came_when_the_loop_breaks(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.otel.helpers._TRACK_SECONDS", 0.0)
    with task("Count") as t:
        for item in t.track(range(4)):
            if item == 2:
                break
    assert attributes(the_span(exporter))["letta.task.progress"] == 0.5


def test_track_without_a_total_makes_up_no_fraction(exporter: InMemorySpanExporter) -> None:
    with task("Count") as t:
        assert len(list(t.track(iter_of(3)))) == 3
    assert "letta.task.progress" not in attributes(the_span(exporter))
    assert attributes(the_span(exporter))["letta.task.content"] == "3 done"


def iter_of(n: int) -> Iterator[int]:
    yield from range(n)


async def stream(n: int) -> AsyncIterator[int]:
    for item in range(n):
        await asyncio.sleep(0)
        yield item


def test_track_takes_async_iterables(exporter: InMemorySpanExporter) -> None:
    async def main() -> list[int]:
        with task("Stream") as t:
            return [item async for item in t.track(stream(3), total=3)]

    assert asyncio.run(main()) == [0, 1, 2]
    assert attributes(the_span(exporter))["letta.task.progress"] == 1.0


def test_more_items_than_promised_are_still_all_there_is(exporter: InMemorySpanExporter) -> None:
    with task("Count") as t:
        assert len(list(t.track(iter_of(5), total=4))) == 5
    assert attributes(the_span(exporter))["letta.task.progress"] == 1.0


def test_a_tight_loop_does_not_write_an_attribute_for_each_item(exporter: InMemorySpanExporter) -> None:
    written = []
    with task("Count") as t:
        original = t.span.set_attribute
        t.span.set_attribute = lambda *a: (written.append(a), original(*a))  # type: ignore[method-assign, assignment]
        for _ in t.track(range(100_000)):
            pass
    assert len(written) < 2_000


def test_a_loop_alone_can_be_the_task(exporter: InMemorySpanExporter) -> None:
    before = trace.get_current_span()
    for _ in track([1, 2], "Import rows"):
        assert trace.get_current_span() is before
    span = the_span(exporter)
    assert (span.name, attributes(span)["letta.task.progress"]) == ("Import rows", 1.0)


def test_a_loop_alone_fails_with_its_iterable(exporter: InMemorySpanExporter) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(track(rows(), "Import rows"))
    assert the_span(exporter).status.description == "OSError: disk full"


@pytest.mark.parametrize("leave", ["break", "raise"])
def test_a_loop_alone_that_is_left_early_is_not_completed(exporter: InMemorySpanExporter, leave: str) -> None:
    def loop() -> None:
        for item in track([1, 2, 3, 4], "Import rows"):
            if item == 2 and leave == "break":
                break
            if item == 2:
                raise OSError("in the body")

    if leave == "break":
        loop()
    else:
        with pytest.raises(OSError, match="in the body"):
            loop()
    assert the_span(exporter).status.description == "the loop was left before its end"


def test_leaving_in_another_context_does_not_touch_the_task_there(exporter: InMemorySpanExporter) -> None:
    first = task("first")
    contextvars.copy_context().run(first.__enter__)
    with task("second"):
        first.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        report_progress(0.5)
    told = {span.name: (span.status.description, attributes(span).get("letta.task.progress"))
            for span in exporter.get_finished_spans()}  # fmt: skip
    assert told == {"first": ("interrupted (Ctrl-C)", None), "second": (None, 0.5)}


def test_async_loop_alone(exporter: InMemorySpanExporter) -> None:
    async def main() -> list[int]:
        return [item async for item in track(stream(2), "Stream", total=2)]

    assert asyncio.run(main()) == [0, 1]
    assert attributes(the_span(exporter))["letta.task.progress"] == 1.0


def test_the_live_processor_looks_at_once() -> None:
    """The poll interval is a minute here: only the helper's own word can have brought the report."""
    with InMemoryLetta() as letta:
        agent = letta.create_agent()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(
            LettaSpanProcessor(
                base_url=letta.base_url, agent_id=agent, delivery="messages", message_interval=0, poll_interval=60
            )
        )
        with task("Refactor", tracer=provider.get_tracer("test")) as t:
            letta.wait_for_messages(agent, 1)
            t.progress(0.5, "halfway")
            letta.wait_for_messages(agent, 2)
            assert letta.reports(agent)[-1]["content"] == "halfway"
        provider.shutdown()
        assert letta.reports(agent)[-1]["status"] == "completed"


def test_without_a_provider_everything_works_and_nothing_is_recorded() -> None:
    code = """
from otel_letta.otel.helpers import task, report_progress, track
with task("Refactor") as t:
    t.progress(0.5); t.content("x"); t.result("y"); t.fail("z"); report_progress(0.1)
    assert list(t.track([1, 2])) == [1, 2] and not t.span.is_recording()
assert list(track([1], "n")) == [1]

"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_one_task_object_runs_once_at_a_time() -> None:
    made = task("Refactor")
    with made, pytest.raises(RuntimeError, match="running already"):
        made.__enter__()


def test_a_task_without_a_name_says_so() -> None:
    with pytest.raises(TypeError, match="needs a name"):
        task().__enter__()


def test_task_span_wraps_any_span() -> None:
    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("plain") as span:
        TaskSpan(span).progress(0.5)
        TaskSpan(trace.INVALID_SPAN).progress(0.5)  # which takes nothing, and raises nothing
    assert isinstance(span, ReadableSpan)
    assert dict(span.attributes or {}) == {"letta.task.progress": 0.5}
