"""Helpers for one's own code. They write plain attributes on plain spans, so any tracing backend shows them too.

    with task("Refactor module", chat_id="chat-123", message_id="msg-456") as t:
        for file in t.track(files):
            rewrite(file)
        t.result("all tests pass")

Without a TracerProvider nothing is recorded and nothing is sent: the calls return at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from otel_letta import semconv
from otel_letta.runtime import wake
from otel_letta.runtime.aborts import abort_reason

__all__ = ["TaskSpan", "report_progress", "task", "track"]

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

_current: ContextVar[TaskSpan | None] = ContextVar("otel_letta_task", default=None)

_TRACK_SECONDS = 0.1
"""A tracked loop states its progress at most this often, so that a tight one costs next to nothing."""


class TaskSpan:
    """A running task, as `task` hands it out: a span, and the attributes that go onto it.

    Attributes:
        span: the span itself, for everything else that one does with spans.
    """

    __slots__ = ("span",)

    def __init__(self, span: Span) -> None:
        self.span = span

    def progress(self, progress: float, content: str | None = None) -> None:
        """State the share that is done, 0.0 to 1.0, and perhaps one line about it. It never goes backwards."""
        span = self.span
        if span.is_recording():
            attributes: dict[str, AttributeValue] = {semconv.TASK_PROGRESS: progress}
            if content is not None:
                attributes[semconv.TASK_CONTENT] = content
            span.set_attributes(attributes)
            wake.changed(span)
            _emit_event(span, attributes)

    def content(self, content: str) -> None:
        """Set one line about where the task stands."""
        if self.span.is_recording():
            self.span.set_attribute(semconv.TASK_CONTENT, content)
            wake.changed(self.span)
            _emit_event(self.span, {semconv.TASK_CONTENT: content})

    def result(self, result: str) -> None:
        """Set what the task produced; it is reported with the end."""
        if self.span.is_recording():
            self.span.set_attribute(semconv.TASK_RESULT, result)

    def fail(self, reason: str) -> None:
        """Mark the task as failed without an exception; it is reported with the end."""
        if self.span.is_recording():
            self.span.set_status(Status(StatusCode.ERROR, reason))

    @overload
    def track(self, items: Iterable[_T], total: int | None = None) -> Track[_T]: ...

    @overload
    def track(self, items: AsyncIterable[_T], total: int | None = None) -> Track[_T]: ...

    def track(self, items: Iterable[_T] | AsyncIterable[_T], total: int | None = None) -> Track[_T]:
        """Report ``n/total`` while the items are worked through, like a progress bar.

        Args:
            items: a sync or async iterable.
            total: how many there will be, if ``len(items)`` does not give it. Without either, the count is reported and
                no fraction is made up.

        Returns:
            An iterable for ``for`` or ``async for``, as the items are.
        """
        return Track(self, items, total)


class Track(Generic[_T]):
    """What `TaskSpan.track` gives: iterate over it once."""

    def __init__(self, task: TaskSpan, items: Iterable[_T] | AsyncIterable[_T], total: int | None) -> None:
        self._task = task
        self._items = items
        self._total = operator.length_hint(items, 0) or None if total is None else total
        self._done = 0
        self._reported_at = 0.0

    def __len__(self) -> int:
        if self._total is None:
            raise TypeError("the number of items is not known")
        return self._total

    def __iter__(self) -> Iterator[_T]:
        if not isinstance(self._items, Iterable):
            raise TypeError("these items are asynchronous: use 'async for'")
        for item in self._items:
            yield item
            self._step()
        self._report()

    async def __aiter__(self) -> AsyncIterator[_T]:
        if isinstance(self._items, AsyncIterable):
            async for item in self._items:
                yield item
                self._step()
        else:
            for item in self._items:
                yield item
                self._step()
        self._report()

    def _step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._reported_at >= _TRACK_SECONDS:
            self._reported_at = now
            self._report()

    def _report(self) -> None:
        total = self._total
        if total:
            # An iterable may give more than it promised; a task is never more than done.
            self._task.progress(min(self._done / total, 1.0), f"{self._done}/{total}")
        else:
            self._task.content(f"{self._done} done")


class task(AbstractContextManager["TaskSpan"]):  # noqa: N801 - used like a function, as contextlib's helpers are
    """Make a span for a task and make it current: a context manager (``with`` and ``async with``) and a decorator.

    An exception fails the task and goes on, as with any span. So do cancellation, Ctrl-C and ``sys.exit(1)``, which
    OpenTelemetry alone would leave looking like success.

    Args:
        name: the span's name, and what people call the task. A decorator may leave it out: the function's name then.
        chat_id: the conversation that asked.
        message_id: the message that asked.
        task_id: an id of one's own; default is made of the trace and span ids.
        agent_id: another Letta agent than the configured one, if the allow list names it.
        attributes: more attributes for the span.
        tracer: default is the global provider's.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        chat_id: str | None = None,
        message_id: str | None = None,
        task_id: str | None = None,
        agent_id: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._name = name
        self._tracer = tracer
        ids = {
            semconv.CHAT_ID: chat_id,
            semconv.MESSAGE_ID: message_id,
            semconv.TASK_ID: task_id,
            semconv.AGENT_ID: agent_id,
        }
        self._attributes: dict[str, AttributeValue] = {
            **(attributes or {}),
            **{key: value for key, value in ids.items() if value is not None},
        }
        self._span: AbstractContextManager[Span] | None = None
        self._token: Token[TaskSpan | None] | None = None
        self._running: TaskSpan | None = None

    def __enter__(self) -> TaskSpan:
        if self._span is not None:
            raise RuntimeError("this task is running already: make another one")
        if self._name is None:
            raise TypeError("a task needs a name")
        tracer = self._tracer or trace.get_tracer("otel_letta")
        # The name as an attribute makes it a task even if nothing else is set on it.
        attributes = {semconv.TASK_NAME: self._name, **self._attributes}
        self._span = tracer.start_as_current_span(self._name, attributes=attributes)
        self._running = TaskSpan(self._span.__enter__())
        self._token = _current.set(self._running)
        return self._running

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        span, self._span = self._span, None
        token, self._token = self._token, None
        running, self._running = self._running, None
        assert span is not None
        if token is not None:
            # Left in another context than entered: that one has a task of its own, or none.
            with contextlib.suppress(ValueError):
                _current.reset(token)
        reason = abort_reason(error)
        if running is not None and reason is not None:
            running.fail(reason)
        return span.__exit__(kind, error, traceback)

    async def __aenter__(self) -> TaskSpan:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self.__exit__(kind, error, traceback)

    def __call__(self, function: _F) -> _F:
        """Decorate a function or coroutine function: each call is a task."""

        def fresh() -> task:
            made = task(self._name or function.__name__, tracer=self._tracer)
            made._attributes = self._attributes
            return made

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
                with fresh():
                    return await function(*args, **kwargs)

            return run_coroutine  # type: ignore[return-value]
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError("a generator's body runs in its caller's context: open the task inside it instead")

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with fresh():
                return function(*args, **kwargs)

        return run  # type: ignore[return-value]


