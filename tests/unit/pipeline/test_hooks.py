"""The hooks: what each span pays for, with and without the SDK's private fields."""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.otel.diagnosis import FIRST
from otel_letta.pipeline.hooks import attributes_in
from otel_letta.pipeline.pipeline import Pipeline
from otel_letta.runtime import fork
from otel_letta.runtime.suppress import reader_of_context, suppress_tracing
from otel_letta.testing import InMemoryLetta

TASK = {"letta.chat.id": "chat-1"}


class World:
    def __init__(self, letta: InMemoryLetta, ids: IdGenerator | None = None, **options: Any) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self.processor = LettaSpanProcessor(
            base_url=letta.base_url, agent_id=self.agent, delivery="messages", message_interval=0, **options
        )
        self.provider = TracerProvider(id_generator=ids or RandomIdGenerator(), shutdown_on_exit=False)
        self.provider.add_span_processor(self.processor)
        self.tracer = self.provider.get_tracer("tests")

    @property
    def pipeline(self) -> Pipeline:
        assert self.processor._handle is not None
        return self.processor._handle.pipeline

    def ends(self) -> list[tuple[str, str]]:
        assert self.processor.force_flush(60_000)
        reports = self.letta.reports(self.agent)
        return sorted((one["task"], one["status"]) for one in reports if one["status"] != "in_progress")


@pytest.fixture(scope="module")
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as letta:
        yield letta


@pytest.fixture
def world(letta: InMemoryLetta) -> Iterator[World]:
    made = World(letta)
    yield made
    made.provider.shutdown()


# -- the contract with the SDK -----------------------------------------------------------------------------------------


def test_the_installed_sdk_has_the_private_fields_that_the_hooks_read() -> None:
    seen: list[ReadableSpan] = []

    class Ended(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Ended())
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("parent") as parent, tracer.start_as_current_span("child") as child:
        child.set_attribute("k", "v")
    for span in (child, *(one for one in seen if one.name == "child")):
        assert isinstance(span, ReadableSpan)
        inner: Any = span
        assert inner._context is span.context
        assert inner._context[:2] == (span.context.trace_id, span.context.span_id)
        assert inner._parent[1] == parent.get_span_context().span_id
        assert type(inner._attributes._dict) is dict
        assert inner._attributes._dict == {"k": "v"}


def test_the_installed_api_keeps_the_context_where_the_hooks_read_it() -> None:
    current = reader_of_context()
    assert current is not otel_context.get_current
    token = otel_context.attach(otel_context.set_value("key", "value"))
    try:
        assert current() is otel_context.get_current()
    finally:
        otel_context.detach(token)
    assert current() is otel_context.get_current()


def test_another_kind_of_context_is_read_by_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def get_current(self) -> otel_context.Context:
            return otel_context.Context({"key": "value"})

    monkeypatch.setattr(otel_context, "_RUNTIME_CONTEXT", Runtime())
    assert reader_of_context()() == {"key": "value"}


@pytest.mark.parametrize("thread", [False, True])
def test_a_task_that_starts_where_tracing_is_suppressed_is_none(world: World, thread: bool) -> None:
    def work() -> None:
        with suppress_tracing():
            span = world.tracer.start_span("ours", attributes=TASK)
        span.end()
        world.tracer.start_span("theirs", attributes={"letta.task.name": "theirs"}).end()

    if thread:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    else:
        work()
    assert world.ends() == [("theirs", "completed")]


def _without_private_fields(span: Any, missing: str) -> Any:
    """The span as the hooks would see it: public properties only."""

    class Public:
        __slots__ = ("__weakref__", "_span")

        def __init__(self) -> None:
            self._span = span

        def __getattr__(self, name: str) -> Any:
            if name == missing:
                raise AttributeError(name)
            return getattr(span, name)

        @property
        def __class__(self) -> type:  # type: ignore[override]
            return type(span)

    return Public()


