"""A task's span around a piece of work, which may go on when the call that began it has returned."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import Token
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from otel_letta import semconv
from otel_letta.runtime.aborts import Flow, abort_reason, flow_of, is_cancellation
from otel_letta.text import as_text

if TYPE_CHECKING:
    from otel_letta.otel.helpers import TaskSpan

_TASK = context.create_key("otel_letta_task")
_LEFT = "left before its end"
_NEVER_BEGUN = "it was never begun"


def task_around() -> TaskSpan | None:
    """Return the innermost task of the current context."""
    return context.get_value(_TASK)  # type: ignore[return-value]


class Work:
    """A task that is under way: its span is made current for each piece of the work, and ended once."""

    __slots__ = ("__weakref__", "_over", "_task")

    def __init__(self, task: TaskSpan) -> None:
        self._task = task
        self._over = False

    def attach(self) -> Token[Context]:
        """Make the task and its span current; undone by `detach`."""
        return context.attach(context.set_value(_TASK, self._task, trace.set_span_in_context(self._task.span)))

    def detach(self, token: Token[Context]) -> None:
        """Make current what was before."""
        context.detach(token)

    def end(self, error: BaseException | None = None, reason: str | None = None) -> None:
        """End the span, if it has not been ended; with an error, or a reason for what is no error."""
        if not self._over:
            self._over = True
            if reason is not None:
                self._task.fail(reason)
            end_with(self._task.span, error)

    # -- what a call returned ------------------------------------------------------------------------------------------

    def end_with_result(self, result: Any) -> Any:
        """End now, or when what a call returned is done. Returns what its caller gets: of a future, the same object."""
        if isinstance(result, Coroutine):
            return self._end_with_coroutine(result)
        if isinstance(result, Generator):
            return _Steps(self, result)
        if isinstance(result, AsyncGenerator):
            return _AsyncSteps(self, result)
        kind = type(result)
        if hasattr(kind, "add_done_callback") and hasattr(kind, "cancelled"):
            result.add_done_callback(self._end_with_future)
        elif hasattr(kind, "__await__"):
            return _Awaited(self, result)
        else:
            self.end()
        return result

    async def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await something as this task."""
        with _Piece(self):
            value = await awaitable
            self.end()
            return value

    def _end_with_coroutine(self, inner: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        outer: Any = self.run(inner)
        outer.__name__ = getattr(inner, "__name__", outer.__name__)
        outer.__qualname__ = getattr(inner, "__qualname__", outer.__qualname__)
        # A coroutine that is never awaited runs no line that could notice it.
        weakref.finalize(outer, self.end, reason=_NEVER_BEGUN).atexit = False
        return outer  # type: ignore[no-any-return]

    def _end_with_future(self, future: Any) -> None:
        if future.cancelled():
            self.end(reason="cancelled")
            return
        # asyncio's `exception()` counts as a look at the error, and nobody would log it any more.
        self.end(future._exception if hasattr(future, "_exception") else future.exception())


class _Piece:
    """A piece of the work, in which the task is current. What leaves it as an exception ends the task.

    Args:
        done: the exception by which the work says that it is done.
    """

    def __init__(self, work: Work, done: type[Exception] | None = None) -> None:
        self._work = work
        self._done = done

    def __enter__(self) -> None:
        self._token = self._work.attach()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            if isinstance(error, GeneratorExit):
                self._work.end(reason=_LEFT)
            elif error is not None:
                self._work.end(None if self._done is not None and isinstance(error, self._done) else error)
        finally:
            self._work.detach(self._token)


class _Steps(Generator[Any, Any, Any]):
    """A generator that a task returned: the task is current while it runs, and over when it is exhausted."""

    def __init__(self, work: Work, inner: Generator[Any, Any, Any]) -> None:
        self._work = work
        self._inner = inner
        self._begun = False

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def close(self) -> None:
        try:
            self._step(self._inner.close)
        finally:
            self._work.end(reason=_LEFT if self._begun else _NEVER_BEGUN)

    def __del__(self) -> None:
        self._work.end(reason=_LEFT if self._begun else _NEVER_BEGUN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _step(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self._begun = self._begun or call != self._inner.close
        with _Piece(self._work, StopIteration):
            return call(*arguments)


class _AsyncSteps(AsyncGenerator[Any, Any]):
    """The same for an async generator."""

    def __init__(self, work: Work, inner: AsyncGenerator[Any, Any]) -> None:
        self._work = work
        self._inner = inner
        self._begun = False

    async def asend(self, value: Any) -> Any:
        return await self._step(self._inner.asend(value))

    async def athrow(self, *error: Any) -> Any:
        return await self._step(self._inner.athrow(*error))

    async def aclose(self) -> None:
        begun = self._begun
        try:
            await self._step(self._inner.aclose())
        finally:
            self._work.end(reason=_LEFT if begun else _NEVER_BEGUN)

    def __del__(self) -> None:
        self._work.end(reason=_LEFT if self._begun else _NEVER_BEGUN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def _step(self, step: Awaitable[Any]) -> Any:
        self._begun = True
        with _Piece(self._work, StopAsyncIteration):
            return await step


class _Awaited:
    """Stands for an object that can be awaited, and may have methods besides."""

    def __init__(self, work: Work, inner: Any) -> None:
        self._work = work
        self._inner = inner
        self._begun = False

    def __await__(self) -> Generator[Any, Any, Any]:
        self._begun = True
        return self._work.run(self._inner).__await__()

    async def __aenter__(self) -> Any:
        self._begun = True
        token = self._work.attach()
        try:
            return await self._inner.__aenter__()
        except BaseException as error:
            self._work.end(error)
            raise
        finally:
            self._work.detach(token)

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> Any:
        try:
            return await self._inner.__aexit__(kind, error, traceback)
        finally:
            self._work.end(error)

    def __del__(self) -> None:
        if not self._begun:
            self._work.end(reason=_NEVER_BEGUN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def end_with(span: trace.Span, error: BaseException | None) -> None:
    """End a span with what it was left by, which OpenTelemetry alone records only if it is an `Exception`."""
    if error is not None and span.is_recording():
        flow = flow_of(error)
        if flow is not None:
            _steer(span, flow, error)
        elif is_cancellation(error):
            span.set_status(Status(StatusCode.ERROR, "cancelled or timed out"))
        elif isinstance(error, Exception):
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, _described(error)))
        elif (reason := abort_reason(error)) is not None:
            span.set_status(Status(StatusCode.ERROR, reason))
    span.end()


def _steer(span: trace.Span, flow: Flow, error: BaseException) -> None:
    """Write down that a framework's own exception left the span: no failure, and perhaps no end."""
    # Of celery's Retry the error that made it; never its text, which may hold anything.
    cause = getattr(error, "exc", None) or error.__cause__
    why = f": {as_text(type(cause).__name__)}" if isinstance(cause, BaseException) else ""
    span.set_attribute(semconv.TASK_CONTENT, f"{flow.value}{why}")
    if flow.goes_on:
        span.set_attribute(semconv.TASK_STATUS, "in_progress")


def _described(error: Exception) -> str:
    name = as_text(type(error).__name__) or "error"
    try:
        return f"{name}: {error}"
    except Exception:  # noqa: BLE001 - a text of its own that fails must not replace the program's exception
        return name
