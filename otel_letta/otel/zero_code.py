"""The ways in without code: entry points that OpenTelemetry's own tools load.

===================================  =========  =======================================================================
entry point group                    name       what it does
===================================  =========  =======================================================================
``opentelemetry_traces_exporter``    ``letta``  `LettaSpanExporter`, by ``OTEL_TRACES_EXPORTER=otlp,letta`` or from the
                                                YAML of ``OTEL_CONFIG_FILE``: the keys are the exporter's keywords
``opentelemetry_post_instrument``    ``letta``  `post_instrument`: a live `LettaSpanProcessor`, by
                                                ``OTEL_LETTA_LIVE=true``
``opentelemetry_instrumentor``       ``letta``  `LettaInstrumentor`: the same from YAML, under
                                                ``instrumentation/development: python: letta:``
===================================  =========  =======================================================================

``OTEL_LETTA_LIVE`` is read from the environment alone, never from a `.env` file, since ``opentelemetry-instrument``
asks us in every program that it starts: only ``true`` (in any case) turns reporting on.

Whichever of these ways come together, a tracer provider gets one live processor. An exporter, or a processor that
the program adds itself, may stand beside it: where their settings are alike they share one pipeline, and a task is
reported once. There is no configurator and no distro on purpose: of those the first installed one wins, so that merely
installing this package could switch off a program's own.

Nothing here raises. ``opentelemetry-instrument`` answers an exception with no instrumentation at all.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

if TYPE_CHECKING:
    from otel_letta.otel.processor import LettaSpanProcessor

    LettaInstrumentor: type[Any]  # a BaseInstrumentor, which comes without types

_logger = logging.getLogger(__name__)

_LIVE = "OTEL_LETTA_LIVE"
_lock = threading.RLock()


def post_instrument() -> None:
    """Called by ``opentelemetry-instrument`` when all else is set up. Reports live if ``OTEL_LETTA_LIVE=true``."""
    try:
        if _live_is_wanted():
            _go_live({})
    except Exception as error:  # noqa: BLE001
        _give_up(error)


def _live_is_wanted() -> bool:
    value = os.environ.get(_LIVE, "").strip().lower()
    if value not in {"", "true", "false"}:
        _logger.warning("%s is neither true nor false, so nothing is reported live", _LIVE)
    return value == "true"


def _go_live(options: dict[str, Any], provider: object = None) -> LettaSpanProcessor | None:
    """Give the provider (default: the global one) its live processor, or leave it the one it has."""
    provider = trace.get_tracer_provider() if provider is None else provider
    add = getattr(provider, "add_span_processor", None)
    if add is None:
        _logger.error(
            "no task is reported live: the tracer provider is %s, not one of the OpenTelemetry SDK. "
            "Was the SDK set up, for example by opentelemetry-instrument?",
            type(provider).__name__,
        )
        return None
    from otel_letta.otel.configure import MARK, lock

    with lock:
        known: LettaSpanProcessor | None = getattr(provider, MARK, None)
        if known is not None and (known.active or not options):
            _logger.debug("the tracer provider has its live processor already")
            return known
        from otel_letta.otel.processor import LettaSpanProcessor

        processor = LettaSpanProcessor(**options)
        setattr(provider, MARK, processor)  # an inert one too: its error was logged, and once is enough
        if processor.active:
            add(processor)
        return processor


def _end_live(processor: LettaSpanProcessor, provider: object) -> None:
    from otel_letta.otel.configure import MARK, lock

    with lock:
        if getattr(provider, MARK, None) is processor:
            delattr(provider, MARK)
    # A provider has no way to give a processor back. After its shutdown it does nothing.
    processor.shutdown()


def _give_up(error: Exception) -> None:
    _logger.error("no task is reported live: unexpected %s", type(error).__name__)
    _logger.debug("unexpected error", exc_info=error)


def __getattr__(name: str) -> Any:
    # opentelemetry-instrumentation is no dependency of ours. Whoever asks for an instrumentor has it.
    if name != "LettaInstrumentor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _lock:
        if name not in globals():
            globals()[name] = _make_instrumentor()
    return globals()[name]


def _make_instrumentor() -> type[Any]:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

    class LettaInstrumentor(BaseInstrumentor):  # type: ignore[misc]
        """Adds a live `LettaSpanProcessor` to the tracer provider, with these options.

        ``opentelemetry-instrument`` calls `instrument` without options in every program, which does nothing unless
        ``OTEL_LETTA_LIVE=true``. From YAML, for which this is the only way to install a span processor::

            instrumentation/development:
              python:
                letta:
                  live: true
                  agent_id: ${LETTA_AGENT_ID}

        Options: the keywords of `LettaSpanProcessor`; ``live: true``, for settings that all come from the
        environment, and ``live: false``, which wins over them; from code also ``tracer_provider`` (default: the
        global one).
        """

        _live: tuple[LettaSpanProcessor, object] | None = None

        def instrumentation_dependencies(self) -> Collection[str]:
            return ()

        def instrument(self, **kwargs: Any) -> None:
            """Calls after one that had an effect have none, and need no warning: with both a YAML file and
            ``opentelemetry-instrument`` there are always two."""
            if self.is_instrumented_by_opentelemetry:
                _logger.debug("instrumented already")
                return
            super().instrument(**kwargs)
            # The call without options must not stand in the way of one with some.
            self._is_instrumented_by_opentelemetry = self._live is not None

        def _instrument(self, **kwargs: Any) -> None:
            try:
                for name in ("skip_dep_check", "raise_exception_on_conflict"):  # not every BaseInstrumentor eats them
                    kwargs.pop(name, None)
                provider = kwargs.pop("tracer_provider", None)
                live = kwargs.pop("live", None)
                if live is False or not (live or kwargs or provider is not None or _live_is_wanted()):
                    return
                provider = trace.get_tracer_provider() if provider is None else provider
                processor = _go_live(kwargs, provider)
                if processor is not None and processor.active:
                    self._live = processor, provider
            except Exception as error:  # noqa: BLE001
                _give_up(error)

        def _uninstrument(self, **kwargs: Any) -> None:
            live, self._live = self._live, None
            if live is not None:
                _end_live(*live)

    LettaInstrumentor.__qualname__ = "LettaInstrumentor"
    LettaInstrumentor.__module__ = __name__
    return LettaInstrumentor
