"""Who may come in: bearer tokens, and the host that a request names."""

from __future__ import annotations

import enum
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from otel_letta.settings import Secret

_logger = logging.getLogger(__name__)

_MOST_BYTES = 65_536
_RETIRED_FOR = 3_600.0
"""Seconds for which a token that was taken out of the file is told "later" instead of "no"."""


class Verdict(enum.Enum):
    """What a request's token is worth."""

    WELCOME = "it is one of ours"
    LATER = "it may be one of ours soon, or was one until now"
    UNKNOWN = "it is none of ours"


class Tokens:
    """Bearer tokens, any of which opens the door; read again when their file changes.

    A Collector drops for good what is answered with 401. So while the file cannot be read, or is empty, the tokens of
    before stay good, and a token that was taken out is asked to come back later for an hour: its sender will have the
    new one by then.

    Args:
        given: tokens that do not change.
        path: a file with one token a line; ``#`` begins a comment.
        now: a clock, seconds.

    Raises:
        OSError, ValueError: the file cannot be read, or has no token.
    """

    def __init__(
        self, given: Iterable[str] = (), path: Path | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._given = tuple(Secret(token.strip()) for token in given if token.strip())
        self._path = path
        self._now = now
        self._read: tuple[Secret, ...] = ()
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
        """Judge the value of an ``Authorization`` header."""
        self._read_again()
        sent = _bearer(authorization)
        if sent is not None:
            # All are compared, so that the time it takes says nothing.
            if sum([_equal(sent, token.reveal()) for token in (*self._given, *self._read)]):
                return Verdict.WELCOME
            now = self._now()
            if sum([until > now and _equal(sent, token) for token, until in self._retired.items()]):
                return Verdict.LATER
        return Verdict.LATER if self._uncertain and sent is not None else Verdict.UNKNOWN

    def any_is(self, test: Callable[[str], bool]) -> bool:
        """Return whether one of the tokens that are good now passes a test."""
        self._read_again()
        return sum(test(token.reveal()) for token in (*self._given, *self._read)) > 0

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
        known = {token.reveal() for token in tokens}
        until = self._now() + _RETIRED_FOR
        self._retired |= {old.reveal(): until for old in self._read if old.reveal() not in known}
        self._retired = {token: end for token, end in self._retired.items() if token not in known and end > self._now()}
        if tokens != self._read:
            _logger.info("the token file has changed: %d tokens are good now", len(tokens))
        self._read, self._stamp, self._uncertain = tokens, stamp, False


def _tokens_in(path: Path) -> tuple[Secret, ...]:
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    lines = (line.strip() for line in text.splitlines())
    found = tuple(Secret(line) for line in lines if line and not line.startswith("#"))
    if not found:
        raise ValueError(f"{path} holds no token")
    return found


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
