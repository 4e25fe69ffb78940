"""One WebSocket to an App Server: opened for a piece of work, and closed when the server is done with it.

A socket of its own for each call needs no thread that reads, no dispatcher and no reconnecting: a server that was
restarted is simply called again. What the comments call measured was measured on an App Server 0.34.12.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from otel_letta.errors import (
    LettaConnectionError,
    LettaError,
    LettaServerError,
    LettaTimeoutError,
)
from otel_letta.letta.answers import wrong_token
from otel_letta.letta.redaction import redactor
from otel_letta.letta.tls import certificate_problem, context_of
from otel_letta.runtime.deadline import Deadline, bounded
from otel_letta.settings import Settings, websocket_url
from otel_letta.text import clean_error

_logger = logging.getLogger(__name__)

Frame = dict[str, Any]

_SHORT = 30.0
"""Seconds that an answer may take for which the agent's LLM is not asked."""
_SILENCE = 90.0
"""Seconds without a pong after which the connection is given up. The server's own measure, and a busy one stalls."""
_LARGEST = 16 * 2**20
"""Bytes of a frame. A page of messages holds what people and tools wrote, and there is no way to ask for less of it."""
_MOST_WAITING = 2
"""Frames that are read ahead. The library's sixteen would be sixteen times the longest one."""
_LARGEST_ANSWER = 2 * _LARGEST
"""Bytes of all frames of one answer."""

_silent_logger = logging.Logger("otel_letta.websockets", level=logging.CRITICAL + 1)  # not a child of the root
"""For the library, which logs the headers of the handshake, the token among them, and every frame at DEBUG."""


class _HiddenFrame(Frame):
    """A frame that tracebacks with local variables do not show: the server may echo our token in it."""

    def __repr__(self) -> str:
        return f"<frame of {len(self)} keys>"


class Session:
    """A connection that is made at once and is used by one thread.

    Args:
        settings: where to, with which token, how long to wait.
        until: no wait for an answer is longer.

    Raises:
        LettaConnectionError: nobody listens there; `LettaTimeoutError` if not in time.
        LettaAuthenticationError: the token is missing or wrong.
        LettaServerError: what answers is no App Server.
    """

    def __init__(self, settings: Settings, until: Deadline | None = None) -> None:
        self.settings = settings
        self._until = until
        self._redact = redactor(settings)
        self._numbers = itertools.count(1)
        self._life = contextlib.ExitStack()
        self._closing = threading.Lock()
        self.users = 0
        """How many must be done with it before it may be closed; counted by its owner."""
        self._received = 0
        """Bytes of all frames."""
        self._gave_input = False
        began = time.monotonic()
        try:
            self._socket = self._life.enter_context(
                connect(
                    websocket_url(settings.base_url),
                    additional_headers=_authorization(settings),
                    open_timeout=bounded(settings.connect_timeout, until),
                    close_timeout=1.0,
                    ping_timeout=_SILENCE,
                    max_size=_LARGEST,
                    max_queue=_MOST_WAITING,
                    compression=None,
                    user_agent_header="otel-letta",
                    logger=_silent_logger,
                    **_tls(settings),
                )
            )
        except Exception as error:  # noqa: BLE001 - TLS files, host names and proxies fail in many ways of their own
            failure = _not_connected(error, settings, self._redact)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C
            raise error.with_traceback(None)  # noqa: B904 - without the library's frames, as below
        else:
            _logger.debug("WebSocket opened in %.0f ms", (time.monotonic() - began) * 1e3)
            return
        _logger.debug("no WebSocket after %.0f ms: %s", (time.monotonic() - began) * 1e3, failure)
        # Outside the handler: the library's frames hold the request's headers in their local variables.
        raise failure

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye, for at most a second. Quiet when called again."""
        with self._closing, contextlib.suppress(Exception):
            self._life.close()

    # -- frames ------------------------------------------------------------------------------------------------------

    def send(self, kind: str, body: Frame) -> str:
        """Send one frame. Return the id that its answer will carry."""
        request_id = f"otel-letta-{next(self._numbers)}"
        # ASCII JSON: a lone surrogate travels as its escape, where UTF-8 would refuse to encode the frame.
        text = json.dumps({**body, "type": kind, "request_id": request_id}, allow_nan=False)
        self._gave_input = self._gave_input or kind == "input"
        try:
            self._socket.send(text)
        except (OSError, WebSocketException) as error:
            reason = clean_error(self._redact(str(error))) or type(error).__name__
        else:
            _logger.debug("> %s, %d bytes", kind, len(text))
            return request_id
        raise self._broken(reason)

    def receive(self, seconds: float) -> Frame | None:
        """Return the next frame; None if none came in time. What is no JSON object is skipped.

        Raises:
            LettaConnectionError: the connection is gone, so nobody knows what became of an input that was sent.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                text = self._socket.recv(timeout=max(until - time.monotonic(), 0.0))
            except TimeoutError:
                return None
            except ConnectionClosed as error:
                # The end of the server's process looks the same as a network that broke: no close frame (measured).
                reason = clean_error(self._redact(str(error))) or type(error).__name__
            except (OSError, WebSocketException) as error:
                reason = clean_error(self._redact(str(error))) or type(error).__name__
            else:
                self._received += len(text)
                try:
                    frame = json.loads(text)
                except (ValueError, RecursionError):
                    frame = None
                if isinstance(frame, dict):
                    return _HiddenFrame(frame)
                if time.monotonic() >= until:
                    return None
                continue
            raise self._broken(reason)

    def request(
        self,
        kind: str,
        body: Frame,
        *,
        meanwhile: Callable[[Frame], object] = lambda frame: None,
        merge: Callable[[Frame, Frame], Frame] | None = None,
    ) -> Frame:
        """Send a frame and wait for its answer; ``meanwhile`` gets what else arrives.

        Args:
            kind: of the request.
            body: all of it but ``type`` and ``request_id``.
            meanwhile: sees every frame that is not the answer.
            merge: joins the parts of an answer that comes in several frames, of which the last says ``done``.

        Raises:
            LettaTimeoutError: no answer in time. An unknown or malformed request is never answered (measured).
            LettaConnectionError: the connection broke.
            LettaServerError: what arrived instead of the answer, or as parts of it, is longer than any answer.
        """
        began = time.monotonic()
        until = began + bounded(min(_SHORT, self.settings.read_timeout), self._until)
        most = self._received + _LARGEST_ANSWER
        request_id = self.send(kind, body)
        answer: Frame | None = None
        while True:
            left = until - time.monotonic()
            # Not even one try once the time is over: a server that never falls silent would be read for ever.
            frame = self.receive(left) if left > 0 else None
            if frame is None:
                raise LettaTimeoutError(
                    f"The App Server at {self.settings.base_url} did not answer {kind} in time",
                    may_have_landed=self._gave_input,
                )
            if self._received > most:
                raise LettaServerError(
                    f"The App Server's answer to {kind} is too long", may_have_landed=self._gave_input
                )
            if frame.get("request_id") != request_id:
                meanwhile(frame)
                continue
            answer = frame if answer is None or merge is None else merge(answer, frame)
            if merge is None or frame.get("done") is not False:
                _logger.debug("< %s in %.0f ms", kind, (time.monotonic() - began) * 1e3)
                return answer

    def words(self, text: object) -> str:
        """Return a text of the server's as one line that shows no secret."""
        return clean_error(self._redact(text)) if isinstance(text, str) else ""

    def _broken(self, reason: str) -> LettaConnectionError:
        return LettaConnectionError(
            f"The connection to the App Server at {self.settings.base_url} broke",
            detail=reason,
            may_have_landed=self._gave_input,
        )


