"""A model on loopback that speaks OpenAI's chat protocol and plays one fixed conversation per model name.

Agent frameworks choose a tool, hear what came of it, and ask again. Which tool the model wants next depends only on
how often that model was asked before, so each run of an agent uses a model name of its own, ``scripted/SCENARIO``:
two tools and an answer, unless the scenario says otherwise.

Every text that a report must never repeat holds `MARKER`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["FAILURE", "MARKER", "ScriptedOpenAI"]

MARKER = "xyzzy"
"""Part of each prompt, argument, tool result and answer; the programs in ``tests/real/agents/programs`` use it too."""

FAILURE = "the model is on strike"
"""What the model says with its HTTP 500."""

_PATIENCE = 60.0
"""Seconds that a request is held at most: a program that hangs must not hang the tests."""

_ARGUMENTS = {
    "search_docs": {"query": f"{MARKER}-query"},
    "send_report": {"text": f"{MARKER}-report"},
    "final_answer": {"answer": f"{MARKER}-answer"},
}


class ScriptedOpenAI:
    """The server; use it in a ``with`` block. ``think`` is called with the scenario and the number of requests before
    this one, and the answer waits for it. A program under test steers the server through HTTP as well:

    * ``GET /held/NAME`` answers when a request of that model is being held back;
    * ``POST /release/NAME`` lets it go.
    """

    def __init__(self, think: Callable[[str, int], None] = lambda scenario, turn: None) -> None:
        self._think = think
        self._changed = threading.Condition()
        self._asked: dict[str, int] = {}
        self._held: set[str] = set()
        self._released: set[str] = set()
        self._closed = False
        self._bodies: list[str] = []
        self._server = _Server(self)

    def __enter__(self) -> ScriptedOpenAI:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.close()

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1"

    @property
    def asked(self) -> list[str]:
        """The bodies of all chat requests, in the order of their arrival."""
        with self._changed:
            return list(self._bodies)

    def _play(self, body: dict[str, Any], raw: str) -> dict[str, Any] | None:
        """The answer to one request; None for a failure."""
        model = str(body.get("model"))
        scenario = model.rpartition("/")[2]
        with self._changed:
            turn = self._asked.get(model, 0)
            self._asked[model] = turn + 1
            self._bodies.append(raw)
        self._think(scenario, turn)
        with self._changed:
            if turn == 1 and scenario == "cancelled":
                self._held.add(scenario)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or scenario in self._released, _PATIENCE)
        if turn >= 1 and scenario == "llm_error":
            return None
        if turn < 2:
            return _call(("search_docs", "send_report")[turn], turn)
        offered = {tool.get("function", {}).get("name") for tool in body.get("tools") or []}
        if "final_answer" in offered:  # some agents end only by a tool
            return _call("final_answer", turn)
        return {"role": "assistant", "content": f"Final Answer: {MARKER}-answer"}

    def _wait_until_held(self, scenario: str) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or scenario in self._held, _PATIENCE)

    def _release(self, scenario: str) -> None:
        with self._changed:
            self._released.add(scenario)
            self._changed.notify_all()


def _call(tool: str, turn: int) -> dict[str, Any]:
    function = {"name": tool, "arguments": json.dumps(_ARGUMENTS[tool])}
    call = {"id": f"call_{turn}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


class _Server(LoopbackServer):
    def __init__(self, model: ScriptedOpenAI) -> None:
        self.model = model
        super().__init__(_Handler)


class _Handler(Handler):
    server: _Server

    def do_GET(self) -> None:
        _, kind, name = self.path.split("/", 2)
        if kind == "held":
            self.send(200 if self.server.model._wait_until_held(name) else 504, {})
        else:
            self.send(404, {"error": {"message": f"no such route: {self.path}"}})

    def do_POST(self) -> None:
        raw = self.read().decode()
        if self.path.startswith("/release/"):
            self.server.model._release(self.path.rpartition("/")[2])
            self.send(200, {})
        elif self.path == "/v1/chat/completions":
            self._chat(json.loads(raw), raw)
        else:
            self.send(404, {"error": {"message": f"no such route: {self.path}"}})

    def _chat(self, body: dict[str, Any], raw: str) -> None:
        message = self.server.model._play(body, raw)
        if message is None:
            self.send(500, {"error": {"message": FAILURE, "type": "server_error", "code": None}})
            return
        finish = "tool_calls" if "tool_calls" in message else "stop"
        self.send(
            200,
            {
                "id": "chatcmpl-scripted",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model"),
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
            },
        )
