"""Asking the supervising agent, and waiting for what it says: for code that cannot decide by itself.

with task("Book invoices", chat_id="chat-123") as t:
    instruction = wait_for_instruction(t, 600, question="the ledger of March, or that of April?")
    if instruction is None:
        t.fail("nobody said which ledger")
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.sdk.trace import Span as RecordedSpan

from otel_letta import semconv
from otel_letta.errors import LettaError
from otel_letta.otel.component import live_pipelines
from otel_letta.otel.written import emit_event
from otel_letta.pipeline.instructions import fulfil
from otel_letta.runtime import wake
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.text import clean_line
from otel_letta.tracking.reading import SpanKey, key_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from otel_letta.instruction import Instruction
    from otel_letta.otel.helpers import TaskSpan
    from otel_letta.pipeline.instructions import Expected
    from otel_letta.pipeline.pipeline import Pipeline
    from otel_letta.settings import Settings

_logger = logging.getLogger(__name__)

_QUESTION_CAP = 1_000
_PATIENCE = 10.0
"""Seconds until the task must have been found: the pipeline's thread may have much to read before it."""
_FIRST_LOOK = 30.0
"""Seconds until it is looked for an answer that may have got lost on the way; every further pause is twice as long."""
_LAST_LOOK = 5.0
"""The last look is so many seconds before the end, and takes no longer."""
_complained: set[str] = set()


def wait_for_instruction(task: TaskSpan | Span, timeout: float, *, question: str = "") -> Instruction | None:
    """Report that a task waits for its supervising agent, which wakes that, and wait for the agent's instruction.

    The report says "waits for an instruction: " and the question. Whatever the agent answers, only an instruction for
    this task counts: a block ``<task-instruction task_id="…" action="continue">…</task-instruction>``, or a call of its
    tool `instruct_task` (see `otel_letta.instruction`). Afterwards the task goes on, and is reported so.

    What comes after the time is kept for an hour, for the next call that asks the same of the same task, which then
    wakes nobody; another question makes it void. Blocks: `await_instruction` is for an event loop.

    Args:
        task: a running one, as `task` hands it out, or its span.
        timeout: seconds. Nearly every call wakes the agent, so rather minutes than moments.
        question: one line.

    Returns:
        What the agent asks for; each instruction is given once. Its text was written by an LLM that may have read
        hostile text: it is no more to be trusted than a stranger's message. None if nothing came in time, or the
        processor was shut down; at once, with one error in the log, where nothing can come: without a live processor,
        or with settings that wake no agent (``OTEL_LETTA_DELIVERY=board``, ``OTEL_LETTA_WAKE_ON_WAIT=false``).
    """
    until = time.monotonic() + timeout
    asking = _asking(task, question)
    if asking is None:
        return None
    future = asking.begin(timeout)
    with contextlib.suppress(NotInTime):
        future.result(min(max(timeout, 0.0), _PATIENCE))
    expected = asking.begun(future)
    if expected is None:
        return None
    kept = asking.kept(expected)
    if kept is not None:
        return kept
    with asking.waiting(expected):
        for look, seconds in _rounds(until):
            if look:
                asking.look(expected)
            found = expected.wait(seconds)
            if found is not None or expected.closed:
                return found
    return None


async def await_instruction(task: TaskSpan | Span, timeout: float, *, question: str = "") -> Instruction | None:
    """`wait_for_instruction` for an event loop: other coroutines run meanwhile, and it can be cancelled."""
    import asyncio  # whoever awaits this has done so already

    until = time.monotonic() + timeout
    asking = _asking(task, question)
    if asking is None:
        return None
    future = asking.begin(timeout)
    await asyncio.wait([asyncio.wrap_future(future)], timeout=min(max(timeout, 0.0), _PATIENCE))
    expected = asking.begun(future)
    if expected is None:
        return None
    kept = asking.kept(expected)
    if kept is not None:
        return kept
    with asking.waiting(expected):
        for look, seconds in _rounds(until):
            if look:
                await asyncio.to_thread(asking.look, expected)
            found = await expected.wait_async(seconds)
            if found is not None or expected.closed:
                return found
    return None


def _rounds(until: float) -> Iterator[tuple[bool, float]]:
    """Yield whether to look for a lost answer, and for how many seconds to wait then."""
    look, pause = False, _FIRST_LOOK
    while (left := until - time.monotonic()) > _LAST_LOOK:
        yield look, min(pause, left - _LAST_LOOK)
        look, pause = True, pause * 2
    yield look, max(left, 0.0)


class Source(Protocol):
    """A way by which instructions for the tasks of this program come back."""

    def expect(self, span: RecordedSpan, question: str, seconds: float) -> Future[Expected | None]:
        """Begin to expect one for an open span's task, before it says that it waits, for so many seconds at most. The
        result is None for a span that is part of no task."""

    def look(self, expected: Expected) -> None:
        """See whether the answer to the question is there, and only got lost on the way. Takes seconds at most."""

    def leave(self, expected: Expected) -> None:
        """Wait no longer."""


