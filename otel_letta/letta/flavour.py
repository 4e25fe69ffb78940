"""The flavour of the Letta server at an address: asked once for each address and process.

What the comments call measured was measured on a REST server 0.16.8 and on an App Server 0.34.12 (local backend).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable
from concurrent.futures import Future, wait
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple

import httpx

from otel_letta.errors import LettaConnectionError, LettaError, LettaServerError, LettaTimeoutError
from otel_letta.letta.answers import mapping, parsed, refusal
from otel_letta.letta.http import HttpClient
from otel_letta.letta.redaction import Redact, redactor
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings, http_url
from otel_letta.text import clean_line

_logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for each answer, at most: none of them costs the server any work."""
_AT_MOST = 100_000
"""Bytes of an answer that are read. An App Server's list of models is the longest of them."""
_VERSION_CAP = 40


class Flavour(str, Enum):
    """The kinds of servers."""

    REST = "rest"
    APP_SERVER = "app-server"
    CLOUD = "cloud"

    def __str__(self) -> str:
        return self.value


class ServerInfo(NamedTuple):
    """The facts about a server. All but ``flavour`` may be unknown: behind a token that is missing or wrong."""

    flavour: Flavour
    version: str = ""
    """As the server writes it, cleaned; empty if unknown."""
    protocol: int | None = None
    """Version of the App Server's WebSocket protocol."""
    backend: str = ""
    """The place where an App Server keeps its agents: ``local``, or a name for Letta Cloud."""
    capabilities: frozenset[str] = frozenset()
    """The abilities that an App Server names: ``memory_management``, ``conversation_management``…"""
    openai_api: bool | None = None
    """Whether an App Server offers its OpenAI-compatible API; None if unknown."""


def recognise(settings: Settings, *, until: Deadline | None = None) -> ServerInfo:
    """Ask the server what it is, and remember its answer for this process.

    Blocks for as long as a few requests may take: ``connect_timeout`` and the shorter of ``read_timeout`` and 10 s
    each, cut short at ``until``. The token is sent to a server that asked for one, and to no other.

    Raises:
        LettaConnectionError: no answer; `LettaTimeoutError` if not in time.
        LettaServerError: the server is in trouble, or is not Letta's.
        LettaRateLimitError: too many requests.
    """
    if settings.is_cloud:
        return ServerInfo(Flavour.CLOUD)
    url = http_url(settings.base_url)
    # Different settings may hold different tokens and timeouts, so they ask for themselves; the answer is one.
    key = (url, settings.identity())
    with _lock:
        known = _known.get(url)
        if known is not None:
            return known
        pending = _pending.get(key)
        mine = pending is None
        if pending is None:
            pending = _pending[key] = Future()
    if mine:
        _settle(pending, key, settings, until)
    wait([pending], None if until is None else until.left(threading.TIMEOUT_MAX))
    if not pending.done():
        raise LettaTimeoutError(f"{settings.base_url} has not said in time what it is")
    return pending.result()


def forget(base_url: str) -> None:
    """Ask again next time: another kind of server may have taken the address over."""
    with _lock:
        _known.pop(http_url(base_url), None)


_Key = tuple[str, Hashable]
_lock = threading.Lock()
_known: dict[str, ServerInfo] = {}
_pending: dict[_Key, Future[ServerInfo]] = {}


def _forget_in_child() -> None:
    # The thread that was asking does not exist in a forked child, and its answer would never come.
    global _lock
    _lock = threading.Lock()
    _known.clear()
    _pending.clear()


fork.in_child(_forget_in_child)


def _settle(pending: Future[ServerInfo], key: _Key, settings: Settings, until: Deadline | None) -> None:
    """Ask, remember the server's own answer, and wake the threads that wait for it."""
    try:
        info, certain = _ask(settings, until)
    except BaseException as error:
        with _lock:
            _pending.pop(key, None)
        # Ctrl-C is for this thread alone, but the others must not wait for ever.
        interrupted = LettaConnectionError(f"Asking {settings.base_url} what it is was interrupted")
        pending.set_exception(error if isinstance(error, Exception) else interrupted)
        raise
    with _lock:
        _pending.pop(key, None)
        if certain:
            _known[key[0]] = info
    pending.set_result(info)


def _ask(settings: Settings, until: Deadline | None) -> tuple[ServerInfo, bool]:
    """Return what the server is, and whether it said so itself; else it is what best fits its silence."""
    bounded = replace(settings, read_timeout=min(settings.read_timeout, _PATIENCE))
    ask = _Asker(bounded, until)
    try:
        info, certain = _distinguish(ask, bounded)
    finally:
        ask.close()
    _logger.debug("%s is taken for %s %s", settings.base_url, info.flavour, info.version)
    return info, certain


