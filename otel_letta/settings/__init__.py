"""Where every setting comes from."""

from otel_letta.settings.settings import (
    CLOUD_BASE_URL,
    DEFAULT_BASE_URL,
    VARIABLES,
    Delivery,
    Secret,
    ServerKind,
    Settings,
    SettingsOptions,
    Variable,
    http_url,
    websocket_url,
)

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