@pytest.mark.parametrize("missing", ["_context", "_parent", "_attributes"])
def test_no_span_is_lost_where_a_private_field_is_missing(world: World, missing: str) -> None:
    hooks = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    parent = hooks.start_span("parent", attributes=TASK)
    plain = hooks.start_span("plain", context=set_span_in_context(parent))
    step = hooks.start_span("step", context=set_span_in_context(plain), attributes={"letta.task.progress": 0.5})
    shown = {span: _without_private_fields(span, missing) for span in (parent, plain, step)}
    for span in shown.values():
        world.processor.on_start(span)
    assert world.processor.stats()["open_spans"] == 3
    for span in (step, plain, parent):
        span.end()
        world.processor.on_end(shown[span])
    assert world.processor.stats()["open_spans"] == 0
    assert world.ends() == [("parent", "completed")]


def test_a_span_that_records_nothing_is_passed_over_in_silence(world: World, caplog: pytest.LogCaptureFixture) -> None:
    nothing: Any = NonRecordingSpan(SpanContext(1, 2, False, TraceFlags(0)))
    exporter = LettaSpanExporter(settings=world.pipeline.settings)
    for _ in range(2):
        world.processor.on_start(nothing)
        world.processor.on_end(nothing)
        assert exporter.export([nothing]) is SpanExportResult.SUCCESS
        world.processor.shutdown()
    exporter.shutdown()
    assert caplog.records == []


def test_attributes_are_found_where_there_is_no_inner_dict() -> None:
    assert attributes_in(ReadableSpan("x", attributes={"k": "v"})) == {"k": "v"}
    assert attributes_in(ReadableSpan("x", attributes=None)) == {}


