"""The watcher: hooks and polls become calls of the tracker. Without a thread, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.trace import Tracer, set_span_in_context

from otel_letta.pipeline import watcher as module
from otel_letta.pipeline.ended_spans import EndedSpans
from otel_letta.pipeline.inbox import Inbox
from otel_letta.pipeline.watcher import Watcher
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings import Settings
from otel_letta.tracking import Reading
from otel_letta.tracking.opt_in import OptIn

TASK = {"letta.chat.id": "chat-1"}


class Tracker:
    """Notes its calls; follows what carries an attribute of ours."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.above: dict[str, list[str]] = {}
        self.inbound: dict[str, Any] = {}
        self.aborted: dict[str, str | None] = {}
        self.names: dict[Any, str] = {}

    def _note(self, what: str, reading: Reading, above: Sequence[Any], inbound: Any = None) -> bool:
        self.calls.append((what, reading.name))
        self.names[reading.key] = reading.name
        self.above[reading.name] = [self.names.get(entry.key, "plain") for entry in above]
        self.inbound[reading.name] = inbound
        return any(name.startswith("letta.") for name in reading.attributes)

    def started(self, reading: Reading, above: Any, outside: Any, inbound: Any) -> bool:
        return self._note("started", reading, above, inbound)

    def changed(self, reading: Reading, above: Any, outside: Any, inbound: Any) -> bool:
        return self._note("changed", reading, above, inbound)

    def ended(self, reading: Reading, above: Any, outside: Any, inbound: Any, aborted: Any) -> bool:
        self.aborted[reading.name] = aborted
        return self._note("ended", reading, above, inbound)

    def ended_plain(self, reading: Any, above: Any, outside: Any, aborted: Any) -> None:
        self.calls.append(("ended_plain", self.names.get(reading.key, "plain")))

    def lost(self, key: Any, above: Any, outside: Any) -> None:
        self.calls.append(("lost", self.names.get(key, "plain")))

    def ended_alone(self, reading: Reading, above: Any = ()) -> None:
        self._note("ended_alone", reading, above)

    def passed(self, key: Any, parent: Any, remote: bool, read: Any = None) -> None:
        self.calls.append(("passed", "plain"))


class World(SpanProcessor):
    def __init__(self, opt_in: OptIn | None = None, **options: Any) -> None:
        settings = Settings.resolve(environ={}, base_url="http://127.0.0.1:9", agent_id="agent-1", **options)
        self.errors: list[str] = []
        self.tracker: Any = Tracker()
        self.inbox = Inbox(lambda: math.inf, self._complain, lambda: None)
        self.inbox._thread = threading.current_thread()  # so that none is started
        self.ended_spans = EndedSpans(self.inbox, opt_in)
        self.watcher = Watcher(settings, self.inbox, opt_in, self.ended_spans.put, self._complain)
        self.watcher.restart(self.tracker, forked=False)
        self.ended_spans.restart(self.tracker, self.watcher)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self)
        self.tracer = provider.get_tracer("tests")
        self.batch: list[ReadableSpan] = []

    def _complain(self, where: str, error: Exception) -> None:
        self.errors.append(f"{where}: {error!r}")

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.watcher.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        self.batch.append(span)
        self.watcher.on_end(span)

    def read(self, *, poll: bool = False) -> list[tuple[str, str]]:
        """The tracker's calls since the last time."""
        assert self.inbox.run(1, *([self.watcher.poll] if poll else []))
        assert self.errors == []
        calls, self.tracker.calls = self.tracker.calls, []
        return calls  # type: ignore[no-any-return]


@pytest.fixture
def world() -> World:
    return World()


def test_a_declared_span_is_brought_at_its_start_its_changes_and_its_end(world: World) -> None:
    with world.tracer.start_as_current_span("task", attributes=TASK) as span:
        assert world.read() == [("started", "task")]
        assert world.read(poll=True) == []
        span.set_attribute("letta.task.progress", 0.5)
        assert world.read(poll=True) == [("changed", "task")]
        span.add_event("progress", {"progress": 0.6})
        assert world.read(poll=True) == [("changed", "task")]
    assert world.read() == [("ended", "task")]


