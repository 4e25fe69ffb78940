"""The doorway for what measures a pipeline; for type checkers alone, since making a Protocol takes its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from otel_letta.delivery.stats import Stats
from otel_letta.letta.transport import Transport


class Metrics(Protocol):
    """Measurements of delivery, handed in by the component that makes the pipeline."""

    def timed(self, transport: Transport) -> Transport:
        """Return the transport with its requests timed."""

    def stats(self, lanes: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Stats:
        """Return counts that are metrics too. ``lanes`` returns what waits, by lane."""
