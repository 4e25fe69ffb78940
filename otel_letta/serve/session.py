"""The cookie by which a browser shows that it was given a token."""

from __future__ import annotations

import hashlib
import hmac
import re
from http.cookies import CookieError, SimpleCookie

from otel_letta.serve.doors import Tokens

LASTS = 7 * 86_400
"""Seconds."""
_FORM = re.compile(r"(\d{1,12})\.([0-9a-f]{64})")
_PURPOSE = b"otel_letta page until "


def name_for(port: int) -> str:
    """Return the cookie's name: browsers give one host's cookies to all of its ports."""
    return f"otel_letta_{port}"


def cookie_of(token: str, now: float) -> str:
    """Return a value that shows knowledge of the token and does not hold it.

    It is good for every process that knows the token, until the token is taken away or a week has passed.
    """
    until = f"{int(now) + LASTS}"
    return f"{until}.{_sign(token, until)}"


def is_good(value: str, tokens: Tokens, now: float) -> bool:
    """Return whether a cookie was made of one of the tokens that are good now."""
    found = _FORM.fullmatch(value)
    if found is None or int(found[1]) < now:
        return False
    return tokens.any_is(lambda token: hmac.compare_digest(_sign(token, found[1]), found[2]))


def value_in(header: bytes, name: str) -> str:
    """Return one cookie's value of a ``Cookie`` header; empty if it is not there."""
    try:
        cookie = SimpleCookie(header.decode("latin-1")).get(name)
    except CookieError:
        return ""
    return "" if cookie is None else cookie.value


def _sign(token: str, until: str) -> str:
    return hmac.new(token.encode("utf-8", "replace"), _PURPOSE + until.encode(), hashlib.sha256).hexdigest()
