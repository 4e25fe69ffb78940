"""The warning about a task that nobody reports, since reporting was never turned on. Asked once, at the first task."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span

from otel_letta.runtime.suppress import is_suppressed
from otel_letta.text import clean_line

_logger = logging.getLogger(__name__)

unchecked = True
"""Until the first task of the process has started."""


def check(name: str, span: Span, *, by_own_tracer: bool) -> None:
    """Log one line if nothing in this program reports the task that has just started. Never raises.

    Args:
        name: the task's.
        span: its span.
        by_own_tracer: the program gave the tracer, so the global provider says nothing about it.
    """
    global unchecked
    unchecked = False
    try:
        found = _trouble(span, by_own_tracer)
    except Exception:
        _logger.debug("unexpected error", exc_info=True)
        return
    if found is not None:
        level, why = found
        _logger.log(level, 'the task "%s" is not reported: %s', clean_line(name, 100), why)


def _trouble(span: Span, by_own_tracer: bool) -> tuple[int, str] | None:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or is_suppressed():
        return None
    provider = trace.get_tracer_provider()
    if not span.is_recording():
        if isinstance(provider, trace.ProxyTracerProvider) and not by_own_tracer:
            return logging.WARNING, "reporting is not turned on. Call otel_letta.configure() at the start"
        if hasattr(provider, "sampler"):
            return logging.WARNING, "the sampler dropped its span. otel_letta.LettaSampler around it keeps tasks"
        return None
    # Not imported for this: where nobody has, there is no component.
    components: Any = sys.modules.get("otel_letta.otel.component")
    if components is not None and components.Component.made_any:
        return None
    why = "this program has no LettaSpanProcessor or LettaSpanExporter. Call otel_letta.configure() at the start"
    if _goes_elsewhere(span) and not os.environ.get("LETTA_AGENT_ID", "").strip():
        # A Collector or `otel-letta serve` may report it: no warning, since nothing may be wrong.
        return logging.INFO, f"{why}, unless another process does that"
    return logging.WARNING, why


def _goes_elsewhere(span: Any) -> bool:
    """Return whether the span's provider has a processor. By the SDK's private names: without them, it may have."""
    processors = getattr(getattr(span, "_span_processor", None), "_span_processors", None)
    return processors is None or len(processors) > 0
