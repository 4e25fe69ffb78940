"""Waiting for what announces itself nowhere: asked again and again, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["until"]


def until(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait until the condition holds, for ``seconds`` at most; says whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
