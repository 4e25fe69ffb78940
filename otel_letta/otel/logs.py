"""`LettaLogRecordProcessor`: progress as OpenTelemetry log events, from anyone.

By OpenTelemetry's conventions a point in time of a longer operation is an event, and the logs signal is the
standard way for events to leave a program at once. An event named ``letta.task.progress`` with the attributes of
`otel_letta.semconv` speaks for the span that it belongs to. Events of coding agents (``user_prompt``, ``tool_result``
and so on, see `otel_letta.tracking.log_events`) tell of tasks without any span.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.sdk._logs import LogRecordProcessor

from otel_letta import semconv
from otel_letta.otel.component import Component
from otel_letta.text import as_text
from otel_letta.tracking.log_events import EVENT_NAME, LogEvent, last_part


class LettaLogRecordProcessor(Component, LogRecordProcessor):
    """A processor that lets log events named ``letta.task.progress`` speak for the open span that they belong to::

        provider = LoggerProvider()
        provider.add_log_record_processor(LettaLogRecordProcessor())

    The event makes its span a task, as attributes of the span would, and is reported at once. It works together with a
    `LettaSpanProcessor` of the same settings, which knows the open spans; an event of any other span is ignored.
    SDKs whose log records have no event name (before 1.35) give it nothing of that kind to read.

    Events by which coding agents tell of a turn, its tools and answers, in the field or the attribute ``event.name``,
    become tasks as spans of agents do. Their prompts, arguments and outputs are not read.

    The keywords are those of `otel_letta.otel.component.Component`, and best the same as for the `LettaSpanProcessor`.
    """

    _kind = "LettaLogRecordProcessor"

    def on_emit(self, log_record: Any) -> None:
        """Take note of a log record. Called by the SDK on the emitting thread; neither raises nor waits."""
        try:
            pipeline = self._pipeline
            record = getattr(log_record, "log_record", log_record)
            if pipeline is None:
                return
            if getattr(record, "event_name", None) != semconv.TASK_PROGRESS:
                event = _event_of(log_record, record)
                if event is not None:
                    pipeline.take_event(event)
                return
            if record.trace_id and record.span_id:
                pipeline.watcher.on_event((record.trace_id, record.span_id), dict(record.attributes or {}))
        except Exception as error:  # noqa: BLE001
            self._swallow("on_emit", error)

    emit = on_emit  # the name until SDK 1.34

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Deliver what is known now; see `LettaSpanProcessor.force_flush`."""
        return self._flush(timeout_millis)

    def shutdown(self) -> None:
        """Stop listening; quiet when called again."""
        self._close(None)


def _event_of(outer: Any, record: Any) -> LogEvent | None:
    attributes = record.attributes or {}
    name = as_text(attributes.get(EVENT_NAME)) or as_text(getattr(record, "event_name", None)) or ""
    if not last_part(name):  # as of nearly all
        return None
    resource = getattr(outer, "resource", None) or getattr(record, "resource", None)
    return LogEvent.of(
        name,
        attributes,
        resource.attributes if resource is not None else {},
        time=record.timestamp or record.observed_timestamp or time.time_ns(),
        trace_id=record.trace_id or 0,
        span_id=record.span_id or 0,
        scope=as_text(getattr(getattr(outer, "instrumentation_scope", None), "name", None)) or "",
    )
