"""Reports on OpenHands' runs: by a callback, by OpenTelemetry, by webhooks, or by hooks of its command.

Importing this imports nothing of OpenHands, and of ours only what is used: OpenHands waits for our hook at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_letta.runtime.imports import names_on_demand

if TYPE_CHECKING:
    from otel_letta.integrations.openhands.callbacks import Callback, callback
    from otel_letta.integrations.openhands.execution import reporting
    from otel_letta.integrations.openhands.share import flush, shutdown
    from otel_letta.integrations.openhands.tracing import attach
    from otel_letta.integrations.openhands.webhooks import OpenHandsWebhooks

__all__ = ["Callback", "OpenHandsWebhooks", "attach", "callback", "flush", "reporting", "shutdown"]

# No module here may have the name of one of these: importing the module would put it in the name's place.
__getattr__, __dir__ = names_on_demand(
    __name__,
    {
        "callbacks": ("Callback", "callback"),
        "execution": ("reporting",),
        "share": ("flush", "shutdown"),
        "tracing": ("attach",),
        "webhooks": ("OpenHandsWebhooks",),
    },
)
