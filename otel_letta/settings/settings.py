"""Where every setting comes from, in one place: keyword, environment, `.env`, default, in this order.

`VARIABLES` is the single table: it drives parsing, error messages, and the tables of README and `otel-letta check`.
Text that arrives here is trusted by nobody: a bad value ends in one line that names the variable, the value, where it
came from and what is allowed, and no secret is ever part of such a line.

    settings = Settings.resolve(agent_id="agent-…")
    settings.warn_once(logging.getLogger("otel_letta"))
    headers = {"Authorization": f"Bearer {settings.token.reveal()}"} if settings.token else {}
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import io
import ipaddress
import logging
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, TypedDict
from urllib.parse import urlsplit

from dotenv import dotenv_values

from otel_letta.errors import LettaConfigurationError
from otel_letta.letta.transport import APP_SERVER_CONVERSATION, REST_CONVERSATION

__all__ = [
    "CLOUD_BASE_URL",
    "DEFAULT_BASE_URL",
    "VARIABLES",
    "Delivery",
    "Secret",
    "ServerKind",
    "Settings",
    "SettingsOptions",
    "Variable",
    "http_url",
    "websocket_url",
]

DEFAULT_BASE_URL = "https://letta2.oculair.ca"
"""The original integration's server, used when nothing names another one; `Settings.security_warnings` says so."""
CLOUD_BASE_URL = "https://api.letta.com"
"""Letta Cloud, to which an API key without a URL belongs, as in letta-client."""

_log = logging.getLogger(__name__)

# threading and socket refuse timeouts that do not fit a C integer (49 days on Windows).
_LONGEST = 30 * 86_400
_MOST = 1_000_000


class Delivery(str, Enum):
    """How reports reach the agent: board and messages, messages alone, or the board alone (no LLM call)."""

    AUTO = "auto"
    MESSAGES = "messages"
    BOARD = "board"

    def __str__(self) -> str:
        return self.value


class ServerKind(str, Enum):
    """Which of Letta's servers `LETTA_BASE_URL` names: ask it, its REST server, or its App Server and by which door.

    ``app-server`` speaks over the WebSocket. ``app-server-http`` posts to the OpenAI-compatible API, where the
    server offers one: a process that ends abruptly leaves no turn behind that blocks the conversation.
    """

    AUTO = "auto"
    REST = "rest"
    APP_SERVER = "app-server"
    APP_SERVER_HTTP = "app-server-http"

    def __str__(self) -> str:
        return self.value


class Secret:
    """A text that shows itself only to `reveal()`: printed, formatted, logged or dumped it is ``***``.

    Copies are the same object, comparing takes the same time wherever the texts differ, and it can be neither
    pickled nor hashed.
    """

    # The slot holds a function, so that tools that list an object's attributes find no text either.
    __slots__ = ("_read",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a Secret holds a str, not {type(text).__name__}")
        plain = str.__str__(text)
        self._read: Callable[[], str] = lambda: plain

    def reveal(self) -> str:
        """The text itself."""
        return self._read()

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_utf8(self.reveal()), _utf8(other.reveal()))

    __hash__ = None  # type: ignore[assignment]  # a hash by value would be a weak fingerprint, one by id a lie

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: the text would be in clear")


# ---------------------------------------------------------------------------------------------------------------
# Kinds of values. Each says what it allows, and takes text (environment, .env) as well as Python values (keywords).


