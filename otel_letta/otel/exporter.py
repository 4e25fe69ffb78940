"""`LettaSpanExporter`, for any TracerProvider."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_letta.otel.component import Component, Life


class LettaSpanExporter(Component, SpanExporter):
    """An exporter that reports to a Letta agent how the tasks of a program ended, from spans that have ended.

    Works under any span processor, beside any other exporter::

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        provider.add_span_processor(BatchSpanProcessor(LettaSpanExporter()))

    Spans that declare no task and are no agent's are ignored (see `LettaSpanProcessor`). An agent's task is judged by
    all its spans, ``grace`` seconds after its root has come. A declared one that ended is ``completed``, or ``failed``
    if its span's status is ERROR or ``letta.task.status`` says so. For starts and live progress add a
    `LettaSpanProcessor`, instead or beside it. The setting ``baggage`` has no effect here: an ended span does not know
    the context that it started in.

    The keywords are those of `otel_letta.otel.component.Component`.
    """

    _kind = "LettaSpanExporter"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand the spans over; never waits for Letta, so SUCCESS means accepted, not delivered.

        Returns:
            FAILURE after `shutdown`, else SUCCESS.
        """
        error = "already_shutdown" if self._life is Life.CLOSED else self._hand_over(spans)
        if self._metrics is not None:
            self._count(self._metrics.exported, spans, error)
        return SpanExportResult.SUCCESS if error is None else SpanExportResult.FAILURE

    def _hand_over(self, spans: Sequence[ReadableSpan]) -> str | None:
        """Return the type of an error, None if all went well."""
        try:
            if self._pipeline is not None:
                self.flushed = False
                self._pipeline.export(spans)
                if self._diagnosis is not None:
                    self._diagnosis.exported(spans)
        except Exception as error:  # noqa: BLE001
            self._swallow("export", error)
            return type(error).__name__
        return None

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything that was exported reached Letta, at most so long.

        A task that names a chat and waits for its parent span to end, since it may be a step of that one, waits no
        longer. One that names neither id nor chat waits on, up to an hour, and is not counted here.
        The SDK's `BatchSpanProcessor` does not call this from its own ``force_flush``: call both.

        Returns:
            False if something is undelivered; at once where waiting cannot help.
        """
        return self._flush(timeout_millis)

    def shutdown(self, timeout_millis: float | None = None) -> None:
        """Deliver what is left and stop; quiet when called again.

        Takes at most ``timeout_millis`` (the SDK's batch processor passes what is left of its 30 s), and never more
        than ``OTEL_LETTA_SHUTDOWN_TIMEOUT`` (5 s).
        """
        self._close(timeout_millis)
