"""What HTTP requests to any Letta server have in common: the token, bounded waits, redaction, and errors in our terms.

What the comments call measured was measured on a real Letta 0.16.8 unless they say otherwise.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

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
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline, bounded
from otel_letta.settings import Secret, Settings, http_url
from otel_letta.text import clean_error, clean_line

__all__ = [
    "Bearer",
    "HttpClient",
    "Redact",
    "no_answer",
    "redactor",
    "refusal",
    "rows",
    "segment",
    "server_time",
    "timeout_of",
]


class Bearer(httpx.Auth):
    """Puts the token on the wire and nowhere else.

    As an `httpx.Auth` it is in no header dictionary of ours that a traceback with local variables could show, and
    httpx masks ``Authorization`` (but not Letta's ``X-BARE-PASSWORD``) when it prints headers.
    """

    def __init__(self, token: Secret) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "Bearer(***)"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        raw = [(name, value) for name, value in request.headers.raw if name.lower() != b"authorization"]
        request.headers = httpx.Headers([*raw, (b"Authorization", b"Bearer " + _on_the_wire(self._token))])
        yield request


def _on_the_wire(token: Secret) -> bytes:
    # Letta reads header bytes as Latin-1 and compares characters (starlette does), so this is the one encoding in
    # which a password like "Grüße" is accepted. What Latin-1 cannot hold goes as UTF-8, for proxies that know it.
    try:
        return token.reveal().encode("latin-1")
    except UnicodeEncodeError:
        return token.reveal().encode("utf-8")


class _Connections:
    """An httpx client that is closed when the last request that uses it has ended, not under one."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def borrow(self) -> _Connections:
        """To be followed by ``with``."""
        with self._lock:
            self._users += 1
        return self

    def __enter__(self) -> httpx.Client:
        return self._client

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self._client.close()

    def retire(self) -> None:
        with self._lock:
            last = not self._retired and not self._users
            self._retired = True
        if last:
            self._client.close()


class HttpClient:
    """An `httpx.Client` for one Letta server that survives forks, new settings and `close`, and shows no secret.

    Args:
        settings: where to, with which token, how long to wait.
        logger: where each request is told at DEBUG, without its body.
    """

    def __init__(self, settings: Settings, logger: logging.Logger) -> None:
        self._settings = settings
        self._logger = logger
        self._lock = threading.Lock()
        self._connections: _Connections | None = None
        _instances.add(self)

    def use(self, settings: Settings) -> None:
        """Speak with these settings from now on; requests under way end with the old ones."""
        with self._lock:
            self._settings = settings
            stale, self._connections = self._connections, None
        if stale is not None:
            stale.retire()  # another lane may be in the middle of a turn on it

    def close(self) -> None:
        """Release the connections. A later request opens new ones."""
        self.use(self._settings)

    def forget_connections(self) -> None:
        """In a forked child: drop the parent's connections without closing them, which would speak on them."""
        self._lock = threading.Lock()
        self._connections = None

    def borrowed(self) -> _Connections:
        """The client, made if there is none, for use with ``with``."""
        # Borrowed with the lock held, so that nobody retires them in between.
        with self._lock:
            if self._connections is None:
                settings = self._settings
                token = settings.token
                client = httpx.Client(
                    base_url=http_url(settings.base_url),
                    auth=Bearer(token) if token is not None else None,
                    timeout=timeout_of(settings),
                    # uvicorn closes idle connections after 5 s, and httpx keeps them as long: a request that meets
                    # a closing connection fails as if it might have landed. So ours are given up earlier.
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=2.0),
                    headers={"Accept": "application/json", "User-Agent": "otel-letta"},
                )
                self._connections = _Connections(client)
            return self._connections.borrow()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        until: Deadline | None = None,
    ) -> httpx.Response:
        """Send one request. Whatever its status is, an answer is returned.

        Raises:
            LettaConnectionError: no answer came; its subclass `LettaTimeoutError` if not in time.
        """
        # ASCII JSON: a lone surrogate travels as its escape, where UTF-8 would refuse to encode the request.
        content = None if body is None else json.dumps(body, allow_nan=False).encode("ascii")
        headers = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        return self._answered(
            method,
            path,
            len(content or b""),
            lambda client: client.request(
                method, path, content=content, params=params, headers=headers, timeout=timeout_of(self._settings, until)
            ),
        )

    def brief(
        self, path: str, *, token: bool, at_most: int, seconds: float, until: Deadline | None = None
    ) -> httpx.Response:
        """GET what should be short, from a server of which nothing is known yet: the rest is not read.

        Args:
            path: of the request.
            token: whether to send it.
            at_most: bytes of the body that are read, about.
            seconds: for the body. The settings' timeouts hold for each step of the connection.
        """

        def get(client: httpx.Client) -> httpx.Response:
            give_up = time.monotonic() + seconds
            body = b""
            auth = httpx.USE_CLIENT_DEFAULT if token else None
            with client.stream("GET", path, auth=auth, timeout=timeout_of(self._settings, until)) as streamed:
                for chunk in streamed.iter_bytes():
                    body += chunk
                    if len(body) > at_most or time.monotonic() > give_up:
                        break
                kept = {name: streamed.headers[name] for name in _KEPT if name in streamed.headers}
                return httpx.Response(streamed.status_code, headers=kept, content=body, request=streamed.request)

        return self._answered("GET", path, 0, get)

    def _answered(
        self, method: str, path: str, size: int, send: Callable[[httpx.Client], httpx.Response]
    ) -> httpx.Response:
        began = time.monotonic()
        redact = redactor(self._settings)
        try:
            with _discreet.during(redact), self.borrowed() as client:
                response = send(client)
        except Exception as error:  # noqa: BLE001 - TLS files, host names and proxies fail in many ways of their own
            failure = no_answer(error, self._settings, redact)
            ms = (time.monotonic() - began) * 1e3
            self._logger.debug("%s %s -> no answer after %.0f ms: %s", method, path, ms, failure)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C
            # Without the frames of h11 and httpcore, whose local variables hold the headers.
            raise error.with_traceback(None)  # noqa: B904
        else:
            self._logger.debug(
                "%s %s -> %d in %.0f ms, %d bytes sent, %d received",
                method,
                path,
                response.status_code,
                (time.monotonic() - began) * 1e3,
                size,
                len(response.content),
            )
            return response
        # Raised outside the handler: a library's frames hold the request's headers in their local variables, and
        # some error reporters print those.
        raise failure


