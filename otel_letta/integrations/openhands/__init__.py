"""OpenHands reports how its work goes: by a callback, by OpenTelemetry, by webhooks, or by hooks of its command.

Importing this imports nothing of OpenHands, and of ours only what is used: OpenHands waits for our hook at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_letta.runtime.imports import names_on_demand

if TYPE_CHECKING:
    from otel_letta.integrations.openhands.callbacks import Callback, attach, callback, flush, reporting, shutdown
    from otel_letta.integrations.openhands.webhooks import OpenHandsWebhooks

__all__ = ["Callback", "OpenHandsWebhooks", "attach", "callback", "flush", "reporting", "shutdown"]

__getattr__, __dir__ = names_on_demand(
    __name__,
    {
        "callbacks": ("Callback", "attach", "callback", "flush", "reporting", "shutdown"),
        "webhooks": ("OpenHandsWebhooks",),
    },
)
