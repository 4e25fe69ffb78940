"""Whose work runs on this thread, and what the SDK and Logfire make of it. Their releases can break what is here."""

from __future__ import annotations

import sys
from functools import partial

from opentelemetry import context as otel_context

_FRAMES_TO_LOGFIRE = 10
"""At most so many from a hook up to Logfire's wrapper around it: five in Logfire 5.2, more if that samples tails."""

_OURS = otel_context.create_key("otel_letta")


def on_own_thread() -> bool:
    """True on a thread that does this package's own work, and so in destructors that run in the middle of it."""
    return bool(otel_context.get_value(_OURS))


class suppress_tracing:  # noqa: N801 - reads as the context manager that it is
    """Inside, OpenTelemetry instrumentation makes no spans of our own requests.

    The SDK's key does not cross into new threads, so it is attached on the thread that sends, around each send. The
    plain string is what older instrumentation packages look for.
    """

    def __enter__(self) -> None:
        context = otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True)
        context = otel_context.set_value("suppress_instrumentation", True, context)
        context = otel_context.set_value(_OURS, True, context)
        self._token = otel_context.attach(context)

    def __exit__(self, *_: object) -> None:
        otel_context.detach(self._token)


may_be_suppressed = partial(otel_context.get_value, otel_context._SUPPRESS_INSTRUMENTATION_KEY)
"""A fast no of what `is_suppressed` answers."""


def is_suppressed() -> bool:
    """True on a thread or in a task that OpenTelemetry's own machinery works on."""
    return (
        bool(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY)) and not _is_logfires_own_suppression()
    )


def _is_logfires_own_suppression() -> bool:
    """True in a hook that Logfire calls (``additional_span_processors``): it calls all of them with instrumentation
    suppressed, having left out the spans that were suppressed before. Nothing but the stack tells the two apart."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES_TO_LOGFIRE):
        if frame.f_globals.get("__name__") == "logfire._internal.exporters.processor_wrapper":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