class _RefusedError(ValueError):
    """A value cannot be used. `reason` must not quote it; `show` is False when it may hold a secret."""

    def __init__(self, reason: str = "", *, show: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.show = show


class Parser(Protocol):
    """Turns a raw value into a setting, or raises; `allowed` completes the sentence "allowed: …"."""

    @property
    def allowed(self) -> str: ...

    def __call__(self, value: object, /) -> object: ...


@dataclass(frozen=True, slots=True)
class _Number:
    """A finite number, whole or not, from `low` to `high`; `above` excludes `low` itself."""

    low: float
    high: float
    of: str
    whole: bool = False
    above: bool = False

    @property
    def allowed(self) -> str:
        span = f"above {self.low:g}, at most {self.high:.0f}" if self.above else f"from {self.low:g} to {self.high:.0f}"
        return f"{'a whole number' if self.whole else 'a number'} of {self.of} {span}"

    def __call__(self, value: object) -> int | float:
        number = self._number(value)
        if not math.isfinite(number) or not self.low <= number <= self.high or (self.above and number == self.low):
            raise _RefusedError
        return number

    def _number(self, value: object) -> int | float:
        if isinstance(value, str):
            return self._from_text(value.strip())
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            raise _RefusedError
        try:
            return int(value) if self.whole else float(value)
        except OverflowError:
            raise _RefusedError from None

    def _from_text(self, text: str) -> int | float:
        # int() and float() alone would also take "1_000", "nan" and digits of other scripts. The length is bounded
        # because converting a very long number is slow, and refused by Python itself past a limit.
        if len(text) > 100 or not (_WHOLE if self.whole else _DECIMAL).fullmatch(text):
            raise _RefusedError
        return int(text) if self.whole else float(text)


_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _seconds(low: float = 0, high: float = _LONGEST) -> _Number:
    return _Number(low, high, "seconds")


def _timeout() -> _Number:
    return _Number(0, _LONGEST, "seconds", above=True)


def _count(low: int, of: str, high: int = _MOST) -> _Number:
    return _Number(low, high, of, whole=True)


@dataclass(frozen=True, slots=True)
class _OneOf:
    kinds: type[Delivery] | type[ServerKind]

    @property
    def allowed(self) -> str:
        return ", ".join(self.kinds)

    def __call__(self, value: object) -> Delivery | ServerKind:
        try:
            return self.kinds(_text(value).lower())
        except ValueError:
            raise _RefusedError from None


@dataclass(frozen=True, slots=True)
class _Pattern:
    pattern: str
    allowed: str

    def __call__(self, value: object) -> str:
        text = _text(value)
        if not re.fullmatch(self.pattern, text):
            raise _RefusedError
        return text


@dataclass(frozen=True, slots=True)
class _Switch:
    allowed: str = "true, false"

    def __call__(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        text = _text(value).lower()
        if text not in {"true", "false"}:
            raise _RefusedError
        return text == "true"


@dataclass(frozen=True, slots=True)
class _AgentId:
    allowed: str = "any text of 1 to 200 characters without control characters"

    def __call__(self, value: object) -> str:
        text = _text(value)
        if not 1 <= len(text) <= 200 or _has_control(text):
            raise _RefusedError
        return text


@dataclass(frozen=True, slots=True)
class _AgentIds:
    allowed: str = "agent ids, separated by commas (as keyword: a list or tuple of them)"

    def __call__(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise _RefusedError
        one = _AgentId()
        return tuple(dict.fromkeys(one(item) for item in value))


@dataclass(frozen=True, slots=True)
class _Names:
    of: str

    @property
    def allowed(self) -> str:
        return f"{self.of}, separated by commas (as keyword: a list or tuple of them)"

    def __call__(self, value: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_list_of_texts(value)))


@dataclass(frozen=True, slots=True)
class _ContentFields:
    fields: tuple[str, ...] = ("arguments", "results", "prompt", "answer", "errors")

    @property
    def allowed(self) -> str:
        return f"names, full, or some of {', '.join(self.fields)}, separated by commas"

    def __call__(self, value: object) -> tuple[str, ...]:
        wanted = [name.lower() for name in _list_of_texts(value)]
        if wanted == ["full"]:
            return self.fields
        wanted = [name for name in wanted if name != "names"]
        if not set(wanted) <= set(self.fields):
            raise _RefusedError
        return tuple(name for name in self.fields if name in wanted)


@dataclass(frozen=True, slots=True)
class _TaskPatterns:
    allowed: str = "patterns like scope:opentelemetry.instrumentation.celery* or name:nightly *, separated by commas"

    def __call__(self, value: object) -> tuple[tuple[str, str], ...]:
        found = []
        for text in _list_of_texts(value):
            kind, colon, pattern = text.partition(":")
            if kind not in ("scope", "name") or not colon or not pattern.strip():
                raise _RefusedError
            found.append((kind, pattern.strip()))
        return tuple(dict.fromkeys(found))


def _list_of_texts(value: object) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise _RefusedError
    texts = [_text(part) for part in parts]
    if any(len(text) > 200 or _has_control(text) for text in texts) or len(texts) > 100:
        raise _RefusedError
    return [text for text in texts if text]


@dataclass(frozen=True, slots=True)
class _Title:
    allowed: str = "any text of 1 to 100 characters without control characters, but no conversation's id"

    def __call__(self, value: object) -> str:
        text = _text(value)
        if not 1 <= len(text) <= 100 or _has_control(text):
            raise _RefusedError
        if REST_CONVERSATION.match(text) or APP_SERVER_CONVERSATION.match(text):
            raise _RefusedError("it is a conversation's title, and this looks like an id")
        return text


@dataclass(frozen=True, slots=True)
class _SecretText:
    allowed: str = "text on one line"

    def __call__(self, value: object) -> Secret | None:
        if not isinstance(value, Secret):
            raise _RefusedError("it is not text", show=False)
        stripped = Secret(value.reveal().strip())
        if _has_control(stripped.reveal()):
            raise _RefusedError("it contains a control character or is not valid Unicode", show=False)
        return stripped if stripped.reveal() else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _RefusedError("it is not text")
    # A str subclass may bring a __str__ of its own (enumerations do).
    return str.__str__(value).strip()


def _has_control(text: str) -> bool:
    # Cs: lone surrogates, which no request can carry. Zl, Zp: line breaks by another name.
    return any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text)


# ---------------------------------------------------------------------------------------------------------------
# URLs


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([^:]*))?")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*)(?:\.[a-z0-9_-]+)*\.?")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%/-]*")
_DEFAULT_PORT = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HTTP_OF = {"ws": "http", "wss": "https"}
_WEBSOCKET_OF = {"http": "ws", "https": "wss"}
# What may be quoted from a URL in an error: an allow-list, since a malformed URL hides its password in odd places.
_HARMLESS = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?(?:\[[0-9A-Fa-f:.]*\]|[^@＠﹫?#%:/\[\]]*)(?::[0-9]*)?(?:/[^@＠﹫?#%:]*)?"
)


@dataclass(frozen=True, slots=True)
class _ServerUrl:
    """The address of a Letta server, in one spelling only: the same server is then always the same lane."""

    allowed: str = "a URL like https://letta.example.com, http://localhost:8283 or ws://localhost:4500"

    def __call__(self, value: object) -> str:
        if not isinstance(value, str):
            raise _RefusedError("it is not text", show=False)
        text = str.__str__(value)
        try:
            return _normal_url(text)
        except _RefusedError as refused:
            refused.show = refused.show and _HARMLESS.fullmatch(text) is not None
            raise


def _normal_url(text: str) -> str:
    if any(mark in text for mark in "@＠﹫"):
        raise _RefusedError(
            "a user name or password does not belong in the URL; put the password in LETTA_PASSWORD", show=False
        )
    if _has_control(text) or any(character.isspace() for character in text):
        raise _RefusedError("it contains whitespace or control characters")
    scheme, rest = _split_scheme(text)
    if "?" in rest or "#" in rest:
        raise _RefusedError("it has a query or a fragment")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{_normal_authority(scheme, authority)}{_normal_path(scheme, slash + path)}"


def _split_scheme(text: str) -> tuple[str, str]:
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise _RefusedError("it does not start with https:// (or http://)")
    scheme = match[1].lower()
    if scheme not in _DEFAULT_PORT:
        raise _RefusedError("only http, https, ws and wss are possible")
    return scheme, match[2]


def _normal_authority(scheme: str, authority: str) -> str:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _RefusedError("its host cannot be read; an IPv6 address stands in [brackets]")
    host = _normal_host(match[1])
    port = _normal_port(match[2] or "")
    return host if port in {None, _DEFAULT_PORT[scheme]} else f"{host}:{port}"


def _normal_host(host: str) -> str:
    if not host:
        raise _RefusedError("it has no host")
    if host.startswith("["):
        return f"[{_ipv6(host[1:-1])}]"
    if not host.isascii():
        raise _RefusedError("an international host name is written in its xn-- form here")
    if not _HOST.fullmatch(host.lower()):
        raise _RefusedError("its host is not a host name")
    return host.lower()


def _ipv6(text: str) -> ipaddress.IPv6Address:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise _RefusedError("its IPv6 address is not one") from None
    if address.scope_id is not None:
        raise _RefusedError("its IPv6 address has a zone, which httpx does not send")
    return address


def _normal_port(port: str) -> int | None:
    if not port:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise _RefusedError("its port is not a number from 1 to 65535")
    return int(port)


def _normal_path(scheme: str, path: str) -> str:
    if not _PATH.fullmatch(path):
        raise _RefusedError("its path contains a character that a URL cannot")
    path = path.rstrip("/")
    # Other clients want the API's version in the URL; every path of ours begins with it. An App Server prints the
    # address of its WebSocket, which has a path of its own.
    endings = ("/v1", "/ws") if scheme in _HTTP_OF else ("/v1",)
    while path.endswith(endings):
        path = path[:-3].rstrip("/")
    return path


def http_url(base_url: str) -> str:
    """The HTTP address of a server by its ``base_url``: the same text for ``ws://`` and ``http://``."""
    scheme, rest = base_url.split("://", 1)
    return f"{_HTTP_OF.get(scheme, scheme)}://{rest}"


def websocket_url(base_url: str) -> str:
    """The address of an App Server's WebSocket, by its ``base_url``: ``ws://localhost:4500/ws``."""
    scheme, rest = base_url.split("://", 1)
    return f"{_WEBSOCKET_OF.get(scheme, scheme)}://{rest}/ws"


@dataclass(frozen=True, slots=True)
class _TraceLink:
    allowed: str = "an http or https URL with {trace_id}, and if wanted {span_id}, in it"

    def __call__(self, value: object) -> str:
        text = _text(value)
        if "@" in text:
            raise _RefusedError("it must not carry a user name or password", show=False)
        if _has_control(text) or any(character.isspace() for character in text):
            raise _RefusedError("it contains whitespace or control characters")
        if "{trace_id}" not in text:
            raise _RefusedError("it has no {trace_id}")
        filled = text.replace("{trace_id}", "0" * 32).replace("{span_id}", "0" * 16)
        if "{" in filled or "}" in filled:
            raise _RefusedError("it has another placeholder")
        if not _is_web_url(filled):
            raise _RefusedError
        return text


def _is_web_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


# ---------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting: the keyword `name`, the variable `env`, and what both may hold."""

    name: str
    env: str
    default: object
    unit: str
    help: str
    parse: Parser

    @property
    def secret(self) -> bool:
        """True when the value is shown nowhere."""
        return isinstance(self.parse, _SecretText)

    @property
    def allowed(self) -> str:
        """What the value may be, for a reader."""
        return self.parse.allowed

    @property
    def default_text(self) -> str:
        """The default as it would be written in the environment; empty when there is none."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return "" if self.default in (None, (), "") else str(self.default)


VARIABLES: tuple[Variable, ...] = (
    Variable("base_url", "LETTA_BASE_URL", DEFAULT_BASE_URL, "", "Address of the Letta server.", _ServerUrl()),
    Variable("agent_id", "LETTA_AGENT_ID", "", "", "Agent that is told (required).", _AgentId()),
    Variable(
        "password",
        "LETTA_PASSWORD",
        None,
        "",
        "Password of a self-hosted server, or token of an App Server, if it has one.",
        _SecretText(),
    ),
    Variable(
        "api_key",
        "LETTA_API_KEY",
        None,
        "",
        "API key of Letta Cloud; another server gets it where there is no password.",
        _SecretText(),
    ),
    Variable(
        "server",
        "OTEL_LETTA_SERVER",
        ServerKind.AUTO,
        "",
        "Kind of the server. auto: it is asked once; app-server: over its WebSocket; app-server-http: over its "
        "OpenAI-compatible API, for short-lived processes.",
        _OneOf(ServerKind),
    ),
    Variable(
        "conversation",
        "OTEL_LETTA_CONVERSATION",
        None,
        "",
        "Title of a conversation of its own for reports, on an App Server; unset: the agent's default one.",
        _Title(),
    ),
    Variable(
        "delivery",
        "OTEL_LETTA_DELIVERY",
        Delivery.AUTO,
        "",
        "auto: progress to the board, ends as messages; messages: no board; board: no LLM call ever.",
        _OneOf(Delivery),
    ),
    Variable(
        "board_label",
        "OTEL_LETTA_BOARD_LABEL",
        "task_progress",
        "",
        "Label of the memory block that shows the live tasks.",
        _Pattern(r"[A-Za-z0-9_-]{1,50}", "1 to 50 letters (a-z, A-Z), digits, _ and -"),
    ),
    Variable(
        "board_interval", "OTEL_LETTA_BOARD_INTERVAL", 15.0, "s", "Shortest time between two board writes.", _seconds()
    ),
    Variable(
        "message_interval",
        "OTEL_LETTA_MESSAGE_INTERVAL",
        60.0,
        "s",
        "A task sends at most one in_progress message in this time.",
        _seconds(),
    ),
    Variable(
        "poll_interval", "OTEL_LETTA_POLL_INTERVAL", 0.25, "s", "How often open spans are read.", _seconds(0.01, 60)
    ),
    Variable(
        "wake_budget",
        "OTEL_LETTA_WAKE_BUDGET",
        60,
        "turns per hour",
        "Turns that reports of one process may cost an agent; past it, ends wait and go together.",
        _count(1, "agent turns"),
    ),
    Variable("connect_timeout", "OTEL_LETTA_CONNECT_TIMEOUT", 5.0, "s", "Longest wait for a connection.", _timeout()),
    Variable(
        "read_timeout",
        "OTEL_LETTA_READ_TIMEOUT",
        600.0,
        "s",
        "Longest wait for an answer: a message's lasts the agent's whole turn.",
        _timeout(),
    ),
    Variable(
        "busy_timeout",
        "OTEL_LETTA_BUSY_TIMEOUT",
        120.0,
        "s",
        "Longest wait for a turn of the agent that somebody else started.",
        _timeout(),
    ),
    Variable(
        "shutdown_timeout", "OTEL_LETTA_SHUTDOWN_TIMEOUT", 5.0, "s", "Time that the exit gives to delivery.", _timeout()
    ),
    Variable("probe_interval", "OTEL_LETTA_PROBE_INTERVAL", 60.0, "s", "How often a parked lane is tried.", _seconds()),
    Variable(
        "max_pending_tasks",
        "OTEL_LETTA_MAX_PENDING_TASKS",
        10_000,
        "tasks",
        "Tasks that may wait to be reported.",
        _count(1, "tasks"),
    ),
    Variable(
        "content_cap",
        "OTEL_LETTA_CONTENT_CAP",
        2_000,
        "characters",
        "Longest text of a report; the rest is cut.",
        _count(100, "characters", 10_000),
    ),
    Variable(
        "max_steps",
        "OTEL_LETTA_MAX_STEPS",
        None,
        "steps",
        # Letta 0.16.8 answers 200 to 0 and drops the message.
        "Steps that the agent may take on a report; unset: the server's default.",
        _count(1, "steps"),
    ),
    Variable(
        "trace_link",
        "OTEL_LETTA_TRACE_LINK",
        None,
        "",
        "Link to the trace, for the agent: https://jaeger.example/trace/{trace_id}",
        _TraceLink(),
    ),
    Variable(
        "agent_allow_list",
        "OTEL_LETTA_AGENT_ALLOW_LIST",
        (),
        "",
        "Other agents that a span may name in letta.agent.id.",
        _AgentIds(),
    ),
    Variable(
        "grace",
        "OTEL_LETTA_GRACE",
        2.0,
        "s",
        "How long an agent's task waits for late spans after its root has ended.",
        _seconds(),
    ),
    Variable(
        "idle_timeout",
        "OTEL_LETTA_IDLE_TIMEOUT",
        # A span arrives when it has ended, and clients of LLMs wait up to ten minutes for an answer.
        900.0,
        "s",
        "An agent's task whose root span never comes is lost after so long without news.",
        _timeout(),
    ),
    Variable(
        "wake_after",
        "OTEL_LETTA_WAKE_AFTER",
        60.0,
        "s",
        "Tasks that nobody declared wake the agent if they failed or took longer; else they only stand on the board.",
        _seconds(),
    ),
    Variable(
        "content",
        "OTEL_LETTA_CONTENT",
        (),
        "",
        "What agents' spans may tell: names (default), full, or some of arguments, results, prompt, answer, errors.",
        _ContentFields(),
    ),
    Variable(
        "chat_id_attributes",
        "OTEL_LETTA_CHAT_ID_ATTRIBUTES",
        (),
        "",
        "Further attributes of agents' spans that hold the chat id, after those of the conventions.",
        _Names("attribute names"),
    ),
    Variable(
        "tasks",
        "OTEL_LETTA_TASKS",
        (),
        "",
        "Other spans that are tasks: scope:PATTERN, name:PATTERN, with * and ?, separated by commas.",
        _TaskPatterns(),
    ),
    Variable(
        "baggage",
        "OTEL_LETTA_BAGGAGE",
        False,
        "",
        # Whoever can send a request can send baggage, so it may choose the chat only where that is wanted.
        "Take letta.chat.id and letta.message.id from inbound baggage, where a span has none (live only).",
        _Switch(),
    ),
)

_BY_NAME = {variable.name: variable for variable in VARIABLES}
_SECRET = frozenset(variable.name for variable in VARIABLES if variable.secret)
_OPTIONS = frozenset({"settings", "dotenv_path", *_BY_NAME})


# ---------------------------------------------------------------------------------------------------------------
# Settings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """All settings, read and checked at one moment. Made by `Settings.resolve`.

    Two settings are equal when everything that they say is equal, wherever it came from. They cannot be pickled:
    another process resolves its own.
    """

    base_url: str
    """Scheme, host, port and path prefix, without a slash, ``/v1`` or a WebSocket's ``/ws`` at the end."""
    agent_id: str
    """Empty only after ``resolve(require_agent=False)``."""
    password: Secret | None
    api_key: Secret | None
    server: ServerKind
    conversation: str | None
    """The title of a conversation, not an id; None for the agent's default one."""
    delivery: Delivery
    board_label: str
    board_interval: float
    """Seconds between two writes of the board."""
    message_interval: float
    """Seconds between two ``in_progress`` messages of a task."""
    poll_interval: float
    """Seconds between two looks at the open spans."""
    wake_budget: int
    """Agent turns per agent and hour."""
    connect_timeout: float
    """Seconds."""
    read_timeout: float
    """Seconds; covers a whole turn of the agent."""
    busy_timeout: float
    """Seconds to wait for somebody else's turn to end."""
    shutdown_timeout: float
    """Seconds."""
    probe_interval: float
    """Seconds between two tries of a parked lane."""
    max_pending_tasks: int
    content_cap: int
    """Characters."""
    max_steps: int | None
    """None leaves it to the server."""
    trace_link: str | None
    """Template with ``{trace_id}`` and perhaps ``{span_id}``, no other braces."""
    agent_allow_list: tuple[str, ...]
    grace: float
    """Seconds from the end of an agent's root span to the verdict."""
    idle_timeout: float
    """Seconds without news after which an agent's task without a root is lost."""
    wake_after: float
    """Seconds from which on the success of a task that nobody declared is worth a turn."""
    content: tuple[str, ...]
    """Fields of agents' spans that may be told beside names; see `otel_letta.tracking.conventions`."""
    chat_id_attributes: tuple[str, ...]
    tasks: tuple[tuple[str, str], ...]
    """``scope`` or ``name``, and a pattern: spans that are tasks though they do not say so."""
    baggage: bool
    """True: ids may come from the baggage of the context that a span starts in."""

    _sources: tuple[tuple[str, str], ...] = field(repr=False)
    _disabled: bool = field(repr=False)
    # A closure, not its arguments: those may hold secrets, and asdict() would walk into them.
    _again: Callable[[], Settings] = field(repr=False)

    @classmethod
    def resolve(
        cls,
        *,
        environ: Mapping[str, str] | None = None,
        dotenv_path: str | os.PathLike[str] | None = None,
        require_agent: bool = True,
        **keywords: object,
    ) -> Settings:
        """Read the settings: keyword, else environment, else `.env`, else default.

        None as keyword, and an empty (or blank) text in environment or `.env`, count as not set. ``password=""`` and
        ``api_key=""`` say that there is none, whatever the environment holds.

        Args:
            environ: read instead of ``os.environ``, and read again by `refresh`.
            dotenv_path: a `.env` file that must exist; without it the nearest one upward from the working directory
                is read, if there is one. ``${NAME}`` in it is replaced as python-dotenv does everywhere.
            require_agent: False lets `agent_id` be missing.
            **keywords: any `Variable.name` of `VARIABLES`.

        Raises:
            LettaConfigurationError: a value cannot be used, a keyword or file does not exist, or no agent is named.
        """
        # Rebound at once: from here on no frame of ours holds a secret in clear, should a traceback show variables.
        keywords = {name: _sealed(name, value) for name, value in keywords.items()}
        for name in keywords:
            if name not in _BY_NAME:
                raise _unknown(name)
        explicit = None if dotenv_path is None else _absolute(dotenv_path)
        return cls._read(environ, explicit, _working_directory(), require_agent, keywords)

    @classmethod
    def _read(
        cls,
        environ: Mapping[str, str] | None,
        explicit: str | None,
        start: str | None,
        require_agent: bool,
        keywords: Mapping[str, object],
    ) -> Settings:
        layers = (
            _Layer("keyword", {name: value for name, value in keywords.items() if value is not None}),
            _Layer("environment", _ours(os.environ if environ is None else environ)),
            _dotenv_layer(explicit) if explicit is not None else _nearest_dotenv_layer(start),
        )
        values, sources = _parsed(layers)
        if require_agent and not values["agent_id"]:
            raise LettaConfigurationError(
                "No Letta agent is named", hint="set LETTA_AGENT_ID (or the keyword agent_id) to the agent's id"
            )
        return cls(
            **values,
            _sources=tuple(sources.items()),
            _disabled=_is_disabled(os.environ if environ is None else environ),
            _again=lambda: cls._read(environ, explicit, start, require_agent, keywords),
        )

    @classmethod
    def from_options(
        cls, options: dict[str, Any], *, lenient: bool = False
    ) -> tuple[Settings, tuple[LettaConfigurationError, ...]]:
        """Read the keywords that a component was given: a finished ``settings``, or those of `resolve`.

        Args:
            options: the keywords by name. Texts that may be secrets are sealed in place, nothing else changes.
            lenient: ignore options that do not exist instead of raising. Not where the address of the server is the
                default one: such an option may have been meant to name it, and reports and password would go astray.

        Returns:
            The settings, and a complaint about each option that was ignored. No complaint quotes a value.

        Raises:
            LettaConfigurationError: what `resolve` raises; or ``settings`` is not a `Settings`, or was given together
                with other options.
        """
        for name in options:
            options[name] = _sealed(name, options[name])
        complaints = tuple(_unknown(name) for name in options if name not in _OPTIONS)
        if complaints and not lenient:
            raise complaints[0]
        others = {name: value for name, value in options.items() if name in _OPTIONS and name != "settings"}
        settings = options.get("settings")
        if settings is None:
            settings = cls.resolve(**others)
        elif not isinstance(settings, Settings):
            raise LettaConfigurationError("settings are what Settings.resolve() gives")
        elif others:
            raise LettaConfigurationError(f"settings and {', '.join(sorted(others))} exclude each other")
        if complaints and settings.sources["base_url"] == "default":
            raise complaints[0]
        return settings, complaints

    def refresh(self) -> Settings:
        """Read the same keywords, environment and `.env` again: people rotate passwords while programs run.

        Returns these settings when the new ones cannot be used; never raises.
        """
        try:
            # The search starts where the first one did. A program may have changed into a folder by now whose .env
            # is not its own (an agent's workspace), and must not send its password where that file says.
            return self._again()
        except LettaConfigurationError as error:
            _log_once(_log, logging.DEBUG, f"Settings could not be read again, the old ones stay: {error}")
            return self

    @property
    def token(self) -> Secret | None:
        """What goes into the Authorization header: Letta Cloud prefers the API key, other servers the password."""
        return {"password": self.password, "api_key": self.api_key}.get(self.token_name or "")

    @property
    def token_name(self) -> str | None:
        """The setting that `token` comes from: ``password`` or ``api_key``; None where there is no token."""
        order = ("api_key", "password") if self.is_cloud else ("password", "api_key")
        return next((name for name in order if getattr(self, name) is not None), None)

    @property
    def is_cloud(self) -> bool:
        """True when the server is Letta Cloud, by its name."""
        return self._host == urlsplit(CLOUD_BASE_URL).hostname

    @property
    def is_loopback(self) -> bool:
        """True when the server is on this very machine by its address's form; no name is looked up."""
        return _is_loopback(self._host)

    @property
    def _host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def sources(self) -> Mapping[str, str]:
        """For each setting: ``keyword``, ``environment``, ``default``, or the path of the `.env` file."""
        return MappingProxyType(dict(self._sources))

    @property
    def disabled(self) -> bool:
        """True when ``OTEL_SDK_DISABLED`` was ``true`` in the environment (a `.env` cannot say it)."""
        return self._disabled

    def identity(self) -> tuple[Hashable, ...]:
        """Equal for settings that may share a pipeline; valid in this process and its forks, holds no secret."""
        values = (getattr(self, variable.name) for variable in VARIABLES)
        return (*(_fingerprint(v) if isinstance(v, Secret) else v for v in values), self._disabled)

    def __eq__(self, other: object) -> bool:
        return self.identity() == other.identity() if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity())

    def __copy__(self) -> Settings:
        return self

    def __deepcopy__(self, memo: object) -> Settings:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("Settings cannot be pickled: resolve them again in the other process")

    def security_warnings(self) -> tuple[str, ...]:
        """What the owner of the secret should know before anything is sent, one line each."""
        return tuple(text for text in (self._default_host(), self._foreign_url(), self._plain_http()) if text)

    def _default_host(self) -> str:
        # A key that goes to Letta Cloud because nothing else was said goes where it belongs.
        if self.sources["base_url"] != "default" or self.base_url != DEFAULT_BASE_URL:
            return ""
        what = "reports" if self.token_name is None else f"reports and {_BY_NAME[self.token_name].env}"
        return (
            f"LETTA_BASE_URL is not set: {what} go to the default server {self._host}. "
            "Set LETTA_BASE_URL to your own Letta server if that is not it."
        )

    def _foreign_url(self) -> str:
        name = self.token_name
        if name is None or self.sources["base_url"] in {"keyword", "environment", "default"}:
            return ""
        if self.sources[name] not in {"keyword", "environment"}:
            return ""
        return (
            f"{_BY_NAME[name].env} ({_whence(self.sources[name])}) goes to {self._host}, which LETTA_BASE_URL in "
            f"{_escaped(self.sources['base_url'])} names. Set both in the same place if you trust it."
        )

    def _plain_http(self) -> str:
        scheme = urlsplit(self.base_url).scheme
        if scheme in {"https", "wss"} or self.is_loopback:
            return ""
        what = "reports" if self.token_name is None else f"reports and {_BY_NAME[self.token_name].env}"
        return (
            f"LETTA_BASE_URL is plain {scheme}: {what} travel readable to {self._host}. "
            f"Use {scheme}s outside of this machine."
        )

    def warn_once(self, logger: logging.Logger) -> None:
        """Log each of `security_warnings`, the first time in this process that it is true."""
        for text in self.security_warnings():
            _log_once(logger, logging.WARNING, text)


