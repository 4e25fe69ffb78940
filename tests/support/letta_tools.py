"""A REST server's tools, and its agents' secrets, as Letta 0.16.8 was seen to handle them."""

from __future__ import annotations

import copy
import json
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["LettaTools"]

HIDDEN = "<encrypted>"


class LettaTools(LoopbackServer):
    """Everything is a plain attribute that a test may set at any time."""

    def __init__(self, password: str | None = None) -> None:
        self.password = password
        self.agents: dict[str, dict[str, Any]] = {}
        self.tools: dict[str, dict[str, Any]] = {}
        self.run: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: {
            "status": "success",
            "tool_return": 'Data\n{"tasks": []}',
        }
        """What becomes of a tool that is tried."""
        self.fails: dict[tuple[str, str], int] = {}
        """The status with which a method and the beginning of a path are refused."""
        self.changes: list[tuple[str, str]] = []
        """The requests that may have changed something."""
        super().__init__(_Asked)

    def create_agent(self, name: str = "helper", **secrets: str) -> str:
        agent_id = f"agent-{uuid.uuid4()}"
        rows = [{"key": key, "value": value, "value_enc": value or None} for key, value in secrets.items()]
        self.agents[agent_id] = {"id": agent_id, "name": name, "tools": [], "secrets": rows}
        return agent_id

    def create_tool(self, source: str, tags: list[str]) -> dict[str, Any]:
        """Make a tool, or replace that of the same name, whoever made it."""
        name = re.findall(r"^def (\w+)", source, re.MULTILINE)[-1]
        before = next((tool for tool in self.tools.values() if tool["name"] == name), None)
        tool = before or {"id": f"tool-{uuid.uuid4()}", "name": name}
        tool.update(source_code=source, tags=tags or tool.get("tags", []))
        self.tools[tool["id"]] = tool
        return tool

    def secrets(self, agent_id: str) -> dict[str, str]:
        return {row["key"]: row["value"] for row in self.agents[agent_id]["secrets"]}

    def tool_names(self, agent_id: str) -> list[str]:
        return sorted(self.tools[tool]["name"] for tool in self.agents[agent_id]["tools"])

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Return what the server answers."""
        for (wanted, start), status in self.fails.items():
            if method == wanted and path.startswith(start):
                return status, {"detail": "An unknown error occurred"}
        if path == "/v1/health/":
            return 200, {"version": "0.16.8", "status": "ok"}
        if method != "GET" and path != "/v1/tools/run":
            self.changes.append((method, path))
        for pattern, work in _ROUTES.items():
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                return work(self, found, query, body)
        return 404, {"detail": "Not Found"}

    def _shown(self, agent_id: str) -> dict[str, Any]:
        agent = copy.deepcopy(self.agents[agent_id])
        agent["tools"] = [self.tools[tool] for tool in agent["tools"]]
        for row in agent["secrets"]:
            row["value"] = row["value"] or HIDDEN  # an empty one too (measured)
        return agent

    def _agent(self, found: re.Match[str], query: Any, body: Any) -> tuple[int, Any]:
        agent_id = found["agent"]
        if agent_id not in self.agents:
            return 404, {"detail": f"Agent with ID {agent_id} not found"}
        if body is not None:
            rows = [{"key": key, "value": value, "value_enc": value or None} for key, value in body["secrets"].items()]
            self.agents[agent_id]["secrets"] = rows  # all of them, those that are not named are gone (measured)
        return 200, self._shown(agent_id)

    def _list_agents(self, found: Any, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        ids = list(self.agents)
        after = query.get("after", [""])[0]
        start = ids.index(after) + 1 if after in ids else 0
        return 200, [self._shown(each) for each in ids[start : start + int(query["limit"][0])]]

    def _attach(self, found: re.Match[str], query: Any, body: Any) -> tuple[int, Any]:
        tools = self.agents[found["agent"]]["tools"]
        if found["how"] == "attach" and found["tool"] not in tools:
            tools.append(found["tool"])
        elif found["how"] == "detach" and found["tool"] in tools:
            tools.remove(found["tool"])
        return 200, self._shown(found["agent"])

    def _list_tools(self, found: Any, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        return 200, [tool for tool in self.tools.values() if tool["name"] in query.get("name", [tool["name"]])]

    def _put_tool(self, found: Any, query: Any, body: Any) -> tuple[int, Any]:
        return 200, self.create_tool(body["source_code"], body["tags"])

    def _delete_tool(self, found: re.Match[str], query: Any, body: Any) -> tuple[int, Any]:
        del self.tools[found["tool"]]
        for agent in self.agents.values():
            agent["tools"] = [tool for tool in agent["tools"] if tool != found["tool"]]
        return 200, None

    def _run_tool(self, found: Any, query: Any, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, self.run(body)


_AGENT = r"/v1/agents/(?P<agent>[\w-]+)"
_ROUTES: dict[str, Callable[..., tuple[int, Any]]] = {
    rf"(GET|PATCH) {_AGENT}": LettaTools._agent,
    r"GET /v1/agents/": LettaTools._list_agents,
    rf"PATCH {_AGENT}/tools/(?P<how>attach|detach)/(?P<tool>[\w-]+)": LettaTools._attach,
    r"GET /v1/tools/": LettaTools._list_tools,
    r"PUT /v1/tools/": LettaTools._put_tool,
    r"DELETE /v1/tools/(?P<tool>[\w-]+)": LettaTools._delete_tool,
    r"POST /v1/tools/run": LettaTools._run_tool,
}


class _Asked(Handler):
    server: LettaTools
    protocol_version = "HTTP/1.0"  # nothing is kept open

    def do_GET(self) -> None:
        parts, content = urlsplit(self.path), self.read()
        password = self.server.password
        if password and parts.path != "/v1/health/" and self.headers.get("Authorization") != f"Bearer {password}":
            self.send(401, {"detail": "Unauthorized"})
            return
        body = json.loads(content) if content else None
        self.send(*self.server.answer(self.command, parts.path, parse_qs(parts.query), body))

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815
