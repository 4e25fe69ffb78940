"""OpenTelemetry spans of agent tasks become progress reports for a Letta agent.

The names below load what they need when they are first used: importing the package costs next to nothing, and a
program that only reports by `LettaReporter` loads no more than that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_letta.errors import (
        LettaAgentNotFoundError,
        LettaAuthenticationError,
        LettaConfigurationError,
        LettaConflictError,
        LettaConnectionError,
        LettaConversationNotFoundError,
        LettaDependencyError,
        LettaError,
        LettaModelError,
        LettaRateLimitError,
        LettaRequestError,
        LettaServerError,
        LettaSessionClosedError,
        LettaTimeoutError,
        LettaUnsupportedError,
    )
    from otel_letta.exporter import LettaSpanExporter
    from otel_letta.instrument import report_progress, task, track
    from otel_letta.logs import LettaLogRecordProcessor
    from otel_letta.processor import LettaSpanProcessor
    from otel_letta.report import ProgressReport, TaskStatus
    from otel_letta.reporter import LettaReporter
    from otel_letta.sampler import LettaSampler
    from otel_letta.settings import Settings

__all__ = [
    "LettaAgentNotFoundError",
    "LettaAuthenticationError",
    "LettaConfigurationError",
    "LettaConflictError",
    "LettaConnectionError",
    "LettaConversationNotFoundError",
    "LettaDependencyError",
    "LettaError",
    "LettaLogRecordProcessor",
    "LettaModelError",
    "LettaRateLimitError",
    "LettaReporter",
    "LettaRequestError",
    "LettaSampler",
    "LettaServerError",
    "LettaSessionClosedError",
    "LettaSpanExporter",
    "LettaSpanProcessor",
    "LettaTimeoutError",
    "LettaUnsupportedError",
    "ProgressReport",
    "Settings",
    "TaskStatus",
    "report_progress",
    "task",
    "track",
]

_HOMES = {
    "errors": (
        "LettaAgentNotFoundError",
        "LettaAuthenticationError",
        "LettaConfigurationError",
        "LettaConflictError",
        "LettaConnectionError",
        "LettaConversationNotFoundError",
        "LettaDependencyError",
        "LettaError",
        "LettaModelError",
        "LettaRateLimitError",
        "LettaRequestError",
        "LettaServerError",
        "LettaSessionClosedError",
        "LettaTimeoutError",
        "LettaUnsupportedError",
    ),
    "exporter": ("LettaSpanExporter",),
    "instrument": (
        "report_progress",
        "task",
        "track",
    ),
    "logs": ("LettaLogRecordProcessor",),
    "processor": ("LettaSpanProcessor",),
    "report": (
        "ProgressReport",
        "TaskStatus",
    ),
    "reporter": ("LettaReporter",),
    "sampler": ("LettaSampler",),
    "settings": ("Settings",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