@pytest.mark.parametrize("timestamp", [2**60, 0, 1.5e18, "soon"])
def test_an_event_is_brought_whatever_time_it_was_given(world: World, timestamp: Any) -> None:
    with world.tracer.start_as_current_span("task", attributes=TASK) as span:
        assert world.read() == [("started", "task")]
        span.add_event("progress", {"progress": 0.6}, timestamp)
        news = [("changed", "task")] if timestamp in (2**60, 1.5e18) else []  # what has no time is nothing new
        assert world.read(poll=True) == news
        assert world.read(poll=True) == []
    assert world.read() == [("ended", "task")]


def test_a_plain_span_is_not_brought(world: World) -> None:
    with world.tracer.start_as_current_span("plain", attributes={"http.route": "/"}):
        assert world.read(poll=True) == []
    assert world.read(poll=True) == []


def test_of_a_span_that_ended_before_it_was_read_only_the_end_is_brought(world: World) -> None:
    world.tracer.start_span("task", attributes=TASK).end()
    assert world.read() == [("ended", "task")]


def test_ancestors_come_first_and_the_chain_is_handed_over(world: World) -> None:
    root = world.tracer.start_span("root")
    middle = world.tracer.start_span("middle", context=set_span_in_context(root))
    root.set_attribute("letta.task.name", "root")
    step = world.tracer.start_span("step", context=set_span_in_context(middle), attributes=TASK)
    assert world.read() == [("changed", "root"), ("started", "step")]
    assert world.tracker.above["step"] == ["plain", "root"]
    for span in (step, middle, root):
        span.end()
    assert world.read() == [("ended", "step"), ("ended", "root")]


def test_an_ancestor_whose_end_is_still_to_be_read_comes_first_too(world: World) -> None:
    root = world.tracer.start_span("root")
    step = world.tracer.start_span("step", context=set_span_in_context(root), attributes=TASK)
    root.set_attribute("letta.task.name", "root")
    root.end()
    assert world.read() == [("changed", "root"), ("started", "step"), ("ended", "root")]
    step.end()
    assert world.read() == [("ended", "step")]


def test_the_end_of_an_awaited_plain_span_is_brought(world: World) -> None:
    root = world.tracer.start_span("root")
    assert world.read(poll=True) == []
    (record,) = world.watcher.open.all()
    entry = world.watcher.open.observe(record)
    assert entry is not None
    assert entry.await_end()
    root.end()
    assert not entry.await_end()
    assert world.read() == [("ended_plain", "plain")]


def test_awaiting_a_span_that_ended_in_this_moment_finds_that_out(world: World) -> None:
    root = world.tracer.start_span("root")
    (record,) = world.watcher.open.all()
    world.watcher.open.records.clear()  # the hook of its end has begun, and read that nobody looked at it
    entry = world.watcher.open.observe(record)
    assert entry is not None
    assert not entry.await_end()
    assert root.is_recording()


def test_a_lost_span_is_brought_once(world: World) -> None:
    world.tracer.start_span("task", attributes=TASK)
    assert world.read() == [("started", "task")]
    gc.collect()
    assert world.read(poll=True) == []  # its destructor may still end it
    assert world.read(poll=True) == [("lost", "task")]
    assert world.read(poll=True) == []
    assert len(world.watcher.open) == 0


def test_a_span_that_is_dropped_before_its_start_is_read_is_not_missed(world: World) -> None:
    world.tracer.start_span("task", attributes=TASK)
    gc.collect()
    assert world.read() == [("started", "task")]


def test_a_stop_of_the_process_in_a_poll_does_not_put_the_next_one_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.watcher, "_read", lambda record: time.sleep(0.5))
    with world.tracer.start_as_current_span("plain"):
        world.watcher.poll()
        assert world.watcher.poll_if_due() - time.monotonic() < 3.0  # by the clock it would be 20 times as long


def test_a_poll_that_takes_very_long_does_not_put_the_next_one_off_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_SHARE", 1e9)
    with world.tracer.start_as_current_span("plain"):
        world.watcher.poll()
        assert world.watcher.poll_if_due() - time.monotonic() < 6.0


