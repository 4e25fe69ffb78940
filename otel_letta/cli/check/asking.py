"""Requests to the server that is checked. They cost the agent no turn, and they end in time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from otel_letta.errors import LettaTimeoutError
from otel_letta.letta.flavour import ServerInfo, forget, recognise
from otel_letta.letta.redaction import redactor
from otel_letta.letta.select import SelectingTransport
from otel_letta.letta.transport import Block
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings import Settings
from otel_letta.text import clean_line

_T = TypeVar("_T")

_AGENTS = 5
"""At most so many are named where the right one is not."""


class Asking:
    """Asks a server. httpx bounds neither the lookup of a name nor an answer that comes in drops; this does."""

    def __init__(self, settings: Settings) -> None:
        self._transport = SelectingTransport(settings)
        self._settings = settings

    def info(self) -> ServerInfo:
        """Ask the server what it is, even where another part of this process has done so."""
        forget(self._settings.base_url)
        return self._within(lambda: recognise(self._settings))

    def describe(self, agent_id: str) -> dict[str, Any]:
        """Return the server's row about an agent."""
        return self._within(lambda: self._transport.describe(agent_id))

    def agents(self, limit: int = _AGENTS) -> list[dict[str, Any]]:
        """Return the rows of some agents."""
        return self._within(lambda: self._transport.agents(limit))

    def blocks(self, agent_id: str) -> list[Block]:
        """Return the memory of an agent."""
        return self._within(lambda: self._transport.blocks(agent_id))

    def close(self) -> None:
        """Give the connections back."""
        self._transport.close()

    def _within(self, call: Callable[[], _T]) -> _T:
        outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                with suppress_tracing():
                    outcome.put((True, call()))
            except Exception as error:  # noqa: BLE001 - raised again below
                outcome.put((False, error))

        threading.Thread(target=work, name="otel-letta check", daemon=True).start()
        longest = min(self._settings.connect_timeout + self._settings.read_timeout, threading.TIMEOUT_MAX)
        try:
            done, value = outcome.get(timeout=longest)
        except queue.Empty:
            done, value = False, None
        if done:
            result: _T = value
            return result
        if value is None or (isinstance(value, LettaTimeoutError) and value.status is None):
            raise LettaTimeoutError(
                f"{self._settings.base_url} did not answer in time",
                hint="check LETTA_BASE_URL, and whether the server is overloaded or a firewall swallows the request",
            ) from None
        raise value


def cleaned(settings: Settings, text: str, cap: int) -> str:
    """Return a server's text fit for a terminal, and without our secrets."""
    # Cleaned on both sides of the redaction: invisible characters inside a secret would hide it from the first.
    return clean_line(redactor(settings)(clean_line(text, cap * 4)), cap)
