"""Everything that can go wrong between a report and a Letta agent, said in the user's terms.

The module is a leaf: it knows no HTTP library. `letta.rest` maps answers to these classes; delivery decides by
class and attributes what to do next; users of `LettaReporter` catch them.
"""

from __future__ import annotations

__all__ = [
    "LettaAgentNotFoundError",
    "LettaAuthenticationError",
    "LettaConfigurationError",
    "LettaConflictError",
    "LettaConnectionError",
    "LettaConversationNotFoundError",
    "LettaDependencyError",
    "LettaError",
    "LettaModelError",
    "LettaRateLimitError",
    "LettaRequestError",
    "LettaServerError",
    "LettaSessionClosedError",
    "LettaTimeoutError",
    "LettaUnsupportedError",
]


class LettaError(Exception):
    """Base of all errors of this package.

    Attributes:
        status: HTTP status of the answer, None when there was none.
        hint: what the user can check or do.
        detail: the server's own words, cleaned and capped; never shown when it is only a Python repr.
        retry_after: seconds that the server asked to wait, None when it did not.
        may_have_landed: True when the request may have taken effect although Letta did not say so.
        foreign: True when the answer is not Letta's own, but a proxy's or another program's: it says nothing about
            what became of the request.
        parks: True when only a person can mend the cause (a password, a bill, an approval): sending again soon
            is useless, so a queue waits and probes.
    """

    summary = "Letta could not take the report"
    parks = False

    def __init__(
        self,
        summary: str | None = None,
        *,
        hint: str = "",
        status: int | None = None,
        detail: str = "",
        retry_after: float | None = None,
        may_have_landed: bool = False,
        foreign: bool = False,
        parks: bool | None = None,
    ) -> None:
        self.status = status
        self.hint = hint
        self.detail = detail
        self.retry_after = retry_after
        self.may_have_landed = may_have_landed
        self.foreign = foreign
        if parks is not None:
            self.parks = parks
        text = summary or self.summary
        if status is not None:
            text += f" (HTTP {status})"
        if detail:
            text += f": {detail}"
        if hint:
            text += f" - {hint}"
        super().__init__(text)


class LettaConfigurationError(LettaError, ValueError):
    """A setting is missing or has a value that cannot be used; the message names the variable and what is allowed."""

    summary = "Bad setting"


class LettaDependencyError(LettaError, ImportError):
    """The server is reached with a library that is not installed here; the message says what to install."""

    summary = "A library is missing"
    parks = True


class LettaSessionClosedError(LettaError, RuntimeError):
    """The reporter was closed before this call."""

    summary = "Session already closed"


class LettaConnectionError(LettaError, ConnectionError):
    """No answer came: name resolution, refused connection, TLS, or a connection that broke."""

    summary = "Could not connect to Letta API"


class LettaTimeoutError(LettaConnectionError, TimeoutError):
    """The time allowed ran out. The agent's turn may still be running on the server."""

    summary = "Letta API did not answer in time"


class LettaAuthenticationError(LettaError):
    """The server refused our password or key. (A server whose own LLM key is bad is a `LettaModelError`.)"""

    summary = "Invalid credentials"
    parks = True


class LettaAgentNotFoundError(LettaError):
    """No such agent, or an id that this server cannot have given out."""

    summary = "Letta agent not found"
    parks = True


class LettaConversationNotFoundError(LettaError):
    """The agent exists, the conversation that a chat id names does not."""

    summary = "Letta conversation not found"


class LettaRequestError(LettaError):
    """The server refuses this very request (400, 413, 422): sending it again unchanged cannot help."""

    summary = "Letta refused the request"


class LettaConflictError(LettaError):
    """Somebody else is at it (409): a running turn, a block written at the same time, a pending approval (parks)."""

    summary = "Letta is busy"


class LettaRateLimitError(LettaError):
    """Too many requests (429)."""

    summary = "Letta limits the rate of requests"


class LettaServerError(LettaError):
    """The server failed (5xx), or what answered is not a Letta server."""

    summary = "Letta server error"


class LettaUnsupportedError(LettaError):
    """The server works, but lacks what is asked of it: memory blocks for a board, or its OpenAI-compatible API."""

    summary = "This Letta server has no memory blocks"


class LettaModelError(LettaServerError):
    """The server could not use its LLM: key, rate limit, credits, context window, outage. Not the reporter's doing.

    Each attempt costs the server several LLM calls (measured: three to four on 0.16.8), so progress is not retried.
    """

    summary = "The Letta server's LLM failed"
