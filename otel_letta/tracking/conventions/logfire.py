"""Pydantic Logfire, and Pydantic AI with it: attributes beside those of the GenAI conventions, and pending spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_letta import semconv
from otel_letta.text import as_text
from otel_letta.tracking.conventions.convention import Convention, Role

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading, SpanKey

LOGFIRE = Convention(
    name="logfire",
    repeated_names=frozenset({"logfire.msg", "logfire.msg_template"}),
    content={(Role.AGENT, "answer"): ("final_result",)},
)


class Pending(NamedTuple):
    """A span that Logfire sends when another one starts: which one, and below which."""

    key: SpanKey
    parent: SpanKey | None


def pending_of(reading: Reading) -> Pending | None:
    """Return what a pending span announces; None for any other span."""
    attributes = reading.attributes
    if semconv.LOGFIRE_SPAN_TYPE not in attributes:
        return None
    if as_text(attributes[semconv.LOGFIRE_SPAN_TYPE]) != "pending_span":
        return None
    real = reading.parent or reading.remote
    if real is None:
        return None
    try:
        parent = int(as_text(attributes.get(semconv.LOGFIRE_PENDING_PARENT)) or "0", 16)
    except ValueError:
        parent = 0
    return Pending(real, (real[0], parent) if 0 < parent < 2**64 else None)