# ---------------------------------------------------------------------------------------------------------------
# Layers: where raw values come from


@dataclass(frozen=True, slots=True)
class _Layer:
    source: str
    values: Mapping[str, object]
    """By setting name; secrets are sealed already."""


def _parsed(layers: Iterable[_Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for variable in VARIABLES:
        name = variable.name
        layer = next((layer for layer in layers if name in layer.values), None)
        values[name] = variable.default if layer is None else _usable(variable, layer.values[name], layer.source)
        sources[name] = "default" if layer is None else layer.source
    if sources["base_url"] == "default" and values["api_key"] and not values["password"]:
        values["base_url"] = CLOUD_BASE_URL
    if values["server"] is ServerKind.REST and values["base_url"].startswith(("ws://", "wss://")):
        refused = _RefusedError("LETTA_BASE_URL is the address of a WebSocket, which only an App Server has")
        raise LettaConfigurationError(
            _complaint(_BY_NAME["server"], str(values["server"]), sources["server"], refused),
            hint="allowed with it: auto, app-server, app-server-http",
        )
    return values, sources


def _usable(variable: Variable, value: object, source: str) -> object:
    try:
        return variable.parse(value)
    except _RefusedError as error:
        refused = error
    # Raised out here, so that the error is not chained to one that holds the raw value.
    raise LettaConfigurationError(_complaint(variable, value, source, refused), hint=f"allowed: {variable.allowed}")


def _complaint(variable: Variable, value: object, source: str, refused: _RefusedError) -> str:
    where = f"(keyword {variable.name})" if source == "keyword" else _whence(source)
    reason = f": {refused.reason}" if refused.reason else ""
    shown = _shown(value) if refused.show else "used (value not shown, it may hold a secret)"
    return f"{variable.env} {where} cannot be {shown}{reason}"


def _whence(source: str) -> str:
    return {"keyword": "given as keyword", "environment": "from the environment"}.get(
        source, f"from {_escaped(source)}"
    )


def _sealed(name: str, value: object) -> object:
    # A misspelt "pasword" may hold a secret as well.
    if value is None or isinstance(value, Secret) or (name in _OPTIONS and name not in _SECRET):
        return value
    # What is not even text will be refused; its type is enough for that.
    return Secret(value) if isinstance(value, str) else type(value)


def _unknown(name: str) -> LettaConfigurationError:
    close = difflib.get_close_matches(name[:100].lower(), _BY_NAME, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"settings are {', '.join(_BY_NAME)}"
    return LettaConfigurationError(f"Unknown setting {_shown(name)}", hint=hint)


def _ours(raw: Mapping[str, str | None] | Mapping[str, str]) -> dict[str, object]:
    """Our variables that are set, by setting name."""
    found: dict[str, object] = {}
    for variable in VARIABLES:
        text = raw.get(variable.env)
        if text is not None and text.strip():
            found[variable.name] = Secret(text) if variable.secret else text
    return found


def _is_disabled(environ: Mapping[str, str]) -> bool:
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return None


def _absolute(path: str | os.PathLike[str]) -> str:
    try:
        return str(Path(os.fsdecode(path)).absolute())
    except (TypeError, OSError):
        raise LettaConfigurationError(
            f"dotenv_path cannot be {_shown(path)}", hint="allowed: the path of a .env file"
        ) from None


def _dotenv_layer(path: str) -> _Layer:
    content = _read_dotenv(path)
    if isinstance(content, _UnreadableError):
        raise LettaConfigurationError(f"dotenv_path {_shown(path)} cannot be read: {content}")
    return _Layer(path, content)


def _nearest_dotenv_layer(start: str | None) -> _Layer:
    # dotenv.find_dotenv() would do, but it always starts at the present working directory; see refresh().
    folders = () if start is None else (Path(start), *Path(start).parents)
    path = next((str(folder / ".env") for folder in folders if _is_readable_kind(folder / ".env")), None)
    if path is None:
        return _Layer("", {})
    content = _read_dotenv(path)
    if isinstance(content, _UnreadableError):
        _log_once(_log, logging.WARNING, f"{_escaped(path)} is ignored, it cannot be read: {content}")
        return _Layer(path, {})
    return _Layer(path, content)


def _is_readable_kind(path: Path) -> bool:
    try:
        return path.is_file() or path.is_fifo()  # password managers serve a .env through a named pipe
    except OSError:
        return False


class _UnreadableError(Exception):
    """Returned, not raised: Python's own error would carry the file's content along (`UnicodeDecodeError.object`)."""


def _read_dotenv(path: str) -> dict[str, object] | _UnreadableError:
    try:
        # utf-8-sig: Windows editors write a byte order mark, which older python-dotenv takes for part of a name.
        text = Path(path).read_text(encoding="utf-8-sig")
        return _ours(dotenv_values(stream=io.StringIO(text)))
    except UnicodeDecodeError as error:
        return _UnreadableError(f"not UTF-8 at byte {error.start}")
    except OSError as error:
        return _UnreadableError(error.strerror or type(error).__name__)
    except ValueError:  # a NUL in the path
        return _UnreadableError("not a path")


# ---------------------------------------------------------------------------------------------------------------
# Showing and remembering


def _shown(value: object) -> str:
    """``repr`` on one line, at most 80 characters, for values of any kind."""
    try:
        text = repr(str.__str__(value)[:100]) if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - a hostile or broken __repr__ must not hide the real complaint
        text = f"<{type(value).__name__}>"
    text = _escaped(text[:200])
    return text if len(text) <= 80 else text[:79] + "…"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool(address.is_loopback or (mapped is not None and mapped.is_loopback))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_FINGERPRINT_KEY = secrets.token_bytes(32)


def _fingerprint(secret: Secret) -> str:
    # Keyed, because the plain digest of a short password can be guessed from a log.
    return hmac.new(_FINGERPRINT_KEY, _utf8(secret.reveal()), hashlib.sha256).hexdigest()


_said: dict[tuple[str, int, str], object] = {}


def _log_once(logger: logging.Logger, level: int, text: str) -> None:
    # setdefault is atomic; a lock could be held by another thread at the moment of a fork, and then forever.
    mine = object()
    if _said.setdefault((logger.name, level, text), mine) is mine:
        logger.log(level, "%s", text)


# ---------------------------------------------------------------------------------------------------------------
# For type checkers and editors


class SettingsOptions(TypedDict, total=False):
    """The keywords that exporter, processor and reporter take: a finished ``settings``, or any of the others."""

    settings: Settings | None
    dotenv_path: str | os.PathLike[str] | None
    base_url: str | None
    agent_id: str | None
    password: str | Secret | None
    api_key: str | Secret | None
    server: ServerKind | str | None
    conversation: str | None
    delivery: Delivery | str | None
    board_label: str | None
    board_interval: float | None
    message_interval: float | None
    poll_interval: float | None
    wake_budget: int | None
    connect_timeout: float | None
    read_timeout: float | None
    busy_timeout: float | None
    shutdown_timeout: float | None
    probe_interval: float | None
    max_pending_tasks: int | None
    content_cap: int | None
    max_steps: int | None
    trace_link: str | None
    agent_allow_list: Iterable[str] | str | None
    grace: float | None
    idle_timeout: float | None
    wake_after: float | None
    content: Iterable[str] | str | None
    chat_id_attributes: Iterable[str] | str | None
    tasks: Iterable[str] | str | None
    baggage: bool | str | None
