"""A call from the helpers to the watchers of open spans: the attributes of this one changed, read it soon.

A leaf, so that `otel_letta.otel.helpers` needs nothing but the OpenTelemetry API.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from opentelemetry.trace import Span

_watchers: list[weakref.WeakMethod[Callable[[Span], None]]] = []


def on_change(method: Callable[[Span], None]) -> None:
    """Have ``method`` called with each span whose attributes changed, until its object is gone."""
    _watchers[:] = [known for known in _watchers if known() is not None]
    _watchers.append(weakref.WeakMethod(method))


def changed(span: Span) -> None:
    """Have a span read soon, since its attributes changed. Cheap, and never raises."""
    for known in _watchers:
        method = known()
        if method is not None:
            method(span)
