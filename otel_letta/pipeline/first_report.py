"""The line that says that it works: one at INFO, when the server has taken the first report."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, cast

from otel_letta.errors import LettaError
from otel_letta.runtime.deadline import Deadline
from otel_letta.text import clean_line

if TYPE_CHECKING:
    from otel_letta.letta.transport import Block, Lane, Transport
    from otel_letta.settings import Settings

_logger = logging.getLogger("otel_letta")

_PATIENCE = 2.0
"""Seconds that the agent's name may take, which is asked for only where somebody reads the line."""


def announced(transport: Transport, settings: Settings) -> Transport:
    """Return the transport, which logs its first success."""
    return cast("Transport", FirstReport(transport, settings))


class FirstReport:
    """A transport that logs its first success; all else is the transport's own.

    It works on the threads that send, between two requests.
    """

    def __init__(self, transport: Any, settings: Settings) -> None:
        self._transport = transport
        self._settings = settings
        self._once = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, lane: Lane, *arguments: Any, **keywords: Any) -> Any:
        answer = self._transport.send(lane, *arguments, **keywords)
        if not self._once.locked():
            self._announce(lane.agent_id, "as a message")
        return answer

    def create_block(self, agent_id: str, label: str, *arguments: Any, **keywords: Any) -> Block:
        block: Block = self._transport.create_block(agent_id, label, *arguments, **keywords)
        if not self._once.locked():
            self._announce(agent_id, f"on the board {label}")
        return block

    def write_block(self, block: Block, *arguments: Any, **keywords: Any) -> None:
        self._transport.write_block(block, *arguments, **keywords)
        if not self._once.locked():
            self._announce(self._settings.agent_id, f"on the board {block.label}")

    def _announce(self, agent_id: str, how: str) -> None:
        if not _logger.isEnabledFor(logging.INFO) or not self._once.acquire(blocking=False):
            return
        settings = self._settings
        _logger.info(
            "it works: %s took the first report, %s, for %s (delivery: %s)",
            settings.base_url,
            clean_line(how, 200),
            self._described(agent_id),
            settings.delivery,
        )

    def _described(self, agent_id: str) -> str:
        shown = clean_line(agent_id, 200)
        try:
            name = self._transport.describe(agent_id, until=Deadline.after(_PATIENCE)).get("name")
        except LettaError:
            name = None
        except Exception:  # noqa: BLE001 - for a line in a log
            name = None
        return f'the agent "{clean_line(name, 80)}" ({shown})' if isinstance(name, str) and name else shown
