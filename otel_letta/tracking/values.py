"""Plain values out of what people put into attributes, without running any code of theirs."""

from __future__ import annotations

import functools
import math
from datetime import datetime, timezone
from typing import Any

from otel_letta.text import as_text, clean_line

NAME_CAP = 80
ID_CAP = 200
EXTRA_CAP = 300
"""Characters of a piece of content that the settings ask for."""
JSON_CAP = 65_536
"""Characters of a text that is parsed, or searched for a name."""
LATEST = 2**63
"""Nanoseconds in April 2262, past which a time is none."""


def id_of(value: Any) -> str | None:
    """Return an id as text; None for an empty value, or one that is none."""
    if value is None:
        return None
    text = value if type(value) is str else as_text(value)
    if text is None:
        return None
    if len(text) > ID_CAP:
        import hashlib  # hardly anybody has such ids

        # Two long ids that begin alike are two.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{clean_line(text, ID_CAP - 17)} {digest}".strip()
    return _short_id(text)


@functools.lru_cache(maxsize=512)  # all spans of a conversation carry the same
def _short_id(text: str) -> str | None:
    return clean_line(text, ID_CAP) or None


def number_of(value: Any) -> float | None:
    """Return a plain float; None for what is no number, NaN for integers that are too large for a float."""
    kind = type(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, int) and kind is not bool:
        try:
            return int.__float__(value)
        except OverflowError:
            return math.nan
    return None


def share_of(done: Any, total: Any) -> float | None:
    """Return ``done`` of ``total`` as a number from 0 to 1; None if they are no such pair."""
    if done is None or total is None:
        return None
    part, whole = number_of(done), number_of(total)
    if part is None or whole is None or not 0.0 < whole < math.inf or not 0.0 <= part < math.inf:
        return None
    return min(part / whole, 1.0)


def nanoseconds_of(value: Any) -> int:
    """Return a time, or 0 for what is none: people hand in floats, seconds as text and worse."""
    if type(value) is not int:  # a float has no room for those
        number = number_of(value)
        value = int(number) if number is not None and 0.0 < number < LATEST else 0
    return value if 0 < value < LATEST else 0


@functools.lru_cache(maxsize=128)  # all reports of a task bear its start, and many of a moment the same time
def time_of(nanoseconds: int) -> datetime:
    """Return a time in Unix nanoseconds as UTC."""
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
