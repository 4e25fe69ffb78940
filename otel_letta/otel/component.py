"""The base of what plugs into OpenTelemetry's SDK: settings that may be bad, a share in a pipeline, no exceptions."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from otel_letta.errors import LettaConfigurationError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from typing_extensions import Unpack

    from otel_letta.answer import OnAnswer
    from otel_letta.letta.transport import Transport
    from otel_letta.otel.diagnosis import Diagnosis
    from otel_letta.otel.selfmetrics import SelfMetrics
    from otel_letta.pipeline.pipeline import Pipeline
    from otel_letta.pipeline.sharing import Handle
    from otel_letta.settings import Settings, SettingsOptions
    from otel_letta.tracking.opt_in import TaskFilter

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_MOMENT = 0.5
"""Seconds."""


class Life(Enum):
    """The states of a component."""

    IDLE = "has never had a pipeline: its settings are bad, or OTEL_SDK_DISABLED is set"
    ACTIVE = "has a share in a pipeline"
    CLOSED = "was shut down"


class Component:
    """A plug-in of the SDK with a share in a pipeline.

    Args:
        transport: instead of the server that the settings name; for tests.
        meter_provider: for `otel_letta.otel.selfmetrics`, if they are on; default is the global one.
        tracer_provider: for `otel_letta.otel.answer_spans`, if they are on; default is the global one.
        task_filter: asked about each span; True, or a name, makes a task of one that would be none. Exporter and
            processor that shall report a task once need the same one.
        on_answer: called with each report that the agent has, and what it answered to it, on a thread of its own; may
            be a coroutine function. Of components that share a pipeline each one's is called for all of its reports.
        options: `Settings` keywords, such as ``base_url``, ``agent_id``, ``password``, ``delivery``, or a finished
            ``settings``. Bad or missing ones are logged as one error, and the component does nothing. An unknown one is
            ignored with a warning, unless nothing names the server: it may have been meant to.
    """

    _kind: ClassVar[str]
    """The name that the log and the metrics use."""
    made_any: ClassVar[bool] = False
    """Whether this process has, or had, a component: then it is not for want of one that a task goes unreported."""
    _live: ClassVar[bool] = False
    """True for one that sees spans start."""

    def __init__(
        self,
        *,
        transport: Transport | None = None,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        task_filter: TaskFilter | None = None,
        on_answer: OnAnswer | None = None,
        **options: Unpack[SettingsOptions],
    ) -> None:
        kind = self._kind
        self._life = Life.IDLE
        self._handle: Handle | None = None
        self._diagnosis: Diagnosis | None = None
        self._on_answer: OnAnswer | None = None
        self._forget_answers: Callable[[], None] = lambda: None
        self.flushed = False
        """Whether anybody has asked it to deliver since its last spans came."""
        self.problem = ""
        """Why there is nothing that this could do; empty if there is."""
        Component.made_any = True
        self._metrics: SelfMetrics | None = None
        try:
            # Whoever only imports the class pays for nothing; a hook shall find everything imported.
            from otel_letta.pipeline.sharing import join
            from otel_letta.settings import Settings

            settings, complaints = Settings.from_options(cast("dict[str, Any]", options), lenient=True)
            for error in complaints:  # a slip in a YAML file must not switch reporting off
                _logger.warning("%s ignores an option: %s", kind, error)
            if settings.disabled:
                self.problem = "OTEL_SDK_DISABLED is set"
                _logger.debug("%s does nothing: %s", kind, self.problem)
                return
            self._metrics = _self_metrics(kind, settings, meter_provider)
            self._handle = join(settings, transport, live=self._live, metrics=self._metrics, task_filter=task_filter)
            self._life = Life.ACTIVE
            self.answer_to(on_answer)
            if settings.answer_spans:
                from otel_letta.otel.answer_spans import AnswerSpans

                self._handle.on_turn(AnswerSpans(tracer_provider))
            from otel_letta.otel.diagnosis import Diagnosis

            self._diagnosis = Diagnosis(self._handle.pipeline, self._examined)
            self._activated(self._handle.pipeline)
            _components.add(self)
        except LettaConfigurationError as error:
            # Auto-instrumentation builds exporters from the environment; one that raises here takes the program's
            # other exporters and instrumentations with it (measured).
            self.problem = str(error)
            _logger.error("%s does nothing: %s", kind, error)
            self._metrics = _self_metrics(kind, None, meter_provider)
        except Exception as error:
            self.problem = f"unexpected {type(error).__name__}"
            _logger.error("%s does nothing: unexpected %s", kind, type(error).__name__)
            _logger.debug("unexpected error", exc_info=True)

    def answer_to(self, on_answer: OnAnswer | None) -> None:
        """Call this with the agent's answers from now on, in place of what was given before; None changes nothing."""
        if on_answer is None or self._handle is None or on_answer == self._on_answer:
            return
        if not callable(on_answer):
            _logger.error("%s ignores on_answer: %s is not callable", self._kind, type(on_answer).__name__)
            return
        self._forget_answers()
        self._on_answer, self._forget_answers = on_answer, self._handle.on_answer(on_answer)

    def _activated(self, pipeline: Pipeline) -> None:
        """Do what an active component needs more."""

    def _examined(self) -> None:
        """Do what is due when enough spans were examined for mistakes."""

    def __repr__(self) -> str:
        kind, settings = self._kind, self.settings
        if settings is None:
            return f"<{kind}, does nothing{f': {self.problem}' if self.problem else ''}>"
        where = f"{settings.agent_id} at {settings.base_url}"
        if not self.active:
            return f"<{kind} {where}, shut down>"
        return f"<{kind} {where}, {settings.delivery}, {self.stats()['open_tasks']} open>"

    @property
    def settings(self) -> Settings | None:
        """The settings that it reports by; None if they are missing or bad."""
        return self._handle.pipeline.settings if self._handle is not None else None

    def catch_up(self) -> None:
        """Have the numbers of `stats` hold what the program has done until now, in a moment at most."""
        pipeline = self._pipeline
        try:
            if pipeline is not None:
                pipeline.catch_up(_MOMENT)
        except Exception as error:  # noqa: BLE001
            self._swallow("catching up", error)

    @property
    def examined(self) -> int:
        """Ended spans that were examined for mistakes."""
        return self._diagnosis.ended if self._diagnosis is not None else 0

    @property
    def active(self) -> bool:
        """False if there is nothing that this could do: its settings are bad, or it was shut down."""
        return self._life is Life.ACTIVE

    @property
    def _pipeline(self) -> Pipeline | None:
        """The pipeline while this is active."""
        return self._handle.pipeline if self._handle is not None and self._life is Life.ACTIVE else None

    def stats(self) -> dict[str, Any]:
        """Return numbers since the start: what was sent, held, conflated, dropped and why, and what is wrong now.

        Returns:
            ``reports``, ``sent``, ``requests`` (agent turns), ``board_writes``, ``conflated``, ``held``,
            ``retries``; ``answers`` (that ``on_answer`` was given), ``answers_dropped`` (that it was not),
            ``answers_failed`` (its calls that raised); ``dropped``: reason → number; ``open_spans``, ``open_tasks``,
            ``evicted`` (traces of agents that were given up because there were too many); ``lanes``: name →
            ``waiting``, ``in_flight``, ``parked`` (why, or None), ``last_error``; ``boards``: agent → ``label``,
            ``open_tasks``, ``parked``. Empty for a component without valid settings. Components that are configured
            alike share a pipeline and its numbers.
        """
        return self._handle.pipeline.stats() if self._handle is not None else {}

    def _flush(self, timeout_millis: float | None) -> bool:
        self.flushed = True
        pipeline = self._pipeline
        if pipeline is None:
            return True
        try:
            return pipeline.flush(max(30_000 if timeout_millis is None else timeout_millis, 0) / 1e3)
        except Exception as error:  # noqa: BLE001
            self._swallow("force_flush", error)
            return False

    def _close(self, timeout_millis: float | None) -> None:
        pipeline, self._life = self._pipeline, Life.CLOSED
        if pipeline is None or self._handle is None:
            return
        most = pipeline.settings.shutdown_timeout
        try:
            self._handle.close(most if timeout_millis is None else min(timeout_millis / 1e3, most))
            if self._diagnosis is not None:
                self._diagnosis.conclude()
        except Exception as error:  # noqa: BLE001
            self._swallow("shutdown", error)

    def _count(self, count: Callable[[_T, str | None], None], what: _T, error: str | None) -> None:
        """Count spans for the metrics; on the pipeline's thread, since they have to be read for that."""
        pipeline = self._pipeline
        try:
            if pipeline is not None:
                pipeline.call(count, what, error)
            else:
                count(what, error)
        except Exception as trouble:  # noqa: BLE001
            self._swallow("counting spans", trouble)

    def _swallow(self, where: str, error: Exception) -> None:
        """Log a bug of ours, since a hook's exception would replace the traced program's own."""
        if self._handle is not None:
            self._handle.pipeline.complain(where, error)


def _self_metrics(kind: str, settings: Settings | None, meter_provider: MeterProvider | None) -> SelfMetrics | None:
    if os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() != "true":
        return None
    from otel_letta.otel.selfmetrics import SelfMetrics

    try:
        return SelfMetrics(kind, settings, meter_provider)
    except Exception:
        _logger.warning("%s has no metrics: the meter provider failed", kind, exc_info=True)
        return None


_components: weakref.WeakSet[Component] = weakref.WeakSet()


def _at_exit() -> None:
    """Deliver what nobody would: a provider does this for its own, unless it was told not to."""
    try:
        left = [each for each in list(_components) if each.active]
        if not left:
            return
        from otel_letta.otel.diagnosis import will_be_shut_down

        if will_be_shut_down():
            return
        for component in left:
            flushed = component.flushed
            component._close(None)
            if not flushed:
                _logger.warning(
                    "%s was neither flushed nor shut down at the end of the program, so what its provider still held "
                    "is lost: call provider.shutdown() at the end",
                    component._kind,
                )
    except Exception:
        _logger.debug("unexpected error at exit", exc_info=True)


atexit.register(_at_exit)
