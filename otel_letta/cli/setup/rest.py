"""An agent on a REST server, or in Letta Cloud: three tools, two secrets, and a token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from otel_letta.cli.setup import addresses
from otel_letta.cli.setup.steps import Refused, Step, Wishes
from otel_letta.cli.setup.token_file import OwnToken
from otel_letta.letta.server_tools import TOKEN, TOOLS, URL, Found, ServerTools
from otel_letta.settings import Settings
from otel_letta.text import clean_line

_STAND_IN = "TOKEN"
"""What is printed in place of a token: it may end in a terminal's history, or in a bug report."""


class RestAgent:
    """The setting up of one agent, as it is found on the server."""

    probe = "list_tasks, run by Letta"

    def __init__(self, settings: Settings, agent_id: str, wishes: Wishes) -> None:
        self._settings = settings
        self._agent_id = agent_id
        self._wishes = wishes
        self._server = ServerTools(settings, agent_id)
        self._found: Found = self._server.found()
        self._token = OwnToken(wishes.token_file, agent_id, self._found.secret(TOKEN))

    def close(self) -> None:
        """Give connections back."""
        self._server.close()

    def steps(self) -> list[Step]:
        """Return what is to be done; nothing if all of it is there, or gone.

        Raises:
            Refused: a tool of the same name is somebody else's, or other secrets of the agent would be lost.
        """
        hidden = [clean_line(name, 80) for name, secret in self._found.secrets.items() if secret is None]
        if hidden:
            raise Refused(
                f"The server does not show the agent's secret {hidden[0]}, which would be lost: secrets can only be "
                f"written all at once. Change {URL} and {TOKEN} among them yourself"
            )
        return list(self._to_remove() if self._wishes.remove else self._to_write())

    def proof(self) -> str | None:
        """Let Letta run a tool as the agent would. Return what went wrong, in words for the agent, or None."""
        return self._server.tried(self._wishes.url, self._token.value)

    # -- there ---------------------------------------------------------------------------------------------------------

    def _to_write(self) -> Iterator[Step]:
        foreign = [tool.name for tool in self._found.tools.values() if not tool.ours]
        if foreign:
            raise Refused(
                f"The server has a tool {foreign[0]} that is not ours, and one name is one tool for all of its agents. "
                "Rename it, or delete it, if it is not needed"
            )
        yield from self._token.to_write()  # first: once the tools are there they work
        for name in TOOLS:
            tool = self._found.tools.get(name)
            if tool is None:
                yield Step(f"make the tool {name}, and give it to the agent", partial(self._make_and_attach, name))
                continue
            if not tool.current:
                yield Step(f"bring the tool {name} up to date, for all agents that have it", partial(self._make, name))
            if tool.id not in self._found.attached:
                yield Step(f"give the agent the tool {name}", partial(self._server.attach, tool.id))
        if self._found.secret(URL) != self._wishes.url or self._found.secret(TOKEN) != self._token.value:
            names = f"{URL} ({self._wishes.url})" + (f" and {TOKEN}" if self._token.value else "")
            yield Step(f"set the agent's secrets {names}", self._set_secrets)

    def _make(self, name: str) -> None:
        self._server.make(name)

    def _make_and_attach(self, name: str) -> None:
        self._server.attach(self._server.make(name))

    def _set_secrets(self) -> None:
        self._server.set_secrets({URL: self._wishes.url, TOKEN: self._token.value})

    # -- gone ----------------------------------------------------------------------------------------------------------

    def _to_remove(self) -> Iterator[Step]:
        yield from self._token.to_remove()  # first: where it is known by the agent's secret, which goes last
        ours = [tool for tool in self._found.tools.values() if tool.ours]
        users = self._server.users_of(frozenset(tool.id for tool in ours)) if ours else {}
        for tool in ours:
            attached = tool.id in self._found.attached
            if attached:
                yield Step(f"take the tool {tool.name} from the agent", partial(self._server.detach, tool.id))
            if users is not None and users[tool.id] == attached:
                yield Step(
                    f"delete the tool {tool.name}, which no other agent has", partial(self._server.delete, tool.id)
                )
        names = [name for name in (URL, TOKEN) if name in self._found.secrets]
        if names:
            gone: dict[str, str | None] = dict.fromkeys(names)
            yield Step(f"take the agent's secrets {' and '.join(names)}", partial(self._server.set_secrets, gone))

    # -- what a person should know -------------------------------------------------------------------------------------

    def notes(self) -> Iterator[str]:
        """Return lines about the address and the token."""
        url = self._wishes.url
        if self._wishes.remove:
            yield from self._token.notes_on_removal()
            return
        if addresses.is_of_this_machine(url) and not self._settings.is_loopback:
            yield f"The tools run where the Letta server does: to them {url} is that machine, not this one."
        elif self._settings.is_cloud and not addresses.may_be_public(url):
            yield f"The tools run in Letta Cloud, which cannot reach {url}: the bridge needs a public address."
        if self._token.value is not None and not addresses.is_private(url):
            yield f"The token goes to {url} unencrypted."
        if not addresses.may_be_public(url):
            yield "Letta takes no MCP server at a private address (0.16.8): these tools do without."

    def shown(self) -> str:
        """Return how the bridge can be had by MCP instead: what Letta's ``POST /v1/mcp-servers/`` takes.

        Empty where Letta would refuse the address.
        """
        url = self._wishes.url
        if self._wishes.remove or not (addresses.may_be_public(url) and url.startswith("https://")):
            return ""
        config = {
            "mcp_server_type": "streamable_http",
            "server_url": f"{url}/mcp",
            "auth_header": "Authorization",
            "auth_token": f"Bearer {_STAND_IN}",
        }
        text = json.dumps({"server_name": "otel-letta", "config": config}, indent=2)
        return f"By MCP instead, for POST /v1/mcp-servers/ with the agent's token for {_STAND_IN}:\n{text}\n"