def _emit_event(span: Span, attributes: dict[str, AttributeValue]) -> None:
    """Emit the same as an OpenTelemetry log event, if OTEL_LETTA_LOG_EVENTS is true."""
    if os.environ.get("OTEL_LETTA_LOG_EVENTS", "").strip().lower() != "true":
        return
    from opentelemetry import _logs

    try:
        record = _logs.LogRecord(
            timestamp=time.time_ns(),
            context=trace.set_span_in_context(span),
            severity_number=_logs.SeverityNumber.INFO,
            body=attributes.get(semconv.TASK_CONTENT),
            attributes=attributes,
            event_name=semconv.TASK_PROGRESS,
        )
    except TypeError:  # an API before 1.35, whose log records have no event name
        return
    _logs.get_logger("otel_letta").emit(record)


def report_progress(progress: float, content: str | None = None) -> None:
    """State the progress of the task around: the innermost `task`, else the current span.

    Does nothing where there is neither.
    """
    (_current.get() or TaskSpan(trace.get_current_span())).progress(progress, content)


@overload
def track(items: Iterable[_T], name: str, total: int | None = None) -> Iterator[_T]: ...


@overload
def track(items: AsyncIterable[_T], name: str, total: int | None = None) -> AsyncIterator[_T]: ...


def track(
    items: Iterable[_T] | AsyncIterable[_T], name: str, total: int | None = None
) -> Iterator[_T] | AsyncIterator[_T]:
    """A loop that is a task: ``for row in track(rows, "Import rows"):``. The task ends when the loop does.

    A loop that is left before its end (``break``, or an exception in its body) is a failed task; where leaving early is
    success, use `task` and `TaskSpan.track`. The body runs in the caller's context, so spans that it makes are not
    children of the task's.
    """
    return _track_async(items, name, total) if isinstance(items, AsyncIterable) else _track(items, name, total)


def _loop_span(name: str) -> Span:
    return trace.get_tracer("otel_letta").start_span(name, attributes={semconv.TASK_NAME: name})


def _track(items: Iterable[_T], name: str, total: int | None) -> Iterator[_T]:
    # Not made current: a generator's context is its caller's, who would find another current span after each item.
    with _ending(_loop_span(name)) as running:
        yield from running.track(items, total)


async def _track_async(items: AsyncIterable[_T], name: str, total: int | None) -> AsyncIterator[_T]:
    with _ending(_loop_span(name)) as running:
        async for item in running.track(items, total):
            yield item


class _ending(AbstractContextManager["TaskSpan"]):  # noqa: N801
    """Ends a span that is not current, with the reason if it did not come to its end by itself."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> TaskSpan:
        return TaskSpan(self._span)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        span = self._span
        if isinstance(error, GeneratorExit):
            # A generator cannot know whether its body raised or had seen enough. It did not come to its end.
            span.set_status(Status(StatusCode.ERROR, "the loop was left before its end"))
        elif isinstance(error, Exception):
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        elif (reason := abort_reason(error)) is not None:
            span.set_status(Status(StatusCode.ERROR, reason))
        span.end()
