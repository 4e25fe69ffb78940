"""The callback for OpenHands' conversations.

    observer = callback(chat_id="chat-123", message_id="msg-456")
    conversation = Conversation(agent=agent, workspace="work", callbacks=[observer])
    with reporting(conversation, observer):
        conversation.send_message("Write hello.py and run it")
        conversation.run()

It reports the start, each tool with OpenHands' own summary of the call, the plan as progress, and the end with the
agent's answer. `callback` alone judges ends by events; inside `reporting` the execution status of the conversation
decides, which alone knows of a stuck or waiting one.
"""

from __future__ import annotations

import sys
import uuid
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from otel_letta.integrations.openhands.events import Event, EventKind, Origin, read_event
from otel_letta.integrations.openhands.share import Share, share
from otel_letta.letta.transport import Transport
from otel_letta.text import as_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from otel_letta.settings import SettingsOptions

_FRAMES_TO_CONVERSATION = 60
"""At most so many from a callback up to the conversation that calls it: about ten in OpenHands 1.58."""


_LOCAL = "LocalConversation"
"""OpenHands' class of conversations whose status is an attribute; another's asks a server for it."""


class Callback:
    """A callback of one conversation, made by `callback`: OpenHands calls it with every event."""

    def __init__(self, share: Share, origin: Origin, conversation_id: str | None) -> None:
        self._share = share
        self._origin = origin
        self._conversation_id = conversation_id
        self._bound_to = conversation_id
        self._local: Callable[[], object] | None = None
        """A weak reference to the conversation, if it is in this process."""
        self._placeholder = str(uuid.uuid4())
        """Id until the conversation's own is known; the same for threads that ask at once."""
        if conversation_id is not None:
            share.claim(conversation_id)

    def __call__(self, event: object) -> None:
        """Enqueue an OpenHands event. Called under the conversation's lock: copies a few fields and returns."""
        if not self._share.active:
            return
        try:
            known = read_event(event)
            if known is None:
                return
            if self._bound_to is None or known.kind is EventKind.CREATED:
                self._bind(_conversation_on_stack())
            if known.kind is EventKind.TOOL_STARTED and self._local is not None:
                known = replace(known, status=self._status)
            self._report(known)
        except Exception as error:  # noqa: BLE001 - it would end OpenHands' run
            self._share.swallow(error)

    def __repr__(self) -> str:
        return f"<otel_letta callback of conversation {self._conversation_id or '(not known yet)'}>"

    @property
    def active(self) -> bool:
        """False if there is nothing that this could do: its settings are bad, or `shutdown` was called."""
        return self._share.active

    def stats(self) -> dict[str, Any]:
        """Return numbers since the start; see `LettaSpanProcessor.stats`."""
        return self._share.stats()

    def _bind(self, conversation: object) -> None:
        """Learn the conversation's id: OpenHands' events do not carry it."""
        conversation_id = _id_of(conversation)
        if conversation_id is None:
            return
        self._share.claim(conversation_id)
        if type(conversation).__name__ == _LOCAL:
            self._local = weakref.ref(conversation)
        if conversation_id == self._bound_to:
            return
        # What was reported before its id was known, of a remote conversation, goes on under the id that it has then.
        if self._bound_to is not None or self._conversation_id is None:
            self._conversation_id = conversation_id
        self._bound_to = conversation_id

    def _status(self) -> str:
        """Read the execution status, which the threads of OpenHands may be about to change."""
        conversation = self._local() if self._local is not None else None
        try:
            return as_text(getattr(getattr(conversation, "state", None), "execution_status", None)) or ""
        except Exception:  # noqa: BLE001 - it is OpenHands' code
            return ""

    def _report(self, event: Event) -> None:
        if self._conversation_id is None:
            self._conversation_id = self._placeholder  # for good
        self._share.report_event(self._conversation_id, self._origin, event)


def callback(
    *,
    chat_id: str | None = None,
    message_id: str | None = None,
    name: str | None = None,
    conversation_id: str | None = None,
    transport: Transport | None = None,
    **options: Unpack[SettingsOptions],
) -> Callback:
    """Make a callback for ``Conversation(callbacks=[…])`` that reports OpenHands' runs.

    A user's message starts a task, or goes to the one that is under way. A run is one task, with the id
    ``<conversation id>/<run>``. Make one callback for each conversation. It neither raises nor waits: bad settings are
    one error in the log, and reports go out on threads of their own.

    Args:
        chat_id: the chat that asked; the id of a Letta conversation (``conv-…``) sends the reports there.
        message_id: the message that asked.
        name: the task's name; ``OpenHands`` by default, since prompts are never reported.
        conversation_id: OpenHands' id of the conversation. Only needed for a `RemoteConversation` without `reporting`;
            elsewhere it is found.
        transport: instead of Letta's REST API; for tests.
        options: `Settings` keywords, such as ``base_url``, ``agent_id``, ``password``, ``delivery``.
    """
    return Callback(share(transport, dict(options)), Origin.given(chat_id, message_id, name), conversation_id)


def _conversation_on_stack() -> object | None:
    """Find the conversation that is calling us. OpenHands gives a callback the event alone."""
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
