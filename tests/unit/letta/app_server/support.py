"""Names and calls that the tests of an App Server's transport share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.transport import Message
from tests.support.scripted_app_server import ScriptedAppServer

AGENT = "agent-local-1"
OTHER = "agent-local-2"
ONE, TWO = Message("report one", "otid-1"), Message("report two", "otid-2")

Make = Callable[..., AppServerTransport]
"""Makes a transport to the scripted server; keywords are settings."""


def leave(letta: AppServerTransport, seconds: float) -> None:
    """End as a program does that has so many seconds for it."""
    letta.ending.bring_forward(time.monotonic() + seconds)
    letta.close(until=letta.ending)


def send(letta: AppServerTransport, *messages: Message, chat_id: str | None = None) -> dict[str, Any]:
    return letta.send(letta.lane(None, chat_id), messages or [ONE])


def told(server: ScriptedAppServer, conversation: str = "default", agent: str = AGENT) -> list[str]:
    return server.texts(agent, conversation)


@contextlib.contextmanager
def sending(letta: AppServerTransport, *messages: Message) -> Iterator[dict[str, Any]]:
    """Send on another thread; afterwards the dictionary has its ``answer`` or ``error``."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["answer"] = send(letta, *messages)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield outcome
    thread.join(10.0)
    assert not thread.is_alive(), "the call never came back"
