"""The demo's traced tasks, and their spans as any other backend would see them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode, Tracer

from otel_letta import semconv
from otel_letta.otel.helpers import task
from otel_letta.text import clean_line


class Work:
    """Three tasks as a program would write them; on a thread, in an event loop, and one with bad luck."""

    def __init__(self, tracer: Tracer, seconds: float) -> None:
        self._tracer = tracer
        self._seconds = seconds
        self.stop = threading.Event()

    def run(self) -> None:
        jobs = (self._index, lambda: asyncio.run(self._refactor()), self._import)
        threads = [threading.Thread(target=_without_traceback, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
            self.stop.wait(self._seconds / 50)  # one after another, so that they stand in the same order each time
        for thread in threads:
            thread.join()

    def _index(self) -> None:
        with task("Index the docs", tracer=self._tracer) as t:
            for _page in t.track(range(24)):
                self._pause(self._seconds / 24)
            t.result("24 pages, 312 links, none broken")

    async def _refactor(self) -> None:
        async with task("Refactor module", chat_id="chat-7", message_id="msg-42", tracer=self._tracer) as t:
            for done in range(1, 11):
                await asyncio.sleep(self._seconds * 0.75 / 10)
                self._pause(0)
                t.progress(done / 10, f"Rewrote {done} of 10 files")
            t.result("10 files, all tests pass")

    def _import(self) -> None:
        with task("Import sales", tracer=self._tracer) as t:
            for row in range(1, 9):
                self._pause(self._seconds * 0.5 / 8)
                if row == 6:
                    raise ValueError("bad row 1043")
                t.progress(row / 8, f"{row * 200} rows of 1600")

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds else self.stop.is_set():
            raise KeyboardInterrupt  # what would come up here if this was the main thread


def _without_traceback(job: Callable[[], None]) -> None:
    # The span has recorded it already. On a thread Python would print a traceback into the picture.
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        job()


@dataclass(frozen=True)
class TaskRow:
    """A task as its span shows it at one moment."""

    name: str
    progress: float
    text: str
    state: str
    """running, completed or failed."""
    seconds: float

    @classmethod
    def of(cls, span: ReadableSpan) -> TaskRow:
        attributes = dict(span.attributes or {})
        progress = attributes.get(semconv.TASK_PROGRESS)
        text = str(attributes.get(semconv.TASK_CONTENT, ""))
        state = "running"
        if span.end_time is not None:
            state = "failed" if span.status.status_code is StatusCode.ERROR else "completed"
            description = span.status.description or ""
            text = description if state == "failed" else str(attributes.get(semconv.TASK_RESULT, text))
        until = span.end_time or time.time_ns()
        return cls(
            span.name,
            1.0 if state == "completed" else float(progress) if isinstance(progress, (int, float)) else 0.0,
            clean_line(text, 200),
            state,
            max(until - (span.start_time or until), 0) / 1e9,
        )


class Spans(SpanProcessor):
    """Keeps the spans, so that their attributes can be shown."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._spans.append(span)

    def tasks(self) -> list[TaskRow]:
        return [TaskRow.of(span) for span in list(self._spans)]
