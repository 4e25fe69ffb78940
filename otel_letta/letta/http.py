"""HTTP requests to any Letta server: the token, bounded waits, forks, and no secret in what they leave behind."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from otel_letta.errors import LettaError, LettaServerError
from otel_letta.letta.answers import no_answer
from otel_letta.letta.bodies import ENCODINGS, TooLargeError, beginning, whole
from otel_letta.letta.clients import Clients
from otel_letta.letta.redaction import on_the_wire, redacting, redactor
from otel_letta.letta.transport import Posting
from otel_letta.runtime.deadline import Deadline, bounded
from otel_letta.settings import Secret, Settings, http_url

if TYPE_CHECKING:
    import ssl

_WRITE_PATIENCE = 30.0
"""Seconds for a piece of the request's body."""


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


class _Maker:
    """Makes httpx clients by some settings, with one TLS context for all: that takes its time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> httpx.Client:
        # Late: with ssl and httpcore, which httpx loads now as well.
        from otel_letta.letta.network import keep_to_deadlines
        from otel_letta.letta.tls import context_of

        settings = self._settings
        token = settings.token
        if self._context is None:
            self._context = context_of(settings)
        client = httpx.Client(
            base_url=http_url(settings.base_url),
            auth=Bearer(token) if token is not None else None,
            timeout=timeout_of(settings),
            verify=self._context,
            # uvicorn closes idle connections after 5 s, and httpx keeps them as long: a request that meets a closing
            # connection fails as if it might have landed. So ours are given up earlier.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=2.0),
            headers={"Accept": "application/json", "Accept-Encoding": ENCODINGS, "User-Agent": "otel-letta"},
        )
        keep_to_deadlines(client)
        return client


class HttpClient:
    """Requests to one Letta server, from any thread, that survive forks, new settings and `close`, and shows no secret.

    Args:
        settings: where to, with which token, how long to wait.
        logger: takes a line for each request at DEBUG, without its body.
    """

    def __init__(self, settings: Settings, logger: logging.Logger) -> None:
        self._settings = settings
        self._logger = logger
        self._clients = Clients(_Maker(settings))

    def use(self, settings: Settings) -> None:
        """Speak with these settings from now on; requests under way end with the old ones."""
        self._settings = settings
        self._clients.use(_Maker(settings))

    def close(self) -> None:
        """Release the connections. A later request opens new ones."""
        self.use(self._settings)

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

        The whole of it, the answer's last byte included, takes no longer than ``connect_timeout`` and
        ``read_timeout`` together, and no longer than ``until``.

        Raises:
            LettaConnectionError: no answer came; its subclass `LettaTimeoutError` if not in time. Its
                ``may_have_landed`` says whether the whole request had gone out.
            LettaServerError: the answer is a success and longer than `LARGEST`.
        """
        on_the_wire = _OnTheWire(posting or Posting())
        # ASCII JSON: a lone surrogate travels as its escape, where UTF-8 would refuse to encode the request.
        content = None if body is None else json.dumps(body, allow_nan=False).encode("ascii")
        headers = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        timeout = timeout_of(self._settings, until)
        trace = {"trace": on_the_wire}

        def ask(client: httpx.Client) -> httpx.Response:
            with client.stream(
                method, path, content=content, params=params, headers=headers, timeout=timeout, extensions=trace
            ) as streamed:
                return whole(streamed)

        return self._answered(method, path, len(content or b""), ask, until, on_the_wire)

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
            auth = httpx.USE_CLIENT_DEFAULT if token else None
            with client.stream("GET", path, auth=auth, timeout=timeout_of(self._settings, until)) as streamed:
                return beginning(streamed, at_most, give_up)

        return self._answered("GET", path, 0, get, until)

    def _answered(
        self,
        method: str,
        path: str,
        size: int,
        send: Callable[[httpx.Client], httpx.Response],
        until: Deadline | None,
        on_the_wire: _OnTheWire | None = None,
    ) -> httpx.Response:
        began = time.monotonic()
        settings = self._settings
        redact = redactor(settings)
        failure: LettaError
        try:
            with redacting(redact), self._clients.one() as client:
                from otel_letta.letta.network import ends_at

                with ends_at(began + bounded(settings.connect_timeout + settings.read_timeout, until)):
                    response = send(client)
        except LettaError as error:  # it was abandoned before it went out, or a file of the settings cannot be used
            failure = error.with_traceback(None)
        except TooLargeError as error:
            # Letta's own answers are not that long. Whoever answers, the request may have had its effect.
            failure = LettaServerError(
                "The answer is too long", status=error.status, foreign=True, may_have_landed=True
            )
        except Exception as error:  # noqa: BLE001 - TLS files, host names and proxies fail in many ways of their own
            from otel_letta.letta.tls import certificate_problem

            sent = on_the_wire is not None and on_the_wire.had_all(error)
            failure = certificate_problem(error, settings) or no_answer(error, settings, redact, sent=sent)
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


def timeout_of(settings: Settings, until: Deadline | None = None) -> httpx.Timeout:
    """Return the settings' time-outs, cut short at ``until``."""
    return httpx.Timeout(
        bounded(settings.read_timeout, until),
        connect=bounded(settings.connect_timeout, until),
        write=bounded(_WRITE_PATIENCE, until),
        pool=None,
    )


def segment(identifier: str) -> str:
    """Quote an id as one segment of a path. An id of dots alone would otherwise walk up the path."""
    return quote(identifier, safe="") if identifier.strip(".") else identifier.replace(".", "%2E")
