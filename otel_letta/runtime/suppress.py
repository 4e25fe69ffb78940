"""The suppression of tracing on our own threads, and quirks of the SDK and Logfire around it.

Their releases can break what is here: the SDK's key of suppressed instrumentation, and the module name of Logfire's
wrapper around processors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

_FRAMES_TO_LOGFIRE = 10
"""At most so many from a hook up to Logfire's wrapper around it: five in Logfire 5.2, more if that samples tails."""

_OURS = otel_context.create_key("otel_letta")


def on_own_thread() -> bool:
    """Return True on a thread that does this package's own work, and so in destructors that run in the middle of it."""
    return bool(otel_context.get_value(_OURS))


class suppress_tracing:  # noqa: N801 - reads as the context manager that it is
    """A context in which OpenTelemetry instrumentation makes no spans of our own requests.

    The SDK's key does not cross into new threads, so it is attached on the thread that sends, around each send. The
    plain string is what older instrumentation packages check.
    """

    def __enter__(self) -> None:
        context = otel_context.set_value(SUPPRESS, True)
        context = otel_context.set_value("suppress_instrumentation", True, context)
        context = otel_context.set_value(_OURS, True, context)
        self._token = otel_context.attach(context)

    def __exit__(self, *_: object) -> None:
        otel_context.detach(self._token)


SUPPRESS = otel_context._SUPPRESS_INSTRUMENTATION_KEY
"""The SDK's key. No context without it is one in which `is_suppressed`."""


def reader_of_context() -> Callable[[], Mapping[str, Any]]:
    """Return the fastest way to read the current context: `ContextVar.get`, where that is what the API calls."""
    runtime: Any = getattr(otel_context, "_RUNTIME_CONTEXT", None)
    variable = getattr(runtime, "_current_context", None)
    known = type(runtime) is ContextVarsRuntimeContext and type(variable) is ContextVar
    return variable.get if known else otel_context.get_current  # type: ignore[union-attr]


def is_suppressed() -> bool:
    """Return True on a thread or in a task that OpenTelemetry's own machinery works on."""
    return bool(otel_context.get_value(SUPPRESS)) and not _is_logfires_own_suppression()


def _is_logfires_own_suppression() -> bool:
    """Return True in a hook that Logfire calls (``additional_span_processors``).

    It calls all of them with instrumentation suppressed, having left out the spans that were suppressed before.
    Nothing but the stack distinguishes the two.
    """
    frame = sys._getframe(2)
    for _ in range(_FRAMES_TO_LOGFIRE):
        if frame.f_globals.get("__name__") == "logfire._internal.exporters.processor_wrapper":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
