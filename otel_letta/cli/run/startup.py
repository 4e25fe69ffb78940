"""The first thing that a program under `otel-letta run` does."""

from __future__ import annotations

import importlib
import logging
import os

_logger = logging.getLogger(__name__)

CONFIGURATOR = "OTEL_PYTHON_CONFIGURATOR"
DISTRO = "OTEL_PYTHON_DISTRO"
_NONE = "otel_letta_none"


def start() -> None:
    """Turn reporting on, and the instrumentations that are installed. Never raises."""
    try:
        from otel_letta.otel.configure import configure_ahead

        configure_ahead()
        _instrument()
    except Exception as error:
        _logger.error("otel-letta run: unexpected %s", type(error).__name__)
        _logger.debug("unexpected error", exc_info=True)


def _instrument() -> None:
    """Load what ``opentelemetry-instrument`` would, without its defaults: they export by OTLP to a Collector.

    Where somebody asks for exporters, the SDK is set up as they say.
    """
    asked = any(os.environ.get(name) for name in ("OTEL_TRACES_EXPORTER", "OTEL_CONFIG_FILE"))
    if asked:
        _initialize()
        return
    before = {name: os.environ.get(name) for name in (CONFIGURATOR, DISTRO)}
    loader = logging.getLogger("opentelemetry.instrumentation.auto_instrumentation._load")
    loader.addFilter(_is_not_about_ours)
    try:
        for name in before:  # none of that name is found, and no other is taken
            os.environ.setdefault(name, _NONE)
        _initialize()
    finally:
        loader.removeFilter(_is_not_about_ours)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _initialize() -> None:
    """Do what ``opentelemetry-instrument`` does in the program; nothing where no instrumentation is installed."""
    try:
        from opentelemetry.instrumentation import auto_instrumentation
    except ImportError:
        return
    initialize = getattr(auto_instrumentation, "initialize", None)
    if initialize is not None:
        initialize()
        return
    # In older releases (0.51b0, for one) a module does it when it is imported, and takes itself out of PYTHONPATH.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = before or ""
    try:
        importlib.import_module("opentelemetry.instrumentation.auto_instrumentation.sitecustomize")
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]


def _is_not_about_ours(record: logging.LogRecord) -> bool:
    """Return False for the loader's warning that there is no configurator of the name that it was given."""
    return _NONE not in record.getMessage()
