"""Mistakes that would be silent: spans that mean to be tasks and are none, and a component that nobody shuts down.

Each is one line in the log, once in a process. The first spans of a program are examined on its own threads, for a
name that is not ours; from then on a hook is as fast as it was, and only open spans are examined, by the pipeline's
own thread.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan

from otel_letta import semconv
from otel_letta.pipeline.hooks import is_no_record
from otel_letta.text import clean_line

if TYPE_CHECKING:
    from otel_letta.pipeline.pipeline import Pipeline

_logger = logging.getLogger(__name__)

FIRST = 500
"""Ended spans that are examined."""
_PREFIX = "letta."
_KNOWN = frozenset(name for name in semconv.INTERESTING if name.startswith(_PREFIX))
_OURS = ("letta.task.", "letta.chat", "letta.message", "letta.agent")
_MOST_NAMES = 20

_REMEDY = (
    "a task is a span inside 'with otel_letta.task(...)', or one with an attribute such as letta.chat.id; "
    "OTEL_LETTA_TASKS=name:PATTERN makes tasks of others"
)


class Diagnosis:
    """The first spans of one component, examined for mistakes.

    Args:
        pipeline: the component's; its thread writes the log lines.
        over: called once, when enough spans were examined.
    """

    def __init__(self, pipeline: Pipeline, over: Callable[[], None] = lambda: None) -> None:
        self._pipeline = pipeline
        self._over = over
        self._pid = os.getpid()
        self.ended = 0
        """Spans that were examined; no more than `FIRST` count."""
        pipeline.watcher.spelling = check_names

    @property
    def over(self) -> bool:
        """True when enough spans were examined."""
        return self.ended >= FIRST

    def hook(self, on_end: Callable[[ReadableSpan], None]) -> Callable[[ReadableSpan], None]:
        """Return an ``on_end`` that examines the first spans as well."""

        def on_end_and_examine(span: ReadableSpan) -> None:
            on_end(span)
            self.examine(span)

        return on_end_and_examine

    def exported(self, spans: Sequence[ReadableSpan]) -> None:
        """Examine what an exporter brings: all of it at first, later at one span of each batch."""
        for span in spans[:1] if self.over else spans:
            self.examine(span)

    def examine(self, span: ReadableSpan) -> None:
        """Examine an ended span. Never raises."""
        if is_no_record(span):
            return
        try:
            for attributes in (span.attributes or {}, {} if self.ended else span.resource.attributes):
                if any(name.startswith(_PREFIX) and name not in _KNOWN for name in attributes):
                    self._pipeline.call(check_names, dict(attributes))
            if self.ended < FIRST:
                self.ended += 1  # two threads may count one span less: it is about the first hundreds
                if self.ended == FIRST:
                    self._pipeline.call(self._sum_up, logging.INFO, f"the first {FIRST}")
                    self._over()
        except Exception as error:  # noqa: BLE001
            self._pipeline.complain("examining spans", error)

    def conclude(self) -> None:
        """Sum up at the end: spans of which none was a task are a mistake more often than not."""
        if self.ended and self._pid == os.getpid():
            self._sum_up(logging.WARNING, f"{self.ended}" if self.ended < FIRST else f"{FIRST} or more")

    def _sum_up(self, level: int, number: str) -> None:
        stats = self._pipeline.stats()
        if not stats["reports"] and not stats["open_tasks"]:
            spans = "span" if number == "1" else "spans"
            _once(level, "no task", f"{number} {spans} ended and none was a task, so nothing was reported: {_REMEDY}")


# -- names -------------------------------------------------------------------------------------------------------------


def check_names(attributes: Mapping[str, Any]) -> None:
    """Warn, once for each, of attributes that mean to be ours and are spelt wrongly."""
    for name in attributes:
        if name.startswith(_PREFIX) and name not in _KNOWN and name not in _logged:
            _check_name(name)


def _check_name(name: str) -> None:
    if len(_logged) > _MOST_NAMES:
        return
    import difflib

    # The same in one spelling of separators, or nearly so.
    plain = {_plain(known): known for known in _KNOWN}
    close = difflib.get_close_matches(_plain(name[:100]), plain, n=1, cutoff=0.8)
    if close:
        hint = f"did you mean {plain[close[0]]}?"
    elif name.startswith(_OURS):
        hint = f"those that are read: {', '.join(sorted(_KNOWN))}"
    else:
        _logged.setdefault(name, None)  # somebody else's, such as the Letta server's
        return
    _once(logging.WARNING, name, f"the span attribute {clean_line(name, 100)} is none that is read: {hint}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(".", "").replace("-", "")


# -- a component that nobody shuts down --------------------------------------------------------------------------------


def will_be_shut_down() -> bool:
    """Return whether a provider of the SDK is about to shut down at the end of the program, and its processors too.

    A component does not know its provider, so all objects are looked through: once, and only where one is left over.
    """
    return any(_is_about_to(thing) for thing in gc.get_objects())


def _is_about_to(thing: object) -> bool:
    kind = type(thing)
    if not any(base.__name__ in _PROVIDERS and base.__module__.startswith(_SDK) for base in kind.__mro__):
        return False
    return any(getattr(thing, name, None) is not None for name in _AT_EXIT)


_SDK = "opentelemetry.sdk"
_PROVIDERS = ("TracerProvider", "LoggerProvider")
_AT_EXIT = ("_atexit_handler", "_at_exit_handler")
"""Fields of the SDK's providers that are set until they have shut down (opentelemetry-sdk 1.x)."""


_logged: dict[str, object] = {}


def _once(level: int, about: str, text: str) -> None:
    mine = object()
    if _logged.setdefault(about, mine) is mine:  # atomic
        _logger.log(level, "%s", text)
