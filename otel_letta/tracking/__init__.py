"""From spans to reports. Pure: no threads, files, network or environment, and the clock is handed in."""

from otel_letta.tracking.roles import Declaration, SpanFacts, SpanKey, declaration, may_declare
from otel_letta.tracking.tasks import TaskTracker

__all__ = ["Declaration", "SpanFacts", "SpanKey", "TaskTracker", "declaration", "may_declare"]