def _distinguish(ask: _Asker, settings: Settings) -> tuple[ServerInfo, bool]:
    redact = redactor(settings)
    health: _Answer | None = None
    if settings.base_url.startswith(("http://", "https://")):
        # First, since most addresses are a REST server's, and needs no token there (measured). An App Server: 404.
        health = ask("/v1/health/")
        version = health.body.get("version")
        if health.status == 200 and isinstance(version, str):
            return ServerInfo(Flavour.REST, clean_line(redact(version), _VERSION_CAP)), True
        health.raise_if_in_trouble()
    info = ask("/app-server-info")
    if info.status == 200 and info.body.get("type") == "app_server_info_response":
        return _app_server(info.body, _openai_api(ask), redact), True
    info.raise_if_in_trouble()
    if info.asks_for_token:
        if health is None or info.mentions_websockets:
            return ServerInfo(Flavour.APP_SERVER), False
        return ServerInfo(Flavour.REST), False  # or a proxy in front of anything, that lets nobody through
    if health is None:
        raise LettaServerError(
            f"No Letta App Server at {settings.base_url}",
            status=info.status,
            hint="check LETTA_BASE_URL; the address of a REST server begins with http",
            parks=True,
        )
    if health.asks_for_token:
        return ServerInfo(Flavour.REST), False
    raise LettaServerError(
        f"What answers at {settings.base_url} is no Letta server",
        status=health.status,
        hint="check LETTA_BASE_URL, or set OTEL_LETTA_SERVER=rest where a proxy hides /v1/health/",
        parks=True,
    )


def _app_server(body: dict[str, Any], openai_api: bool | None, redact: Redact) -> ServerInfo:
    version, protocol, backend = (body.get(name) for name in ("letta_code_version", "protocol_version", "backend"))
    able = body.get("capabilities")
    return ServerInfo(
        Flavour.APP_SERVER,
        version=clean_line(redact(version), _VERSION_CAP) if isinstance(version, str) else "",
        protocol=protocol if isinstance(protocol, int) and not isinstance(protocol, bool) else None,
        backend=clean_line(redact(backend), _VERSION_CAP) if isinstance(backend, str) else "",
        capabilities=frozenset(
            clean_line(redact(name), _VERSION_CAP)
            for name, has in able.items()
            if has is True and isinstance(name, str)
        )
        if isinstance(able, dict)
        else frozenset(),
        openai_api=openai_api,
    )


def _openai_api(ask: _Asker) -> bool | None:
    # Only after the server is known to be an App Server: a REST server has a /v1/models of its own.
    try:
        status = ask("/v1/models").status
    except LettaError:
        return None
    return True if status == 200 else False if status == 404 else None


class _Answer(NamedTuple):
    response: httpx.Response
    body: dict[str, Any]
    """Empty unless the answer is a JSON object."""
    settings: Settings

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def asks_for_token(self) -> bool:
        return self.status in (401, 403)

    @property
    def mentions_websockets(self) -> bool:
        """Whether the error is an App Server's for a token that is missing or wrong (measured)."""
        return "websocket" in str(self.body.get("error"))[:1_000]

    def raise_if_in_trouble(self) -> None:
        # This shows a state of the server, not its kind: the same address may answer better soon.
        if self.status >= 500 or self.status in (408, 425, 429) or 300 <= self.status < 400:
            raise refusal(self.response, redactor(self.settings))


class _Asker:
    """A client that sends each GET without the token, and once more with it where that is refused."""

    def __init__(self, settings: Settings, until: Deadline | None) -> None:
        self._settings = settings
        self._until = until
        self._http = HttpClient(settings, _logger)

    def __call__(self, path: str) -> _Answer:
        answer = self._get(path, token=False)
        if answer.asks_for_token and self._settings.token is not None:
            answer = self._get(path, token=True)
        return answer

    def _get(self, path: str, *, token: bool) -> _Answer:
        patience = self._settings.read_timeout
        try:
            response = self._http.brief(path, token=token, at_most=_AT_MOST, seconds=patience, until=self._until)
        except LettaTimeoutError:
            late = f"{self._settings.base_url} did not say within {patience:g} s what it is"
            raise LettaTimeoutError(late, hint="check LETTA_BASE_URL, and whether the server is overloaded") from None
        except LettaConnectionError as error:
            error.may_have_landed = False  # no report was sent
            raise
        return _Answer(response, mapping(parsed(response)), self._settings)

    def close(self) -> None:
        self._http.close()
