"""`LettaReporter`: the API of the original OpenHands–Letta integration, on Letta's real API."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from otel_letta.errors import (
    LettaConfigurationError,
    LettaConversationNotFoundError,
    LettaError,
    LettaSessionClosedError,
    LettaTimeoutError,
)
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.suppress import suppress_tracing

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.trace import TracerProvider
    from typing_extensions import Self, Unpack

    from otel_letta.answer import OnAnswer
    from otel_letta.delivery.answers import Answers
    from otel_letta.delivery.visit import Attempt
    from otel_letta.letta.transport import Lane, Message, Transport
    from otel_letta.settings import SettingsOptions

__all__ = ["LettaReporter"]

_logger = logging.getLogger(__name__)

_Ids = tuple[str | None, str | None]
"""Of a trace and of a span in it; None where there is none."""
StatusName = Literal["in_progress", "completed", "failed"]
_MOST_FOREIGN = 1_000
"""Conversations of other agents that one reporter remembers."""


class LettaReporter:
    """Sends progress reports that its caller words, at once, and gives back what Letta answers.

    Every call wakes the agent and costs one turn of its LLM. Calls go through the same gate as everything else of
    this package: one request at a time and agent, never into a running turn; so a call may wait for its turn::

        reporter = LettaReporter()
        answer = await reporter.send_progress_report(
            chat_id="chat-123", message_id="msg-456", content="Processing task: 50% complete", progress=0.5
        )

    The HTTP work is done on a thread, so one reporter serves several event loops one after another or at once, and
    has a synchronous twin that works where a loop is running already.

    Args:
        transport: instead of the one that fits the server; for tests.
        tracer_provider: gets the spans of the agent's turns, if ``OTEL_LETTA_ANSWER_SPANS`` asks for them; default is
            the global one.
        on_answer: called with each report that was sent, and what the agent answered to it, on a thread of its own; may
            be a coroutine function. Whoever made the call gets Letta's answer as before.
        options: `Settings` keywords, or a finished ``settings``.

    Raises:
        LettaConfigurationError: a setting is missing or bad, or ``on_answer`` is not callable.
    """

    def __init__(
        self,
        *,
        transport: Transport | None = None,
        tracer_provider: TracerProvider | None = None,
        on_answer: OnAnswer | None = None,
        **options: Unpack[SettingsOptions],
    ) -> None:
        # Whoever only imports the class pays for nothing. The threads shall find everything imported: a fork in the
        # middle of an import would leave its lock locked in the child.
        from otel_letta.delivery import envelope, gate  # noqa: F401
        from otel_letta.delivery.answers import Answers, Callbacks
        from otel_letta.delivery.stats import Stats
        from otel_letta.settings import Settings

        self._closed = threading.Event()
        self._until = Deadline(cancelled=self._closed.is_set)
        keywords = cast("dict[str, Any]", options)
        try:
            settings, _ = Settings.from_options(keywords)
        except LettaConfigurationError as error:
            # Without the frames below, and with nothing in this one: a traceback that shows local variables would
            # show a password, or a URL with one in it.
            raise error.with_traceback(None) from None
        finally:
            keywords.clear()
        if on_answer is not None and not callable(on_answer):
            raise LettaConfigurationError(f"on_answer is not callable: it is a {type(on_answer).__name__}")
        self._settings = settings
        callbacks = Callbacks()
        if on_answer is not None:
            callbacks.add(on_answer)
        if settings.answer_spans:
            from otel_letta.otel.answer_spans import AnswerSpans

            callbacks.add_turn(AnswerSpans(tracer_provider))
        self._answers = Answers(callbacks, Stats())
        if transport is None:
            from otel_letta.letta.select import SelectingTransport  # imports httpx, which takes its time

            transport = SelectingTransport(settings)
        settings.warn_once(_logger)
        self._transport = transport
        self._own: dict[Lane, Lane] = {}
        """Lanes of other agents' conversations, each with the one that is used instead."""
        # A reporter that nobody closes must not leave open sockets behind, which Python would warn about.
        self._finalizer = weakref.finalize(
            self, _close, self._closed, self._until, transport, weakref.ref(self._answers)
        )
        _reporters.add(self)
        _at_exit[transport] = settings.shutdown_timeout
        _answers_at_exit[self._answers] = settings.shutdown_timeout

    def __repr__(self) -> str:
        settings = getattr(self, "_settings", None)
        if settings is None:  # shown in a traceback of its own constructor
            return "<LettaReporter without settings>"
        state = "closed" if self._closed.is_set() else "open"
        return f"<LettaReporter {settings.agent_id} at {settings.base_url}, {state}>"

    async def send_progress_report(
        self,
        chat_id: str,
        message_id: str,
        content: str,
        progress: float = 0.0,
        status: TaskStatus | StatusName = "in_progress",
    ) -> dict[str, Any]:
        """Tell the agent, and wait for its turn to end.

        Args:
            chat_id: the conversation that asked; the id of a Letta conversation (``conv-…``) sends the report there.
            message_id: the message that asked.
            content: what to say; shortened at ``OTEL_LETTA_CONTENT_CAP`` characters (2,000).
            progress: 0.0 to 1.0.
            status: ``in_progress``, ``completed`` or ``failed``.

        Returns:
            Letta's answer. From the REST API: ``messages``, what the agent said and did, each with ``id``,
            ``message_type``, ``content``, ``run_id``…; ``stop_reason``; ``usage`` with token counts.

        Raises:
            ValueError: an unknown status, no content, or a progress outside 0..1.
            LettaSessionClosedError: the reporter was closed.
            LettaConnectionError: the server cannot be reached, or did not answer in time (`LettaTimeoutError`).
            LettaAuthenticationError: the server does not know the password.
            LettaAgentNotFoundError: the server does not know the agent.
            LettaError: anything else that Letta answered.

        A cancelled call stops waiting; what it had sent goes on in the agent.
        """
        report = _report(chat_id, message_id, content, progress, status)
        caller = self._caller()
        self._refuse_if_closed()
        import asyncio  # whoever awaits this has done so already

        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        given_up = threading.Event()

        def done(answer: dict[str, Any] | None, error: BaseException | None) -> None:
            def settle() -> None:
                if future.done():
                    return
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(answer or {})

            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                _logger.debug("the answer to a report came after its event loop was closed")

        self._on_thread(report, caller, given_up, done)
        try:
            return await future
        finally:
            given_up.set()
            self._until.wake()

    def send_progress_report_sync(
        self,
        chat_id: str,
        message_id: str,
        content: str,
        progress: float = 0.0,
        status: TaskStatus | StatusName = "in_progress",
    ) -> dict[str, Any]:
        """`send_progress_report` for code without an event loop, or inside a running one (a notebook); blocks."""
        report = _report(chat_id, message_id, content, progress, status)
        caller = self._caller()
        self._refuse_if_closed()
        with suppress_tracing():
            return self._send(report, caller, threading.Event())

    async def aclose(self) -> None:
        """`close`, for an event loop: it goes on meanwhile."""
        if self._answers.pending:
            import asyncio  # whoever awaits this has done so already

            await asyncio.to_thread(self.close)
        else:
            self.close()

    def close(self) -> None:
        """Close the session; quiet when called again. Calls that wait for their turn give up.

        Answers that ``on_answer`` was not given yet are waited for, ``OTEL_LETTA_SHUTDOWN_TIMEOUT`` at most (5 s).
        """
        self._closed.set()
        self._finalizer()
        self._answers.close(Deadline.after(self._settings.shutdown_timeout))

    async def __aenter__(self) -> Self:
        self._refuse_if_closed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        self._refuse_if_closed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------------------

    def _refuse_if_closed(self) -> None:
        if self._closed.is_set():
            raise LettaSessionClosedError(hint="make a new LettaReporter")

    def _on_thread(
        self,
        report: ProgressReport,
        caller: _Ids,
        given_up: threading.Event,
        done: Callable[[dict[str, Any] | None, BaseException | None], None],
    ) -> None:
        # A daemon thread of its own, not the loop's executor: asyncio.run() waits for that one at its end, and a
        # turn can last minutes. Nor is a call bound to a loop this way.
        def work() -> None:
            try:
                with suppress_tracing():
                    answer = self._send(report, caller, given_up)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                done(None, error)
            else:
                done(answer, None)

        threading.Thread(target=work, name="otel_letta reporter", daemon=True).start()

    def _caller(self) -> _Ids:
        """Return the ids of the span that the caller is in, if the agent's turn becomes a span with a link to it."""
        if not self._settings.answer_spans:
            return None, None
        from opentelemetry import trace

        span = trace.get_current_span().get_span_context()
        if not span.is_valid:
            return None, None
        return trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)

    def _send(self, report: ProgressReport, caller: _Ids, given_up: threading.Event) -> dict[str, Any]:
        from otel_letta.delivery.envelope import render
        from otel_letta.delivery.visit import Attempt
        from otel_letta.letta.transport import Message

        settings = self._settings
        lane = self._transport.lane(None, report.chat_id)
        message = Message(
            render(report, content_cap=settings.content_cap, trace_link=settings.trace_link), str(uuid.uuid4())
        )

        about = replace(report, trace_id=caller[0], span_id=caller[1])
        attempt = Attempt(partial(self._answers.put_turn, self._transport, lane, [about]))
        try:
            answer = self._exchange(lane, message, given_up, report.status.is_terminal, attempt)
        except LettaError as error:
            _logger.debug("report for chat %s (%s) not sent: %s", report.chat_id, report.status, error)
            if isinstance(error, LettaTimeoutError) and not error.may_have_landed:
                self._refuse_if_closed()
            raise
        _logger.debug("report for chat %s (%s) sent: its caller asked for it", report.chat_id, report.status)
        if message.otid in attempt.answers:
            self._answers.put_response(self._transport, lane, [report], attempt.answers[message.otid])
        return answer

    def _exchange(
        self, lane: Lane, message: Message, given_up: threading.Event, is_end: bool, attempt: Attempt
    ) -> dict[str, Any]:
        from otel_letta.delivery.gate import exchange

        settings = self._settings
        try:
            return exchange(
                self._transport,
                self._own.get(lane, lane),
                [message],
                until=Deadline(cancelled=given_up.is_set, within=self._until),
                patience=settings.read_timeout,
                busy_patience=settings.busy_timeout,
                must_stay={message.otid} if is_end else (),
                attempt=attempt,
            )
        except LettaConversationNotFoundError as error:
            if not error.is_another_agents or lane in self._own:
                raise
        _logger.warning("%s is another agent's: its reports go to the agent's default conversation", lane)
        self._own[lane] = lane._replace(conversation_id=None)
        if len(self._own) > _MOST_FOREIGN:
            self._own.pop(next(iter(self._own)))
        return self._exchange(lane, message, given_up, is_end, attempt)