def test_what_starts_where_instrumentation_is_suppressed_is_ignored(world: World) -> None:
    with suppress_tracing():
        span = world.tracer.start_span("task", attributes=TASK)
    span.set_attribute("letta.task.progress", 0.5)
    assert world.read(poll=True) == []
    span.end()
    assert world.read() == []


def test_an_exception_that_was_being_handled_at_the_start_did_not_stop_the_span(world: World) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        world.tracer.start_span("cleaning up", attributes=TASK).end()
    try:
        span = world.tracer.start_span("stopped", attributes=TASK)
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        span.end()
    world.read()
    assert world.tracker.aborted == {"cleaning up": None, "stopped": "interrupted (Ctrl-C)"}


def test_a_log_event_makes_a_task_of_a_plain_span_and_its_end_matters(world: World) -> None:
    with world.tracer.start_as_current_span("plain") as span:
        context = span.get_span_context()
        world.watcher.on_event((context.trace_id, context.span_id), {"letta.task.progress": 0.5})
    assert world.read() == [("changed", "plain"), ("ended", "plain")]


def test_a_log_event_of_a_span_that_is_not_open_is_ignored(world: World) -> None:
    world.watcher.on_event((1, 2), {"letta.task.progress": 0.5})
    assert world.read() == []


def test_a_helpers_word_is_read_once_however_often_it_comes(world: World) -> None:
    with world.tracer.start_as_current_span("task", attributes=TASK) as span:
        world.read()
        for step in range(5):
            span.set_attribute("letta.task.progress", step / 5)
            world.watcher.read_soon(span)
        assert len(world.inbox) == 1
        assert world.read() == [("changed", "task")]


def test_a_filter_makes_a_task_of_a_span_that_says_nothing() -> None:
    world = World(OptIn([("name", "job *")], None))
    world.tracer.start_span("job 1").end()
    world.tracer.start_span("other").end()
    assert world.read() == [("ended", "job 1")]


def test_baggage_is_read_when_the_span_starts_though_it_becomes_a_task_later() -> None:
    world = World(baggage=True)
    context = baggage.set_baggage("letta.chat.id", "chat-9")
    span = world.tracer.start_span("late", context=context)
    span.set_attribute("letta.task.name", "late")
    world.read(poll=True)
    assert world.tracker.inbound["late"] == ("chat-9", None)
    span.end()


def test_spans_that_were_open_at_a_fork_are_the_parents(world: World) -> None:
    inherited = world.tracer.start_span("inherited", attributes=TASK)
    world.inbox.restart()
    world.inbox._thread = threading.current_thread()
    world.watcher.restart(world.tracker, forked=True)
    assert len(world.watcher.open) == 0
    inherited.end()
    world.tracer.start_span("own", attributes=TASK).end()
    assert world.read() == [("ended", "own")]


def test_a_span_that_its_destructor_ends_in_a_forked_child_is_the_parents_too(world: World) -> None:
    class EndsItself:
        def __init__(self) -> None:
            self.span = world.tracer.start_span("inherited", attributes=TASK)
            self.span.owner = self  # type: ignore[attr-defined]

        def __del__(self) -> None:
            self.span.end()

    EndsItself()
    world.inbox.restart()
    world.inbox._thread = threading.current_thread()
    world.watcher.restart(world.tracker, forked=True)
    gc.collect()
    assert world.read() == []


# -- ended spans alone -------------------------------------------------------------------------------------------------


def test_exported_spans_are_brought_unless_they_were_open_here(world: World) -> None:
    elsewhere = World()
    elsewhere.tracer.start_span("elsewhere", attributes=TASK).end()
    with world.tracer.start_as_current_span("here", attributes=TASK) as here:
        world.ended_spans.export([*elsewhere.batch, here])  # type: ignore[list-item]
        assert world.read() == [("started", "here"), ("ended_alone", "elsewhere")]


