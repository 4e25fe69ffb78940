"""The helpers write plain attributes on plain spans, and the live processor hears of them at once."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import numbers
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
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


def test_a_frameworks_retry_is_no_failure(exporter: InMemorySpanExporter) -> None:
    retry: Any = type("Retry", (Exception,), {"__module__": "celery.exceptions"})
    error = retry("in 3 s: ValueError('secret')")
    error.exc = ValueError("secret")
    with pytest.raises(retry), task("Import"):
        raise error
    span = the_span(exporter)
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert attributes(span)["letta.task.content"] == "will be tried again: ValueError"
    assert attributes(span)["letta.task.status"] == "in_progress"


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


# -- what a decorated call returns ---------------------------------------------------------------------------------


async def work(steps: int = 1) -> str:
    for _ in range(steps):
        await asyncio.sleep(0)
    report_progress(0.5)
    assert trace.get_current_span().is_recording()
    return "done"


async def broken() -> None:
    await asyncio.sleep(0)
    raise ValueError("bad row")


class Lazy:
    """An object of somebody's own that can be awaited."""

    url = "somewhere"

    def __await__(self) -> Any:
        return work().__await__()


RETURNED: dict[str, Any] = {
    "a coroutine": work,
    "a task": lambda: asyncio.ensure_future(work()),
    "an awaitable": Lazy,
    "a coroutine of a coroutine": task("inner")(lambda: work()),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_a_call_lasts_until_what_it_returned_is_done(exporter: InMemorySpanExporter, kind: str) -> None:
    async def main() -> Any:
        started = task("Import")(lambda: RETURNED[kind]())()
        assert exporter.get_finished_spans() == ()
        value = await started
        await asyncio.sleep(0)
        assert not trace.get_current_span().is_recording()
        return value

    assert asyncio.run(main()) == "done"
    span = exporter.get_finished_spans()[-1]
    assert (span.name, span.status.status_code) == ("Import", StatusCode.UNSET)


@pytest.mark.parametrize("start", [broken, lambda: asyncio.ensure_future(broken())])
def test_the_error_of_what_a_call_returned_fails_the_task(exporter: InMemorySpanExporter, start: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="bad row"):
            await task("Import")(lambda: start())()

    asyncio.run(main())
    assert the_span(exporter).status.description == "ValueError: bad row"


def test_an_awaitable_of_ones_own_keeps_its_attributes(exporter: InMemorySpanExporter) -> None:
    async def main() -> None:
        made = task("Get")(lambda: Lazy())()
        assert made.url == "somewhere"
        await made

    asyncio.run(main())


def test_the_error_of_a_future_that_nobody_fetches_is_still_logged(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task("Import")(lambda: asyncio.ensure_future(broken()))()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    assert "never retrieved" in caplog.text


def test_a_future_of_an_executor_is_waited_for(exporter: InMemorySpanExporter) -> None:
    go = threading.Event()
    with ThreadPoolExecutor() as pool:
        future = task("Import")(lambda: pool.submit(go.wait, 20))()
        assert exporter.get_finished_spans() == ()
        go.set()
        assert future.result(20)
    assert the_span(exporter).status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("ending", ["cancelled future", "cancelled coroutine", "closed coroutine", "never awaited"])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_work_that_does_not_come_to_its_end_is_not_completed(exporter: InMemorySpanExporter, ending: str) -> None:
    async def main() -> None:
        if ending == "cancelled future":
            task("Import")(lambda: asyncio.ensure_future(work(50)))().cancel()
        elif ending == "cancelled coroutine":
            waiting = asyncio.ensure_future(task("Import")(lambda: work(50))())
            await asyncio.sleep(0)
            waiting.cancel()
        elif ending == "closed coroutine":
            started = task("Import")(lambda: work(50))()
            started.send(None)
            started.close()
        else:
            _ = task("Import")(lambda: work())()
            del _
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    assert (
        the_span(exporter).status.description
        in {
            "cancelled future": ["cancelled"],
            "cancelled coroutine": ["cancelled or timed out"],
            "closed coroutine": ["left before its end"],
            "never awaited": ["it was never begun"],
        }[ending]
    )


def test_a_coroutine_function_that_is_closed_is_not_completed(exporter: InMemorySpanExporter) -> None:
    started = task("Import")(work)(50)
    started.send(None)
    started.close()
    assert the_span(exporter).status.description == "left before its end"


def steps() -> Iterator[int]:
    with trace.get_tracer("test").start_as_current_span("step"):
        report_progress(0.5)
        yield 1
    yield 2


async def async_steps() -> AsyncIterator[int]:
    for item in steps():
        yield item


def test_a_generator_that_a_call_returned_is_the_task_while_it_runs(exporter: InMemorySpanExporter) -> None:
    made = task("Read")(lambda: steps())()
    assert exporter.get_finished_spans() == ()
    assert next(made) == 1
    assert list(made) == [2]
    inner, outer = exporter.get_finished_spans()
    assert inner.parent is not None and inner.parent.span_id == outer.context.span_id
    assert (outer.name, attributes(outer)["letta.task.progress"]) == ("Read", 0.5)
    assert outer.status.status_code is StatusCode.UNSET


def test_an_async_generator_too(exporter: InMemorySpanExporter) -> None:
    async def main() -> list[int]:
        return [item async for item in task("Read")(lambda: async_steps())()]

    assert asyncio.run(main()) == [1, 2]
    outer = exporter.get_finished_spans()[-1]
    assert (outer.name, attributes(outer)["letta.task.progress"]) == ("Read", 0.5)
    assert outer.status.status_code is StatusCode.UNSET


def throw_into(made: Any) -> None:
    with pytest.raises(OSError, match="disk full"):
        made.throw(OSError("disk full"))


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        (lambda made: None, "it was never begun"),
        (lambda made: made.close(), "it was never begun"),
        (next, "left before its end"),
        (lambda made: (next(made), made.close()), "left before its end"),
        (lambda made: (next(made), throw_into(made)), "OSError: disk full"),
    ],
)
def test_a_generator_that_is_left_early_is_not_completed(
    exporter: InMemorySpanExporter, leave: Callable[[Any], object], reason: str
) -> None:
    leave(task("Read")(lambda: (number for number in range(5)))())
    gc.collect()
    assert the_span(exporter).status.description == reason


