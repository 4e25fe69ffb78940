"""A real Letta App Server as pytest fixtures; `tests/real/letta/conftest.py` makes them known.

The methods are named as those of `tests.support.letta_harness.LettaHarness` where they mean the same, so that
one test can run against both servers.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.app_server import AppServer
from tests.support.scripted_llm import ScriptedLLM, text_of

if TYPE_CHECKING:
    from tests.support.app_server_client import AppServerClient, Frame, Turn

__all__ = ["AppServerHarness", "app_server", "app_server_process", "app_server_with_token"]


class AppServerHarness:
    """What a test needs of a real App Server, in one hand."""

    def __init__(self, server: AppServer, llm: ScriptedLLM, client: AppServerClient) -> None:
        self.server = server
        self.llm = llm
        self.client = client

    @property
    def base_url(self) -> str:
        return self.server.url

    @property
    def http_url(self) -> str:
        return self.server.http_url

    @property
    def password(self) -> str | None:
        """The token, by the name of the setting that it goes into."""
        return self.server.token

    def create_agent(self, **settings: Any) -> str:
        """A fresh agent with the server's own tools and an empty memory.  Returns its id."""
        defaults: dict[str, Any] = {"name": f"test-{uuid.uuid4().hex[:12]}", "model": self.server.model}
        return self.client.create_agent(**{**defaults, **settings})

    def create_conversation(self, agent_id: str, **settings: Any) -> str:
        return self.client.create_conversation(agent_id, **settings)

    def say(self, agent_id: str, text: str, conversation: str | None = None) -> Turn:
        """A message of the user's own; TurnFailed if the agent cannot answer it."""
        return self.client.say(agent_id, text, conversation or "default")

    def messages(self, agent_id: str, conversation: str | None = None) -> list[Frame]:
        """Everything that is stored in the conversation, oldest first."""
        return self.client.messages(agent_id, conversation or "default")

    def next_prompt(self, agent_id: str, conversation: str | None = None) -> str:
        """Ask the agent something, and return what its LLM was shown for exactly that turn, as one string.

        The only proof that the agent knows a thing: a message may be stored and yet be lost from its context.
        """
        probe = f"what do you know? (probe {uuid.uuid4().hex[:8]})"
        self.say(agent_id, probe, conversation)
        for prompt in self.llm.prompts:
            text = text_of(prompt)
            if probe in text:
                return text
        raise AssertionError("the LLM was not asked")

    def conversations(self, agent_id: str) -> list[Frame]:
        """The agent's conversations but for the default one, newest first."""
        return self.client.conversations(agent_id)

    def memory(self, agent_id: str) -> dict[str, str]:
        """The text of the agent's memory files by path, without front matter."""
        return self.client.memory(agent_id)


@pytest.fixture(scope="session")
def app_server_process(scripted_llm: ScriptedLLM) -> Iterator[AppServer]:
    with AppServer(scripted_llm) as server:
        yield server


@pytest.fixture(scope="session")
def app_server_with_token(scripted_llm: ScriptedLLM) -> Iterator[AppServer]:
    """A second server, beside that of the other tests, which lets in whoever knows its token."""
    with AppServer(scripted_llm, token=f"token-{uuid.uuid4()}") as server:
        yield server


@pytest.fixture
def app_server(app_server_process: AppServer, scripted_llm: ScriptedLLM) -> Iterator[AppServerHarness]:
    """The server, up and with an LLM that answers at once, whatever the test before did to either."""
    from tests.support.app_server_client import AppServerClient  # unit tests run where websockets is missing

    scripted_llm.reset()
    if app_server_process.pid is None:
        app_server_process.start()
    yield AppServerHarness(app_server_process, scripted_llm, AppServerClient(app_server_process.url))
    scripted_llm.reset()
