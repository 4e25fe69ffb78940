"""A word from the helpers to whoever watches open spans: this one has news, look now.

A leaf, so that `otel_letta.otel.helpers` needs nothing but the OpenTelemetry API.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from opentelemetry.trace import Span

__all__ = ["look_soon", "watch"]

_watchers: list[weakref.WeakMethod[Callable[[Span], None]]] = []


def watch(method: Callable[[Span], None]) -> None:
    """Have ``method`` called with each span that has news, until its object is gone."""
    _watchers[:] = [known for known in _watchers if known() is not None]
    _watchers.append(weakref.WeakMethod(method))


def look_soon(span: Span) -> None:
    """The span's attributes say something new. Cheap, and never raises."""
    for known in _watchers:
        method = known()
        if method is not None:
            method(span)