_instances: weakref.WeakSet[HttpClient] = weakref.WeakSet()
# A thread in the middle of making a client is in the middle of OpenSSL, whose locks a child could never take.
fork.hold_for(_instances, lambda client: client._lock)
fork.in_child_each(_instances, HttpClient.forget_connections)

_KEPT = ("content-type", "location", "retry-after", "date")


def timeout_of(settings: Settings, until: Deadline | None = None) -> httpx.Timeout:
    """Return the settings' time-outs, cut short at ``until``."""
    return httpx.Timeout(
        bounded(settings.read_timeout, until),
        connect=bounded(settings.connect_timeout, until),
        write=bounded(30.0, until),
        pool=None,
    )


def segment(identifier: str) -> str:
    """One path segment. An id of dots alone would otherwise walk up the path."""
    return quote(identifier, safe="") if identifier.strip(".") else identifier.replace(".", "%2E")


Redact = Callable[[str], str]


def redactor(settings: Settings) -> Redact:
    """Takes our own secrets out of what others say: a server may echo a request, with its headers, in its error."""
    shapes: set[str] = set()
    for secret in (settings.password, settings.api_key):
        if secret is not None:
            plain = secret.reveal()
            wire = _on_the_wire(secret)
            forms = [plain, plain.encode().decode("latin-1"), wire.decode("latin-1")]
            # As they look in undecoded JSON, in the repr of bytes, and in a URL.
            forms += [json.dumps(form)[1:-1] for form in tuple(forms)]
            forms += [repr(wire)[2:-1], repr(plain.encode())[2:-1], quote(plain, safe=""), quote(wire, safe="")]
            shapes.update(forms)
    # Longest first, since one form can be a part of another.
    ordered = sorted(shapes, key=len, reverse=True)

    def redact(text: str) -> str:
        for shape in ordered:
            if shape in text:
                if len(shape) < _SHORTEST:
                    return "[redacted]"  # "[redacted]" for every "a" would spell out the password
                text = text.replace(shape, "[redacted]")
        return text

    return redact


