"""An agent's tools on a Letta REST server: made from source, attached, given their secrets, and taken back.

Apart from the transports, which only report: this is for a person who sets up. What the comments call measured was
measured on Letta 0.16.8.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_letta.errors import LettaServerError
from otel_letta.instruction import INSTRUCT_TASK
from otel_letta.letta.answers import mapping, parsed, refusal, rows
from otel_letta.letta.http import HttpClient, segment
from otel_letta.letta.redaction import redactor
from otel_letta.settings import Secret, Settings
from otel_letta.text import clean_line

_logger = logging.getLogger(__name__)

TOOLS = ("list_tasks", "get_task", INSTRUCT_TASK)
"""Their names, as the agent calls them."""
URL, TOKEN = "OTEL_LETTA_URL", "OTEL_LETTA_TOKEN"
"""The agent's secrets that the tools read: the bridge's address, and the agent's own token for it."""

_OURS = "otel-letta"
"""The tag by which a tool is known to be ours."""
_SOURCE = Path(__file__).with_name("uploads") / "task_tools.py"
_HIDDEN = "<encrypted>"
"""What the server shows of a secret that it does not decrypt, and of an empty one (measured)."""
_PAGE = 20
"""Agents of one page of a listing: each comes with its tools and their sources."""
_MOST_PAGES = 200
_CAP = 300


def source_of(tool: str) -> str:
    """Return what is sent to Letta for a tool: the functions that it calls, and itself last."""
    text = _SOURCE.read_text("utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name in TOOLS and node.name != tool:
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip() + "\n"


@dataclass(frozen=True)
class Tool:
    """A tool on the server that has a name of ours."""

    id: str
    name: str
    ours: bool
    """Made by us, not by somebody who chose the same name."""
    current: bool
    """Its source is the one that we would send."""


@dataclass(frozen=True)
class Found:
    """What is there already, for one agent."""

    tools: Mapping[str, Tool]
    """Those with our names, by name: one name, one tool on a server."""
    attached: frozenset[str]
    """Ids of the tools that the agent has."""
    secrets: Mapping[str, Secret | None] = field(repr=False)
    """All of the agent's; None for one that the server does not show."""

    def secret(self, name: str) -> str | None:
        """Return the value of one of the agent's secrets; None if it has none, or the server does not show it."""
        secret = self.secrets.get(name)
        return None if secret is None else secret.reveal()


class ServerTools:
    """The tools of an agent. All calls raise nothing but `LettaError`, and none costs a turn."""

    def __init__(self, settings: Settings, agent_id: str) -> None:
        self._http = HttpClient(settings, _logger)
        self._settings = settings
        self._agent_id = agent_id
        self._agent = f"/v1/agents/{segment(agent_id)}"

    def close(self) -> None:
        """Give connections back."""
        self._http.close()

    def found(self) -> Found:
        """Return what is there."""
        agent = mapping(self._call("GET", self._agent))
        tools = [row for name in TOOLS for row in rows(self._call("GET", "/v1/tools/", params={"name": name}))]
        return Found(
            tools={tool.name: tool for tool in map(_tool, tools) if tool.name in TOOLS},
            attached=frozenset(str(row.get("id")) for row in rows(agent.get("tools"))),
            secrets=_secrets(agent),
        )

    def make(self, name: str) -> str:
        """Make the tool, or bring its source up to date, and return its id.

        The server would replace a tool of the same name whoever made it: look for one before (`found`).
        """
        # PUT, as PATCH keeps the parameters that were read from the source of before (measured).
        answer = self._call("PUT", "/v1/tools/", {"source_code": source_of(name), "tags": [_OURS]})
        made = _tool(mapping(answer))
        if made.name != name:
            raise LettaServerError(f"The server does not make the tool {name} of its source")
        return made.id

    def attach(self, tool_id: str) -> None:
        """Give the agent a tool. It may have it already."""
        self._call("PATCH", f"{self._agent}/tools/attach/{segment(tool_id)}")

    def detach(self, tool_id: str) -> None:
        """Take a tool from the agent."""
        self._call("PATCH", f"{self._agent}/tools/detach/{segment(tool_id)}")

    def delete(self, tool_id: str) -> None:
        """Delete a tool from the server, and so from all agents."""
        self._call("DELETE", f"/v1/tools/{segment(tool_id)}")

    def set_secrets(self, values: Mapping[str, str | None]) -> None:
        """Set some of the agent's secrets, or take them away (None); the others stay.

        Raises:
            LettaServerError: the server does not show the others' values, so that they would be lost.
        """
        # What is not in the request is deleted, and there is no way to change one alone (measured): read them late.
        wanted = {name: value for name, value in values.items() if value is not None}
        for name, secret in _secrets(mapping(self._call("GET", self._agent))).items():
            if name in values:
                continue
            if secret is None:
                raise LettaServerError(
                    f"The server does not show the agent's secret {clean_line(name, 80)}, which would be lost",
                    hint=f"change {URL} and {TOKEN} among the agent's secrets yourself",
                )
            wanted[name] = secret.reveal()
        self._call("PATCH", self._agent, {"secrets": wanted})

    def users_of(self, tool_ids: frozenset[str]) -> dict[str, int] | None:
        """Return how many agents have each of the tools; None on a server with too many agents to look at."""
        counts = dict.fromkeys(tool_ids, 0)
        params = {"limit": str(_PAGE), "order": "asc", "include": "agent.tools"}
        for _ in range(_MOST_PAGES):
            page = rows(self._call("GET", "/v1/agents/", params=params))
            for agent in page:
                for row in rows(agent.get("tools")):
                    if row.get("id") in counts:
                        counts[row["id"]] += 1
            if len(page) < _PAGE or page[-1].get("id") == params.get("after"):
                return counts
            params["after"] = str(page[-1].get("id"))
        return None

    def tried(self, url: str, token: str | None) -> str | None:
        """Call `list_tasks` in the sandbox of Letta's tools; return what went wrong there, in its own words, or None.

        Args:
            url: the bridge's address, which the sandbox has to reach.
            token: the agent's, if it has one.
        """
        body = {
            "name": TOOLS[0],
            "source_code": source_of(TOOLS[0]),
            "args": {},
            "env_vars": {URL: url, TOKEN: token or "", "LETTA_AGENT_ID": self._agent_id},
        }
        answer = mapping(self._call("POST", "/v1/tools/run", body))
        shown = str(answer.get("tool_return") or "")
        if answer.get("status") == "success" and "\n" in shown:
            return None
        return clean_line(shown.replace(token or "\0", "***"), _CAP) or "it returned nothing"

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, params: dict[str, str] | None = None
    ) -> Any:
        response = self._http.request(method, path, body=body, params=params)
        if not response.is_success:
            raise refusal(response, redactor(self._settings))
        return parsed(response)


def _tool(row: dict[str, Any]) -> Tool:
    name, tags = str(row.get("name") or ""), row.get("tags")
    return Tool(
        id=str(row.get("id") or ""),
        name=name,
        ours=isinstance(tags, list) and _OURS in tags,
        current=name in TOOLS and row.get("source_code") == source_of(name),
    )


def _secrets(agent: dict[str, Any]) -> dict[str, Secret | None]:
    return {row["key"]: _value(row) for row in rows(agent.get("secrets")) if isinstance(row.get("key"), str)}


def _value(row: dict[str, Any]) -> Secret | None:
    value = row.get("value")
    if not isinstance(value, str):
        return None
    if value == _HIDDEN:
        return None if row.get("value_enc") else Secret("")
    return Secret(value)
