"""What the programs in this folder share: the tracing that a user would set up, the scenarios, and their record.

Each program runs one agent framework in an environment of its own, without pytest, one scenario after another. For
each it prints a line of JSON: how the run ended for its caller. The first argument names the instrumentation, the
others the scenarios. Settings come from the environment: ``LETTA_*`` for the reports, ``OPENAI_*`` for the model,
and ``SPANS``, a file that gets a line of JSON for each span that starts or ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from otel_letta import LettaSpanProcessor

MARKER = "xyzzy"
INSTRUCTIONS = f"You write reports ({MARKER}-instructions)."
PROMPT = f"Write the quarterly report ({MARKER}-prompt)."
FOUND = f"3 documents ({MARKER}-found)"
SENT = f"sent ({MARKER}-sent)"

instrumentation = sys.argv[1]
base_url = os.environ["OPENAI_BASE_URL"]

T = TypeVar("T")


@dataclass(frozen=True)
class Scenario:
    """One run of an agent."""

    kind: str

    @property
    def agent(self) -> str:
        """Names the task: this is how the tests tell one run's reports from another's."""
        return f"reporter_{self.kind}"

    @property
    def conversation(self) -> str:
        return f"conversation-{self.kind}"

    @property
    def model(self) -> str:
        return f"scripted/{self.kind}"

    @property
    def tool_raises(self) -> bool:
        return self.kind.startswith("tool_error")

    @property
    def agent_recovers(self) -> bool:
        """The framework tells the model of a tool's error, instead of giving up."""
        return self.kind == "tool_error_recovered"


class Refused(Exception):
    """Raised by a tool."""

    def __init__(self) -> None:
        super().__init__("the mail server refused it")


def search_docs(query: str) -> str:
    """Search the documents.

    Args:
        query: what to look for.
    """
    return FOUND


def report_sender(scenario: Scenario, error: type[Exception] = Refused) -> Callable[[str], str]:
    def send_report(text: str) -> str:
        """Send the report.

        Args:
            text: the report.
        """
        if scenario.tool_raises:
            raise error()
        return SENT

    return send_report


def add_letta() -> TracerProvider:
    """What a user adds to a program; all settings are in the environment."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    provider = TracerProvider()
    provider.add_span_processor(_Record(Path(os.environ["SPANS"])))
    provider.add_span_processor(LettaSpanProcessor())
    trace.set_tracer_provider(provider)
    return provider


def play(provider: TracerProvider, run: Callable[[Scenario], object]) -> None:
    """Run the scenarios, say how each ended, and let everything be delivered."""
    # One event loop, as a program has that goes on after an error; and a context for each run, as a request has.
    with asyncio.Runner() as loop:
        _play_all(provider, run, loop)
    provider.shutdown()


def _play_all(provider: TracerProvider, run: Callable[[Scenario], object], loop: asyncio.Runner) -> None:
    for kind in sys.argv[2:]:
        context = contextvars.copy_context()
        try:
            result = context.run(run, Scenario(kind))
            if inspect.iscoroutine(result):
                result = loop.run(result, context=context)
            how = {"outcome": "answered", "answer": str(result)}
        except asyncio.CancelledError:
            how = {"outcome": "cancelled"}
        except Exception as error:
            how = {"outcome": "raised", "error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"scenario": kind, **how}), flush=True)
        provider.force_flush()


async def cancel_in_between(scenario: Scenario, run: Coroutine[Any, Any, T]) -> T:
    """Await the run; in the scenario of that name cancel it while it waits for the model."""
    task = asyncio.ensure_future(run)
    if scenario.kind == "cancelled":
        await asyncio.to_thread(wait_until_the_model_is_asked, scenario)
        task.cancel()
    return await task


def interrupt_in_between(scenario: Scenario, interrupt: Callable[[], object]) -> None:
    """The same for frameworks that run in threads: interrupt, and let the model answer then."""

    def watch() -> None:
        wait_until_the_model_is_asked(scenario)
        interrupt()
        _call("POST", f"release/{scenario.kind}")

    if scenario.kind == "cancelled":
        threading.Thread(target=watch, daemon=True).start()


def wait_until_the_model_is_asked(scenario: Scenario) -> None:
    _call("GET", f"held/{scenario.kind}")


def _call(method: str, path: str) -> None:
    request = urllib.request.Request(
        base_url.removesuffix("v1") + path, method=method, data=b"" if method == "POST" else None
    )
    urllib.request.urlopen(request, timeout=30).close()


class _Record(SpanProcessor):
    """Writes down what the framework does with its spans, so that a failed test can show it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._write("start", span)

    def on_end(self, span: ReadableSpan) -> None:
        self._write("end", span)

    def _write(self, what: str, span: ReadableSpan) -> None:
        assert span.context is not None
        line = {
            "what": what,
            "name": span.name,
            "trace": f"{span.context.trace_id:032x}",
            "span": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
            "scope": span.instrumentation_scope.name if span.instrumentation_scope else None,
            "status": span.status.status_code.name,
            "description": span.status.description,
            "attributes": {name: str(value) for name, value in (span.attributes or {}).items()},
            "events": [
                {"name": event.name, **{n: str(v) for n, v in (event.attributes or {}).items()}}
                for event in span.events
            ],
        }
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
