"""What a benchmark gives back, and the little arithmetic that they share."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Figure", "Run", "at_most", "median", "percentile"]


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    figure: str
    target: str = ""
    met: bool | None = None
    """None: no target was set for it."""
    note: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The same unrounded, for ``--json``."""

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "–"}[self.met]


@dataclass(frozen=True)
class Run:
    """How much to measure."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Progress goes to stderr: stdout is the table."""
        print(f"  {text}", file=sys.stderr, flush=True)


def at_most(
    what: str, value: float, limit: float, unit: str, note: str = "", *, extra: str = "", **numbers: Any
) -> Figure:
    """A figure that meets its target if it is not above the limit."""
    shown = f"{value:.2f}{unit}" if unit == "×" else f"{value:.1f} {unit}"
    return Figure(
        what,
        shown + extra,
        f"≤ {limit:.2f}×" if unit == "×" else f"≤ {limit:g} {unit}",
        value <= limit,
        note,
        {"value": value, "limit": limit, "unit": unit, **numbers},
    )


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many of all (0..1) do not exceed."""
    ordered = sorted(values)
    return ordered[min(round(share * len(ordered) + 0.4999), len(ordered)) - 1]