class _Asking:
    """One call: a span that waits, and the way by which an instruction comes."""

    def __init__(self, span: RecordedSpan, question: str, source: Source) -> None:
        self._span = span
        self._source = source
        self._question = clean_line(question, _QUESTION_CAP)
        self._content = "waits for an instruction" + (f": {self._question}" if self._question else "")

    def begin(self, seconds: float) -> Future[Expected | None]:
        return self._source.expect(self._span, self._question, seconds)

    def begun(self, future: Future[Expected | None]) -> Expected | None:
        """Return what `begin` has come to; None, and a word about why, if it is not to be waited for."""
        if future.cancel():
            _complain(self._span, "its processor did not find it in time, or was shut down")
            return None
        expected = future.result()
        if expected is None:
            why = "it is part of an agent's task, or of none. Give it an id of its own: task(…, task_id=…)"
            _complain(self._span, why)
        return expected

    def kept(self, expected: Expected) -> Instruction | None:
        """Return what an earlier call for the same question came too early for: then nothing is asked."""
        found = expected.wait(0)
        if found is not None:
            self._source.leave(expected)
        return found

    def look(self, expected: Expected) -> None:
        self._source.look(expected)

    @contextlib.contextmanager
    def waiting(self, expected: Expected) -> Iterator[None]:
        """Have the task wait inside the block, and go on where it was after it."""
        span = self._span
        before = (span.attributes or {}).get(semconv.TASK_CONTENT, "")
        self._write({semconv.TASK_WAITING: True, semconv.TASK_CONTENT: self._content})
        try:
            yield
        finally:
            now = (span.attributes or {}).get(semconv.TASK_CONTENT)
            if span.is_recording():
                content = {semconv.TASK_CONTENT: before} if now == self._content else {}
                self._write({semconv.TASK_WAITING: False, **content})
            self._source.leave(expected)

    def _write(self, attributes: dict[str, Any]) -> None:
        self._span.set_attributes(attributes)
        wake.changed(self._span)
        emit_event(self._span, attributes)


class _Reported:
    """The source where a live processor of this process reports the task."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def expect(self, span: RecordedSpan, question: str, seconds: float) -> Future[Expected | None]:
        self._pipeline.instructions.prepare()
        future: Future[Expected | None] = Future()
        self._pipeline.call(fulfil, future, partial(self._expect, key_of(span), question))
        return future

    def _expect(self, key: SpanKey, question: str) -> Expected | None:
        task = self._pipeline.task_of(key)
        if task is None:
            return None
        return self._pipeline.instructions.expect(task.agent_id, task.id, question, (task.run, task.sequence))

    def look(self, expected: Expected) -> None:
        # A request whose answer got lost in silence is waited for as long as a turn may take.
        try:
            with suppress_tracing():
                found = self._pipeline.desk.look_up(*expected.task, Deadline.after(_LAST_LOOK))
        except LettaError as error:
            _logger.debug("cannot tell whether an answer got lost: %s", error)
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours, or a server's odd answer, ends nobody's task
            self._pipeline.complain("a look for a lost answer", error)
            return
        if found is not None and expected.is_question(found[0]):
            expected.put([each for each in found[1].instructions if expected.is_meant_by(each)], found[0])

    def leave(self, expected: Expected) -> None:
        self._pipeline.instructions.leave(expected)


def _asking(task: TaskSpan | Span, question: str) -> _Asking | None:
    span = getattr(task, "span", task)
    if not isinstance(span, RecordedSpan) or not span.is_recording():
        _complain(span, "it is not recorded, or has ended. Call otel_letta.configure() at the start")
        return None
    source, why = _source_for(span)
    if source is None:
        _complain(span, why)
        return None
    return _Asking(span, question, source)


def _source_for(span: RecordedSpan) -> tuple[Source | None, str]:
    """Return the way for a span; or None, and why there is none."""
    why = "this program has no LettaSpanProcessor that sees it. Call otel_letta.configure() at the start"
    for pipeline in live_pipelines():
        if pipeline.watcher.open.get(key_of(span)) is None:
            continue
        problem = _wakes_nobody(pipeline.settings)
        if not problem:
            return _Reported(pipeline), ""
        why = problem
    # Not imported for this: where nobody has, there is no such processor.
    heartbeats = sys.modules.get("otel_letta.otel.heartbeats")
    processor = None if heartbeats is None else heartbeats.seeing(span)
    return (None, why) if processor is None else (processor.instructions(), "")


def _wakes_nobody(settings: Settings) -> str:
    if settings.delivery == "board":
        return "OTEL_LETTA_DELIVERY is board, which wakes no agent"
    if not settings.wake_on_wait:
        return "OTEL_LETTA_WAKE_ON_WAIT is off, so a task that waits wakes no agent"
    return ""


def _complain(span: Any, why: str) -> None:
    """Log one error, the first time that there is this reason."""
    if why not in _complained:
        _complained.add(why)
        name = clean_line(str(getattr(span, "name", "") or "without a span"), 100)
        _logger.error('nobody can instruct the task "%s", so it does not wait: %s', name, why)
