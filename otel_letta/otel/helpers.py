"""Helpers for one's own code. They write plain attributes on plain spans, so any tracing backend shows them too.

    with task("Refactor module", chat_id="chat-123", message_id="msg-456") as t:
        for file in t.track(files):
            rewrite(file)
        t.result("all tests pass")

Without a TracerProvider nothing is recorded and nothing is sent: the calls return at once, and the first one says so
in the log.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import Any, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from otel_letta import semconv
from otel_letta.otel import unreported
from otel_letta.otel.loops import Track
from otel_letta.otel.work import Work, end_with, task_around
from otel_letta.otel.written import emit_event, plain_number
from otel_letta.runtime import wake

_logger = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


class TaskSpan:
    """A running task, as `task` hands it out: a span, and the attributes that go onto it.

    Attributes:
        span: the span itself, for everything else that one does with spans.
    """

    __slots__ = ("span",)

    def __init__(self, span: Span) -> None:
        self.span = span

    def __repr__(self) -> str:
        from otel_letta.otel.shown import text_of

        return text_of(self.span)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        from otel_letta.otel.shown import bundle_of

        return bundle_of(self.span)

    def progress(self, progress: float, content: str | None = None) -> None:
        """State the share that is done, 0.0 to 1.0, and perhaps one line about it. It never goes backwards.

        Args:
            progress: any real number: numpy's, a `Decimal`, a `Fraction`. Anything else is ignored with a warning.
            content: one line.
        """
        span = self.span
        if span.is_recording():
            attributes: dict[str, AttributeValue] = {}
            share = progress if type(progress) is float else plain_number(progress)
            if share is not None:
                attributes[semconv.TASK_PROGRESS] = share
            if content is not None:
                attributes[semconv.TASK_CONTENT] = content
            if not attributes:
                return
            span.set_attributes(attributes)
            wake.changed(span)
            emit_event(span, attributes)

    def content(self, content: str) -> None:
        """Set one line about where the task stands."""
        if self.span.is_recording():
            self.span.set_attribute(semconv.TASK_CONTENT, content)
            wake.changed(self.span)
            emit_event(self.span, {semconv.TASK_CONTENT: content})

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


class TaskContext(AbstractContextManager["TaskSpan"]):
    """What `task` gives: a context manager (``with`` and ``async with``), and a decorator."""

    def __init__(
        self, name: str | None, attributes: Mapping[str, AttributeValue] | None = None, tracer: Tracer | None = None
    ) -> None:
        self._name = name
        self._attributes = attributes or {}
        self._tracer = tracer
        self._work: Work | None = None
        self._token: Token[Context] | None = None

    def _begin(self, name: str | None) -> tuple[TaskSpan, Work]:
        if name is None:
            raise TypeError("a task needs a name")
        tracer = self._tracer or trace.get_tracer("otel_letta")
        # The name as an attribute makes it a task even if nothing else is set on it.
        running = TaskSpan(tracer.start_span(name, attributes={semconv.TASK_NAME: name, **self._attributes}))
        if unreported.unchecked:
            unreported.check(name, running.span, by_own_tracer=self._tracer is not None)
        return running, Work(running)

    def __enter__(self) -> TaskSpan:
        if self._work is not None:
            raise RuntimeError("this task is running already: make another one")
        running, self._work = self._begin(self._name)
        self._token = self._work.attach()
        return running

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        work, self._work = self._work, None
        token, self._token = self._token, None
        assert work is not None
        assert token is not None
        work.detach(token)
        work.end(error)
        return None

    async def __aenter__(self) -> TaskSpan:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self.__exit__(kind, error, traceback)

    def __call__(self, function: _F) -> _F:
        """Decorate a function, coroutine function, classmethod or staticmethod: each call is a task.

        The task lasts until what the call returned is done: a coroutine or another awaitable, a future of asyncio or
        `concurrent.futures`, a generator.
        """
        if isinstance(function, (classmethod, staticmethod)):
            return type(function)(self(function.__func__))
        _check_decorated(function)
        name = self._name or _name_of(function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
                return await self._begin(name)[1].run(function(*args, **kwargs))

            return run_coroutine  # type: ignore[return-value]

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            work = self._begin(name)[1]
            token = work.attach()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                work.detach(token)
                work.end(error)
                raise
            work.detach(token)
            return work.end_with_result(result)

        return run  # type: ignore[return-value]


def _check_decorated(function: Any) -> None:
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError("a generator's body runs in its caller's context: open the task inside it instead")
    if isinstance(function, type):
        raise TypeError("task decorates functions, not classes: decorate the methods that do the work")
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"task decorates functions, not a {kind}: put @task below what makes the {kind}")


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)


@overload
def task(name: _F, /) -> _F: ...


@overload
def task(
    name: str | None = None,
    *,
    chat_id: str | None = None,
    message_id: str | None = None,
    task_id: str | None = None,
    agent_id: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    tracer: Tracer | None = None,
) -> TaskContext: ...


def task(
    name: Any = None,
    *,
    chat_id: str | None = None,
    message_id: str | None = None,
    task_id: str | None = None,
    agent_id: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    tracer: Tracer | None = None,
) -> Any:
    """Make a span for a task and make it current: a context manager (``with`` and ``async with``) and a decorator.

    An exception fails the task and goes on, as with any span. So do cancellation, Ctrl-C and ``sys.exit(1)``, which
    OpenTelemetry alone would leave looking like success. A decorated call lasts until what it returned is done, be it
    a coroutine, a future or a generator::

        with task("Refactor module", chat_id="chat-123") as t:
            t.progress(0.5, "halfway")
            t.result("10 files rewritten")

        @task
        async def fetch(url: str) -> bytes: ...

    Args:
        name: the span's name, and what people call the task. A decorator may leave it out, with or without
            parentheses: the function's name then.
        chat_id: the conversation that asked.
        message_id: the message that asked.
        task_id: an id of one's own; default is made of the trace and span ids.
        agent_id: another Letta agent than the configured one, if the allow list names it.
        attributes: more attributes for the span.
        tracer: default is the global provider's.
    """
    if name is not None and not isinstance(name, str):
        return TaskContext(None)(name)
    ids = {
        semconv.CHAT_ID: chat_id,
        semconv.MESSAGE_ID: message_id,
        semconv.TASK_ID: task_id,
        semconv.AGENT_ID: agent_id,
    }
    given = {key: value for key, value in ids.items() if value is not None}
    return TaskContext(name, {**(attributes or {}), **given}, tracer)


def report_progress(progress: float, content: str | None = None) -> None:
    """State the progress of the task that the current span belongs to: the innermost `task`, else that span itself.

    Does nothing where there is neither::

        @task
        def import_sales() -> None:
            report_progress(0.5, "800 rows of 1600")
    """
    _task_here().progress(progress, content)


def _task_here() -> TaskSpan:
    around, span = task_around(), trace.get_current_span()
    if around is None or (around.span is not span and _is_elsewhere(span, around.span)):
        return TaskSpan(span)
    return around


def _is_elsewhere(span: Span, task_span: Span) -> bool:
    """Return whether a span is none of a task's, although it became current inside of it."""
    if not span.is_recording():
        return False
    if not task_span.is_recording() or span.get_span_context().trace_id != task_span.get_span_context().trace_id:
        return True
    return not semconv.DECLARING.isdisjoint(getattr(span, "attributes", None) or ())


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
    span = trace.get_tracer("otel_letta").start_span(name, attributes={semconv.TASK_NAME: name})
    if unreported.unchecked:
        unreported.check(name, span, by_own_tracer=False)
    return span


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
        if isinstance(error, GeneratorExit):
            # A generator cannot know whether its body raised or had seen enough. It did not come to its end.
            self._span.set_status(Status(StatusCode.ERROR, "the loop was left before its end"))
        end_with(self._span, error)
