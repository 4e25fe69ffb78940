"""The order of the spans of one request, which means nothing as it comes: some exporters shuffle them."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.tracking.values import nanoseconds_of

_MOST_HOPS = 1_000
"""Made-up parents can go in circles."""

_Place = tuple[int, int, int, int]


def in_order(spans: Iterable[ReadableSpan]) -> list[ReadableSpan]:
    """Return the spans of one request in the order of their ends, children before their parents.

    The same spans give the same order, whatever order they came in.
    """
    found = list(spans)
    if len(found) < 2:
        return found
    ends: dict[tuple[int, int], tuple[int, int]] = {}
    above: dict[tuple[int, int], tuple[int, int] | None] = {}
    for span in found:
        key = span.context[:2]
        ends[key] = nanoseconds_of(span.end_time), 0
        above[key] = None if span.parent is None else span.parent[:2]
    for key in above:
        _lift(key, ends, above)

    def place(span: ReadableSpan) -> _Place:
        key = span.context[:2]
        return (*ends[key], nanoseconds_of(span.start_time), key[1])

    return sorted(found, key=place)


def _lift(
    key: tuple[int, int],
    ends: dict[tuple[int, int], tuple[int, int]],
    above: dict[tuple[int, int], tuple[int, int] | None],
) -> None:
    """Put all spans above one behind it."""
    for _ in range(_MOST_HOPS):
        parent = above[key]
        if parent is None or parent not in ends:
            return
        end, height = ends[key]
        own_end, own_height = ends[parent]
        if own_end > end or (own_end == end and own_height > height):
            return
        ends[parent] = (end, height + 1)
        key = parent
