"""Addresses of a receiver, as a person gives them to `otel-letta setup`."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import click

_REFUSED_NAMES = (".local", ".localdomain", ".home.arpa", ".svc", ".cluster.local")
"""Names that Letta 0.16.8 takes for private ones without asking anybody (read in its source)."""


def checked(text: str, option: str) -> str:
    """Return an address without a path. click.BadParameter if it is none that every program could use."""
    url = urlsplit(text)
    try:
        fine = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port)
    except ValueError:
        fine = False
    if not fine or url.username or url.path.strip("/") or url.query or url.fragment or re.search(r"[\s\"'\\$`]", text):
        raise click.BadParameter("it has to look like http://127.0.0.1:4318, without a path", param_hint=option)
    return text.rstrip("/")


def is_private(address: str) -> bool:
    """Return whether nobody on the way can read a token that goes there."""
    return urlsplit(address).scheme == "https" or is_of_this_machine(address)


def is_of_this_machine(address: str) -> bool:
    """Return whether an address means another thing on every machine."""
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def may_be_public(address: str) -> bool:
    """Return whether Letta 0.16.8 might take an address for an MCP server's: it refuses private ones."""
    host = (urlsplit(address).hostname or "").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_REFUSED_NAMES)
