"""What helpers write on a span: numbers as OpenTelemetry takes them, and the same once more as a log event."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from otel_letta import semconv
from otel_letta.text import clean_line

_logger = logging.getLogger("otel_letta.otel.helpers")

_refused: set[str] = set()
"""The types of what was said to be a progress and is none, each warned of once."""


def plain_number(value: Any) -> Any:
    """Return a progress as OpenTelemetry takes it, None for what is no number."""
    if isinstance(value, (int, float)):
        return value  # bools too: the reader says what is wrong with them
    # Importing these takes its time; where nobody did, there is none of their numbers.
    numbers, decimals = sys.modules.get("numbers"), sys.modules.get("decimal")
    kinds = tuple(kind for kind in (getattr(numbers, "Real", None), getattr(decimals, "Decimal", None)) if kind)
    if isinstance(value, kinds):
        try:
            return float(value)
        except (ArithmeticError, TypeError, ValueError):
            pass
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if kind not in _refused and len(_refused) < 100:
        _refused.add(kind)
        _logger.warning("a progress of type %s is ignored: it is no real number", clean_line(kind, 100))
    return None


def emit_event(span: Span, attributes: dict[str, AttributeValue]) -> None:
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
