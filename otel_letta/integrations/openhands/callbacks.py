"""OpenHands tells a Letta agent how its work goes.

    told = callback(chat_id="chat-123", message_id="msg-456")
    conversation = Conversation(agent=agent, workspace="work", callbacks=[told])
    with reporting(conversation, told):
        conversation.send_message("Write hello.py and run it")
        conversation.run()

The agent hears of the start, of each tool with the line that OpenHands sums it up in, of the plan as progress, and of
the end with what OpenHands answered. `callback` alone judges ends by events; inside `reporting` the execution status of
the conversation decides, which alone knows of a stuck or waiting one. `attach` tells the same by OpenTelemetry.

Importing this imports nothing of OpenHands.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from otel_letta.errors import LettaConfigurationError
from otel_letta.integrations.openhands.runs import Claims, ConversationTracker, Event, Origin, What, read_event
from otel_letta.letta.transport import Transport
from otel_letta.otel.component import Component
from otel_letta.report import ProgressReport
from otel_letta.runtime import fork
from otel_letta.settings import Settings
from otel_letta.text import as_text
from otel_letta.tracking.aborts import abort_reason

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from otel_letta.otel.processor import LettaSpanProcessor
    from otel_letta.settings import SettingsOptions

__all__ = ["Callback", "attach", "callback", "flush", "reporting", "shutdown"]

_logger = logging.getLogger(__name__)

_FRAMES_TO_CONVERSATION = 60
"""At most so many from a callback up to the conversation that calls it: about ten in OpenHands 1.58."""
_MOST_REPLAYED = 2_000

_TRACING_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_ENDPOINT",
    "LMNR_PROJECT_API_KEY",
)
"""OpenHands traces if one of them is set when ``openhands.sdk`` is imported (measured with 1.58)."""


# -- one share a set of settings -------------------------------------------------------------------------------------


class Conversations:
    """The `Source` of OpenHands' reports: one for all shares of a pipeline."""

    def __init__(self, content_cap: int) -> None:
        self._content_cap = content_cap
        self.claimed = Claims()

    def start(self, emit: Callable[[ProgressReport], None]) -> None:
        self._tracker = ConversationTracker(
            emit=emit, now=time.time_ns, host=socket.gethostname(), content_cap=self._content_cap
        )

    @property
    def open_tasks(self) -> int:
        return self._tracker.open_tasks

    def hear(self, conversation_id: str, origin: Origin, event: Event) -> None:
        self._tracker.hear(conversation_id, origin, event)

    def tick(self, now_ns: int) -> int | None:
        return self._tracker.tick()

    def shutdown(self) -> None:
        self._tracker.shutdown()

    def claims(self, conversation_id: str) -> bool:
        return conversation_id in self.claimed


class Share(Component):
    """What all callbacks with the same settings report through. Lives until `shutdown`, or the program's end.

    Not one for each callback: a conversation may be forgotten long before its last report is delivered, and nobody
    closes a callback.
    """

    def __init__(self, transport: Transport | None, options: dict[str, Any]) -> None:
        super().__init__("otel_letta.integrations.openhands", live=False, transport=transport, options=options)
        self._conversations: Conversations | None = None
        if self._handle is not None:
            settings = self._handle.pipeline.settings
            self._conversations = self._handle.add_source(Conversations(settings.content_cap))

    def tell(self, conversation_id: str, origin: Origin, event: Event) -> None:
        """Note the news and return. Never raises, never waits."""
        try:
            if self.active and self._handle is not None and self._conversations is not None:
                event = event if event.at else replace(event, at=time.time_ns())
                self._handle.call(self._conversations.hear, conversation_id, origin, event)
        except Exception as error:  # noqa: BLE001
            self.swallow(error)

    def claim(self, conversation_id: str) -> None:
        """From now on the conversation's spans, if there are any, are not told as well."""
        if self._conversations is not None:
            self._conversations.claimed.add(conversation_id)

    def swallow(self, error: Exception) -> None:
        self._swallow("OpenHands events", error)

    def flush(self, timeout: float) -> bool:
        return self._flush(timeout * 1e3)

    def close(self) -> None:
        self._close(None)


