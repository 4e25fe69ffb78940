"""The two hooks that every recorded span of the program passes, task or not: each line is measured.

Private fields of the SDK's spans are read here and in `kept`, since a property costs as much as everything else that
a hook does: ``_context`` and ``_parent``, which are tuples that begin with trace and span id, and ``_attributes._dict``
(opentelemetry-sdk 1.x). A release without them makes the hooks slower, no more: what is missing is read by the public
properties. ``tests/unit/pipeline/test_hooks.py`` holds that against the installed SDK. Of a task's hook most is what it
calls, so it calls little: a system call or a function of Python costs it half a microsecond (measured), and everything
that few tasks need is the watcher's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_letta.pipeline import pooled
from otel_letta.pipeline.kept import keep
from otel_letta.pipeline.open_spans import Record, shorten
from otel_letta.pipeline.pooled import is_on_pool
from otel_letta.runtime import fork
from otel_letta.runtime.suppress import SUPPRESS, reader_of_context
from otel_letta.tracking.reading import NOTED, SpanKey, key_of

if TYPE_CHECKING:
    from otel_letta.pipeline.inbox import Inbox
    from otel_letta.pipeline.watcher import Watcher

if sys.version_info >= (3, 11):
    handled = sys.exception
else:

    def handled() -> BaseException | None:
        """Return the exception that is being handled."""
        return sys.exc_info()[1]


declares_nothing = NOTED.isdisjoint
"""True for attributes that are of no interest here. In one step, so that nobody writes meanwhile."""


def make_hooks(
    watcher: Watcher, inbox: Inbox, complain: Callable[[str, Exception], None]
) -> tuple[Callable[..., None], Callable[[ReadableSpan], None]]:
    """Make ``on_start`` and ``on_end``, which never raise. Closures, since attributes of an object cost more.

    Args:
        watcher: does everything that few spans need.
        inbox: takes the calls for starts and ends; of most tasks without any call of ours in between, since each costs
            a task as much as all that a plain span needs.
        complain: takes the hook's name and an error of ours.
    """
    records, twins = watcher.open.records, watcher.open.twins
    get, enter, take = records.get, records.setdefault, records.pop
    asks_all, undeclared = watcher.asks_all, declares_nothing
    here, current = fork.here, reader_of_context()
    calls, enqueue, start, end = inbox.calls, inbox.calls.append, watcher.start, watcher.end

    def on_start(span: Span, parent_context: Context | None = None) -> None:
        parent: Any
        key: Any
        try:
            try:
                parent, key, attributes = span._parent, span._context, span._attributes._dict  # type: ignore[union-attr]
                span_id = key[1]
            except (AttributeError, TypeError):
                if is_no_record(span):
                    return
                parent, key, attributes = _public(span)
                span_id = key[1]
            above = None
            if parent is not None:
                above = get(parent[1]) if not twins else watcher.open.get(parent[:2])
                if above is not None and (up := above[1]) is not None and up[0] is None:
                    shorten(above)
            declares = attributes and not undeclared(attributes)
            if not declares:
                record: Record = [span, above]
            else:
                # With room for the third, which comes soon: a list that has to grow takes room for eight.
                record = [span, above, None]
                record.pop()
            exception = handled()
            if asks_all or (exception is not None and not isinstance(exception, Exception)):
                watcher.prepare(record, span, parent_context, exception)
            if enter(span_id, record) is not record and not watcher.open.add_twin(key[:2], record):
                return
            if declares or (asks_all and len(record) > 2 and record[2].opted is not None):
                if not here[0] or (get_ident() != pooled.main and is_on_pool()) or SUPPRESS in current():
                    watcher.note_start(record)
                else:
                    enqueue((start, record))
                    if not inbox.awake or len(calls) > inbox.backlog:
                        inbox.attend()
            elif not watcher.watching:
                watcher.begin(record)
        except Exception as error:  # noqa: BLE001
            complain("on_start", error)

    def on_end(span: ReadableSpan) -> None:
        key: Any
        try:
            try:
                key, attributes = span._context, span._attributes._dict  # type: ignore[union-attr]
                span_id = key[1]
            except (AttributeError, TypeError):
                if is_no_record(span):
                    return
                _, key, attributes = _public(span)
                span_id = key[1]
            record = take(span_id, None) if not twins else watcher.take(key[:2])
            if record is None or len(record) > 2:
                watcher.note_end(record, span, attributes)
            elif not attributes or undeclared(attributes):
                record[0] = None
            elif not here[0] or (get_ident() != pooled.main and is_on_pool()) or handled() is not None:
                watcher.note_unread_end(record, span)
            else:
                kept = keep(span)
                record.append(kept)
                record[0] = None
                if record[2] is not kept:  # somebody has observed it meanwhile
                    watcher.note_end(record, span, attributes)
                    return
                enqueue((end, record, None))
                if not inbox.awake or len(calls) > inbox.backlog:
                    inbox.attend()
        except Exception as error:  # noqa: BLE001
            complain("on_end", error)

    return on_start, on_end


def is_no_record(span: object) -> bool:
    """Return True for a span that holds nothing: samplers' and wrappers' `NonRecordingSpan` comes to some hooks."""
    return not isinstance(span, ReadableSpan) and not hasattr(span, "attributes")


def _public(span: ReadableSpan) -> tuple[SpanKey | None, SpanKey, Mapping[str, Any]]:
    parent = span.parent
    above = None if parent is None else (parent.trace_id, parent.span_id)
    return above, key_of(span), attributes_in(span)


def attributes_in(span: ReadableSpan) -> Mapping[str, Any]:
    """Return the attributes of a span for a first check. For more than that copy them: another thread may write."""
    try:
        inner: Mapping[str, Any] = span._attributes._dict  # type: ignore[union-attr]
    except AttributeError:
        return span.attributes or {}
    return inner
