"""`LettaSpanProcessor`, for live reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_letta.otel.component import Component, Life

# What the hooks run on is imported with the class, all else by the constructor: so neither takes long.
from otel_letta.pipeline import watcher  # noqa: F401

if TYPE_CHECKING:
    from otel_letta.pipeline.pipeline import Pipeline


class LettaSpanProcessor(Component, SpanProcessor):
    """A processor that reports to a Letta agent how the tasks of a program go, while they go.

    A span is a task when it carries a ``letta.task.*``, ``letta.chat.id`` or ``letta.message.id`` attribute (see
    `otel_letta.semconv`), from its start or later. Its start, what ``set_attribute`` and progress events add while
    it is open, and its end become reports; so does its loss::

        provider = TracerProvider()
        provider.add_span_processor(LettaSpanProcessor())
        tracer = provider.get_tracer("worker")
        with tracer.start_as_current_span("Refactor module", attributes={"letta.chat.id": "chat-123"}) as span:
            span.set_attribute("letta.task.progress", 0.5)

    Spans of agents that a framework traces are tasks without any of this, by the conventions they follow (see
    `otel_letta.tracking.conventions`); so is what ``task_filter`` or the setting ``tasks`` names. The success of such a
    task wakes the agent only if it took ``wake_after`` seconds.

    With ``baggage=True`` a task without chat or message id takes them from the W3C baggage of the context that its
    span starts in (``letta.chat.id``, ``letta.message.id``): a caller in another service names its chat once. What
    the span, or a task around it, carries comes first, the resource last. Nothing is ever put into baggage. Off by
    default, since anybody who can send a request can send baggage.

    Hooks neither raise nor wait. Spans that are recorded but not sampled are reported; spans that a sampler drops
    never come here. Exporter and processor on one provider report a task once.

    The keywords are those of `otel_letta.otel.component.Component`.
    """

    _kind = "LettaSpanProcessor"
    _live = True

    def _activated(self, pipeline: Pipeline) -> None:
        kind = type(self)
        if self._metrics is None and kind.on_start is _ON_START and kind.on_end is _ON_END:
            # Every recorded span of the program passes here: a method that only calls another one costs too much.
            on_end = pipeline.watcher.on_end
            self.on_start = pipeline.watcher.on_start  # type: ignore[method-assign]
            self.on_end = on_end if self._diagnosis is None else self._diagnosis.hook(on_end)  # type: ignore[method-assign,assignment]

    def _examined(self) -> None:
        pipeline = self._pipeline
        if pipeline is not None and "on_end" in self.__dict__:
            self.on_end = pipeline.watcher.on_end  # type: ignore[method-assign,assignment]

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Take note of a recorded span that starts. Called by the SDK on the starting thread."""
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.watcher.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Take note of a recorded span that has ended. Called by the SDK on the ending thread."""
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.watcher.on_end(span)
            if self._diagnosis is not None and not self._diagnosis.over:
                self._diagnosis.examine(span)
        elif self._handle is not None:
            self._handle.pipeline.watcher.on_end_after_leaving(span)
        if self._metrics is not None:
            self._count(self._metrics.processed, span, "already_shutdown" if self._life is Life.CLOSED else None)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Deliver what is known now: attributes of open spans, ends, and the board.

        Returns:
            True if all of it reached Letta within the time; False at once where waiting cannot help. An in_progress
            report that its pacing holds back does not count as undelivered.
        """
        return self._flush(timeout_millis)

    def shutdown(self, timeout_millis: float | None = None) -> None:
        """Report tasks that are still open as failed, deliver, and stop; quiet when called again.

        Takes at most ``timeout_millis``, and never more than ``OTEL_LETTA_SHUTDOWN_TIMEOUT`` (5 s).
        """
        for hook in ("on_start", "on_end"):
            self.__dict__.pop(hook, None)
        self._close(timeout_millis)


_ON_START, _ON_END = LettaSpanProcessor.on_start, LettaSpanProcessor.on_end