_shares: dict[Hashable, Share] = {}
_shares_lock = threading.RLock()


def share(transport: Transport | None, options: dict[str, Any]) -> Share:
    """The share for these settings, made if there is none. Bad settings are logged, and it does nothing."""
    given = options.pop("settings", None)
    try:
        if given is not None and not isinstance(given, Settings):
            raise LettaConfigurationError("settings are what Settings.resolve() gives")
        if given is not None and options:
            raise LettaConfigurationError(f"settings and {', '.join(sorted(options))} exclude each other")
        settings = Settings.resolve(**options) if given is None else given
    except LettaConfigurationError:
        # The component knows how to complain; unknown options alone need not stop it.
        made = Share(transport, options if given is None else {"settings": given, **options})
        with _shares_lock:
            if made.active:
                _remember(object(), made)
        return made
    with _shares_lock:
        key = (settings.identity(), id(transport))
        known = _shares.get(key)
        if known is None:
            known = Share(transport, {"settings": settings})
            if known.active:
                _remember(key, known)
        return known


def _remember(key: Hashable, made: Share) -> None:
    if not _shares:
        atexit.register(shutdown)
    _shares[key] = made


def _after_fork_in_child() -> None:
    global _shares_lock
    _shares_lock = threading.RLock()  # another thread may have held it


fork.in_child(_after_fork_in_child)


def flush(timeout: float = 30.0) -> bool:
    """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
    deadline = time.monotonic() + timeout
    with _shares_lock:
        shares = list(_shares.values())
    delivered = True
    for each in shares:
        delivered &= each.flush(max(deadline - time.monotonic(), 0.0))
    return delivered


def shutdown() -> None:
    """Report runs that are still open as failed, deliver, and stop. Called at the program's end; quiet again.

    Takes at most ``OTEL_LETTA_SHUTDOWN_TIMEOUT`` (5 s) for each set of settings.
    """
    atexit.unregister(shutdown)
    with _shares_lock:
        shares = list(_shares.values())
        _shares.clear()
    for each in shares:
        each.close()


# -- the callback ----------------------------------------------------------------------------------------------------


class Callback:
    """What `callback` makes: OpenHands calls it with every event of one conversation."""

    def __init__(self, share: Share, origin: Origin, conversation_id: str | None) -> None:
        self._share = share
        self._origin = origin
        self._conversation_id = conversation_id
        self._bound_to = conversation_id
        self._made_up = str(uuid.uuid4())
        """What it is called as long as nobody says; the same for threads that ask at once."""
        if conversation_id is not None:
            share.claim(conversation_id)

    def __call__(self, event: object) -> None:
        """Take note of an OpenHands event. Called under the conversation's lock: copies a few fields and returns."""
        share = self._share
        if not share.active:
            return
        try:
            news = read_event(event)
            if news is None:
                return
            if self._bound_to is None or news.what is What.BEGUN:
                self._bind(_conversation_on_stack())
            share.tell(self._conversation_id or self._name_myself(), self._origin, news)
        except Exception as error:  # noqa: BLE001 - it would end OpenHands' run
            share.swallow(error)

    def __repr__(self) -> str:
        return f"<otel_letta callback of conversation {self._conversation_id or '(not known yet)'}>"

    @property
    def active(self) -> bool:
        """False if there is nothing that this could do: its settings are bad, or `shutdown` was called."""
        return self._share.active

    def stats(self) -> dict[str, Any]:
        """Numbers since the start; see `LettaSpanProcessor.stats`."""
        return self._share.stats()

    def _bind(self, conversation: object) -> None:
        """Learn whose events these are: they do not say it themselves."""
        conversation_id = _id_of(conversation)
        if conversation_id is None:
            return
        self._share.claim(conversation_id)
        if conversation_id == self._bound_to:
            return
        # What was told before its id was known, of a remote conversation, goes on under the name that it has then.
        if self._bound_to is not None or self._conversation_id is None:
            self._conversation_id = conversation_id
        self._bound_to = conversation_id

    def _name_myself(self) -> str:
        self._conversation_id = self._made_up
        return self._conversation_id


