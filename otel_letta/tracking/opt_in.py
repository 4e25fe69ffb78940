"""Spans that are tasks because a setting or a filter says so: jobs of Celery or cron, builds, anything of a program.

A service is opted in by its name, for what no span of its own shows: its runs without a root need no tool then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from otel_letta.text import as_text, clean_line

_logger = logging.getLogger(__name__)

TaskFilter = Callable[[ReadableSpan], "bool | str | None"]
"""Asked about a span when it starts (when it has ended, by an exporter). True makes a task of it, under the span's
name; a text does so under that name; False and None leave it as it is."""

_ELSEWHERE = (SpanKind.PRODUCER, SpanKind.CLIENT)
_NAME_CAP = 200


class OptIn:
    """Names the spans that shall be tasks.

    Args:
        patterns: ``scope`` (of the instrumentation) or ``name`` (of the span), and a shell pattern. Spans of kind
            PRODUCER and CLIENT match none by their scope: they only hand the work to somebody else. Patterns about
            anything else are no business of spans.
        task_filter: the program's own.
    """

    def __init__(self, patterns: Sequence[tuple[str, str]], task_filter: TaskFilter | None) -> None:
        self._scopes = [pattern for kind, pattern in patterns if kind == "scope"]
        self._names = [pattern for kind, pattern in patterns if kind == "name"]
        self._filter = task_filter
        self._complained = False

    @classmethod
    def wanted(cls, patterns: Sequence[tuple[str, str]], task_filter: TaskFilter | None) -> OptIn | None:
        """Make one; None if no span could be a task by it, since asking costs each span something."""
        made = cls(patterns, task_filter)
        return made if made._scopes or made._names or made._filter is not None else None

    def name_of(self, span: ReadableSpan) -> str | None:
        """The name of the task that a span shall be; None if it shall be none. Never raises."""
        name = as_text(span.name) or ""
        if self._filter is not None:
            answer = self._ask(self._filter, span)
            if answer is True:
                return clean_line(name, _NAME_CAP) or "task"
            text = as_text(answer) if isinstance(answer, str) else None
            if text is not None:
                return clean_line(text, _NAME_CAP) or None
        if any(fnmatchcase(name, pattern) for pattern in self._names):
            return clean_line(name, _NAME_CAP)
        scope = span.instrumentation_scope
        if self._scopes and scope is not None and span.kind not in _ELSEWHERE:
            of = as_text(scope.name) or ""
            if any(fnmatchcase(of, pattern) for pattern in self._scopes):
                return clean_line(name, _NAME_CAP) or "task"
        return None

    def _ask(self, task_filter: TaskFilter, span: ReadableSpan) -> object:
        try:
            return task_filter(span)
        except Exception as error:  # it is the program's
            if not self._complained:
                self._complained = True
                _logger.warning("task_filter raised %s and is ignored for such spans", type(error).__name__)
                _logger.debug("task_filter raised", exc_info=True)
            return None


def services_in(patterns: Sequence[tuple[str, str]]) -> Callable[[str], bool]:
    """Return what says of a service's name whether the patterns opt the service in."""
    services = [pattern for kind, pattern in patterns if kind == "service"]
    return lambda name: any(fnmatchcase(name, pattern) for pattern in services)
