"""An OpenAI-compatible model on loopback that plays scripts, for real OpenHands agents.

    with ScriptedModel() as model:
        model.play("ok", [tool("terminal", command="echo hi", summary="say hi"), finish("done")])
        LLM(model="openai/ok", base_url=model.base_url, api_key="unused")

Each script has a name, which is the model's name, so conversations that run side by side do not share one. Unlike
`scripted_llm`, which answers a Letta server and is steered from outside, this one knows its answers beforehand.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["ScriptedModel", "fail", "finish", "plan", "say", "together", "tool"]

Step = dict[str, Any]


def tool(name: str, **arguments: Any) -> Step:
    """Call a tool; ``summary`` is what OpenHands shows of it."""
    return {"calls": [(name, arguments)]}


def together(*steps: Step) -> Step:
    """Several tools in one answer."""
    return {"calls": [call for step in steps for call in step["calls"]]}


def plan(*statuses: str) -> Step:
    tasks = [{"title": f"Step {n}", "notes": "", "status": status} for n, status in enumerate(statuses)]
    return tool("task_tracker", command="plan", task_list=tasks)


def finish(message: str) -> Step:
    return tool("finish", message=message, summary="finish")


def say(text: str) -> Step:
    """Text without a tool."""
    return {"text": text}


def fail(status: int) -> Step:
    return {"status": status}


class ScriptedModel:
    """The server; listens inside its ``with`` block."""

    def __init__(self) -> None:
        self._scripts: dict[str, list[Step]] = {}
        self._last: dict[str, Step] = {}
        self._before: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._server = _Server(self)

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1"

    def play(self, name: str, steps: Iterable[Step], *, before_last: Callable[[], None] | None = None) -> str:
        """Answer calls of the model ``name`` with these steps in turn, and with the last one for ever after.

        ``before_last`` is called on the server's thread when the last step is asked for. Returns LiteLLM's model name.
        """
        steps = list(steps)
        with self._lock:
            self._scripts[name], self._last[name] = steps, steps[-1]
            if before_last is not None:
                self._before[name] = before_last
        return f"openai/{name}"

    def _next(self, name: str) -> Step:
        with self._lock:
            steps = self._scripts[name]
            step = steps.pop(0) if steps else self._last[name]
            before = self._before.pop(name, None) if not steps else None
        if before is not None:
            before()
        return step

    def __enter__(self) -> ScriptedModel:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()


class _Server(LoopbackServer):
    def __init__(self, model: ScriptedModel) -> None:
        self.model = model
        super().__init__(_Handler)


class _Handler(Handler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.read() or b"{}")
        model = self.server.model
        step = model._next(body.get("model", ""))
        number = next(model._ids)
        if "status" in step:
            # LiteLLM goes by the code: any other refusal is a bad request to it.
            code = "invalid_api_key" if step["status"] == 401 else None
            error = {"message": "scripted failure", "type": code or "server_error", "code": code}
            self.send(step["status"], {"error": error})
            return
        message: dict[str, Any] = {"role": "assistant", "content": step.get("text")}
        if "calls" in step:
            message["tool_calls"] = [
                {
                    "id": f"call_{number}_{n}",
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(arguments)},
                }
                for n, (name, arguments) in enumerate(step["calls"])
            ]
        self.send(
            200,
            {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion",
                "created": 0,
                "model": body.get("model"),
                "choices": [
                    {"index": 0, "message": message, "finish_reason": "tool_calls" if "calls" in step else "stop"}
                ],
                "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
            },
        )
