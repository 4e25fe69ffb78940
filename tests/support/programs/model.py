"""A model on loopback that plays one fixed conversation in the four protocols that coding programs speak.

OpenAI's Responses (Codex) and chat completions (AI SDK), Anthropic's Messages (Claude Code), Gemini's generateContent;
as a stream of server-sent events where the program asks for one. Which tool the model wants next depends only on how
many results of tools the request holds, so that a program may repeat a request, or ask for something else in between (a
title for the session, say: a request that does not offer the tools is answered with some words).
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["MARKER", "Call", "Script", "ScriptedModel"]

MARKER = "xyzzy"
"""Part of each prompt, argument, tool result and answer: no report may hold it."""

_PATIENCE = 120.0
"""Seconds that a request is held at most: a program that hangs must not hang the tests."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """What the model wants a tool to do."""

    tool: str
    arguments: Body


@dataclass(frozen=True)
class Script:
    """A conversation: calls of tools, one after another, and an answer."""

    calls: tuple[Call, ...] = ()
    refuses_at: int | None = None
    """After so many results of tools the model answers with `refusal`."""
    refusal: int = 400
    """A status of HTTP. At 400 nobody tries again."""
    holds_at: int | None = None
    """After so many results the model never answers."""
    answer: str = f"All done ({MARKER}-answer)."


class ScriptedModel(LoopbackServer):
    """The server. Everything here may be called from any thread."""

    def __init__(self, script: Script, listener: socket.socket | None = None) -> None:
        self.script = script
        self.asked: list[tuple[str, str]] = []
        """Path and body of each request, in the order of their arrival."""
        self.held = threading.Event()
        """Set when the program waits for an answer that will never come."""
        self._closed = threading.Event()
        super().__init__(_Handler, listener=listener)

    def close(self) -> None:
        self._closed.set()
        super().close()

    def next_move(self, results: int, tools: Iterable[str]) -> Call | str | None:
        """Return what the model says after so many results of tools: a call, an answer, or None for a refusal."""
        calls = self.script.calls
        if calls and calls[0].tool not in tools:
            return f"A title ({MARKER}-title)"
        if results == self.script.refuses_at:
            return None
        if results == self.script.holds_at:
            self.held.set()
            self._closed.wait(_PATIENCE)
            return None
        return calls[results] if results < len(calls) else self.script.answer


class _Handler(Handler):
    server: ScriptedModel

    def do_GET(self) -> None:
        self.server.asked.append((self.path, ""))
        self.send(404, {"error": {"message": "no such page", "type": "not_found_error"}})

    def do_HEAD(self) -> None:
        self.send(200)

    def do_POST(self) -> None:
        raw = self.read()
        self.server.asked.append((self.path, raw.decode()))
        path = self.path.partition("?")[0]
        body = json.loads(raw or b"{}")
        if path.endswith(("/count_tokens", ":countTokens")):
            self.send(200, {"input_tokens": 10, "totalTokens": 10})
        elif path.endswith("/messages"):
            self._anthropic(body)
        elif path.endswith("/responses"):
            self._responses(body)
        elif path.endswith("/chat/completions"):
            self._chat(body)
        elif "enerateContent" in path:
            self._gemini(body, streams=":stream" in path)
        else:
            self.send(404, {"error": {"message": f"no such page: {path}", "type": "not_found_error"}})

    def _refuse(self) -> None:
        said, status = "the model is on strike", self.server.script.refusal
        error = {"type": "invalid_request_error", "code": status, "status": "INVALID_ARGUMENT", "message": said}
        self.send(status, {"type": "error", "error": error})

    def _stream(self, events: Iterable[Body | str], *, named: bool = False) -> None:
        lines = []
        for event in events:
            if named and isinstance(event, dict):
                lines.append(f"event: {event['type']}\n")
            lines.append(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")
        self.send(200, "".join(lines).encode(), "text/event-stream")

    # -- Anthropic -----------------------------------------------------------------------------------------------------

    def _anthropic(self, body: Body) -> None:
        blocks = [block for message in body["messages"] for block in _blocks(message.get("content"))]
        results = sum(block.get("type") == "tool_result" for block in blocks)
        move = self.server.next_move(results, [tool.get("name", "") for tool in body.get("tools") or ()])
        if move is None:
            self._refuse()
            return
        if isinstance(move, Call):
            content: Body = {"type": "tool_use", "id": f"toolu_{results}", "name": move.tool, "input": move.arguments}
        else:
            content = {"type": "text", "text": move}
        message = {
            "id": f"msg_{results}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model"),
            "content": [content],
            "stop_reason": "tool_use" if isinstance(move, Call) else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 3},
        }
        if body.get("stream"):
            self._stream(_anthropic_events(message, content), named=True)
        else:
            self.send(200, message)

    # -- OpenAI --------------------------------------------------------------------------------------------------------

    def _responses(self, body: Body) -> None:
        items = body["input"] if isinstance(body["input"], list) else []
        results = sum(item.get("type") == "function_call_output" for item in items)
        move = self.server.next_move(results, [tool.get("name", "") for tool in body.get("tools") or ()])
        if move is None:
            self._refuse()
            return
        if isinstance(move, Call):
            item: Body = {"type": "function_call", "id": f"fc_{results}", "call_id": f"call_{results}"}
            item |= {"name": move.tool, "arguments": json.dumps(move.arguments), "status": "completed"}
        else:
            text = {"type": "output_text", "text": move, "annotations": []}
            item = {"type": "message", "id": f"msg_{results}", "role": "assistant", "content": [text]}
        usage = {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13}
        response = {
            "id": f"resp_{results}",
            "object": "response",
            "created_at": 1_700_000_000,
            "model": body.get("model"),
            "status": "completed",
            "output": [item],
            "usage": usage,
        }
        if body.get("stream"):
            self._stream(
                [
                    {"type": "response.created", "response": response | {"status": "in_progress", "output": []}},
                    {"type": "response.output_item.added", "output_index": 0, "item": item},
                    {"type": "response.output_item.done", "output_index": 0, "item": item},
                    {"type": "response.completed", "response": response},
                ],
                named=True,
            )
        else:
            self.send(200, response)

    def _chat(self, body: Body) -> None:
        results = sum(message.get("role") == "tool" for message in body["messages"])
        offered = [tool.get("function", {}).get("name", "") for tool in body.get("tools") or ()]
        move = self.server.next_move(results, offered)
        if move is None:
            self._refuse()
            return
        message: Body = {"role": "assistant", "content": None}
        if isinstance(move, Call):
            function = {"name": move.tool, "arguments": json.dumps(move.arguments)}
            message["tool_calls"] = [{"index": 0, "id": f"call_{results}", "type": "function", "function": function}]
        else:
            message["content"] = move
        finish = "tool_calls" if isinstance(move, Call) else "stop"
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        head = {"id": f"chatcmpl-{results}", "created": 1_700_000_000, "model": body.get("model")}
        if body.get("stream"):
            chunk = head | {"object": "chat.completion.chunk"}
            self._stream(
                [
                    chunk | {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
                    chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": usage},
                    "[DONE]",
                ]
            )
        else:
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self.send(200, head | {"object": "chat.completion", "choices": [choice], "usage": usage})

    # -- Gemini --------------------------------------------------------------------------------------------------------

    def _gemini(self, body: Body, *, streams: bool) -> None:
        parts = [part for content in body.get("contents") or () for part in content.get("parts") or ()]
        declared = [tool.get("functionDeclarations") or () for tool in body.get("tools") or ()]
        offered = [function.get("name", "") for functions in declared for function in functions]
        move = self.server.next_move(sum("functionResponse" in part for part in parts), offered)
        if move is None:
            self._refuse()
            return
        if isinstance(move, Call):
            part: Body = {"functionCall": {"name": move.tool, "args": move.arguments}}
        else:
            part = {"text": move}
        answer = {
            "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3, "totalTokenCount": 13},
        }
        if streams:
            self._stream([answer])
        else:
            self.send(200, answer)


def _blocks(content: object) -> list[Body]:
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _anthropic_events(message: Body, content: Body) -> Iterator[Body]:
    """A message in pieces; of its one block the text or the tool's arguments come apart."""
    if content["type"] == "tool_use":
        start, delta = (
            content | {"input": {}},
            {"type": "input_json_delta", "partial_json": json.dumps(content["input"])},
        )
    else:
        start, delta = content | {"text": ""}, {"type": "text_delta", "text": content["text"]}
    yield {"type": "message_start", "message": message | {"content": [], "stop_reason": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": start}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": 3}}
    yield {"type": "message_stop"}
