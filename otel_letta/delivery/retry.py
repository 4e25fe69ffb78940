"""Patience with failures."""

from __future__ import annotations

import math
import random

from otel_letta.errors import LettaError

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0


class Retry:
    """Jittered exponential backoff after failures, or a probe now and then while parked."""

    def __init__(self, probe_interval: float) -> None:
        self._probe_interval = max(probe_interval, 0.01)
        self.not_before = -math.inf
        """Monotonic seconds."""
        self.failures = 0
        self.parked: LettaError | None = None
        """The error that only a person can help against; None while trying."""

    def failed(self, error: LettaError, now: float) -> float:
        """Note a failure. Return the seconds until the next try."""
        self.failures += 1
        if error.parks:
            self.parked = error
            delay = self._probe_interval
        else:
            ceiling = min(_FIRST_BACKOFF * 2 ** min(self.failures - 1, 10), _LONGEST_BACKOFF)
            delay = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads clients, hides nothing
        if error.retry_after is not None:
            delay = max(delay, error.retry_after)
        self.not_before = now + delay
        return delay

    def succeeded(self) -> None:
        """Forget all failures."""
        self.failures = 0
        self.parked = None
        self.not_before = -math.inf

    def bring_forward(self, at: float) -> None:
        """Try at that time (monotonic seconds) at the latest."""
        self.not_before = min(self.not_before, at)
