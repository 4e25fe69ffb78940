"""The Model Context Protocol, as its clients and servers trace it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind

from otel_letta import semconv
from otel_letta.tracking.conventions.convention import UNCLAIMED, Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading


def _role(reading: Reading) -> Role | Unclaimed | None:
    # The server's view of a tool call that its client reports too.
    return None if reading.kind is SpanKind.SERVER else UNCLAIMED


MCP = Convention(name="mcp", role=_role, also_asked=frozenset({semconv.MCP_METHOD}))
