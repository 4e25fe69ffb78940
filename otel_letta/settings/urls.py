"""Addresses: of a Letta server, in one spelling, and of a page that shows a trace."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from otel_letta.settings.kinds import Kind, Refused, has_control, plain_text

DEFAULT_BASE_URL = "https://letta2.oculair.ca"
"""The original integration's server, used with a warning where nothing names another one."""
CLOUD_BASE_URL = "https://api.letta.com"
"""Letta Cloud, to which an API key without a URL belongs, as in letta-client."""

# Patterns are texts here: `re` compiles one when it is first used, and most programs give one address or none.
_SCHEME = r"(?s)([A-Za-z][A-Za-z0-9+.-]*)://(.*)"
_AUTHORITY = r"(\[[^\]]*\]|[^:\[\]]*)(?::([^:]*))?"
_HOST = r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*)(?:\.[a-z0-9_-]+)*\.?"
_PATH = r"[A-Za-z0-9._~!$&'()*+,;=:%/-]*"
# What may be quoted from a URL in an error: an allow-list, since a malformed URL hides its password in odd places.
_HARMLESS = r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?(?:\[[0-9A-Fa-f:.]*\]|[^@＠﹫?#%:/\[\]]*)(?::[0-9]*)?(?:/[^@＠﹫?#%:]*)?"
_DEFAULT_PORT = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HTTP_OF = {"ws": "http", "wss": "https"}
_WEBSOCKET_OF = {"http": "ws", "https": "wss"}


class ServerUrl(Kind[str]):
    """The address of a Letta server, in one spelling only: the same server is then always the same lane."""

    allowed = "a URL like https://letta.example.com, http://localhost:8283 or ws://localhost:4500"

    def parse(self, value: object) -> str:
        if not isinstance(value, str):
            raise Refused("it is not text", show=False)
        text = str.__str__(value)
        try:
            return _normal_url(text)
        except Refused as refused:
            refused.show = refused.show and re.fullmatch(_HARMLESS, text) is not None
            raise


def _normal_url(text: str) -> str:
    if any(mark in text for mark in "@＠﹫"):
        raise Refused(
            "a user name or password does not belong in the URL; put the password in LETTA_PASSWORD", show=False
        )
    if has_control(text) or any(character.isspace() for character in text):
        raise Refused("it contains whitespace or control characters")
    scheme, rest = _split_scheme(text)
    if "?" in rest or "#" in rest:
        raise Refused("it has a query or a fragment")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{_normal_authority(scheme, authority)}{_normal_path(scheme, slash + path)}"


def _split_scheme(text: str) -> tuple[str, str]:
    match = re.fullmatch(_SCHEME, text)
    if match is None:
        raise Refused("it does not start with https:// (or http://)")
    scheme = match[1].lower()
    if scheme not in _DEFAULT_PORT:
        raise Refused("only http, https, ws and wss are possible")
    return scheme, match[2]


def _normal_authority(scheme: str, authority: str) -> str:
    match = re.fullmatch(_AUTHORITY, authority)
    if match is None:
        raise Refused("its host cannot be read; an IPv6 address stands in [brackets]")
    host = _normal_host(match[1])
    port = _normal_port(match[2] or "")
    return host if port in {None, _DEFAULT_PORT[scheme]} else f"{host}:{port}"


def _normal_host(host: str) -> str:
    if not host:
        raise Refused("it has no host")
    if host.startswith("["):
        return f"[{_ipv6(host[1:-1])}]"
    if not host.isascii():
        raise Refused("an international host name is written in its xn-- form here")
    if not re.fullmatch(_HOST, host.lower()):
        raise Refused("its host is not a host name")
    return host.lower()


def _ipv6(text: str) -> ipaddress.IPv6Address:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise Refused("its IPv6 address is not one") from None
    if address.scope_id is not None:
        raise Refused("its IPv6 address has a zone, which httpx does not send")
    return address


def _normal_port(port: str) -> int | None:
    if not port:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise Refused("its port is not a number from 1 to 65535")
    return int(port)


def _normal_path(scheme: str, path: str) -> str:
    if not re.fullmatch(_PATH, path):
        raise Refused("its path contains a character that a URL cannot")
    path = path.rstrip("/")
    # Other clients want the API's version in the URL; every path of ours begins with it. An App Server prints the
    # address of its WebSocket, which has a path of its own.
    endings = ("/v1", "/ws") if scheme in _HTTP_OF else ("/v1",)
    while path.endswith(endings):
        path = path[:-3].rstrip("/")
    return path


def http_url(base_url: str) -> str:
    """Return the HTTP address of a server by its ``base_url``: the same text for ``ws://`` and ``http://``."""
    scheme, rest = base_url.split("://", 1)
    return f"{_HTTP_OF.get(scheme, scheme)}://{rest}"


def websocket_url(base_url: str) -> str:
    """Return the address of an App Server's WebSocket, by its ``base_url``: ``ws://localhost:4500/ws``."""
    scheme, rest = base_url.split("://", 1)
    return f"{_WEBSOCKET_OF.get(scheme, scheme)}://{rest}/ws"


def is_loopback(host: str) -> bool:
    """Return whether a host is this very machine by the form of its name or address; no name is looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool(address.is_loopback or (mapped is not None and mapped.is_loopback))


class TraceLink(Kind[str]):
    """The template of a link to a trace."""

    allowed = "an http or https URL with {trace_id}, and if wanted {span_id}, in it"

    def parse(self, value: object) -> str:
        text = plain_text(value)
        if "@" in text:
            raise Refused("it must not carry a user name or password", show=False)
        if has_control(text) or any(character.isspace() for character in text):
            raise Refused("it contains whitespace or control characters")
        if "{trace_id}" not in text:
            raise Refused("it has no {trace_id}")
        filled = text.replace("{trace_id}", "0" * 32).replace("{span_id}", "0" * 16)
        if "{" in filled or "}" in filled:
            raise Refused("it has another placeholder")
        if not _is_web_url(filled):
            raise Refused
        return text


def _is_web_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)