class _Discretion(logging.Filter):
    """Redacts what httpx and httpcore log, at DEBUG, about an answer that echoes our request."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @contextlib.contextmanager
    def during(self, redact: Redact) -> Iterator[None]:
        self._here.redact = redact
        try:
            yield
        finally:
            self._here.redact = None

    def filter(self, record: logging.LogRecord) -> bool:
        redact: Redact | None = getattr(self._here, "redact", None)
        if redact is not None:
            said = record.getMessage()
            clean = redact(said)
            if clean != said:
                record.msg, record.args = clean, ()
        return True


_discreet = _Discretion()
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks"):
    logging.getLogger(_name).addFilter(_discreet)  # a parent's filter would not see its children's records

_SHORTEST = 6
"""Characters. A text with a secret shorter than that in it is not shown at all."""


def no_answer(error: Exception, settings: Settings, redact: Redact) -> LettaConnectionError:
    """The error for a request that got no answer, freed of frames and words that hold a secret."""
    reason = clean_error(redact(str(error))) or type(error).__name__
    chain: list[BaseException] = [error]
    for link in chain:
        link.__traceback__ = None  # frames hold the request's headers
        chain += [x for x in (link.__cause__, link.__context__) if x is not None and x not in chain]
    tells = any(redact(text) != text for link in chain for text in (str(link), repr(link)))
    failure: LettaConnectionError
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        failure = LettaTimeoutError(
            f"Letta API at {settings.base_url} did not answer within {settings.read_timeout:g} s",
            hint="the agent's turn may still be running; OTEL_LETTA_READ_TIMEOUT allows more",
            may_have_landed=True,
        )
    else:
        sent = isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.DecodingError))
        failure = LettaConnectionError(
            f"Could not connect to Letta API at {settings.base_url}",
            detail=reason,
            hint="check LETTA_BASE_URL, and that the server runs",
            may_have_landed=sent,
        )
    failure.__cause__ = None if tells else error
    return failure


def refusal(response: httpx.Response, redact: Redact) -> LettaError:
    """The error for an answer that is not a success. Two 401s look alike and mean different things, so read on."""
    status = response.status_code
    detail, kind, is_letta = _complaint(response, redact)
    shown = "" if _is_repr(detail) else clean_error(detail)
    url = response.request.url
    retry_after = _retry_after(response)
    if kind.startswith("llm_") or "CONTEXT_WINDOW_EXCEEDED" in detail:
        overflow = "CONTEXT_WINDOW_EXCEEDED" in detail
        return LettaModelError(
            status=status,
            detail="the agent's context window is full" if overflow else clean_line(kind, 80),
            hint="compact or reset the agent's messages in Letta"
            if overflow
            else "check the LLM key, credits and endpoint of the Letta server; your own settings are fine",
            retry_after=retry_after,
            parks=overflow or status in (401, 402, 403),
        )
    if status in (401, 403):
        return LettaAuthenticationError(
            status=status, hint="check LETTA_AGENT_ID and LETTA_PASSWORD (or LETTA_API_KEY)"
        )
    if status == 402:
        return LettaModelError(status=status, detail=shown, hint="the account is out of credits", parks=True)
    if status == 404:
        if not is_letta or detail == "Not Found":
            return LettaServerError(
                "No Letta REST API at this address", status=status, hint="check LETTA_BASE_URL", parks=True
            )
        if "/v1/conversations/" in url.path:
            return _no_conversation(status)
        return LettaAgentNotFoundError(status=status, hint="check LETTA_AGENT_ID")
    if status == 422 and "string_pattern_mismatch" in detail:
        if "/v1/conversations/" in url.path:
            return _no_conversation(status)
        if "/v1/agents/" in url.path or "agent_id" in url.params:
            return LettaAgentNotFoundError(
                status=status, hint="check LETTA_AGENT_ID: this server's ids look like agent-<uuid4>"
            )
    if status == 409:
        if "PENDING_APPROVAL" in detail:
            return LettaConflictError(
                "The agent waits for an approval",
                status=status,
                hint="approve or deny its pending tool call in Letta",
                parks=True,
            )
        return LettaConflictError(status=status, detail=shown, retry_after=retry_after)
    if status == 429:
        return LettaRateLimitError(status=status, detail=shown, retry_after=retry_after)
    if status == 408:
        return LettaTimeoutError(status=status, detail=shown, may_have_landed=True)
    if 400 <= status < 500:
        return LettaRequestError(status=status, detail=shown)
    if 300 <= status < 400:
        return LettaServerError(
            "The address redirects elsewhere",
            status=status,
            detail=clean_error(redact(response.headers.get("location", "")).partition("?")[0]),
            hint="check LETTA_BASE_URL (https or http, and no path that the server does not have)",
            parks=True,
        )
    return LettaServerError(
        status=status,
        detail=shown,
        retry_after=retry_after,
        # A gateway in front of Letta gives up on a turn that goes on behind it. Letta's own errors are JSON and
        # leave nothing in the agent's history (measured).
        may_have_landed=status in (502, 504) and not is_letta,
    )


def _no_conversation(status: int) -> LettaError:
    return LettaConversationNotFoundError(status=status, hint="the chat id names a conversation that does not exist")


def _complaint(response: httpx.Response, redact: Redact) -> tuple[str, str, bool]:
    """The server's words, Letta's error type if it has one, and whether it looks like Letta speaking."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        # Cut after the redaction: half a password would not be recognised.
        text = redact(response.text)[:2000]
        return clean_error(text) if "html" not in text[:200].lower() else "", "", False
    if not isinstance(body, dict):
        return "", "", False
    error = body.get("error")
    if isinstance(error, dict):
        return redact(str(error.get("message") or ""))[:2000], redact(str(error.get("type") or "")), True
    detail = body.get("detail")
    if isinstance(detail, dict):
        # ``code`` says what it is, ``message`` says it to people.
        code, message = redact(str(detail.get("code") or "")), redact(str(detail.get("message") or ""))
        return (f"{code}: {message}" if code and message else code or message)[:2000], code, True
    return redact(str(detail or ""))[:2000], "", "detail" in body


def _is_repr(detail: str) -> bool:
    # Letta puts Python's own notation of objects into some details; it tells users nothing.
    notation = detail.startswith(("{", "[")) and not detail.startswith("[redacted]")
    return notation or "id='[" in detail or "[SQL" in detail


def _retry_after(response: httpx.Response) -> float | None:
    """``Retry-After`` in seconds, given as a number or as a date; None if absent or nonsense."""
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


def server_time(response: httpx.Response) -> datetime:
    """The answer's ``Date``, so that ages are right even where our clock is not."""
    return _http_date(response.headers.get("date", "")) or datetime.now(timezone.utc)


def _http_date(text: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):  # OverflowError: a year with too many digits
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def rows(answer: Any) -> list[dict[str, Any]]:
    """The objects in a JSON list; empty for anything else."""
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []
