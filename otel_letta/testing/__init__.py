"""A Letta server in memory, to test an application that reports to a Letta agent: see `InMemoryLetta`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_letta.runtime.imports import names_on_demand

if TYPE_CHECKING:
    from otel_letta.testing.faults import HOLD_LIMIT, ModelFailure
    from otel_letta.testing.server import InMemoryLetta
    from otel_letta.testing.world import ReceivedMessage, Request

__all__ = ["HOLD_LIMIT", "InMemoryLetta", "ModelFailure", "ReceivedMessage", "Request"]

# pytest loads the plugin beside this in every run, and must not load a server with it.
_PLACES = {
    "faults": ["HOLD_LIMIT", "ModelFailure"],
    "server": ["InMemoryLetta"],
    "world": ["ReceivedMessage", "Request"],
}
__getattr__, __dir__ = names_on_demand(__name__, _PLACES)
