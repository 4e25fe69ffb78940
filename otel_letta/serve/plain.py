"""Ended spans that say nothing, of traces in which nothing has mattered: who is above whom, in case something does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from otel_letta.otlp.sieve import AWAY
from otel_letta.tracking.reading import SpanKey
from otel_letta.tracking.recent import Recent

_MOST_SPANS = 50_000
_MOST_WANTED = 20_000
"""Twice as many traces as are tracked at once."""

Link = tuple[SpanKey, "SpanKey | None", bool]
"""A span, the one above it, and whether that is in another process."""


class PlainSpans:
    """The places of plain spans by trace, as a `Batch` has them. Bounded: the oldest traces are forgotten first.

    For one thread at a time, but for ``wanted``, in which others may look things up.
    """

    def __init__(self, most: int = _MOST_SPANS) -> None:
        self._most = most
        self._places: OrderedDict[bytes, dict[bytes, bytes]] = OrderedDict()
        self._size = 0
        self.wanted: Recent[bytes, None] = Recent(_MOST_WANTED)
        """The traces in which something has mattered: all that comes of them is wanted from then on."""

    def __contains__(self, key: SpanKey) -> bool:
        places = self._places.get(key[0].to_bytes(16, "big"))
        return places is not None and key[1].to_bytes(8, "big") in places

    def keep(self, plain: Mapping[bytes, dict[bytes, bytes]]) -> None:
        """Keep the places of a batch's plain spans; the mappings of its traces are this one's from now on."""
        for trace_id, places in plain.items():
            known = self._places.get(trace_id)
            if known is None:
                self._places[trace_id] = places
                self._size += len(places)
            else:
                self._size -= len(known)
                known.update(places)
                self._size += len(known)
        while self._size > self._most:
            _, places = self._places.popitem(last=False)
            self._size -= len(places)

    def want(self, trace_ids: Iterable[int]) -> list[Link]:
        """Note that traces matter. Return what was kept of them, which is theirs to know now."""
        links: list[Link] = []
        for number in trace_ids:
            trace_id = number.to_bytes(16, "big")
            self.wanted.put(trace_id, None)
            places = self._places.pop(trace_id, None)
            if places is not None:
                self._size -= len(places)
                links += (_link(number, span_id, above) for span_id, above in places.items())
        return links


def _link(trace_id: int, span_id: bytes, above: bytes) -> Link:
    parent = (trace_id, int.from_bytes(above[:8], "big")) if above else None
    return (trace_id, int.from_bytes(span_id, "big")), parent, above[8:] == AWAY
