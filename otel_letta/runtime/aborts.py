"""The exceptions that OpenTelemetry does not record, and what they mean for a task."""

from __future__ import annotations

import sys

from otel_letta.text import as_text

__all__ = ["abort_reason"]


def abort_reason(error: BaseException | None) -> str | None:
    """Why a span that this exception passed through has failed although OpenTelemetry leaves it UNSET.

    None for an ordinary `Exception`, which OpenTelemetry records itself, and for what is no failure: a generator
    that is closed early, and a program that exits with success. A cancelled asyncio task and one that ran into a
    timeout look alike.
    """
    if error is None or isinstance(error, (Exception, GeneratorExit)):
        return None
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or (isinstance(code, int) and not code):
            return None
        # The code may be any object, and its own text anything.
        shown = as_text(code) if isinstance(code, int) else None
        return f"the program exited with code {shown}" if shown else "the program exited"
    if _is_cancelled(error):
        return "cancelled or timed out"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted (Ctrl-C)"
    return f"stopped by {type(error).__name__}"


def _is_cancelled(error: BaseException) -> bool:
    # Importing asyncio takes a third of our whole import; where nobody did, nothing of it can have been raised.
    exceptions = sys.modules.get("asyncio.exceptions")
    return exceptions is not None and isinstance(error, exceptions.CancelledError)
