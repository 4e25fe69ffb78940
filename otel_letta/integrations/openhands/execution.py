"""The context manager around OpenHands' `run()`: the conversation's status and an exception decide how it ended."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from otel_letta.integrations.openhands.callbacks import Callback, callback
from otel_letta.integrations.openhands.events import Event, EventKind, read_event
from otel_letta.letta.transport import Transport
from otel_letta.runtime.aborts import abort_reason
from otel_letta.text import as_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from otel_letta.instruction import Action, Instruction
    from otel_letta.integrations.openhands.rounds import Rounds
    from otel_letta.settings import SettingsOptions

_logger = logging.getLogger(__name__)

_MOST_REPLAYED = 2_000


class reporting(AbstractContextManager[Callback], AbstractAsyncContextManager[Callback]):  # noqa: N801 - like `task`
    """One task from the ``with`` to its end, judged by the conversation's status and by an exception.

    With a `callback` of the conversation everything in between is reported live. Without one, only the start is; the
    rest is read from the conversation when it is over, and is reported with the end::

        with reporting(conversation, chat_id="chat-123", message_id="msg-456"):
            conversation.run()

    A paused conversation, and one that waits for confirmation, is in progress: the task goes on with the next
    ``with``. Works as ``async with`` around ``arun()`` too. Never raises anything of its own.

    With ``follow_up`` the end of the block waits for what the Letta agent answers to the end of the run. If that asks
    for more (see `otel_letta.instruction`), its text is the next message of the conversation, marked as not its user's,
    and the conversation is run again, as another task. What such a run raises, the block raises::

        with reporting(conversation, observer, follow_up=True, rounds=3):
            conversation.send_message("Write hello.py and run it")
            conversation.run()

    Args:
        conversation: OpenHands' conversation, local or remote.
        existing: its callback, which brings ids, name and settings along: the arguments below are those of `callback`
            and only for a conversation without one.
        chat_id: the chat that asked.
        message_id: the message that asked.
        name: the task's name.
        transport: instead of Letta's REST API; for tests.
        follow_up: run again what the agent asks to.
        rounds: such runs at most, up to 100.
        patience: seconds to wait for each answer of the agent.
        within: seconds after the end of the first run in which rounds may begin.
        allow: what the agent may ask for: ``continue``; with ``accept`` and ``reject`` it also decides whether what
            waits for confirmation is run.
        options: `Settings` keywords.

    Raises:
        TypeError: there is a callback, and one of the arguments that it replaces.
        ValueError: ``rounds``, ``patience``, ``within`` or ``allow`` is none.
    """

    def __init__(
        self,
        conversation: Any,
        existing: Callback | None = None,
        /,  # a setting is called ``conversation`` too
        *,
        chat_id: str | None = None,
        message_id: str | None = None,
        name: str | None = None,
        transport: Transport | None = None,
        follow_up: bool = False,
        rounds: int = 3,
        patience: float = 120.0,
        within: float = 3_600.0,
        allow: Sequence[Action] = ("continue",),
        **options: Unpack[SettingsOptions],
    ) -> None:
        if existing is None:
            self._callback = callback(chat_id=chat_id, message_id=message_id, name=name, transport=transport, **options)
        elif chat_id or message_id or name or transport or options:
            raise TypeError("the callback has its ids and settings already")
        else:
            self._callback = existing
        self._replays = existing is None
        self._conversation = conversation
        self._seen = 0
        self._rounds: Rounds | None = None
        if follow_up:
            from otel_letta.integrations.openhands.rounds import Rounds  # few programs need it

            self._rounds = Rounds(self._callback, most=rounds, patience=patience, within=within, allow=allow)

    def __enter__(self) -> Callback:
        self._begin("")
        return self._callback

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = self._end(error)
        if error is not None or self._rounds is None:
            return
        if _in_event_loop():
            _logger.error("no run is followed up: that would hold up the event loop. Use `async with` here")
            return
        while True:
            instruction = None
            with self._swallowing():
                instruction = self._rounds.asked(status)
            if instruction is None:
                return
            with self._one_more(instruction) as left:
                self._rounds.carry_out(self._conversation, instruction)
                self._conversation.run()
            status = left[0]

    async def __aenter__(self) -> Callback:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio  # whoever awaits this has done so already

        status = self._end(error)
        if error is not None or self._rounds is None:
            return
        while True:
            instruction = None
            with self._swallowing():
                instruction = await self._rounds.asked_async(status)
            if instruction is None:
                return
            with self._one_more(instruction) as left:
                # A remote conversation asks its server.
                await asyncio.to_thread(self._rounds.carry_out, self._conversation, instruction)
                if hasattr(self._conversation, "arun"):
                    await self._conversation.arun()
                else:
                    await asyncio.to_thread(self._conversation.run)
            status = left[0]

    @contextlib.contextmanager
    def _one_more(self, instruction: Instruction) -> Iterator[list[str]]:
        """Report one more run. The list that it gives has the status that the run left, after the block."""
        assert self._rounds is not None
        self._begin(self._rounds.begin(instruction))
        left: list[str] = []
        try:
            yield left
        except BaseException as error:
            self._end(error)
            raise
        left.append(self._end(None))

    def _begin(self, why: str) -> None:
        with self._swallowing():
            self._callback._bind(self._conversation)
            seen = _number_of_events(self._conversation)
            if seen is None:
                self._replays = False  # old and new events could not be kept apart
            else:
                self._seen = seen
            self._callback._report(Event(EventKind.RUN_ENTERED, code="new" if seen == 0 else "", text=why))
            if self._rounds is not None:
                self._rounds.expect()

    def _end(self, error: BaseException | None) -> str:
        """Report how the run ended. Return the execution status that it left; empty if that is unknown."""
        # Each for itself: a remote conversation whose server is gone cannot be read, and has ended all the same.
        status = None
        with self._swallowing():
            if self._replays:
                self._replay()
        with self._swallowing():
            status = as_text(getattr(getattr(self._conversation, "state", None), "execution_status", None))
        with self._swallowing():
            reason = "" if error is None else _reason(error)
            self._callback._report(Event(EventKind.RUN_RETURNED, code=status or "", text=reason))
        return status or ""

    @contextlib.contextmanager
    def _swallowing(self) -> Iterator[None]:
        try:
            yield
        except Exception as trouble:  # noqa: BLE001
            self._callback._share.swallow(trouble)

    def _replay(self) -> None:
        """Report the events of the run. Those that a callback reported already are known by their ids."""
        events = self._conversation.state.events
        for index in range(max(self._seen, len(events) - _MOST_REPLAYED), len(events)):
            event = read_event(events[index])
            if event is not None:
                self._callback._report(event)


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _number_of_events(conversation: Any) -> int | None:
    try:
        return len(conversation.state.events)
    except Exception:  # noqa: BLE001 - a remote conversation asks its server
        return None


def _reason(error: BaseException) -> str:
    """Return why a run stopped. OpenHands wraps the cause in an exception that repeats it between ids and paths."""
    reason = abort_reason(error)
    if reason is not None:
        return reason
    if not isinstance(error, Exception):
        return ""  # sys.exit(0) and a generator that is closed are no failures: the status decides how it ended
    cause = error.__cause__ if type(error).__name__ == "ConversationRunError" and error.__cause__ else error
    try:
        text = str(cause)
    except Exception:  # noqa: BLE001 - the text of an exception is anybody's code
        text = ""
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