def test_it_decorates_without_parentheses(exporter: InMemorySpanExporter) -> None:
    @task
    def import_rows(number: int) -> int:
        return number

    @task
    async def export_rows(number: int) -> int:
        return number

    assert import_rows(3) == 3
    assert asyncio.run(export_rows(4)) == 4
    assert [span.name for span in exporter.get_finished_spans()] == ["import_rows", "export_rows"]


def test_it_decorates_methods_of_every_kind_in_either_order(exporter: InMemorySpanExporter) -> None:
    class Importer:
        @task
        @classmethod
        def of_class(cls) -> str:
            return cls.__name__

        @classmethod
        @task()
        def below(cls) -> str:
            return cls.__name__

        @task("named")
        @staticmethod
        def static(word: str) -> str:
            return word

        @task
        def method(self) -> object:
            return self

    importer = Importer()
    assert (Importer.of_class(), importer.below(), importer.static("x")) == ("Importer", "Importer", "x")
    assert importer.method() is importer
    assert [span.name for span in exporter.get_finished_spans()] == ["of_class", "below", "named", "method"]


def test_it_decorates_what_has_no_name_of_its_own(exporter: InMemorySpanExporter) -> None:
    assert task(functools.partial(steps_of, 3))() == 3
    assert the_span(exporter).name == "steps_of"


def steps_of(number: int) -> int:
    return number


@pytest.mark.parametrize("what", [property(lambda self: 1), 3, type("Job", (), {})])
def test_what_cannot_be_decorated_says_so_at_once(what: Any) -> None:
    with pytest.raises(TypeError, match="task decorates functions"):
        task(what)
    with pytest.raises(TypeError, match="task decorates functions"):
        task("Import")(what)


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


# -- whose progress -------------------------------------------------------------------------------------------------


def test_progress_goes_to_the_task_of_the_current_span(exporter: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer("test")
    with task("first") as first, task("second"):
        with trace.use_span(first.span):
            report_progress(0.1)
        with tracer.start_as_current_span("other request", context=Context()):
            report_progress(0.2)
        with tracer.start_as_current_span("own chat", attributes={"letta.chat.id": "c"}):
            report_progress(0.3)
        report_progress(0.4)
    progress = {span.name: attributes(span).get("letta.task.progress") for span in exporter.get_finished_spans()}
    assert progress == {"first": 0.1, "other request": 0.2, "own chat": 0.3, "second": 0.4}


def test_progress_of_a_job_that_outlives_its_task_is_not_lost(exporter: InMemorySpanExporter) -> None:
    with task("request"):
        job = contextvars.copy_context()

    def run() -> None:
        with trace.get_tracer("test").start_as_current_span("job"):
            report_progress(0.7)

    job.run(run)
    progress = {span.name: attributes(span).get("letta.task.progress") for span in exporter.get_finished_spans()}
    assert progress == {"request": None, "job": 0.7}


class Half:
    """Registered as a real number, as numpy's scalars are."""

    def __float__(self) -> float:
        return 0.5


numbers.Real.register(Half)


@pytest.mark.parametrize("half", [0.5, Decimal("0.5"), Fraction(1, 2), Half()])
def test_progress_takes_every_real_number(exporter: InMemorySpanExporter, half: Any) -> None:
    with task("Import") as t:
        t.progress(half)
    assert attributes(the_span(exporter))["letta.task.progress"] == 0.5


def test_numpy_scalars_are_real_numbers(exporter: InMemorySpanExporter) -> None:
    import numpy

    with task("Import") as t:
        t.progress(numpy.float32(0.5))
    assert attributes(the_span(exporter))["letta.task.progress"] == 0.5


@pytest.mark.parametrize(("value", "kind"), [("0.5", "str"), (1j, "complex"), (Decimal("sNaN"), "decimal.Decimal")])
def test_what_is_no_real_number_is_ignored_with_one_warning_that_says_its_type(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    value: Any, kind: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("otel_letta.otel.written._refused", set())
    with task("Import") as t:
        t.progress(value, "halfway")
        t.progress(value)
    assert attributes(the_span(exporter)) == {"letta.task.name": "Import", "letta.task.content": "halfway"}
    assert caplog.text.count(f"a progress of type {kind} is ignored") == 1


def test_track_reports_like_a_progress_bar(exporter: InMemorySpanExporter) -> None:
    with task("Count") as t:
        assert list(t.track([1, 2, 3, 4])) == [1, 2, 3, 4]
    assert attributes(the_span(exporter))["letta.task.progress"] == 1.0
    assert attributes(the_span(exporter))["letta.task.content"] == "4/4"


def test_track_says_how_far_it_came_when_the_loop_breaks(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.otel.loops._TRACK_SECONDS", 0.0)
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
