"""Who may come in: bearer tokens, and the host that a request names."""

from __future__ import annotations

import enum
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from otel_letta.settings import Secret

_logger = logging.getLogger(__name__)

_MOST_BYTES = 65_536
_RETIRED_FOR = 3_600.0
"""Seconds for which a token that was taken out of the file is told "later" instead of "no"."""


EVERY_AGENT = "*"
"""In place of an agent's id: any."""


class Verdict(enum.Enum):
    """What a request's token is worth."""

    WELCOME = "it is one of ours"
    LATER = "it may be one of ours soon, or was one until now"
    UNKNOWN = "it is none of ours"
    AGENT = "it is one of ours, and an agent's"


class Grant(NamedTuple):
    """What a token opens. One may be of both kinds, if it stands in both."""

    sends: bool = False
    """Spans come in by it, and people see the page: it is a sender's."""
    agents: frozenset[str] = frozenset()
    """The agents whose tasks may be looked at and instructed by it; `EVERY_AGENT` may stand among them."""


_SENDER = Grant(sends=True)


class Tokens:
    """Bearer tokens, those of senders and those of agents; read again when their file changes.

    A Collector drops for good what is answered with 401. So while the file cannot be read, or is empty, the tokens of
    before stay good, and a token that was taken out is asked to come back later for an hour: its sender will have the
    new one by then.

    Args:
        given: tokens of senders that do not change.
        path: a file with one token a line; ``#`` begins a comment. A line ``TOKEN`` is a sender's. A line
            ``TOKEN agent=agent-…`` is that agent's, and ``TOKEN agent=*`` may speak for any.
        now: a clock, seconds.

    Raises:
        OSError, ValueError: the file cannot be read, has no token, or a line that is none.
    """

    def __init__(
        self, given: Iterable[str] = (), path: Path | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._given = tuple((Secret(token.strip()), _SENDER) for token in given if token.strip())
        self._path = path
        self._now = now
        self._read: tuple[tuple[Secret, Grant], ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._retired: dict[str, float] = {}
        self._uncertain = False
        if path is not None:
            self._read = _tokens_in(path)
            self._stamp = _stamp_of(path)

    def __bool__(self) -> bool:
        """Return True if a token is required."""
        return bool(self._given or self._read)

    def judge(self, authorization: str) -> Verdict:
        """Judge the value of an ``Authorization`` header: whether it is a sender's."""
        verdict, grant = self.look_up(authorization)
        return Verdict.AGENT if verdict is Verdict.WELCOME and not grant.sends else verdict

    def look_up(self, authorization: str) -> tuple[Verdict, Grant]:
        """Return what the value of an ``Authorization`` header is worth, and what it opens."""
        self._read_again()
        sent = _bearer(authorization)
        if sent is not None:
            # All are compared, so that the time it takes says nothing.
            fitting = [grant for token, grant in (*self._given, *self._read) if _equal(sent, token.reveal())]
            if fitting:
                return Verdict.WELCOME, Grant(
                    any(grant.sends for grant in fitting), frozenset().union(*(grant.agents for grant in fitting))
                )
            now = self._now()
            if sum([until > now and _equal(sent, token) for token, until in self._retired.items()]):
                return Verdict.LATER, Grant()
        return Verdict.LATER if self._uncertain and sent is not None else Verdict.UNKNOWN, Grant()

    def any_is(self, test: Callable[[str], bool]) -> bool:
        """Return whether one of the senders' tokens that are good now passes a test."""
        self._read_again()
        return sum(test(token.reveal()) for token, grant in (*self._given, *self._read) if grant.sends) > 0

    def _read_again(self) -> None:
        if self._path is None:
            return
        stamp = _stamp_of(self._path)
        if stamp == self._stamp and not self._uncertain:
            return
        try:
            tokens = _tokens_in(self._path)
        except (OSError, ValueError) as error:
            if not self._uncertain:
                _logger.warning("the token file cannot be used now, the tokens of before stay good: %s", error)
            self._uncertain = True
            return
        known = {token.reveal() for token, _ in tokens}
        until = self._now() + _RETIRED_FOR
        self._retired |= {old.reveal(): until for old, _ in self._read if old.reveal() not in known}
        self._retired = {token: end for token, end in self._retired.items() if token not in known and end > self._now()}
        if tokens != self._read:
            _logger.info("the token file has changed: %d tokens are good now", len(tokens))
        self._read, self._stamp, self._uncertain = tokens, stamp, False


def _tokens_in(path: Path) -> tuple[tuple[Secret, Grant], ...]:
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    found = tuple(_line_of(path, number, line) for number, line in lines if line and not line.startswith("#"))
    if not found:
        raise ValueError(f"{path} holds no token")
    return found


def _line_of(path: Path, number: int, line: str) -> tuple[Secret, Grant]:
    token, *more = line.split()
    agents = [word.partition("=")[2] for word in more if word.startswith("agent=")]
    if len(agents) < len(more) or not all(agents):
        # A slip must not make a sender's token of one that was meant for an agent. The line itself is a secret.
        raise ValueError(f"{path}, line {number}: behind a token nothing may stand but agent=agent-…")
    return Secret(token), Grant(agents=frozenset(agents)) if agents else _SENDER


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _bearer(authorization: str) -> str | None:
    """Return the token. Some programs send the header as it was written for a URL: ``Bearer%20abc`` (measured with
    Claude Code 2.1 and opencode)."""
    text = authorization.strip()
    if "%20" in text[:12] and " " not in text:
        text = unquote(text)
    scheme, _, token = text.partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def is_own_host(host: str, allowed: Collection[str]) -> bool:
    """Return whether a request's ``Host`` can only be meant for this receiver.

    A page of anybody can make its own name point to this machine (DNS rebinding), and then post here as if to itself.
    What it cannot have is an address, a name without a dot, or ``localhost``.

    Args:
        allowed: further names.
    """
    name = (urlsplit(f"//{host}").hostname or "") if _is_plain(host) else ""
    name = name.rstrip(".").lower()
    if not name:
        return not host.strip()
    if name in allowed or "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def comes_from_a_page(headers: Mapping[bytes, bytes], allowed: Collection[str]) -> bool:
    """Return whether a browser sent it for a page that is not of this receiver."""
    origin = headers.get(b"origin")
    if origin is None:
        return headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    host = headers.get(b"host", b"").decode("latin-1")
    try:
        parts = urlsplit(origin.decode("latin-1"))
    except ValueError:
        return True
    return parts.netloc.lower() != host.lower() or not is_own_host(host, allowed)


def _is_plain(host: str) -> bool:
    return not any(character in host for character in "/?#@\\ \t") and len(host) < 300


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
