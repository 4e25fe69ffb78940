"""Letta's two servers in one shape, so that a test of what otel_letta does reads the same for both.

Nothing here knows the library: what an agent was told is read with the official client (REST) or with the tests' own
client (App Server), and off the prompts of the LLM.
"""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tests.support.program import Told, told_in
from tests.support.scripted_llm import ScriptedLLM, text_of

if TYPE_CHECKING:
    from tests.support.app_server_harness import AppServerHarness
    from tests.support.letta_harness import LettaHarness

__all__ = ["At", "Either", "EitherAppServer", "EitherRest"]

_BLOCK = re.compile(r"<task-progress .*?</task-progress>", re.DOTALL)


_TOOL = '''
def NAME(task_id: str, action: str, text: str) -> str:
    """Instruct a task.

    Args:
        task_id: which.
        action: what.
        text: how.

    Returns:
        str: what came of it.
    """
    return "ok"
'''


@dataclass(frozen=True)
class At:
    """The same server at another address, or with another password."""

    base_url: str
    password: str | None


class Either(ABC):
    """What a test needs of a server, whichever it is."""

    kind: Literal["rest", "app-server"]

    def __init__(self, base_url: str, password: str | None, llm: ScriptedLLM) -> None:
        self.base_url = base_url
        self.password = password
        self.llm = llm

    @abstractmethod
    def create_agent(self) -> str:
        """A fresh agent; its id."""

    @abstractmethod
    def conversation(self, agent: str) -> str:
        """A fresh conversation of the agent's beside its default one; its id."""

    @property
    @abstractmethod
    def unknown_conversation(self) -> str:
        """What has the form of a conversation's id."""

    @abstractmethod
    def say(self, agent: str, text: str, conversation: str | None = None) -> str:
        """A message of the user's own; what the agent answers."""

    @abstractmethod
    def heard(self, agent: str, conversation: str | None = None) -> list[str]:
        """What is stored in role user, oldest first, whoever sent it."""

    @abstractmethod
    def board_text(self, agent: str) -> str:
        """The board as it is stored; an error if there is none."""

    @abstractmethod
    def kill(self) -> None:
        """End the server with SIGKILL."""

    @abstractmethod
    def start(self) -> None:
        """Back again: same address, same agents."""

    @abstractmethod
    def unblock(self) -> None:
        """Mend what a client that was killed in the middle of a turn has left behind."""

    def reports(self, agent: str, conversation: str | None = None) -> list[Told]:
        """The reports that are stored, oldest first. Each is alone in its message."""
        found = []
        for text in self.heard(agent, conversation):
            if _BLOCK.fullmatch(text):
                found += told_in(text)
            else:
                assert "task-progress" not in text, "a report is alone in its message"
        return found

    def next_prompt(self, agent: str, conversation: str | None = None) -> str:
        """Ask the agent something, and return what its LLM was shown for exactly that turn, as one string."""
        probe = f"what do you know? (probe {uuid.uuid4().hex[:8]})"
        self.say(agent, probe, conversation)
        for prompt in self.llm.prompts:
            text = text_of(prompt)
            if probe in text:
                return text
        raise AssertionError("the LLM was not asked")


class EitherRest(Either):
    kind = "rest"

    def __init__(self, letta: LettaHarness) -> None:
        super().__init__(letta.base_url, letta.password, letta.llm)
        self.letta = letta

    def create_agent(self) -> str:
        return self.letta.create_agent()

    def create_agent_with_tool(self, name: str) -> str:
        """A fresh agent with a tool that takes what an instruction consists of, and answers ``ok``."""
        source = _TOOL.replace("NAME", name)
        tool = self.letta.client.tools.create(source_code=source)
        return self.letta.create_agent(tool_ids=[tool.id])

    def conversation(self, agent: str) -> str:
        return self.letta.client.conversations.create(agent_id=agent).id

    @property
    def unknown_conversation(self) -> str:
        return f"conv-{uuid.uuid4()}"

    def say(self, agent: str, text: str, conversation: str | None = None) -> str:
        if conversation is None:
            answers: list[Any] = list(self.letta.say(agent, text).messages)
        else:
            stream = self.letta.client.conversations.messages.create(
                conversation, messages=[{"role": "user", "content": text}]
            )
            answers = list(stream)
        return "".join(str(m.content) for m in answers if m.message_type == "assistant_message")

    def heard(self, agent: str, conversation: str | None = None) -> list[str]:
        if conversation is None:
            messages: list[Any] = list(self.letta.messages(agent))
        else:
            messages = list(self.letta.client.conversations.messages.list(conversation, order="asc", limit=100))
        return [str(m.content) for m in messages if m.message_type == "user_message"]

    def board_text(self, agent: str) -> str:
        return self.letta.block(agent, "task_progress").value

    def kill(self) -> None:
        self.letta.server.stop_letta(kill=True)

    def start(self) -> None:
        self.letta.server.start_letta()

    def unblock(self) -> None:
        """Nothing: the server ends a turn without its client."""


class EitherAppServer(Either):
    kind = "app-server"

    def __init__(self, app_server: AppServerHarness) -> None:
        super().__init__(app_server.base_url, app_server.password, app_server.llm)
        self.app_server = app_server

    def create_agent(self) -> str:
        return self.app_server.create_agent()

    def conversation(self, agent: str) -> str:
        return self.app_server.create_conversation(agent)

    @property
    def unknown_conversation(self) -> str:
        return f"local-conv-{uuid.uuid4().int % 10**12 + 10**12}"

    def say(self, agent: str, text: str, conversation: str | None = None) -> str:
        return self.app_server.say(agent, text, conversation).reply

    def heard(self, agent: str, conversation: str | None = None) -> list[str]:
        said = [m for m in self.app_server.messages(agent, conversation) if m["message_type"] == "user_message"]
        # The server puts reminders of its own before the text, as parts of the same message.
        return [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in said]

    def ids_of(self, agent: str) -> set[str]:
        """What clients call the messages that are stored in the default conversation."""
        return {str(m["otid"]) for m in self.app_server.messages(agent) if m["message_type"] == "user_message"}

    def board_text(self, agent: str) -> str:
        return self.app_server.memory(agent)["task_progress.md"]

    def kill(self) -> None:
        self.app_server.server.kill()

    def start(self) -> None:
        self.app_server.server.start()

    def unblock(self) -> None:
        """A blocked default conversation blocks those of all agents, until the server restarts."""
        self.app_server.server.restart()
