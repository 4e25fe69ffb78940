"""From spans to reports. Pure: no threads, files, network or environment, and the clock is handed in."""

from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tracker import Ancestor, Tracker

__all__ = ["Ancestor", "Reading", "SpanKey", "Tracker"]
