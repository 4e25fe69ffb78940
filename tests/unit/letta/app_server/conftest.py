"""A scripted App Server, and transports to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from otel_letta.letta.app_server import following
from otel_letta.letta.app_server import sending as sending_module
from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.flavour import ServerInfo
from otel_letta.settings import Settings
from tests.support.scripted_app_server import ScriptedAppServer, scripted_app_server
from tests.unit.letta.app_server.support import AGENT, OTHER, Make, leave


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_STEP", 0.01)
    monkeypatch.setattr(following, "_SILENCE", 0.05)
    monkeypatch.setattr(sending_module, "_SHARED_RUN_PATIENCE", 0.0)


@pytest.fixture
def server() -> Iterator[ScriptedAppServer]:
    with scripted_app_server() as made:
        made.agent(AGENT)
        made.agent(OTHER)
        yield made


@pytest.fixture
def make(server: ScriptedAppServer) -> Iterator[Make]:
    made: list[AppServerTransport] = []

    def letta(info: ServerInfo | None = None, **options: Any) -> AppServerTransport:
        options = {"base_url": server.url, "agent_id": AGENT, "read_timeout": 10.0, **options}
        made.append(AppServerTransport(Settings.resolve(environ={}, **options), info))
        return made[-1]

    yield letta
    for transport in made:
        leave(transport, 2.0)
    server.wait_for(lambda: server.open == 0)  # no socket is left open
