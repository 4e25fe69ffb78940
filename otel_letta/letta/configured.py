"""Lanes and new settings: the part of a transport that is the same for every flavour of server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from otel_letta.answer import Answer
from otel_letta.errors import LettaConnectionError, LettaConversationNotFoundError
from otel_letta.letta.replies import answer_of
from otel_letta.letta.transport import Lane
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings, http_url

_logger = logging.getLogger(__name__)


def another_agents() -> LettaConversationNotFoundError:
    """Make the error for a conversation that is not the agent's: whoever writes spans chooses the chat id, and must
    not choose the agent by it."""
    error = LettaConversationNotFoundError(
        "The agent has no such conversation", hint="the chat id names a conversation of another agent"
    )
    error.is_another_agents = True
    return error


class Configured:
    """Base of all transports. Whatever follows from the settings is derived from them each time, so it cannot drift.

    Args:
        settings: where to, with which token, how long to wait.
        ending: see `Server.ending`.
    """

    def __init__(self, settings: Settings, ending: Deadline | None = None) -> None:
        self._settings = settings
        self.ending = Deadline() if ending is None else ending

    def lane(self, agent_id: str | None, chat_id: str | None) -> Lane:
        """Return the lane of a report to the server that is spoken to now.

        A ``chat_id`` that has the form of a conversation's id names the conversation; any other is only in the report.
        """
        settings = self._settings
        conversation = chat_id if chat_id and self._is_conversation(chat_id) else None
        return Lane(http_url(settings.base_url), agent_id or settings.agent_id, conversation)

    def answer(self, lane: Lane, response: Mapping[str, Any]) -> Answer:
        """See `Messages.answer`: it shows by itself which server's form it has."""
        return answer_of(lane.agent_id, response, reasoning=self._settings.answer_reasoning)

    def _is_conversation(self, chat_id: str) -> bool:
        """Return whether this is the form of an id of the server's conversations."""
        raise NotImplementedError

    def _check_server(self, lane: Lane) -> None:
        """Refuse to send to another server than the lane's, whose lock the caller holds, as `reload` may lead to."""
        if lane.server != http_url(self._settings.base_url):
            raise LettaConnectionError(f"Reports go to {self._settings.base_url} now, not to {lane.server} any more")

    def reload(self) -> None:
        """Read the settings again, as they were read: people rotate passwords while a program runs."""
        self.use(self._settings.refresh())

    def use(self, settings: Settings) -> None:
        """Speak with these settings from now on; calls under way end with the old ones."""
        if settings.identity() != self._settings.identity():
            _logger.info("Letta settings changed: using the new ones")
            self._settings = settings
            settings.warn_once(_logger)
            self._settings_changed()

    def _settings_changed(self) -> None:
        """Let go of what was made with the old settings."""
