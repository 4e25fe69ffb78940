"""Our errors for those of an App Server on its WebSocket, which are sentences: there are no codes."""

from __future__ import annotations

import json
import re

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaConversationNotFoundError,
    LettaError,
    LettaModelError,
    LettaRateLimitError,
    LettaServerError,
    LettaTimeoutError,
)
from otel_letta.letta.app_server.socket import Session
from otel_letta.letta.app_server.turns import Turn


def no_conversation() -> LettaError:
    return LettaConversationNotFoundError(hint="the chat id names a conversation that this agent does not have")


def not_found(session: Session, error: object) -> LettaError | None:
    """Make the error for a sentence about an agent or conversation that does not exist; None for any other."""
    words = session.words(error)
    if words.endswith(" not found"):
        if words.startswith("Agent "):
            return LettaAgentNotFoundError(hint="check LETTA_AGENT_ID")
        if words.startswith("Conversation "):
            return no_conversation()
    return None


def not_accepted(session: Session, turn: Turn) -> LettaError:
    """Make the error for an input that the server did not take."""
    # A full queue, or too many ids to remember: both pass.
    return LettaRateLimitError("The App Server does not take the report now", detail=session.words(turn.refusal))


def took_too_long(session: Session, *, may_have_landed: bool) -> LettaTimeoutError:
    """Make the error for a turn that outlasted its caller."""
    return LettaTimeoutError(
        f"The agent's turn took longer than {session.settings.read_timeout:g} s",
        hint="it goes on; OTEL_LETTA_READ_TIMEOUT allows more" if may_have_landed else "",
        may_have_landed=may_have_landed,
    )


def failure_of(session: Session, turn: Turn) -> LettaError | None:
    """Make the error for a turn that is over; None if it did not fail.

    Not raised here, where the server's own words are local variables.
    """
    if turn.stop_reason == "cancelled" or not (turn.error or turn.stop_reason in ("error", "llm_api_error")):
        return None
    known = not_found(session, turn.error)
    if known is not None:
        return known
    words = session.words(_innermost(turn.error))
    # The message was stored before the LLM was asked, and is in the agent's next prompt (measured).
    # A request that the LLM refuses as bad (400) is a "local_backend_error" that begins with its status (measured).
    if turn.stop_reason == "llm_api_error" or "llm_error" in turn.error or re.match("[45][0-9]{2}: ", words):
        return LettaModelError(
            detail=words,
            hint="check the LLM that the agent uses on the App Server; your own settings are fine",
            may_have_landed=True,
        )
    return LettaServerError("The agent's turn failed", detail=words, may_have_landed=True)


def _innermost(error: str) -> str:
    """Return the sentence inside the JSON that a failed turn's error is, as far as it is that."""
    try:
        found = json.loads(error)
    except (ValueError, RecursionError):
        return error
    while isinstance(found, dict):
        inner = found.get("error", found.get("message"))
        if isinstance(inner, str) or inner is None:
            return inner or error
        found = inner
    return error
