"""A real Letta server as pytest fixtures, for tests that are marked ``letta``: see `tests/conftest.py`.

One server for the whole session, started by the first test that asks for it; fresh agents for each test.
Whether a report reached an agent is read off the next prompt its LLM gets: see `LettaHarness.next_prompt`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.support.letta_server import EMBEDDING_HANDLE, MODEL_HANDLE, LettaServer
from tests.support.scripted_llm import ScriptedLLM, text_of

if TYPE_CHECKING:
    from letta_client import Letta
    from letta_client.types import BlockResponse
    from letta_client.types.agents import LettaResponse, Message

__all__ = ["LettaHarness", "real_letta", "real_letta_server", "scripted_llm"]


class LettaHarness:
    """What a test needs of a real server, in one hand."""

    def __init__(self, server: LettaServer, llm: ScriptedLLM, client: Letta) -> None:
        self.server = server
        self.llm = llm
        self.client = client
        """The official client.  It never retries: retries of its own would blur what a test measures."""

    @property
    def base_url(self) -> str:
        return self.server.base_url

    @property
    def password(self) -> str:
        return self.server.password

    def create_agent(self, **settings: Any) -> str:
        """A fresh agent without tools: nothing but blocks and messages is in its prompts.  Returns its id."""
        defaults: dict[str, Any] = {
            "name": f"test-{uuid.uuid4().hex[:12]}",
            "model": MODEL_HANDLE,
            "embedding": EMBEDDING_HANDLE,
            "include_base_tools": False,
        }
        return self.client.agents.create(**{**defaults, **settings}).id

    def say(self, agent_id: str, text: str, **options: Any) -> LettaResponse:
        """A message of the user's own: what our reports must never push out of the agent's context."""
        response = self.client.agents.messages.create(
            agent_id, messages=[{"role": "user", "content": text}], streaming=False, **options
        )
        return cast("LettaResponse", response)

    def messages(self, agent_id: str) -> list[Message]:
        """Everything that is stored for the agent, oldest first, whether or not it is still in its context.

        In ascending order, as the client's paging stops after one page in the default one (which is
        descending, yet sorted ascending within a page).
        """
        return list(self.client.agents.messages.list(agent_id, order="asc", limit=100))

    def next_prompt(self, agent_id: str) -> str:
        """Ask the agent something, and return what its LLM was shown for exactly that turn, as one string.

        The only proof that the agent knows a thing: a message may be stored and yet be lost from its context.
        """
        probe = f"what do you know? (probe {uuid.uuid4().hex[:8]})"
        self.say(agent_id, probe)
        for prompt in self.llm.prompts:
            text = text_of(prompt)
            if probe in text:
                return text
        raise AssertionError("the LLM was not asked")

    def block(self, agent_id: str, label: str) -> BlockResponse:
        return self.client.agents.blocks.retrieve(label, agent_id=agent_id)


@pytest.fixture(scope="session")
def scripted_llm() -> Iterator[ScriptedLLM]:
    with ScriptedLLM() as scripted:
        yield scripted


@pytest.fixture(scope="session")
def real_letta_server(scripted_llm: ScriptedLLM) -> Iterator[LettaServer]:
    with LettaServer(scripted_llm) as server:
        yield server


@pytest.fixture
def real_letta(real_letta_server: LettaServer, scripted_llm: ScriptedLLM) -> Iterator[LettaHarness]:
    """The server, up and with an LLM that answers at once, whatever the test before did to either."""
    from letta_client import Letta  # unit tests run where it is not installed

    scripted_llm.reset()
    if real_letta_server.pid is None:
        real_letta_server.start_letta()
    address, password = real_letta_server.base_url, real_letta_server.password
    with Letta(base_url=address, api_key=password, max_retries=0, timeout=60) as client:
        yield LettaHarness(real_letta_server, scripted_llm, client)
    scripted_llm.reset()
