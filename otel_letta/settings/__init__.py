"""Every setting, and its way here: keyword, environment, `.env`, default, in this order.

`table.py` has a row for each, from which parsing, messages, displays and documentation come; `kinds.py` and `urls.py`
what a row may hold; `sources.py` the raw values; `settings.py` the `Settings` that all other rooms read.
"""

from otel_letta.settings.kinds import Delivery, ServerKind
from otel_letta.settings.secret import Secret
from otel_letta.settings.settings import Settings, SettingsOptions
from otel_letta.settings.table import VARIABLES, Variable
from otel_letta.settings.urls import CLOUD_BASE_URL, DEFAULT_BASE_URL, http_url, websocket_url

__all__ = [
    "CLOUD_BASE_URL",
    "DEFAULT_BASE_URL",
    "VARIABLES",
    "Delivery",
    "Secret",
    "ServerKind",
    "Settings",
    "SettingsOptions",
    "Variable",
    "http_url",
    "websocket_url",
]
