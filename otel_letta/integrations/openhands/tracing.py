"""OpenHands' own spans: `attach` finds the tracer provider that OpenHands traces with."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from otel_letta.runtime.imports import when_imported

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from otel_letta.otel.processor import LettaSpanProcessor
    from otel_letta.settings import SettingsOptions

_logger = logging.getLogger(__name__)

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenHands traces if this is set when ``openhands.sdk`` is imported, or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
OTEL_ENDPOINT or LMNR_PROJECT_API_KEY (measured with 1.58)."""


def attach(**options: Unpack[SettingsOptions]) -> LettaSpanProcessor | None:
    """Report OpenHands' own spans: adds a live processor to the tracer provider that OpenHands traces with.

    Call it before or after ``import openhands.sdk``. OpenHands traces only if ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
    another variable that it knows) is set before that import; if not, there is one error in the log.

    Args:
        options: the keywords of `LettaSpanProcessor`.

    Returns:
        The processor; None if it will be added when ``openhands.sdk`` is imported, or if there is nothing to add it to.
    """
    if "openhands.sdk" in sys.modules:
        return _attach_now(dict(options))
    when_imported("openhands.sdk", lambda: _attach_now(dict(options)))
    return None


def _attach_now(options: dict[str, Any]) -> LettaSpanProcessor | None:
    from otel_letta.otel.zero_code import _go_live

    try:
        provider = _provider_of_openhands()
        if provider is None:
            _logger.error(
                "OpenHands' tracing is off, so it has no spans to report: set %s before openhands.sdk is imported, or "
                "use otel_letta.integrations.openhands.callback(), which needs no tracing",
                _ENDPOINT,
            )
            return None
        return _go_live(options, provider)
    except Exception as error:
        _logger.error("OpenHands' spans are not reported: unexpected %s", type(error).__name__)
        _logger.debug("unexpected error", exc_info=True)
        return None


def _provider_of_openhands() -> object | None:
    """Return the tracer provider of OpenHands' spans, None while it does not trace.

    OpenHands traces through Laminar, which makes a provider of its own, and makes it the global one only where there
    was none. There is no public way to it where there was one (lmnr 0.7.52 to 0.7.67).
    """
    laminar = sys.modules.get("lmnr")
    if laminar is None or not laminar.Laminar.is_initialized():
        return None
    tracing = sys.modules.get("lmnr.opentelemetry_lib.tracing")
    own = getattr(getattr(getattr(tracing, "TracerWrapper", None), "instance", None), "_tracer_provider", None)
    if own is not None:
        return own  # type: ignore[no-any-return]
    from opentelemetry import trace

    return trace.get_tracer_provider()