def _called(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """The names of all functions, in Python and in C, that are called."""
    names: set[str] = set()

    def note(frame: Any, event: str, what: Any) -> None:
        if event == "call":
            names.add(frame.f_code.co_name)
        elif event == "c_call":
            names.add(what.__name__)

    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.skipif(not isinstance(fork.here, mmap.mmap), reason="without memory that is wiped the process id is asked")
def test_the_hooks_of_a_task_call_nothing_of_ours_and_no_system(world: World) -> None:
    """Each call costs half a microsecond there, and a span as a whole twenty."""
    for _ in range(FIRST + 1):  # the first ones are examined for mistakes
        world.tracer.start_span("first", attributes=TASK).end()
    with world.pipeline._inbox.lock:  # so that the thread cannot go to sleep in between
        world.pipeline._inbox.awake = True
        bare = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("task", attributes=TASK)
        assert "on_start" in vars(world.processor)
        started = _called(world.processor.on_start, bare)
        world.pipeline._inbox.awake = True
        ended = _called(world.processor.on_end, bare)
    for names in (started, ended):
        assert names.isdisjoint({"note_start", "note_end", "put", "check", "getpid", "handled_elsewhere", "get_value"})
    assert len(started) < 16 and len(ended) < 16, (started, ended)
    bare.end()


# -- young spans -------------------------------------------------------------------------------------------------------


def test_a_plain_span_that_ends_leaves_nothing_behind(world: World) -> None:
    with world.tracer.start_as_current_span("outer"):
        for _ in range(10):
            world.tracer.start_span("plain", attributes={"http.request.method": "GET"}).end()
        assert len(world.pipeline.watcher.open) == 1
    assert len(world.pipeline.watcher.open) == 0


def test_a_span_becomes_a_task_at_any_time(world: World) -> None:
    with world.tracer.start_as_current_span("late") as span:
        span.set_attribute("letta.task.name", "late")
    with world.tracer.start_as_current_span("later") as span:
        world.processor.force_flush()
        span.set_attribute("letta.task.name", "later")
    assert world.ends() == [("late", "completed"), ("later", "completed")]


def test_a_plain_span_that_ended_unread_is_looked_through(world: World) -> None:
    root = world.tracer.start_span("root", attributes=TASK)
    between = world.tracer.start_span("between", context=set_span_in_context(root))
    below = world.tracer.start_span("below", context=set_span_in_context(between))
    between.end()
    below.set_attribute("letta.task.progress", 0.5)
    below.end()
    root.end()
    assert world.ends() == [("root", "completed")]


def test_a_parent_that_became_a_task_at_its_end_has_the_step_that_ended_before(world: World) -> None:
    with world.pipeline._inbox.lock:  # so that nothing is read in between
        parent = world.tracer.start_span("parent")
        child = world.tracer.start_span(
            "child", context=set_span_in_context(parent), attributes={"letta.task.progress": 0.5}
        )
        parent.set_attribute("letta.task.name", "parent")
        parent.end()
        child.end()
    assert world.ends() == [("parent", "completed")]


def test_a_task_that_is_over_before_it_is_read_is_reported_once(world: World) -> None:
    with world.pipeline._inbox.lock:
        world.tracer.start_span("short", attributes=TASK).end()
    assert world.ends() == [("short", "completed")]
    assert world.processor.stats()["open_tasks"] == 0


def test_without_a_thread_no_span_is_kept_alive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_threads(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_threads)
        for _ in range(20):
            world.tracer.start_span("never ended")
        alive = [record for record in world.pipeline.watcher.open.all() if record[0] is not None]
    assert alive == []


# -- equal span ids ----------------------------------------------------------------------------------------------------


def in_order(first: Any, second: Any) -> tuple[Any, Any]:
    return first, second


def reversed_order(first: Any, second: Any) -> tuple[Any, Any]:
    return second, first


@pytest.mark.parametrize("order", [in_order, reversed_order])
def test_equal_span_ids_in_two_traces_are_two_spans(
    letta: InMemoryLetta, order: Callable[[Any, Any], tuple[Any, Any]]
) -> None:
    class Ids(IdGenerator):
        trace = 0

        def generate_trace_id(self) -> int:
            self.trace += 1
            return self.trace

        def generate_span_id(self) -> int:
            return 7

    world = World(letta, Ids())
    first = world.tracer.start_span("first", attributes=TASK)
    second = world.tracer.start_span("second", attributes=TASK)
    assert world.processor.stats()["open_spans"] == 2
    for span in order(first, second):
        span.set_attribute("letta.task.progress", 0.5)
        world.processor.force_flush()
        span.end()
    assert world.ends() == [("first", "completed"), ("second", "completed")]
    assert world.processor.stats()["open_spans"] == 0
    world.provider.shutdown()


def test_a_parent_of_another_trace_with_the_same_id_is_no_parent(world: World) -> None:
    other = world.tracer.start_span("other", attributes=TASK)
    ids = other.get_span_context()
    above = SpanContext(ids.trace_id + 1, ids.span_id, is_remote=False, trace_flags=TraceFlags(1))
    context = set_span_in_context(NonRecordingSpan(above))
    world.tracer.start_span("own", context=context, attributes={"letta.task.name": "own"}).end()
    other.end()
    assert world.ends() == [("other", "completed"), ("own", "completed")]


def test_a_remote_parent_with_the_id_of_an_open_span_is_no_parent_here(world: World) -> None:
    """A request that a process sends to itself."""
    with world.tracer.start_as_current_span("client") as client:
        ids = client.get_span_context()
        remote = SpanContext(ids.trace_id, ids.span_id, is_remote=True, trace_flags=TraceFlags(1))
        context = set_span_in_context(NonRecordingSpan(remote))
        world.tracer.start_span("server", context=context, attributes={"letta.task.name": "server"}).end()
        client.set_attribute("letta.task.name", "client")
    assert world.ends() == [("client", "completed"), ("server", "completed")]


# -- who takes the fast way --------------------------------------------------------------------------------------------


def test_the_hooks_are_the_processors_own_while_it_is_active(letta: InMemoryLetta) -> None:
    world = World(letta)
    assert "on_start" in vars(world.processor)
    world.provider.shutdown()
    assert "on_start" not in vars(world.processor)
    world.tracer.start_span("after shutdown", attributes=TASK).end()
    assert world.letta.reports(world.agent) == []


def test_a_subclass_keeps_its_own_hooks(letta: InMemoryLetta) -> None:
    class Counting(LettaSpanProcessor):
        started = 0

        def on_start(self, span: Span, parent_context: Any = None) -> None:
            self.started += 1
            super().on_start(span, parent_context)

    processor = Counting(base_url=letta.base_url, agent_id=letta.create_agent())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with provider.get_tracer("t").start_as_current_span("task", attributes=TASK):
        assert processor.started == 1
        assert processor.stats()["open_spans"] == 1
    assert processor.stats()["open_spans"] == 0
    provider.shutdown()
