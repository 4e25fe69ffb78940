"""Which spans of a request are read: all those of a trace in which something matters, and no others.

Most of what a fleet sends is of no interest. So each span is glanced at: its ids, its times, and the names of its
attributes. Of the others only their places are kept, for what may come below them later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple, TypeVar

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.otlp.batch import Batch, BrokenError
from otel_letta.otlp.received import Of

AWAY = b"\1"
"""Behind a parent's id: it is in another process."""
NO_TRACE, NO_SPAN = bytes(16), bytes(8)
_Raw = TypeVar("_Raw")


class Gate(NamedTuple):
    """What makes a trace worth reading."""

    names: frozenset[str]
    """A span with one of these attributes matters, and with it its trace."""
    wanted: Container[bytes]
    """Traces that matter whatever their spans say."""


Glance = tuple[bytes, bytes, bytes, "str | int", "str | int", bool, bool, _Raw, Of]
"""What of a span is looked at in any case: its trace's id, its own, and its parent's, with `AWAY` behind it if that is
in another process, empty for none; start and end, as they came; whether it matters by itself; whether all of it was
looked at; the span as it came; and whose it is."""


def sift(
    glances: Iterable[Glance[_Raw]], gate: Gate, read: Callable[[Glance[_Raw]], ReadableSpan], batch: Batch
) -> None:
    """Put the spans that are to be read into a batch, and the places of the others.

    Args:
        glances: one with an empty id has to be read to know what it is.
        read: reads one whole; raises BrokenError for one that can never be read.
    """
    traces: dict[bytes, list[Glance[_Raw]]] = defaultdict(list)
    matter: set[bytes] = set()
    last: bytes | None = None
    for glance in glances:
        if glance[0] != last:  # mostly they come one trace after the other
            last = glance[0]
            add = traces[last].append
        add(glance)
        if glance[5]:
            matter.add(glance[0])
    for glance in traces.pop(b"", ()):
        span = read_into(batch, read, glance)
        if span is not None:
            matter.add(span.context.trace_id.to_bytes(16, "big"))
    for trace_id, found in traces.items():
        if trace_id in matter or trace_id in gate.wanted:
            for glance in found:
                read_into(batch, read, glance)
        else:
            batch.plain[trace_id] = {glance[1]: glance[2] for glance in found}


def read_into(batch: Batch, read: Callable[[Glance[_Raw]], ReadableSpan], glance: Glance[_Raw]) -> ReadableSpan | None:
    """Read a span into a batch; None for one that cannot be read, which the batch names."""
    try:
        span = read(glance)
    except BrokenError as error:
        batch.broken.append(f"a span: {error}")
        return None
    batch.spans.append(span)
    return span


def arguments_of(glance: Glance[Any]) -> tuple[bytes, tuple[int, int], int, bool, int, int, Of]:
    """Return what a `ReceivedSpan` is made of."""
    trace_id, span_id, above, start, end, _, _, raw, of = glance
    key = int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big")
    return bytes(raw), key, int.from_bytes(above[:8], "big"), above[8:] == AWAY, int(start), int(end), of