def _close(closed: threading.Event, until: Deadline, transport: Transport, reference: weakref.ref[Answers]) -> None:
    closed.set()
    until.wake()
    transport.close()
    answers = reference()  # weak: a callback may hold the reporter itself
    if answers is not None:
        answers.close_soon()


def _after_fork_in_child(reporter: LettaReporter) -> None:
    reporter._until.renew()
    from otel_letta.delivery.stats import Stats  # which the reporter's constructor has imported

    reporter._answers.renew(Stats())


_reporters: weakref.WeakSet[LettaReporter] = weakref.WeakSet()
fork.in_child_each(_reporters, _after_fork_in_child)


_at_exit: weakref.WeakKeyDictionary[Transport, float] = weakref.WeakKeyDictionary()
"""Seconds that the exit may wait for calls under way, whose threads would die in the middle of them."""
_answers_at_exit: weakref.WeakKeyDictionary[Answers, float] = weakref.WeakKeyDictionary()
"""The same for answers that callbacks were not given yet."""


@atexit.register
def _leave() -> None:
    began = time.monotonic()
    waiting = [(transport, began + seconds) for transport, seconds in _at_exit.items()]
    for transport, deadline in waiting:
        transport.ending.bring_forward(deadline)
    for transport, deadline in waiting:
        transport.close(until=Deadline(deadline))
    for answers, seconds in list(_answers_at_exit.items()):
        answers.close(Deadline(began + seconds))


def _report(chat_id: str, message_id: str, content: str, progress: float, status: str) -> ProgressReport:
    import numbers

    try:
        known = TaskStatus(status)
    except ValueError:
        allowed = ", ".join(TaskStatus)
        raise ValueError(f"status is {status!r}, not one of {allowed}") from None
    if content is None:
        raise ValueError("content is None: give a line that says how the task stands")
    if isinstance(progress, bool) or not isinstance(progress, numbers.Real) or not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress!r}, not a number from 0.0 to 1.0")
    return ProgressReport(
        chat_id=None if chat_id is None else str(chat_id),
        message_id=None if message_id is None else str(message_id),
        content=str(content),
        progress=float(progress),
        status=known,
    )
