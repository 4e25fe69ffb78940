"""The Letta servers on this machine's usual ports."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from otel_letta.errors import LettaError
from otel_letta.letta.flavour import Flavour, ServerInfo, forget, recognise
from otel_letta.settings import Settings

USUAL = ("http://localhost:8283", "ws://localhost:4500")
"""A REST server's address, and an App Server's."""
_SECONDS = 3.0

NAMES = {Flavour.REST: "Letta REST server", Flavour.APP_SERVER: "Letta App Server", Flavour.CLOUD: "Letta Cloud"}


def found(addresses: tuple[str, ...] = USUAL) -> list[tuple[str, ServerInfo]]:
    """Return the addresses where a Letta server answers, in their order. No secret is sent to any of them."""
    with ThreadPoolExecutor(len(addresses)) as pool:
        answers = list(pool.map(_ask, addresses))
    return [(address, info) for address, info in zip(addresses, answers, strict=True) if info is not None]


def _ask(address: str) -> ServerInfo | None:
    settings = Settings.resolve(
        environ={},
        require_agent=False,
        base_url=address,
        password="",  # whatever a .env holds is not for a server that happens to listen here
        api_key="",
        connect_timeout=_SECONDS,
        read_timeout=_SECONDS,
    )
    forget(settings.base_url)
    try:
        return recognise(settings)
    except LettaError:
        return None
