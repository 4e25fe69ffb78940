"""An OpenAI-compatible LLM that does what a test tells it to.

A real Letta server, be it the REST server or the App Server, calls an LLM for every message.  Tests need that
LLM to be free, instant, offline and, above all, observable: whether a report reached an agent is decided by what
stands in the *next* prompt, not by an HTTP 200.  The server below therefore lives inside the test process, so
that a test reads the prompts, makes requests fail and holds answers back through plain Python, without a second
control protocol.

    llm = ScriptedLLM()
    llm.base_url                      # "http://127.0.0.1:PORT/v1", goes into OPENAI_BASE_URL
    with llm.hold():                  # every chat request that arrives now waits ...
        ...
        llm.wait_for_calls(1)         # ... and this returns as soon as one has arrived
    llm.fail_with("503", times=2)     # the next two chat requests fail, then it answers again
    text_of(llm.last_prompt())        # what the model was shown, as one string
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import json
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

from tests.support.loopback import Handler, LoopbackServer

__all__ = ["Failure", "Prompt", "ScriptedLLM", "text_of"]

Prompt: TypeAlias = dict[str, Any]
"""The JSON body of one chat request."""

Failure: TypeAlias = Literal["500", "503", "429", "401", "400", "context", "drop"]
"""Ways to fail: an HTTP status, a full context window, or a connection that breaks without an answer."""

HOLD_LIMIT = 120.0
"""Seconds after which a held request gives up: a test that forgets to release must fail, not hang."""

_DEFAULT_DIMENSIONS = 1536

# status, message, type, code: the fields by which OpenAI's client (inside Letta) tells errors apart.
_FAILURES: dict[str, tuple[int, str, str, str | None]] = {
    "500": (500, "scripted failure", "server_error", None),
    "503": (503, "scripted overload", "server_error", None),
    "429": (429, "scripted rate limit", "rate_limit_error", "rate_limit_exceeded"),
    "401": (401, "scripted refusal of the key", "invalid_request_error", "invalid_api_key"),
    "400": (400, "scripted refusal of the request", "invalid_request_error", None),
    "context": (400, "scripted overflow", "invalid_request_error", "context_length_exceeded"),
}


def text_of(prompt: Prompt) -> str:
    """Flatten the messages of one chat request to a single string, to search with ``in``.

    One paragraph a message, in order, headed by its role (and name); tool calls read ``name(arguments)``.
    """
    return "\n\n".join(_message_text(message) for message in prompt.get("messages") or [])


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part.get("text") or json.dumps(part) for part in content)
    calls = [call.get("function", {}) for call in message.get("tool_calls") or []]
    lines = [content or "", *(f"{call.get('name')}({call.get('arguments')})" for call in calls)]
    name = f" ({message['name']})" if message.get("name") else ""
    return f"[{message.get('role')}{name}] " + "\n".join(line for line in lines if line)


class ScriptedLLM:
    """The server, running in a daemon thread from construction until :meth:`close`.

    Everything here may be called from any thread.  Chat calls are counted when they *arrive*, those that fail
    included.
    """

    def __init__(self, port: int = 0, model: str = "gpt-4o-mini") -> None:
        self.model = model
        # One condition guards every field below and announces each change: tests wait on it, never sleep.
        self._changed = threading.Condition()
        self._prompts: list[Prompt] = []
        self._failure: Failure | None = None
        self._failures_left: int | None = None
        self._delay = 0.0
        self._holds: dict[object, str] = {}
        self._tool: tuple[str, str] | None = None
        self._texts: list[str] = []
        self._chat_calls = 0
        self._in_flight = 0
        self._in_flight_max = 0
        self._answers = 0
        self._closed = False

        self._server = _Server(port, self)
        self._server.start()

    def __enter__(self) -> ScriptedLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1"

    # -- what happened ---------------------------------------------------------------------------------

    @property
    def prompts(self) -> list[Prompt]:
        """A copy of every chat request's body since the start or the last :meth:`reset`, oldest first."""
        with self._changed:
            return copy.deepcopy(self._prompts)

    def last_prompt(self) -> Prompt:
        """The newest chat request's body; LookupError if there was none."""
        with self._changed:
            if not self._prompts:
                raise LookupError("the LLM has not been called")
            return copy.deepcopy(self._prompts[-1])

    @property
    def chat_calls(self) -> int:
        with self._changed:
            return self._chat_calls

    @property
    def in_flight(self) -> int:
        """Chat requests that have arrived and are not answered yet."""
        with self._changed:
            return self._in_flight

    @property
    def in_flight_max(self) -> int:
        """The most chat requests that were ever in flight at once."""
        with self._changed:
            return self._in_flight_max

    def wait_for_calls(self, n: int, timeout: float = 30.0) -> None:
        """Return as soon as ``n`` chat requests have arrived; TimeoutError after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._chat_calls >= n, timeout):
                raise TimeoutError(f"{self._chat_calls} of {n} LLM calls arrived within {timeout:g} s")

    def wait_until_idle(self, timeout: float = 30.0) -> None:
        """Return as soon as no chat request is in flight; TimeoutError after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_flight == 0, timeout):
                raise TimeoutError(f"{self._in_flight} LLM calls still in flight after {timeout:g} s")

    # -- what shall happen -----------------------------------------------------------------------------

    @property
    def delay(self) -> float:
        """Seconds each chat request takes."""
        with self._changed:
            return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        with self._changed:
            self._delay = seconds

    def fail_with(self, failure: Failure, times: int | None = None) -> None:
        """Fail the next ``times`` answers, or all of them until :meth:`recover`.

        A request that is being held fails too, if this is called before its release.  Letta tries a failed
        call again on its own (for 429, 5xx, broken connections): ``times=1`` may go unnoticed.  The REST server
        makes three attempts, the App Server 16 within 35 s; at "401" and "400" both give up at once.
        """
        if failure not in get_args(Failure):
            raise ValueError(f"unknown failure {failure!r}, expected one of {get_args(Failure)}")
        with self._changed:
            self._failure, self._failures_left = failure, times

    def recover(self) -> None:
        """Answer again."""
        with self._changed:
            self._failure = self._failures_left = None

    def call_tool_next(self, name: str, arguments: str = "{}") -> None:
        """Answer the next request that offers a tool of this name with a call of it. ``arguments`` is JSON."""
        with self._changed:
            self._tool = name, arguments

    def say_next(self, *texts: str) -> None:
        """Answer the next requests with these texts, one each, instead of ``ack 1``…"""
        with self._changed:
            self._texts += texts

    @contextlib.contextmanager
    def hold(self, about: str = "") -> Iterator[Callable[[], None]]:
        """Let chat requests wait inside the ``with`` block, at most :data:`HOLD_LIMIT` seconds each.

        ``about`` lets only those wait whose prompt contains that text.  Yields a function that releases them
        earlier.  Requests are counted, and visible in :attr:`prompts`, while they wait.
        """
        token = object()

        def release() -> None:
            with self._changed:
                self._holds.pop(token, None)
                self._changed.notify_all()

        with self._changed:
            self._holds[token] = about
        try:
            yield release
        finally:
            release()

    def reset(self) -> None:
        """Forget prompts and counters, answer at once, let go what is held.  Ports and threads stay."""
        with self._changed:
            self._prompts.clear()
            self._failure = self._failures_left = None
            self._delay = 0.0
            self._holds.clear()
            self._tool = None
            self._texts.clear()
            self._chat_calls = 0
            self._in_flight_max = self._in_flight
            self._changed.notify_all()

    def close(self) -> None:
        """Stop listening and let every waiting request go.  May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._server.close()

    # -- for the request handler -----------------------------------------------------------------------

    def _begin(self, prompt: Prompt) -> tuple[int, Failure | None]:
        """Record one chat request, wait as long as it shall wait, and say its number and how it shall end."""
        shown = text_of(prompt)
        with self._changed:
            self._prompts.append(prompt)
            self._chat_calls += 1
            self._answers += 1
            number = self._answers  # never reset: a reply's text stays unique over a whole session
            self._in_flight += 1
            self._in_flight_max = max(self._in_flight_max, self._in_flight)
            self._changed.notify_all()
            released = self._changed.wait_for(lambda: self._closed or not self._is_held(shown), HOLD_LIMIT)
            if self._delay > 0:
                self._changed.wait_for(lambda: self._closed, self._delay)
            if self._closed:
                return number, "drop"
            return number, self._next_failure() if released else "500"

    def _is_held(self, shown: str) -> bool:
        return any(about in shown for about in self._holds.values())

    def _next_tool(self, offered: list[str | None]) -> tuple[str, str] | None:
        with self._changed:
            tool = self._tool if self._tool is not None and self._tool[0] in offered else None
            if tool is not None:
                self._tool = None
            return tool

    def _next_text(self, number: int) -> str:
        with self._changed:
            return self._texts.pop(0) if self._texts else f"ack {number}"

    def _next_failure(self) -> Failure | None:
        failure = self._failure
        if failure is not None and self._failures_left is not None:
            self._failures_left -= 1
            if self._failures_left <= 0:
                self._failure = self._failures_left = None
        return failure

    def _end(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()


class _Server(LoopbackServer):
    def __init__(self, port: int, llm: ScriptedLLM) -> None:
        self.llm = llm
        super().__init__(_Handler, port=port)


class _Handler(Handler):
    server: _Server

    def do_GET(self) -> None:
        if self.path.split("?")[0].rstrip("/") != "/v1/models":
            return self._not_found()
        entry = {"id": self.server.llm.model, "object": "model", "created": 0, "owned_by": "test"}
        # Letta takes the context window from this field, where a provider gives it.
        return self.send(200, {"object": "list", "data": [{**entry, "context_length": 128_000}]})

    def do_POST(self) -> None:
        body: Prompt = json.loads(self.read() or b"{}")
        path = self.path.split("?")[0].rstrip("/")
        if path == "/v1/chat/completions":
            self._chat(body)
        elif path == "/v1/embeddings":
            self._embed(body)
        else:
            self._not_found()

    def _chat(self, body: Prompt) -> None:
        llm = self.server.llm
        number, failure = llm._begin(body)
        try:
            if failure == "drop":
                self.drop()
            elif failure is not None:
                status, message, kind, code = _FAILURES[failure]
                self.send(status, {"error": {"message": message, "type": kind, "code": code}})
            else:
                self._answer(body, number)
        finally:
            llm._end()

    def _answer(self, body: Prompt, number: int) -> None:
        offered = [tool.get("function", {}).get("name") for tool in body.get("tools") or []]
        llm = self.server.llm
        tool = llm._next_tool(offered)
        message, finish = _reply(body, f"ack {number}" if tool else llm._next_text(number), tool)
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        head = {
            "id": f"chatcmpl-scripted-{number}",
            "created": int(time.time()),
            "model": body.get("model", self.server.llm.model),
        }
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self.send(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        delta = dict(message)
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
        head["object"] = "chat.completion.chunk"
        events = (
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
            {**head, "choices": [], "usage": usage},
        )
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.send(200, "".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def _embed(self, body: Prompt) -> None:
        inputs = body.get("input")
        inputs = inputs if isinstance(inputs, list) else [inputs]
        dimensions = int(body.get("dimensions") or _DEFAULT_DIMENSIONS)
        rows: list[dict[str, Any]] = []
        for index, item in enumerate(inputs):
            vector = _vector(item if isinstance(item, str) else json.dumps(item), dimensions)
            embedding: list[float] | str = vector
            if body.get("encoding_format") == "base64":  # what OpenAI's client asks for unless told otherwise
                embedding = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
            rows.append({"object": "embedding", "index": index, "embedding": embedding})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        self.send(200, {"object": "list", "data": rows, "model": body.get("model"), "usage": usage})

    def _not_found(self) -> None:
        error = {"message": f"no such route: {self.path}", "type": "not_found", "code": None}
        self.send(404, {"error": error})


def _reply(body: Prompt, text: str, tool: tuple[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """The assistant message for a chat request, and its finish reason; ``tool`` is one to call, with its arguments.

    Plain text ends the turn of a current agent.  The older agent types speak through a ``send_message`` tool
    and treat plain text as a fault, so where that tool is offered it is called, thinking argument included.
    """
    if tool is not None:
        return _tool_call(*tool, text)
    functions = [offer.get("function", {}) for offer in body.get("tools") or []]
    speak = next((function for function in functions if function.get("name") == "send_message"), None)
    if speak is None:
        return {"role": "assistant", "content": text}, "stop"
    properties = speak.get("parameters", {}).get("properties", {})
    arguments = {name: "scripted" for name in ("thinking", "inner_thoughts") if name in properties}
    return _tool_call("send_message", json.dumps({**arguments, "message": text}), text)


def _tool_call(name: str, arguments: str, text: str) -> tuple[dict[str, Any], str]:
    call_id = "call_" + hashlib.sha256(text.encode()).hexdigest()[:16]
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"


def _vector(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on the text alone, so that equal texts are equal in the vector store."""
    stream = hashlib.shake_256(text.encode("utf-8", "replace")).digest(2 * dimensions)
    values = [value / 65535 - 0.5 for value in struct.unpack(f"<{dimensions}H", stream)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]
