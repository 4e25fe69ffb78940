"""Ended spans that say nothing, of traces in which nothing has mattered: who is above whom, in case something does."""

from __future__ import annotations

import struct
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

from otel_letta.otlp.sieve import AWAY, NO_SPAN
from otel_letta.recent import Recent
from otel_letta.tracking.reading import SpanKey

_MOST_SPANS = 50_000
_MOST_WANTED = 20_000
"""Twice as many traces as are tracked at once."""
_PLACE = struct.Struct("!16s8s8s?")
"""Ids of the trace, of the span, and of the one above it; whether that is in another process."""

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


def write_places(links: Iterable[Link]) -> bytes:
    """Write down what `PlainSpans.want` returned; `read_places` reads it."""
    return b"".join(
        _PLACE.pack(trace_id.to_bytes(16, "big"), span_id.to_bytes(8, "big"), _id_of(above).to_bytes(8, "big"), away)
        for (trace_id, span_id), above, away in links
    )


def read_places(written: bytes) -> dict[bytes, dict[bytes, bytes]]:
    """Return places by trace, as a `Batch` has them. Raises ValueError for what `write_places` cannot have written."""
    if len(written) % _PLACE.size:
        raise ValueError("no places")
    found: dict[bytes, dict[bytes, bytes]] = defaultdict(dict)
    for trace_id, span_id, above, away in _PLACE.iter_unpack(written):
        found[trace_id][span_id] = b"" if above == NO_SPAN else above + (AWAY if away else b"")
    return found


def _id_of(key: SpanKey | None) -> int:
    return 0 if key is None else key[1]


def _link(trace_id: int, span_id: bytes, above: bytes) -> Link:
    parent = (trace_id, int.from_bytes(above[:8], "big")) if above else None
    return (trace_id, int.from_bytes(span_id, "big")), parent, above[8:] == AWAY
