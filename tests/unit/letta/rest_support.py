"""A REST transport for tests, and names that they share."""

from __future__ import annotations

import functools
from typing import Any

import httpx
import pytest
import respx

from otel_letta.errors import LettaError
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Message
from otel_letta.settings import Settings

BASE = "https://letta.test"
AGENT = "agent-11111111-1111-4111-8111-111111111111"
CONVERSATION = "conv-22222222-2222-4222-8222-222222222222"
PASSWORD = "open sesame 1001"
HELLO = [Message("hello", "otid-1")]
MESSAGES = f"{BASE}/v1/agents/{AGENT}/messages"


def transport(base_url: str = BASE, agent_id: str = AGENT, **options: Any) -> RestTransport:
    options.setdefault("password", PASSWORD)
    return RestTransport(Settings.resolve(environ={}, base_url=base_url, agent_id=agent_id, **options))


def failure_of(response: httpx.Response | Exception, *, chat_id: str | None = None) -> LettaError:
    """What `send` raises when the server answers so."""
    letta = one_for_all()
    with respx.mock(assert_all_called=False) as router:
        router.get(path__startswith="/v1/conversations/").respond(200, json={"agent_id": AGENT})
        router.post(path__regex=".*").mock(side_effect=[response])
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, chat_id), HELLO)
    return raised.value


@functools.cache
def one_for_all() -> RestTransport:
    return transport()  # each loads the certificates of this machine, which takes its time