_inherited: list[Session] = []
"""A forked child's copies of its parent's sockets: kept, since losing the last reference would close them, and the
library would say goodbye to the server in the parent's name."""


class Sessions:
    """The open sockets of one transport in one process. One is closed when nobody uses it any more."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._open: set[Session] = set()

    @contextlib.contextmanager
    def opened(self, settings: Settings, until: Deadline | None = None) -> Iterator[Session]:
        """Open a socket, of which the caller is the first user."""
        session = Session(settings, until)
        self.keep(session)
        try:
            yield session
        finally:
            self.done_with(session)

    def keep(self, session: Session) -> None:
        """Count one more user of the socket, who calls `done_with`."""
        with self._changed:
            session.users += 1
            self._open.add(session)

    def done_with(self, session: Session) -> None:
        with self._changed:
            session.users -= 1
            # Not in a forked child that goes on in the middle of a call: the socket is its parent's.
            last = not session.users and session in self._open
        if last:
            session.close()
            with self._changed:
                self._open.discard(session)
                self._changed.notify_all()

    def wait(self, until: Deadline) -> None:
        """Wait until no socket is open, or the deadline has passed."""
        with self._changed:
            while self._open and not until.passed:
                self._changed.wait(until.left(threading.TIMEOUT_MAX))

    def leave_to_parent(self) -> None:
        """Begin anew in a forked child, and never close the parent's sockets."""
        _inherited.extend(self._open)
        self._open = set()
        self._changed = threading.Condition(threading.Lock())


def _authorization(settings: Settings) -> dict[str, str]:
    # Loopback without a token needs none. The server takes it from this header only, never from the URL (measured).
    token = settings.token
    return {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}


_tls_lock = threading.Lock()
_tls_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
_MOST_CONTEXTS = 8


def _tls(settings: Settings) -> dict[str, Any]:
    """Return the options of a socket with TLS. Certificates take tens of milliseconds to load: once for all."""
    if not websocket_url(settings.base_url).startswith("wss://"):
        return {}
    files = (settings.certificate, settings.client_certificate, settings.client_key, os.environ.get("SSL_CERT_FILE"))
    with _tls_lock:
        if files not in _tls_contexts:
            if len(_tls_contexts) >= _MOST_CONTEXTS:
                _tls_contexts.clear()
            _tls_contexts[files] = context_of(settings)
        return {"ssl": _tls_contexts[files]}


def _not_connected(error: Exception, settings: Settings, redact: Callable[[str], str]) -> LettaError:
    """Make the error for a socket that could not be opened, without the frames that hold the token."""
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        body = error.response.body or b""
        words = clean_error(redact(body.decode("utf-8", "replace") or error.response.reason_phrase))
        if status in (401, 403):
            return wrong_token(status, words)
        if status >= 500:
            return LettaServerError(status=status, detail=words)
        return LettaServerError(
            "No App Server at this address", status=status, detail=words, hint="check LETTA_BASE_URL", parks=True
        )
    reason = clean_error(redact(str(error))) or type(error).__name__
    certificate = certificate_problem(error, settings)
    if certificate is not None:
        return certificate
    if isinstance(error, LettaError):
        return error.with_traceback(None)
    if isinstance(error, TimeoutError):
        return LettaTimeoutError(
            f"Could not connect to the App Server at {settings.base_url} in time",
            hint="check LETTA_BASE_URL, and that the server runs",
        )
    failure = LettaConnectionError(
        f"Could not connect to the App Server at {settings.base_url}",
        detail=reason,
        hint="check LETTA_BASE_URL, and that the server runs",
    )
    if isinstance(error, OSError):
        # Its kind tells others whether nobody listens there. All else about it may hold the request's headers.
        failure.__cause__ = type(error)(error.errno, reason)
    return failure
