"""OpenTelemetry spans of agent tasks become progress reports for a Letta agent.

The names below load what they need when they are first used: importing the package costs next to nothing, and a
program that only reports by `LettaReporter` loads no more than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_letta.runtime.imports import names_on_demand

if TYPE_CHECKING:
    from otel_letta.answer import Answer
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
    from otel_letta.instruction import Instruction
    from otel_letta.otel.configure import Reporting, configure
    from otel_letta.otel.exporter import LettaSpanExporter
    from otel_letta.otel.heartbeats import LettaHeartbeatProcessor
    from otel_letta.otel.helpers import report_progress, task, track
    from otel_letta.otel.logs import LettaLogRecordProcessor
    from otel_letta.otel.processor import LettaSpanProcessor
    from otel_letta.otel.sampler import LettaSampler
    from otel_letta.otel.status import Status
    from otel_letta.report import ProgressReport, TaskStatus
    from otel_letta.reporter import LettaReporter
    from otel_letta.settings import Settings

__all__ = [
    "Answer",
    "Instruction",
    "LettaAgentNotFoundError",
    "LettaAuthenticationError",
    "LettaConfigurationError",
    "LettaConflictError",
    "LettaConnectionError",
    "LettaConversationNotFoundError",
    "LettaDependencyError",
    "LettaError",
    "LettaHeartbeatProcessor",
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
    "Reporting",
    "Settings",
    "Status",
    "TaskStatus",
    "configure",
    "report_progress",
    "task",
    "track",
]

_HOMES = {
    "answer": ("Answer",),
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
    "instruction": ("Instruction",),
    "otel.configure": (
        "Reporting",
        "configure",
    ),
    "otel.exporter": ("LettaSpanExporter",),
    "otel.heartbeats": ("LettaHeartbeatProcessor",),
    "otel.helpers": (
        "report_progress",
        "task",
        "track",
    ),
    "otel.logs": ("LettaLogRecordProcessor",),
    "otel.processor": ("LettaSpanProcessor",),
    "report": (
        "ProgressReport",
        "TaskStatus",
    ),
    "reporter": ("LettaReporter",),
    "otel.sampler": ("LettaSampler",),
    "otel.status": ("Status",),
    "settings": ("Settings",),
}

__getattr__, __dir__ = names_on_demand(__name__, _HOMES)
