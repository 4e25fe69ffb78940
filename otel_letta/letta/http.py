"""HTTP requests to any Letta server: the token, bounded waits, forks, and no secret in what they leave behind."""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from otel_letta.errors import LettaError
from otel_letta.letta.answers import no_answer
from otel_letta.letta.redaction import on_the_wire, redacting, redactor
from otel_letta.letta.transport import Posting
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline, bounded
from otel_letta.settings import Secret, Settings, http_url

_KEPT = ("content-type", "location", "retry-after", "date")
"""The headers that are kept of a brief answer."""


class Bearer(httpx.Auth):
    """The token on the wire and nowhere else.

    As an `httpx.Auth` it is in no header dictionary of ours that a traceback with local variables could show, and
    httpx masks ``Authorization`` (but not Letta's ``X-BARE-PASSWORD``) when it prints headers.
    """

    def __init__(self, token: Secret) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "Bearer(***)"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        raw = [(name, value) for name, value in request.headers.raw if name.lower() != b"authorization"]
        request.headers = httpx.Headers([*raw, (b"Authorization", b"Bearer " + on_the_wire(self._token))])
        yield request


class _Connections:
    """An httpx client that is closed when its owner and the last request are done with it, not under a request."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._users = 1

    def borrow(self) -> _Connections:
        """Count one more user, who has to go through ``with``."""
        with self._lock:
            self._users += 1
        return self

    def __enter__(self) -> httpx.Client:
        return self._client

    def __exit__(self, *_: object) -> None:
        self.done()

    def done(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._client.close()


class HttpClient:
    """An `httpx.Client` for one Letta server that survives forks, new settings and `close`, and shows no secret.

    Args:
        settings: where to, with which token, how long to wait.
        logger: takes a line for each request at DEBUG, without its body.
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
            stale.done()  # another lane may be in the middle of a turn on it

    def close(self) -> None:
        """Release the connections. A later request opens new ones."""
        self.use(self._settings)

    def forget_connections(self) -> None:
        """Drop, in a forked child, the parent's connections without closing them, which would speak on them."""
        self._lock = threading.Lock()
        self._connections = None

    def borrowed(self) -> _Connections:
        """Return the client, made if there is none, for use with ``with``."""
        fork.check()
        # Borrowed with the lock held, so that nobody is done with it in between.
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
        posting: Posting | None = None,
    ) -> httpx.Response:
        """Send one request. Whatever its status is, an answer is returned.

        Raises:
            LettaConnectionError: no answer came; its subclass `LettaTimeoutError` if not in time. Its
                ``may_have_landed`` says whether the whole request had gone out.
        """
        on_the_wire = _OnTheWire(posting or Posting())
        # ASCII JSON: a lone surrogate travels as its escape, where UTF-8 would refuse to encode the request.
        content = None if body is None else json.dumps(body, allow_nan=False).encode("ascii")
        headers = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        return self._answered(
            method,
            path,
            len(content or b""),
            lambda client: client.request(
                method,
                path,
                content=content,
                params=params,
                headers=headers,
                timeout=timeout_of(self._settings, until),
                extensions={"trace": on_the_wire},
            ),
            on_the_wire,
        )

    def brief(
        self, path: str, *, token: bool, at_most: int, seconds: float, until: Deadline | None = None
    ) -> httpx.Response:
        """GET what should be short, from a server of which nothing is known yet: the rest is not read.

        Args:
            path: of the request.
            token: whether to send it.
            at_most: bytes of the body that are read, about.
            seconds: for the body. The settings' time-outs hold for each step of the connection.
            until: cuts them short.
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
        self,
        method: str,
        path: str,
        size: int,
        send: Callable[[httpx.Client], httpx.Response],
        on_the_wire: _OnTheWire | None = None,
    ) -> httpx.Response:
        began = time.monotonic()
        redact = redactor(self._settings)
        failure: LettaError
        try:
            with redacting(redact), self.borrowed() as client:
                response = send(client)
        except LettaError as error:  # it was abandoned before it went out
            failure = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - TLS files, host names and proxies fail in many ways of their own
            sent = on_the_wire is not None and on_the_wire.had_all(error)
            failure = no_answer(error, self._settings, redact, sent=sent)
            ms = (time.monotonic() - began) * 1e3
            self._logger.debug("%s %s -> no answer after %.0f ms: %s", method, path, ms, failure)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C
            # Without the frames of h11 and httpcore, whose local variables hold the headers.
            raise error.with_traceback(None)  # noqa: B904
        else:
            if on_the_wire is not None:
                on_the_wire.answered()
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


class _OnTheWire:
    """Keeps a posting up to date, as an httpcore trace: its events show what has gone out."""

    _FAILED_LATE = (
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.ReadError,
        httpx.WriteError,
        httpx.RemoteProtocolError,
        httpx.DecodingError,
    )
    """What can still go wrong once the request is under way."""

    def __init__(self, posting: Posting) -> None:
        self._posting = posting
        self._traced = False
        self._ours = True

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        self._traced = True
        if event.endswith((".send_request_headers.started", ".send_request_body.started")):
            # A proxy is sent a request of its own before, which has the same trace.
            self._ours = getattr(info.get("request"), "method", b"") != b"CONNECT"
            if self._ours:
                self._posting.begin()
        elif self._ours and event.endswith(".send_request_body.complete"):
            self._posting.complete()

    def had_all(self, error: Exception) -> bool:
        """Return whether the server may have had the whole request when this went wrong."""
        # Not every transport of httpx is httpcore's.
        if not self._traced and isinstance(error, self._FAILED_LATE):
            self._posting.complete()
        return self._posting.sent

    def answered(self) -> None:
        """Note that the server answered."""
        if not self._traced:
            self._posting.complete()


_instances: weakref.WeakSet[HttpClient] = weakref.WeakSet()
# A thread in the middle of making a client is in the middle of OpenSSL, whose locks a child could never take.
fork.hold_for(_instances, lambda client: client._lock)
fork.in_child_each(_instances, HttpClient.forget_connections)


def timeout_of(settings: Settings, until: Deadline | None = None) -> httpx.Timeout:
    """Return the settings' time-outs, cut short at ``until``."""
    return httpx.Timeout(
        bounded(settings.read_timeout, until),
        connect=bounded(settings.connect_timeout, until),
        write=bounded(30.0, until),
        pool=None,
    )


def segment(identifier: str) -> str:
    """Quote an id as one segment of a path. An id of dots alone would otherwise walk up the path."""
    return quote(identifier, safe="") if identifier.strip(".") else identifier.replace(".", "%2E")