def test_plain_exported_spans_are_brought_as_links_once_something_waits(world: World) -> None:
    elsewhere = World()
    elsewhere.tracer.start_span("plain").end()
    world.ended_spans.export(elsewhere.batch)
    assert world.read() == []
    elsewhere.tracer.start_span("task", attributes=TASK).end()
    world.ended_spans.export(elsewhere.batch[1:])
    assert world.read() == [("passed", "plain"), ("ended_alone", "task")]
    world.ended_spans.export(elsewhere.batch[:1])
    assert world.read() == [("passed", "plain")]


def test_an_exported_span_below_an_open_one_comes_with_what_is_above_it(world: World) -> None:
    with world.tracer.start_as_current_span("open") as parent:
        other = World()
        other.tracer.start_span("below", context=set_span_in_context(parent), attributes=TASK).end()
        parent.set_attribute("letta.task.name", "open")
        world.ended_spans.export(other.batch)
        assert world.read() == [("changed", "open"), ("ended_alone", "below")]
        assert world.tracker.above["below"] == ["open"]


def test_ids_that_the_sdk_dropped_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    world, ended = World(), World()
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=3), shutdown_on_exit=False)
    provider.add_span_processor(ended)
    for kept in (True, False, False):
        span = provider.get_tracer("tests").start_span("job", attributes=TASK)
        for number in range(1 if kept else 3):
            span.set_attribute(f"row.{number}", number)
        span.set_attribute("letta.task.progress", 0.5)
        span.end()
        world.ended_spans.export(ended.batch[-1:])
        assert caplog.text.count("came without ids") == (0 if kept else 1)


# -- hooks on a pool's threads -----------------------------------------------------------------------------------------


def in_a_pool(world: World) -> Tracer:
    class Hooks(SpanProcessor):
        on_start = staticmethod(world.watcher.on_start)  # type: ignore[assignment]
        on_end = staticmethod(world.watcher.on_end)  # type: ignore[assignment]

    processor = ConcurrentMultiSpanProcessor(2)
    processor.add_span_processor(Hooks())
    return TracerProvider(active_span_processor=processor, shutdown_on_exit=False).get_tracer("pool")


@pytest.mark.parametrize("read_first", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), None])
def test_what_stopped_a_span_is_seen_from_a_pools_thread(
    world: World, error: BaseException | None, read_first: bool
) -> None:
    tracer = in_a_pool(world)
    with contextlib.suppress(BaseException), tracer.start_as_current_span("job", attributes=TASK):
        if read_first:
            world.read()
        if error is not None:
            raise error
    world.read()
    assert bool(world.tracker.aborted["job"]) == (error is not None)


def test_cleaning_up_after_a_cancellation_is_innocent_in_a_pool_too(world: World) -> None:
    tracer = in_a_pool(world)
    try:
        raise asyncio.CancelledError
    except asyncio.CancelledError:
        with tracer.start_as_current_span("clean up", attributes=TASK):
            world.read()
    world.read()
    assert world.tracker.aborted["clean up"] is None


def test_a_poll_of_very_many_open_spans_ends_when_the_time_is_over(world: World) -> None:
    # An exit has seconds for all that it does.
    spans = [world.tracer.start_span(f"task {n}", attributes=TASK) for n in range(1_200)]
    world.inbox.run(60)
    for span in spans:
        span.set_attribute("letta.task.progress", 0.5)
    world.tracker.calls.clear()
    world.watcher.poll(lambda: False)
    assert 0 < len(world.tracker.calls) < 1_200
    world.watcher.poll()
    assert len(world.tracker.calls) == 1_200


def test_a_value_that_is_set_again_is_no_change_and_another_object_is_one(world: World) -> None:
    text = "half of it"
    with world.tracer.start_as_current_span("task", attributes=TASK) as span:
        span.set_attribute("letta.task.content", text)
        world.read(poll=True)
        span.set_attribute("letta.task.content", text)
        assert world.read(poll=True) == []
        span.set_attribute("any.other.name", 1)
        assert world.read(poll=True) == [("changed", "task")]
        span.set_attribute("letta.task.content", "all of it")
        assert world.read(poll=True) == [("changed", "task")]
        assert world.read(poll=True) == []
