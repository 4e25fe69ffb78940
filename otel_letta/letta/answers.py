"""The meaning of a server's answer over HTTP: the rows of a list, or the `LettaError` for a refusal or for silence.

What the comments call measured was measured on a real Letta 0.16.8.
"""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

import httpx

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaConflictError,
    LettaConnectionError,
    LettaConversationNotFoundError,
    LettaError,
    LettaModelError,
    LettaRateLimitError,
    LettaRequestError,
    LettaServerError,
    LettaTimeoutError,
)
from otel_letta.letta.redaction import Redact, presentable_cause
from otel_letta.settings import Settings
from otel_letta.text import clean_error, clean_line


def parsed(response: httpx.Response, otherwise: Any = None) -> Any:
    """Return the answer's JSON, or ``otherwise`` if it is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return otherwise


def mapping(answer: Any) -> dict[str, Any]:
    """Return a JSON object; empty for anything else."""
    return answer if isinstance(answer, dict) else {}


def rows(answer: Any) -> list[dict[str, Any]]:
    """Return the objects in a JSON list; empty for anything else."""
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


def server_time(response: httpx.Response) -> datetime:
    """Return the answer's ``Date``, so that ages are right even where our clock is not."""
    return _http_date(response.headers.get("date", "")) or datetime.now(timezone.utc)


def no_answer(error: Exception, settings: Settings, redact: Redact, *, sent: bool) -> LettaConnectionError:
    """Make the error for a request that got no answer, freed of frames and words that hold a secret.

    ``sent``: all of it had gone out, so that it may have taken effect.
    """
    reason = clean_error(redact(str(error))) or type(error).__name__
    failure: LettaConnectionError
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        failure = LettaTimeoutError(
            f"Letta API at {settings.base_url} did not answer within {settings.read_timeout:g} s"
            if sent
            else f"Letta API at {settings.base_url} did not take the request in time",
            hint="the agent's turn may still be running; OTEL_LETTA_READ_TIMEOUT allows more" if sent else "",
            may_have_landed=sent,
        )
    else:
        failure = LettaConnectionError(
            f"Could not connect to Letta API at {settings.base_url}",
            detail=reason,
            hint="check LETTA_BASE_URL, and that the server runs",
            may_have_landed=sent,
        )
    failure.__cause__ = presentable_cause(error, redact)
    return failure


def wrong_token(status: int, detail: str) -> LettaAuthenticationError:
    """Make the error for a token that an App Server does not take."""
    return LettaAuthenticationError(
        status=status, detail=detail, hint="check LETTA_PASSWORD (or LETTA_API_KEY): it holds the App Server's token"
    )


def refusal(response: httpx.Response, redact: Redact) -> LettaError:
    """Make the error for an answer that is not a success.

    Letta's own errors are JSON, and what they refuse leaves nothing in the agent's history (measured). What a proxy
    answers says nothing about the turn behind it, whatever its status is: one that gave up waiting may call that 524,
    503, or ask for a login, and the turn goes on.
    """
    complaint = _Complaint.read(response, redact)
    error = _by_letta(complaint) if complaint.is_letta else _by_another(complaint)
    error.foreign = not complaint.is_letta
    error.may_have_landed = error.may_have_landed or error.foreign
    return error


def _by_letta(complaint: _Complaint) -> LettaError:
    for explain in _EXPLANATIONS:
        error = explain(complaint)
        if error is not None:
            return error
    return LettaServerError(status=complaint.status, detail=complaint.shown, retry_after=complaint.retry_after)


def _by_another(complaint: _Complaint) -> LettaError:
    status = complaint.status
    by_status = _not_allowed(complaint) or _not_found(complaint) or _not_now(complaint) or _elsewhere(complaint)
    if by_status is not None:
        return by_status
    if status == 402:
        return LettaServerError("Something before Letta wants to be paid", status=status, parks=True)
    # Never that this report is bad, which only Letta knows: it is tried again.
    return LettaServerError(
        "What answers is not Letta" if status < 500 else None,
        status=status,
        detail=complaint.shown,
        hint="a proxy before Letta refuses the request" if status < 500 else "",
        retry_after=complaint.retry_after,
    )


class _Complaint(NamedTuple):
    """An answer that is not a success, redacted."""

    status: int
    url: httpx.URL
    detail: str
    """The server's words."""
    kind: str
    """Letta's type of the error; empty if it has none."""
    is_letta: bool
    """Whether it looks like Letta speaking."""
    location: str
    retry_after: float | None

    @classmethod
    def read(cls, response: httpx.Response, redact: Redact) -> _Complaint:
        detail, kind, is_letta = _words(response, redact)
        return cls(
            response.status_code,
            response.request.url,
            detail,
            kind,
            is_letta,
            clean_error(redact(response.headers.get("location", "")).partition("?")[0]),
            _retry_after(response),
        )

    @property
    def shown(self) -> str:
        """The server's words as far as they are for people."""
        # Letta puts Python's own notation of objects into some details; it means nothing to users.
        notation = self.detail.startswith(("{", "[")) and not self.detail.startswith("[redacted]")
        is_repr = notation or "id='[" in self.detail or "[SQL" in self.detail
        return "" if is_repr else clean_error(self.detail)

    @property
    def about_conversation(self) -> bool:
        return "/v1/conversations/" in self.url.path


