"""The base of what plugs into OpenTelemetry's SDK: settings that may be bad, a share in a pipeline, no exceptions."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from otel_letta.errors import LettaConfigurationError
from otel_letta.letta.transport import Transport
from otel_letta.pipeline.pipeline import Handle, Pipeline, join
from otel_letta.settings import Settings
from otel_letta.tracking.opt_in import TaskFilter

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from otel_letta.otel.selfmetrics import SelfMetrics

__all__ = ["Component"]

_logger = logging.getLogger(__name__)


class Component:
    """What exporter and processor have in common: settings that may be bad, a share, and never an exception."""

    def __init__(
        self,
        kind: str,
        *,
        live: bool,
        transport: Transport | None,
        meter_provider: MeterProvider | None = None,
        task_filter: TaskFilter | None = None,
        options: dict[str, Any],
    ) -> None:
        self._handle: Handle | None = None
        self._hooked: Pipeline | None = None
        self._shutdown = False
        self._metrics: SelfMetrics | None = None
        try:
            settings, complaints = Settings.from_options(options, lenient=True)
            for error in complaints:  # a slip in a YAML file must not switch reporting off
                _logger.warning("%s ignores an option: %s", kind, error)
            if settings.disabled:
                _logger.debug("%s does nothing: OTEL_SDK_DISABLED is set", kind)
                return
            self._metrics = _self_metrics(kind, settings, meter_provider)
            self._handle = join(settings, transport, live=live, metrics=self._metrics, task_filter=task_filter)
            self._hooked = self._handle.pipeline
        except LettaConfigurationError as error:
            # Auto-instrumentation builds exporters from the environment; one that raises here takes the program's
            # other exporters and instrumentations with it (measured).
            _logger.error("%s does nothing: %s", kind, error)
            self._metrics = _self_metrics(kind, None, meter_provider)
        except Exception as error:
            _logger.error("%s does nothing: unexpected %s", kind, type(error).__name__)
            _logger.debug("unexpected error", exc_info=True)

    @property
    def active(self) -> bool:
        """False if there is nothing that this could do: its settings are bad, or it was shut down."""
        return self._hooked is not None

    def stats(self) -> dict[str, Any]:
        """Numbers since the start: what was sent, held, conflated, dropped and why, and what is wrong now.

        Returns:
            ``reports``, ``sent``, ``requests`` (agent turns), ``board_writes``, ``conflated``, ``held``,
            ``retries``; ``dropped``: reason → number; ``open_spans``, ``open_tasks``, ``evicted`` (traces of agents
            that were given up because there were too many); ``lanes``: name → ``waiting``,
            ``in_flight``, ``parked`` (why, or None), ``last_error``; ``boards``: agent → ``label``, ``open_tasks``,
            ``parked``. Empty for a component without valid settings. Components that are configured alike share a
            pipeline and its numbers.
        """
        return self._handle.pipeline.stats() if self._handle is not None else {}

    def _flush(self, timeout_millis: float | None) -> bool:
        pipeline = self._hooked
        if pipeline is None:
            return True
        try:
            return pipeline.flush(max(30_000 if timeout_millis is None else timeout_millis, 0) / 1e3)
        except Exception as error:  # noqa: BLE001
            self._swallow("force_flush", error)
            return False

    def _close(self, timeout_millis: float | None) -> None:
        pipeline, self._hooked = self._hooked, None
        handle = self._handle
        if pipeline is None or handle is None:
            return
        most = pipeline.settings.shutdown_timeout
        try:
            handle.close(most if timeout_millis is None else min(timeout_millis / 1e3, most))
        except Exception as error:  # noqa: BLE001
            self._swallow("shutdown", error)

    def _swallow(self, where: str, error: Exception) -> None:
        """A hook's exception would replace the traced program's own, so it ends here."""
        if self._handle is not None:
            self._handle.pipeline.note_error(where, error)


def _self_metrics(kind: str, settings: Settings | None, meter_provider: MeterProvider | None) -> SelfMetrics | None:
    if os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() != "true":
        return None
    from otel_letta.otel.selfmetrics import SelfMetrics

    try:
        return SelfMetrics(kind, settings, meter_provider)
    except Exception:
        _logger.warning("%s has no metrics: the meter provider failed", kind, exc_info=True)
        return None
