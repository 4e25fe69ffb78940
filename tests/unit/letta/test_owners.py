"""A chat id chooses among the conversations of its own agent: whose one it is is asked before the first message."""

from __future__ import annotations

import pytest
import respx

from otel_letta import errors
from otel_letta.testing import InMemoryLetta
from tests.unit.letta.rest_support import BASE, CONVERSATION, HELLO, transport


def test_a_conversation_of_another_agent_gets_nothing(letta: InMemoryLetta) -> None:
    mine, theirs = letta.create_agent(), letta.create_agent()
    conversation = letta.create_conversation(theirs)
    sender = transport(letta.base_url, mine)
    for _ in range(2):
        with pytest.raises(errors.LettaConversationNotFoundError) as raised:
            sender.send(sender.lane(None, conversation), HELLO)
        assert raised.value.is_another_agents
    sender.close()
    assert not letta.messages(theirs)
    assert [(request.method, request.path) for request in letta.requests] == [
        ("GET", f"/v1/conversations/{conversation}")
    ]


def test_its_agent_is_asked_for_once(letta: InMemoryLetta, agent: str) -> None:
    conversation = letta.create_conversation(agent)
    sender = transport(letta.base_url, agent)
    for number in range(3):
        sender.send(sender.lane(None, conversation), [HELLO[0]._replace(otid=f"otid-{number}")])
    sender.close()
    assert [request.method for request in letta.requests] == ["GET", "POST", "POST", "POST"]


def test_one_whose_agent_nobody_names_is_not_the_agent_s(http: respx.MockRouter) -> None:
    http.get(f"{BASE}/v1/conversations/{CONVERSATION}").respond(200, json={"id": CONVERSATION})
    letta = transport()
    with pytest.raises(errors.LettaConversationNotFoundError):
        letta.send(letta.lane(None, CONVERSATION), HELLO)