def _model_failure(complaint: _Complaint) -> LettaError | None:
    # Two 401s look alike and mean different things: this is of the LLM's server, not of Letta.
    overflow = "CONTEXT_WINDOW_EXCEEDED" in complaint.detail
    if complaint.kind.startswith("llm_") or overflow:
        return LettaModelError(
            status=complaint.status,
            detail="the agent's context window is full" if overflow else clean_line(complaint.kind, 80),
            hint="compact or reset the agent's messages in Letta"
            if overflow
            else "check the LLM key, credits and endpoint of the Letta server; your own settings are fine",
            retry_after=complaint.retry_after,
            parks=overflow or complaint.status in (401, 402, 403),
        )
    if complaint.status == 402:
        return LettaModelError(
            status=complaint.status, detail=complaint.shown, hint="the account is out of credits", parks=True
        )
    return None


def _not_allowed(complaint: _Complaint) -> LettaError | None:
    if complaint.status not in (401, 403):
        return None
    return LettaAuthenticationError(
        status=complaint.status, hint="check LETTA_AGENT_ID and LETTA_PASSWORD (or LETTA_API_KEY)"
    )


def _not_found(complaint: _Complaint) -> LettaError | None:
    status = complaint.status
    no_conversation = LettaConversationNotFoundError(
        status=status, hint="the chat id names a conversation that does not exist"
    )
    if status == 404:
        if not complaint.is_letta or complaint.detail == "Not Found":
            return LettaServerError(
                "No Letta REST API at this address", status=status, hint="check LETTA_BASE_URL", parks=True
            )
        if complaint.about_conversation:
            return no_conversation
        return LettaAgentNotFoundError(status=status, hint="check LETTA_AGENT_ID")
    if status == 422 and "string_pattern_mismatch" in complaint.detail:
        if complaint.about_conversation:
            return no_conversation
        if "/v1/agents/" in complaint.url.path or "agent_id" in complaint.url.params:
            return LettaAgentNotFoundError(
                status=status, hint="check LETTA_AGENT_ID: this server's ids look like agent-<uuid4>"
            )
    return None


def _not_now(complaint: _Complaint) -> LettaError | None:
    status, shown = complaint.status, complaint.shown
    if status == 409 and "PENDING_APPROVAL" in complaint.detail:
        return LettaConflictError(
            "The agent waits for an approval",
            status=status,
            hint="approve or deny its pending tool call in Letta",
            parks=True,
        )
    if status == 409:
        return LettaConflictError(status=status, detail=shown, retry_after=complaint.retry_after)
    if status == 429:
        return LettaRateLimitError(status=status, detail=shown, retry_after=complaint.retry_after)
    if status == 408:
        return LettaTimeoutError(status=status, detail=shown, may_have_landed=True)
    return None


def _wrong_request(complaint: _Complaint) -> LettaError | None:
    if complaint.status in (400, 413, 422):
        return LettaRequestError(status=complaint.status, detail=complaint.shown)
    return None


def _elsewhere(complaint: _Complaint) -> LettaError | None:
    if 300 <= complaint.status < 400:
        return LettaServerError(
            "The address redirects elsewhere",
            status=complaint.status,
            detail=complaint.location,
            hint="check LETTA_BASE_URL (https or http, and no path that the server does not have)",
            parks=True,
        )
    return None


_EXPLANATIONS: tuple[Callable[[_Complaint], LettaError | None], ...] = (
    _model_failure,
    _not_allowed,
    _not_found,
    _not_now,
    _wrong_request,
    _elsewhere,
)
"""The first that knows the answer explains it."""


def _words(response: httpx.Response, redact: Redact) -> tuple[str, str, bool]:
    """Return the server's words, Letta's error type if it has one, and whether it is Letta that speaks."""
    body = parsed(response, response)
    if body is response:
        # Cut after the redaction: half a password would not be recognised.
        text = redact(response.text)[:2000]
        return clean_error(text) if "html" not in text[:200].lower() else "", "", False
    if not isinstance(body, dict):
        return "", "", False
    error, detail = body.get("error"), body.get("detail")
    if isinstance(error, dict):
        words, kind = error.get("message"), error.get("type")
        is_letta = isinstance(words, str) and isinstance(kind, str)
        return redact(str(words or ""))[:2000], redact(str(kind or "")), is_letta
    if isinstance(detail, dict):
        # ``code`` is for programs, ``message`` for people.
        code, message = redact(str(detail.get("code") or "")), redact(str(detail.get("message") or ""))
        return (f"{code}: {message}" if code and message else code or message)[:2000], code, True
    # Proxies speak JSON too where it is asked for (RFC 9457), and their ``detail`` is not Letta's.
    is_letta = "detail" in body and "title" not in body and "status" not in body
    return redact(str(detail or ""))[:2000], "", is_letta


def _retry_after(response: httpx.Response) -> float | None:
    """Return ``Retry-After`` in seconds, given as a number or as a date; None if absent or nonsense."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        moment = _http_date(text)
        if moment is None:
            return None
        seconds = (moment - server_time(response)).total_seconds()
    return min(max(seconds, 0.0), 3600.0) if math.isfinite(seconds) else None


def _http_date(text: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):  # OverflowError: a year with too many digits
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def moment(value: object) -> datetime | None:
    """Read a time as servers write it; None for anything else."""
    if not isinstance(value, str):
        return None
    # Python 3.10 reads no trailing Z, and only three or six digits of a fraction.
    text = re.sub(r"\.(\d+)", lambda match: f".{match[1]:0<6.6}", value.replace("Z", "+00:00"), count=1)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