def callback(
    *,
    chat_id: str | None = None,
    message_id: str | None = None,
    name: str | None = None,
    conversation_id: str | None = None,
    transport: Transport | None = None,
    **options: Unpack[SettingsOptions],
) -> Callback:
    """A callback for ``Conversation(callbacks=[…])`` that tells the agent what OpenHands does.

    A user's message starts a task, or goes to the one that is under way. A run is one task, with the id
    ``<conversation id>/<run>``. Make one callback for each conversation. It neither raises nor waits: bad settings are
    one error in the log, and reports go out on threads of their own.

    Args:
        chat_id: the chat that asked; the id of a Letta conversation (``conv-…``) sends the reports there.
        message_id: the message that asked.
        name: what the task is called; ``OpenHands`` by default, since prompts are never told.
        conversation_id: OpenHands' id of the conversation. Only needed for a `RemoteConversation` without `reporting`;
            elsewhere it is found.
        transport: instead of Letta's REST API; for tests.
        options: `Settings` keywords, such as ``base_url``, ``agent_id``, ``password``, ``delivery``.
    """
    return Callback(share(transport, dict(options)), Origin.given(chat_id, message_id, name), conversation_id)


def _conversation_on_stack() -> object | None:
    """The conversation that is calling us. OpenHands hands out events without saying whose they are."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES_TO_CONVERSATION):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        if str(frame.f_globals.get("__name__")).startswith("openhands.sdk.conversation."):
            owner = frame.f_locals.get("self")
            if hasattr(type(owner), "run") and _id_of(owner) is not None:
                return owner
    return None


def _id_of(conversation: object) -> str | None:
    found = getattr(conversation, "id", None)
    return str(found) if isinstance(found, (uuid.UUID, str)) else None


# -- the context manager ---------------------------------------------------------------------------------------------


class reporting(AbstractContextManager[Callback], AbstractAsyncContextManager[Callback]):  # noqa: N801 - like `task`
    """One task from the ``with`` to its end: what the conversation's status and an exception say is how it ended.

    With a `callback` of the conversation all that happens in between is told live. Without one, only the start is; the
    rest is read from the conversation when it is over, and is told with the end::

        with reporting(conversation, chat_id="chat-123", message_id="msg-456"):
            conversation.run()

    A paused conversation, and one that waits for confirmation, is in progress: the task goes on with the next
    ``with``. Works as ``async with`` around ``arun()`` too. Never raises anything of its own.

    Args:
        conversation: OpenHands' conversation, local or remote.
        told: its callback, which brings the ids and settings along.
        chat_id, message_id, name, transport, options: see `callback`; instead of ``told``.
    """

    def __init__(
        self,
        conversation: Any,
        told: Callback | None = None,
        /,  # a setting is called ``conversation`` too
        *,
        chat_id: str | None = None,
        message_id: str | None = None,
        name: str | None = None,
        transport: Transport | None = None,
        **options: Unpack[SettingsOptions],
    ) -> None:
        if told is None:
            self._told = callback(chat_id=chat_id, message_id=message_id, name=name, transport=transport, **options)
        elif chat_id or message_id or name or transport or options:
            raise TypeError("the callback has its ids and settings already")
        else:
            self._told = told
        self._replays = told is None
        self._conversation = conversation
        self._seen = 0

    def __enter__(self) -> Callback:
        told = self._told
        with self._swallowing():
            told._bind(self._conversation)
            seen = _number_of_events(self._conversation)
            if seen is None:
                self._replays = False  # what is old and what is new could not be told apart
            else:
                self._seen = seen
            self._say(Event(What.ENTERED, code="new" if seen == 0 else ""))
        return told

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Each for itself: a remote conversation whose server is gone cannot be read, and has ended all the same.
        status = None
        with self._swallowing():
            if self._replays:
                self._replay()
        with self._swallowing():
            status = as_text(getattr(getattr(self._conversation, "state", None), "execution_status", None))
        with self._swallowing():
            self._say(Event(What.LEFT, code=status or "", text="" if error is None else _words(error)))

    async def __aenter__(self) -> Callback:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def _swallowing(self) -> Iterator[None]:
        try:
            yield
        except Exception as trouble:  # noqa: BLE001
            self._told._share.swallow(trouble)

    def _say(self, event: Event) -> None:
        told = self._told
        told._share.tell(told._conversation_id or told._name_myself(), told._origin, event)

    def _replay(self) -> None:
        """Tell what happened meanwhile. Events that a callback told already are known by their ids."""
        events = self._conversation.state.events
        for index in range(max(self._seen, len(events) - _MOST_REPLAYED), len(events)):
            news = read_event(events[index])
            if news is not None:
                self._say(news)


def _number_of_events(conversation: Any) -> int | None:
    try:
        return len(conversation.state.events)
    except Exception:  # noqa: BLE001 - a remote conversation asks its server
        return None


def _words(error: BaseException) -> str:
    """What stopped a run. OpenHands wraps the cause in an exception that repeats it between ids and paths."""
    reason = abort_reason(error)
    if reason is not None:
        return reason
    if not isinstance(error, Exception):
        return ""  # sys.exit(0) and a generator that is closed are no failures: the status says how it ended
    cause = error.__cause__ if type(error).__name__ == "ConversationRunError" and error.__cause__ else error
    try:
        text = str(cause)
    except Exception:  # noqa: BLE001 - the text of an exception is anybody's code
        text = ""
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


# -- by OpenTelemetry ------------------------------------------------------------------------------------------------


def attach(**options: Unpack[SettingsOptions]) -> LettaSpanProcessor | None:
    """Report OpenHands' own spans: adds a live processor to the tracer provider that OpenHands traces with.

    Call it before or after ``import openhands.sdk``. OpenHands traces only if ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
    another variable that it knows) is set before that import; if not, one error in the log says so.

    Args:
        options: the keywords of `LettaSpanProcessor`.

    Returns:
        The processor; None if it will be added when ``openhands.sdk`` is imported, or if there is nothing to add it to.
    """
    from otel_letta.runtime.imports import when_imported

    if "openhands.sdk" in sys.modules:
        return _attach_now(dict(options))
    when_imported("openhands.sdk", lambda: _attach_now(dict(options)))
    return None


def _attach_now(options: dict[str, Any]) -> LettaSpanProcessor | None:
    from otel_letta.otel.zero_code import _go_live

    try:
        provider = _provider_of_openhands()
        if provider is None:
            _logger.error(
                "OpenHands' tracing is off, so it has no spans to report: set %s before openhands.sdk is imported, or "
                "use otel_letta.integrations.openhands.callback(), which needs no tracing",
                _TRACING_VARIABLES[0],
            )
            return None
        return _go_live(options, provider)
    except Exception as error:
        _logger.error("OpenHands' spans are not reported: unexpected %s", type(error).__name__)
        _logger.debug("unexpected error", exc_info=True)
        return None


def _provider_of_openhands() -> object | None:
    """The provider whose spans are OpenHands', None while it does not trace.

    OpenHands traces through Laminar, which makes a provider of its own, and makes it the global one only where there
    was none. There is no public way to it where there was one (lmnr 0.7.52 to 0.7.67).
    """
    laminar = sys.modules.get("lmnr")
    if laminar is None or not laminar.Laminar.is_initialized():
        return None
    tracing = sys.modules.get("lmnr.opentelemetry_lib.tracing")
    own = getattr(getattr(getattr(tracing, "TracerWrapper", None), "instance", None), "_tracer_provider", None)
    if own is not None:
        return own  # type: ignore[no-any-return]
    from opentelemetry import trace

    return trace.get_tracer_provider()
