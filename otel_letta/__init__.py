"""OpenTelemetry spans of agent tasks become progress reports for a Letta agent."""

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaConfigurationError,
    LettaConflictError,
    LettaConnectionError,
    LettaConversationNotFoundError,
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
from otel_letta.processor import LettaSpanProcessor
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.reporter import LettaReporter
from otel_letta.settings import Settings

__all__ = [
    "LettaAgentNotFoundError",
    "LettaAuthenticationError",
    "LettaConfigurationError",
    "LettaConflictError",
    "LettaConnectionError",
    "LettaConversationNotFoundError",
    "LettaError",
    "LettaModelError",
    "LettaRateLimitError",
    "LettaReporter",
    "LettaRequestError",
    "LettaServerError",
    "LettaSessionClosedError",
    "LettaSpanExporter",
    "LettaSpanProcessor",
    "LettaTimeoutError",
    "LettaUnsupportedError",
    "ProgressReport",
    "Settings",
    "TaskStatus",
]
