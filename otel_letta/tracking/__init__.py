"""From spans to reports. Pure: no threads, files, network or environment, and the clock is handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_letta.runtime.imports import names_on_demand

if TYPE_CHECKING:
    from otel_letta.tracking.above import Ancestor
    from otel_letta.tracking.reading import Reading, SpanKey
    from otel_letta.tracking.tracker import Tracker

__all__ = ["Ancestor", "Reading", "SpanKey", "Tracker"]

# On demand, since helpers that need no SDK use `otel_letta.runtime.aborts`.
__getattr__, __dir__ = names_on_demand(
    __name__, {"above": ("Ancestor",), "reading": ("Reading", "SpanKey"), "tracker": ("Tracker",)}
)
