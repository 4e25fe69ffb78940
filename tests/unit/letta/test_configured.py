"""New settings: every transport speaks to the server that they name, and its lanes name that server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_letta.errors import LettaConnectionError, LettaTimeoutError
from otel_letta.letta.app_server.openai_api import AppServerHttpTransport
from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.configured import Configured
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.select import SelectingTransport
from otel_letta.letta.transport import Lane, Message, Transport
from otel_letta.settings import Settings

OLD, NEW = "http://127.0.0.1:1", "http://127.0.0.1:2"

Environ = dict[str, str]


@pytest.fixture
def environ() -> Environ:
    return {"LETTA_BASE_URL": OLD, "LETTA_AGENT_ID": "agent-1"}


_KINDS: dict[str, tuple[Callable[[Settings], Any], str]] = {
    "rest": (RestTransport, "rest"),
    "websocket": (AppServerTransport, "app-server"),
    "openai api": (AppServerHttpTransport, "app-server-http"),
    "not asked yet": (SelectingTransport, "auto"),
    "chosen rest": (SelectingTransport, "rest"),
    "chosen websocket": (SelectingTransport, "app-server"),
    "chosen openai api": (SelectingTransport, "app-server-http"),
}


@pytest.fixture(params=_KINDS)
def letta(request: pytest.FixtureRequest, environ: Environ) -> Iterator[Transport]:
    make, server = _KINDS[request.param]
    environ["OTEL_LETTA_SERVER"] = server
    made = make(Settings.resolve(environ=environ, dotenv_path=os.devnull, connect_timeout=1.0))
    yield made
    made.close()


def used(letta: Transport) -> Transport:
    """After its first call, which nobody answers."""
    with pytest.raises(LettaConnectionError):
        letta.probe(letta.lane(None, None))
    return letta


@pytest.mark.parametrize("before", ["its first call", "any call"])
def test_after_another_address_the_lane_names_the_new_server(letta: Transport, environ: Environ, before: str) -> None:
    assert letta.lane(None, None) == Lane(OLD, "agent-1")
    if before == "any call":
        used(letta)
    environ.update(LETTA_BASE_URL=NEW, LETTA_AGENT_ID="agent-2")
    letta.reload()
    assert letta.lane(None, None) == Lane(NEW, "agent-2")
    assert letta.lane("agent-3", None) == Lane(NEW, "agent-3")
    with pytest.raises(LettaConnectionError, match=r"127\.0\.0\.1:2"):
        letta.probe(letta.lane(None, None))


def test_an_address_that_is_written_otherwise_is_the_same_server(letta: Transport, environ: Environ) -> None:
    environ["LETTA_BASE_URL"] = OLD.replace("http:", "ws:")
    letta.reload()
    assert letta.lane(None, None) == Lane(OLD, "agent-1")


def test_nothing_is_sent_to_the_new_server_in_the_old_one_s_lane(letta: Transport, environ: Environ) -> None:
    lane = letta.lane(None, None)
    environ["LETTA_BASE_URL"] = NEW
    letta.reload()
    with pytest.raises(LettaConnectionError) as raised:
        letta.send(lane, [Message("x", "otid")])
    assert not isinstance(raised.value, LettaTimeoutError) and raised.value.may_have_landed is False


def test_settings_that_did_not_change_are_not_taken(letta: Transport, environ: Environ) -> None:
    assert isinstance(letta, Configured)
    before = letta._settings
    environ["UNRELATED"] = "x"
    letta.reload()
    assert letta._settings == before
