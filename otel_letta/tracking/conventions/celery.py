"""Celery's tasks: a state that is neither success nor failure (measured with celery 5.7.0 and
opentelemetry-instrumentation-celery 0.66b2).

A span of an attempt that will be tried again ends UNSET, as one that went well does, and has ``celery.state`` RETRY and
a reason, ``Retry in 0.3s: ValueError('row 17 broken')``. The next attempt is in the same trace. Ignored and rejected
tasks have a state of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otel_letta.text import as_text, duration, pattern

_STATE: Final = "celery.state"
_REASON: Final = "celery.retry.reason"
_RETRY = pattern(r"Retry in (?P<delay>\d{1,9}(?:\.\d{1,9})?)s(?:: (?P<kind>[A-Za-z_]\w{0,80})\()?")
_NAMED = pattern(r"Retry in [^:]{1,60}: (?P<kind>[A-Za-z_]\w{0,80})\(")
_STATES: Final[Mapping[str, str]] = {"IGNORED": "was ignored", "REJECTED": "was rejected"}


def steered_by(attributes: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return what Celery did with a task, and whether it goes on; None for one that just ended."""
    state = as_text(attributes.get(_STATE)) if _STATE in attributes else None
    if state is not None and state in _STATES:
        return _STATES[state], False
    if state != "RETRY":
        return None
    reason = (as_text(attributes.get(_REASON)) or "")[:300]
    found = _RETRY.match(reason) or _NAMED.match(reason)
    parts = found.groupdict() if found is not None else {}
    delay = f" in {duration(float(parts['delay']))}" if parts.get("delay") else ""
    kind = f": {parts['kind']}" if parts.get("kind") else ""  # never its text, which may hold anything
    return f"will be tried again{delay}{kind}", True
