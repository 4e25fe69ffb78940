"""`LettaLogRecordProcessor`: progress as OpenTelemetry log events, from anyone.

By OpenTelemetry's conventions a point in time of a longer operation is an event, and the logs signal is the
standard way for events to leave a program at once. An event named ``letta.task.progress`` with the attributes of
`otel_letta.semconv` speaks for the span that it belongs to.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk._logs import LogRecordProcessor

from otel_letta import semconv
from otel_letta.otel.component import Component

__all__ = ["LettaLogRecordProcessor"]


class LettaLogRecordProcessor(Component, LogRecordProcessor):
    """A processor that lets log events named ``letta.task.progress`` speak for the open span that they belong to::

        provider = LoggerProvider()
        provider.add_log_record_processor(LettaLogRecordProcessor())

    The event makes its span a task, as attributes of the span would, and is reported at once. It works together with a
    `LettaSpanProcessor` of the same settings, which knows the open spans; an event of any other span is ignored.
    SDKs whose log records have no event name (before 1.35) give it nothing to read.

    The keywords are those of `otel_letta.otel.component.Component`, and best the same as for the `LettaSpanProcessor`.
    """

    _kind = "LettaLogRecordProcessor"

    def on_emit(self, log_record: Any) -> None:
        """Take note of a log record. Called by the SDK on the emitting thread; neither raises nor waits."""
        try:
            pipeline = self._pipeline
            record = getattr(log_record, "log_record", log_record)
            if pipeline is None or getattr(record, "event_name", None) != semconv.TASK_PROGRESS:
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
