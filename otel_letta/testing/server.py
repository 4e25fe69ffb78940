"""A Letta server in memory, to test an application that reports to a Letta agent. Not for production.

`InMemoryLetta` listens on 127.0.0.1 and answers over real HTTP, so the application under test runs unchanged, with
its own HTTP client, threads and time-outs. The agents' LLM is simulated: each turn answers ``ack 1``, ``ack 2``, …

    from otel_letta.testing import InMemoryLetta

    def test_the_agent_hears_that_the_import_is_done(monkeypatch):
        with InMemoryLetta(password="secret") as letta:
            agent = letta.create_agent("assistant")
            monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
            monkeypatch.setenv("LETTA_PASSWORD", "secret")
            monkeypatch.setenv("LETTA_AGENT_ID", agent)

            my_app.run_import()

            letta.wait_for_messages(agent, 1)
            assert letta.reports(agent)[-1]["status"] == "completed"
            assert letta.turns == 1  # what it would have cost: one LLM turn

What a test can make go wrong:

    letta.fail_next(503, headers={"Retry-After": "1"})       # the next request
    letta.drop_next(after_processing=True, path="/messages")  # the message lands, its answer does not
    letta.refuse(lambda content: "poison" in content)        # 400 for such messages, always
    letta.model_failure("429")                               # the server's LLM fails until recover()
    with letta.hold():                                       # turns that start now wait until the block ends
        ...
    letta.stop_listening(); ...; letta.resume_listening()    # connection refused in between, nothing forgotten

The behaviour follows Letta 0.16.8 as we measured it on a running server (PostgreSQL, no Redis, one worker), its
traps included: two messages sent to one agent at once both answer 200 and one of them is missing from the agent's
next prompt; a client that gives up does not stop its turn; a step that failed leaves nothing behind; block limits are
not enforced. What is not simulated: Redis, /messages/async, archival memory, compaction, tools, the 409 of two
clients that write one block at the same moment (script that with ``fail_next(409, path="/blocks/")``).

Nothing that a client sends is printed or logged.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NoReturn, TypeAlias, get_args
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from xml.etree import ElementTree

__all__ = ["HOLD_LIMIT", "InMemoryLetta", "ModelFailure", "ReceivedMessage", "Request"]

ModelFailure: TypeAlias = Literal["500", "429", "401", "400", "context", "402", "504"]
"""How the server's LLM can fail: by the HTTP status that Letta then answers with, or a full context window.

The first five were measured, 402 (no credits) and 504 (time-out) are read from Letta's source.
"""

HOLD_LIMIT = 60.0
"""Seconds after which a held turn fails by itself: a test that forgets to release shall fail, not hang."""

_HOST = "127.0.0.1"
_VERSION = "0.16.8"
_MASK = "***"
_CREDENTIALS = ("authorization", "x-bare-password")
_DEFAULT_BLOCK_LIMIT = 100_000
_DEFAULT_PAGE = 100
_CLOSE_TIMEOUT = 5.0
_SYSTEM_PROMPT = "You are an agent without a model: every turn ends with an acknowledgement."

_UUID4 = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
# Prefix of an identifier by the name of the path parameter; other parameters (labels) are free text.
_PREFIXES = {"agent_id": "agent", "block_id": "block", "conversation_id": "conv", "run_id": "run"}
_ACTIVE = frozenset({"created", "running"})
_ROLES = ("user", "system", "assistant")

_REPORT = re.compile(
    r"""<task-progress(?:\s+[\w:.-]+=(?:"[^"]*"|'[^']*'))*\s*(?:/>|>.*?</task-progress\s*>)""", re.DOTALL
)


# -- what a test gets to see --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request as it arrived, whether it was then answered, refused or dropped."""

    method: str
    path: str
    """Without the query, as it was sent (not unquoted)."""
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case; credentials are masked."""
    body: Any
    """The decoded JSON, the text if it was none, or None."""
    time: float
    """Arrival in seconds on the clock of `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that a client sent and the server stored."""

    role: str
    content: str
    """Text parts are joined."""
    otid: str | None
    conversation_id: str | None


# -- what the server keeps ----------------------------------------------------------------------------------------


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4()}"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(slots=True)
class _Message:
    role: str
    content: str | list[dict[str, Any]]
    otid: str | None = None
    name: str | None = None
    sender_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    conversation_id: str | None = None
    received: bool = False
    id: str = field(default_factory=lambda: _new_id("message"))
    date: str = field(default_factory=lambda: _now().isoformat(timespec="seconds"))

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content)

    def row(self) -> dict[str, Any]:
        """The message as listings and answers show it."""
        return {
            "id": self.id,
            "date": self.date,
            "name": self.name,
            "message_type": f"{self.role}_message",
            "otid": self.otid,
            "sender_id": self.sender_id,
            "step_id": self.step_id,
            "is_err": None,
            "seq_id": None,
            "run_id": self.run_id,
            "content": self.content,
        }


@dataclass(slots=True)
class _Block:
    label: str
    value: str = ""
    limit: int = _DEFAULT_BLOCK_LIMIT
    description: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    read_only: bool = False
    id: str = field(default_factory=lambda: _new_id("block"))

    def row(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "limit": self.limit,
            "label": self.label,
            "read_only": self.read_only,
            "description": self.description,
            "metadata": copy.deepcopy(self.metadata),
            "hidden": None,
            "tags": [],
            "id": self.id,
        }

    def prompt(self) -> str:
        """The block inside the system prompt: its value goes in raw, nothing is escaped there."""
        return (
            f"<{self.label}>\n<description>{self.description or ''}</description>\n"
            f"<metadata>chars_current={len(self.value)} chars_limit={self.limit}</metadata>\n"
            f"<value>{self.value}</value>\n</{self.label}>"
        )


@dataclass(slots=True)
class _Run:
    agent_id: str
    conversation_id: str | None
    status: str = "created"
    run_type: str = "send_message"
    stop_reason: str | None = None
    id: str = field(default_factory=lambda: _new_id("run"))
    created: datetime = field(default_factory=_now)
    completed: datetime | None = None

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "status": self.status,
            "agent_id": self.agent_id,
            "conversation_id": self.conversation_id,
            "created_at": _iso(self.created),
            "completed_at": _iso(self.completed) if self.completed else None,
            "background": None,
            "metadata": {"run_type": self.run_type},
            "stop_reason": self.stop_reason,
        }


@dataclass(slots=True)
class _Context:
    """An in-context list: which messages the next prompt will hold. ``conversation_id`` None: the agent's own."""

    conversation_id: str | None
    messages: list[_Message]


@dataclass(slots=True)
class _Conversation:
    id: str
    agent: _Agent
    context: _Context
    summary: str | None = None
    created: datetime = field(default_factory=_now)

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "agent_id": self.agent.id,
            "summary": self.summary,
            "created_at": _iso(self.created),
            "in_context_message_ids": [message.id for message in self.context.messages],
        }


@dataclass(slots=True)
class _Agent:
    id: str
    name: str
    context: _Context
    history: list[_Message] = field(default_factory=list)
    """Every message that was ever stored, conversations included."""
    blocks: list[_Block] = field(default_factory=list)
    prompts: list[list[str]] = field(default_factory=list)
    in_flight: int = 0
    in_flight_max: int = 0
    created: datetime = field(default_factory=_now)

    def block(self, label: str) -> _Block | None:
        return next((block for block in self.blocks if block.label == label), None)

    def prompt(self, messages: Iterable[_Message]) -> list[str]:
        """What the LLM is shown: the system prompt with the blocks as they are now, then the other messages."""
        system = "\n\n".join([_SYSTEM_PROMPT, *(block.prompt() for block in self.blocks)])
        _, *others = messages
        return [system, *(message.text for message in others)]

    def row(self) -> dict[str, Any]:
        blocks = [block.row() for block in self.blocks]
        return {
            "id": self.id,
            "name": self.name,
            "agent_type": "letta_v1_agent",
            "system": _SYSTEM_PROMPT,
            "message_ids": [message.id for message in self.context.messages],
            "memory": {"agent_type": "letta_v1_agent", "blocks": blocks, "file_blocks": []},
            "blocks": blocks,
            "tools": [],
            "sources": [],
            "tags": [],
            "created_at": _iso(self.created),
        }


class _World:
    """Everything the server knows. ``changed`` guards all of it and announces each change."""

    def __init__(self, password: str | None, turn_seconds: float) -> None:
        # Re-entrant, so that the predicate of a wait may ask the server whatever a test may ask it.
        self.changed = threading.Condition()
        self.password = password
        self.turn_seconds = turn_seconds
        self.closed = False
        self.turns = 0
        self.requests: list[Request] = []
        self.agents: dict[str, _Agent] = {}
        self.conversations: dict[str, _Conversation] = {}
        self.blocks: dict[str, _Block] = {}
        self.runs: dict[str, _Run] = {}

    def new_agent(self, name: str, agent_id: str | None = None) -> _Agent:
        system = _Message("system", _SYSTEM_PROMPT)
        agent = _Agent(agent_id or _new_id("agent"), name, _Context(None, [system]), history=[system])
        self.agents[agent.id] = agent
        return agent

    def new_conversation(self, agent: _Agent, summary: str | None) -> _Conversation:
        conversation_id = _new_id("conv")
        system = _Message("system", _SYSTEM_PROMPT, conversation_id=conversation_id)
        conversation = _Conversation(conversation_id, agent, _Context(conversation_id, [system]), summary)
        agent.history.append(system)
        self.conversations[conversation_id] = conversation
        return conversation

    def new_run(self, agent: _Agent, conversation_id: str | None) -> _Run:
        run = _Run(agent.id, conversation_id)
        self.runs[run.id] = run
        return run

    def known_agent(self, agent_id: str) -> _Agent:
        """For the observation API: a wrong id there is a mistake in the test, not a 404."""
        try:
            return self.agents[agent_id]
        except KeyError:
            raise LookupError(f"this InMemoryLetta has no agent {agent_id!r}") from None


# -- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """What goes back to the client. ``drop``: nothing does, the connection closes."""

    status: int = 200
    payload: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None
    drop: bool = False


_DROP = _Answer(drop=True)


class _Refused(Exception):
    """Raised anywhere below an endpoint to end the request with this answer."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _json(body: Any, status: int = 200) -> _Answer:
    return _Answer(status, json.dumps(body).encode("ascii"), content_type="application/json")


def _refuse(status: int, detail: str) -> NoReturn:
    raise _Refused(_json({"detail": detail}, status))


def _refuse_invalid(kind: str, loc: tuple[str | int, ...], msg: str, *, examples: list[str] | None = None) -> NoReturn:
    """A 422 as Letta words it: ``detail`` is the text of a Python list, not JSON."""
    body: dict[str, Any] = {"trace_id": "", "detail": repr([{"type": kind, "loc": loc, "msg": msg}])}
    if examples:
        body["examples"] = examples
    raise _Refused(_json(body, 422))


def _scripted_answer(status: int, body: Any, headers: Mapping[str, str] | None) -> _Answer:
    """The answer that a test asked for: JSON for anything but text and bytes, a plausible detail for None."""
    if body is None:
        known = status in set(HTTPStatus)
        body = {"detail": HTTPStatus(status).phrase if known else "scripted failure"}
    if isinstance(body, (str, bytes)):
        payload, content_type = (body.encode() if isinstance(body, str) else body), "text/plain; charset=utf-8"
    else:
        payload, content_type = json.dumps(body).encode("ascii"), "application/json"
    return _Answer(status, payload, dict(headers or {}), content_type)


def _llm_error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "detail": "scripted by InMemoryLetta.model_failure"}}


_MODEL_FAILURES: dict[str, tuple[int, dict[str, Any]]] = {
    "500": (500, _llm_error("llm_error", "An error occurred with the LLM request.")),
    "429": (429, _llm_error("llm_rate_limit", "Rate limit exceeded for LLM model provider.")),
    "401": (401, _llm_error("llm_authentication", "Authentication failed with the LLM model provider.")),
    "400": (400, _llm_error("llm_bad_request", "The request to the LLM model provider was invalid.")),
    "context": (400, {"detail": "CONTEXT_WINDOW_EXCEEDED: scripted by InMemoryLetta.model_failure"}),
    "402": (402, _llm_error("llm_insufficient_credits", "Insufficient credits for the LLM request.")),
    "504": (504, _llm_error("llm_timeout", "The LLM request timed out.")),
}


# -- what a test makes go wrong -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Fault:
    """An answer scripted for the next ``left`` requests that match (None: for all of them)."""

    answer: _Answer
    left: int | None
    method: str | None
    path: re.Pattern[str] | None
    after_processing: bool = False

    def matches(self, method: str, path: str) -> bool:
        return (self.method is None or self.method == method) and (self.path is None or bool(self.path.search(path)))


class _Faults:
    """The scripted mishaps. Guarded by the world's condition, like everything else."""

    def __init__(self) -> None:
        self.scripted: list[_Fault] = []
        self.refusals: list[tuple[Callable[[str], bool], _Answer]] = []
        self.model: str | None = None
        self.model_left: int | None = None
        self.holds: dict[object, str | None] = {}

    def clear(self) -> None:
        """Forget every failure; holds stay, they belong to a ``with`` block."""
        self.scripted.clear()
        self.refusals.clear()
        self.model = self.model_left = None

    def take(self, method: str, path: str) -> _Fault | None:
        """The first fault that matches this request; it counts as used."""
        fault = next((fault for fault in self.scripted if fault.matches(method, path)), None)
        if fault is not None and fault.left is not None:
            fault.left -= 1
            if fault.left <= 0:
                self.scripted.remove(fault)
        return fault

    def refusal_of(self, contents: Iterable[str]) -> _Answer | None:
        for content in contents:
            for predicate, answer in self.refusals:
                if predicate(content):
                    return answer
        return None

    def take_model_failure(self) -> str | None:
        failure = self.model
        if self.model_left is not None:
            self.model_left -= 1
            if self.model_left <= 0:
                self.model = self.model_left = None
        return failure

    def held(self, agent_id: str) -> bool:
        return any(which is None or which == agent_id for which in self.holds.values())


# -- the routes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on its way to an endpoint."""

    request: Request
    raw: bytes
    parameters: Mapping[str, str]
    """Path parameters, unquoted."""

    def identifier(self, name: str) -> str:
        """The path parameter, refused with 422 unless it looks like an id that Letta could have given out."""
        return _well_formed(name, self.parameters[name], "path")

    def flag(self, name: str) -> bool:
        return self.request.query.get(name, "").lower() in ("true", "1", "yes", "on")

    def page_size(self) -> int:
        text = self.request.query.get("limit", str(_DEFAULT_PAGE))
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            _refuse_invalid("int_parsing", ("query", "limit"), "Input should be a valid integer")
        return max(int(text), 0)

    def json(self, *, optional: bool = False) -> dict[str, Any]:
        """The body, which must be a JSON object; ``optional`` lets it be missing altogether."""
        if not self.raw:
            if optional:
                return {}
            _refuse_invalid("missing", ("body",), "Field required")
        try:
            # From the bytes, not from the recorded request: a test may have changed that one.
            body = json.loads(self.raw)
        except (ValueError, RecursionError):
            _refuse_invalid("json_invalid", ("body", 0), "JSON decode error")
        if not isinstance(body, dict):
            _refuse_invalid("model_attributes_type", ("body",), "Input should be a valid dictionary")
        return body


def _well_formed(name: str, value: str, where: str) -> str:
    prefix = _PREFIXES[name]
    if not re.fullmatch(f"{prefix}-{_UUID4}", value):
        message = f"String should match pattern '^{prefix}-{_UUID4}$'"
        example = f"{prefix}-123e4567-e89b-42d3-8456-426614174000"
        _refuse_invalid("string_pattern_mismatch", (where, name), message, examples=[example])
    return value


_Endpoint: TypeAlias = "Callable[[_Api, _Call], _Answer]"


class _Route:
    """One method of one path. ``{parameters}`` in the path stand for one segment each."""

    def __init__(self, method: str, path: str, endpoint: _Endpoint, *, public: bool = False) -> None:
        self.method = method
        self.endpoint = endpoint
        self.public = public
        self._pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

    def match(self, path: str) -> dict[str, str] | None:
        """The path's parameters, unquoted; None when it is another path."""
        found = self._pattern.fullmatch(path)
        return {name: unquote(value) for name, value in found.groupdict().items()} if found else None


class _Api:
    """The endpoints. Each takes a `_Call` and runs with the world's condition held; turns let go of it to wait."""

    def __init__(self, world: _World, faults: _Faults) -> None:
        self._world = world
        self._faults = faults

    def answer(self, request: Request, raw: bytes, credentials: Mapping[str, str]) -> _Answer:
        """From a request to its answer: record it, look for a scripted mishap, else do what Letta would."""
        with self._world.changed:
            self._world.requests.append(request)
            self._world.changed.notify_all()
            fault = self._faults.take(request.method, request.path)
            if fault is not None and not fault.after_processing:
                return fault.answer
            try:
                answer = self._dispatch(request, raw, credentials)
            except _Refused as refused:
                answer = refused.answer
            finally:
                self._world.changed.notify_all()
            return answer if fault is None else fault.answer

    def _dispatch(self, request: Request, raw: bytes, credentials: Mapping[str, str]) -> _Answer:
        matches = [(route, found) for route in _ROUTES if (found := route.match(request.path)) is not None]
        # The password is checked before anything else is said: an outsider learns no route and no redirect.
        if not any(route.public for route, _ in matches) and not self._authorized(credentials):
            _refuse(401, "Unauthorized")
        for route, parameters in matches:
            if route.method == request.method:
                return route.endpoint(self, _Call(request, raw, parameters))
        if matches:
            _refuse(405, "Method Not Allowed")
        other = request.path[:-1] if request.path.endswith("/") else request.path + "/"
        if any(route.match(other) is not None for route in _ROUTES):
            query = "?" + urlencode(request.query) if request.query else ""
            return _Answer(307, headers={"Location": other + query})
        _refuse(404, "Not Found")

    def _authorized(self, credentials: Mapping[str, str]) -> bool:
        password = self._world.password
        return password is None or (
            credentials.get("authorization") == f"Bearer {password}"
            or credentials.get("x-bare-password") == f"password {password}"
        )

    # health

    def health(self, call: _Call) -> _Answer:
        return _json({"version": _VERSION, "status": "ok"})

    # agents

    def _agent(self, call: _Call) -> _Agent:
        return self._agent_by_id(call.identifier("agent_id"))

    def _agent_by_id(self, agent_id: str) -> _Agent:
        agent = self._world.agents.get(agent_id)
        if agent is None:
            _refuse(404, f"Agent with ID {agent_id} not found")
        return agent

    def list_agents(self, call: _Call) -> _Answer:
        name = call.request.query.get("name")
        agents = [agent for agent in self._world.agents.values() if name is None or agent.name == name]
        return _json([agent.row() for agent in agents[::-1][: call.page_size()]])

    def create_agent(self, call: _Call) -> _Answer:
        body = call.json()
        blocks = [_new_block(block) for block in _items(body, "memory_blocks")]
        agent = self._world.new_agent(str(body.get("name") or "agent"))
        for block in blocks:
            self._world.blocks[block.id] = block
            agent.blocks.append(block)
        return _json(agent.row())

    def get_agent(self, call: _Call) -> _Answer:
        return _json(self._agent(call).row())

    # messages

    def list_agent_messages(self, call: _Call) -> _Answer:
        return self._page(call, self._agent(call).history)

    def list_conversation_messages(self, call: _Call) -> _Answer:
        conversation = self._conversation(call)
        rows = [row for row in conversation.agent.history if row.conversation_id == conversation.id]
        return self._page(call, rows)

    def _page(self, call: _Call, history: list[_Message]) -> _Answer:
        """One page. Measured: ``desc``, the default, takes the newest page but lists it oldest first.

        ``after`` and ``before`` mean later and earlier in time under either order, so a client that follows the
        last row of a default page finds nothing more.
        """
        query = call.request.query
        first = self._position(history, query["after"]) + 1 if query.get("after") else 0
        last = self._position(history, query["before"]) if query.get("before") else len(history)
        rows, size = history[first:last], call.page_size()
        page = rows[:size] if query.get("order", "desc") == "asc" else rows[max(len(rows) - size, 0) :]
        return _json([message.row() for message in page])

    def _position(self, history: list[_Message], message_id: str) -> int:
        for position, message in enumerate(history):
            if message.id == message_id:
                return position
        _refuse(404, f"Message with id {message_id} not found")

    def post_agent_messages(self, call: _Call) -> _Answer:
        agent, body = self._agent(call), call.json()
        streaming = bool(body.get("streaming"))
        if streaming and not call.request.headers.get("x-stainless-package-version", "").startswith("1."):
            _refuse(422, "streaming=true is only supported for SDK v1.0+ clients.")
        messages = self._incoming(body, None)
        return self._turn_answer(agent, agent.context, messages, body, streaming)

    def post_conversation_messages(self, call: _Call) -> _Answer:
        conversation, body = self._conversation(call), call.json()
        messages = self._incoming(body, conversation.id)
        streaming = bool(body.get("streaming", True))
        return self._turn_answer(conversation.agent, conversation.context, messages, body, streaming)

    def _incoming(self, body: dict[str, Any], conversation_id: str | None) -> list[_Message]:
        """The request's messages, or the refusal that Letta has for them before any LLM is asked."""
        if (body.get("input") is None) == (body.get("messages") is None):
            _refuse_invalid("value_error", ("body",), "Value error, exactly one of input or messages must be given")
        if body.get("messages") is None:
            items = [{"role": "user", "content": body["input"]}]
        else:
            items = _items(body, "messages")
        messages = [_new_message(item, index, conversation_id) for index, item in enumerate(items)]
        if not messages:
            _refuse(422, "Messages must not be empty")
        if not all(message.text for message in messages):
            _refuse(400, "Message content is empty or invalid")
        refusal = self._faults.refusal_of(message.text for message in messages)
        if refusal is not None:
            raise _Refused(refusal)
        return messages

    def _turn_answer(
        self, agent: _Agent, context: _Context, messages: list[_Message], body: dict[str, Any], streaming: bool
    ) -> _Answer:
        steps = body.get("max_steps", 50)
        if not isinstance(steps, int) or isinstance(steps, bool):
            _refuse_invalid("int_type", ("body", "max_steps"), "Input should be a valid integer")
        if steps <= 0:  # measured for 0: accepted, no LLM call, and the messages are gone
            return _turn_json([], "max_steps", streaming)
        # Measured: such a run never learns that it ended, nor which conversation it belongs to.
        forgotten = context.conversation_id is not None and not streaming
        run = self._world.new_run(agent, None if forgotten else context.conversation_id)
        if context.conversation_id is not None:
            run.run_type = "send_conversation_message"  # the only thing that tells such a run apart (measured)
        outcome = self._take_turn(agent, context, messages, run)
        if not forgotten:
            run.status = "completed" if isinstance(outcome, _Message) else "failed"
            run.stop_reason = "end_turn" if isinstance(outcome, _Message) else "llm_api_error"
            run.completed = _now()
        if isinstance(outcome, _Message):
            return _turn_json([outcome.row()], "end_turn", streaming)
        if self._world.closed:
            return _DROP
        status, error = _MODEL_FAILURES[outcome]
        return _error_stream(error) if streaming else _json(error, status)

    def _take_turn(self, agent: _Agent, context: _Context, messages: list[_Message], run: _Run) -> _Message | str:
        """One LLM turn: the reply, or how the model failed.

        As measured, a turn works on the context as it was when it began and writes that back with its own messages
        at its end. Of two turns at once, the one that ends last therefore erases the other from the context, while
        the history keeps both. A turn that fails stores nothing.
        """
        world, snapshot = self._world, list(context.messages)
        for message in messages:
            message.run_id = run.id
        world.turns += 1
        number = world.turns
        agent.prompts.append(agent.prompt([*snapshot, *messages]))
        failure = self._faults.take_model_failure()
        agent.in_flight += 1
        agent.in_flight_max = max(agent.in_flight_max, agent.in_flight)
        world.changed.notify_all()
        try:
            if not world.changed.wait_for(lambda: world.closed or not self._faults.held(agent.id), HOLD_LIMIT):
                failure = "504"
            if world.turn_seconds > 0:
                world.changed.wait_for(lambda: world.closed, world.turn_seconds)
        finally:
            agent.in_flight -= 1
        if failure is not None or world.closed:
            return failure or "504"
        reply = _Message(
            "assistant",
            f"ack {number}",
            otid=str(uuid.uuid4()),
            run_id=run.id,
            step_id=_new_id("step"),
            conversation_id=context.conversation_id,
        )
        agent.history += [*messages, reply]
        context.messages = [*snapshot, *messages, reply]
        return reply

    # runs

    def list_runs(self, call: _Call) -> _Answer:
        query = call.request.query
        wanted = {name: query[name] for name in ("agent_id", "conversation_id") if name in query}
        runs = [
            run
            for run in self._world.runs.values()
            if all(getattr(run, name) == value for name, value in wanted.items())
            and (run.status in _ACTIVE or not call.flag("active"))
        ]
        ordered = runs if query.get("order", "desc") == "asc" else runs[::-1]
        return _json([run.row() for run in ordered[: call.page_size()]])

    def get_run(self, call: _Call) -> _Answer:
        run = self._world.runs.get(call.identifier("run_id"))
        if run is None:
            _refuse(404, "Run not found")
        return _json(run.row())

    # conversations

    def _conversation(self, call: _Call) -> _Conversation:
        conversation_id = call.identifier("conversation_id")
        conversation = self._world.conversations.get(conversation_id)
        if conversation is None:
            _refuse(404, f"Conversation not found with id='{conversation_id}'")
        return conversation

    def create_conversation(self, call: _Call) -> _Answer:
        agent_id = call.request.query.get("agent_id")
        if agent_id is None:
            _refuse_invalid("missing", ("query", "agent_id"), "Field required")
        agent = self._agent_by_id(_well_formed("agent_id", agent_id, "query"))
        summary = call.json(optional=True).get("summary")  # an id in the body is ignored: ids are Letta's to give
        return _json(self._world.new_conversation(agent, summary).row())

    def list_conversations(self, call: _Call) -> _Answer:
        agent_id = call.request.query.get("agent_id")
        found = [item for item in self._world.conversations.values() if agent_id in (None, item.agent.id)]
        return _json([conversation.row() for conversation in found[::-1][: call.page_size()]])

    def get_conversation(self, call: _Call) -> _Answer:
        return _json(self._conversation(call).row())

    # blocks

    def _block(self, call: _Call) -> _Block:
        block_id = call.identifier("block_id")
        block = self._world.blocks.get(block_id)
        if block is None:
            _refuse(404, f"Block not found with id='{block_id}'")
        return block

    def _core_block(self, call: _Call) -> _Block:
        agent, label = self._agent(call), call.parameters["label"]
        block = agent.block(label)
        if block is None:
            _refuse(404, f"No block with label '{label}' found for agent '{agent.id}'")
        return block

    def list_core_blocks(self, call: _Call) -> _Answer:
        return _json([block.row() for block in self._agent(call).blocks])

    def get_core_block(self, call: _Call) -> _Answer:
        return _json(self._core_block(call).row())

    def patch_core_block(self, call: _Call) -> _Answer:
        return _update_block(self._core_block(call), call.json())

    def attach_block(self, call: _Call) -> _Answer:
        agent, block = self._agent(call), self._block(call)
        holder = agent.block(block.label)
        if holder is None:
            agent.blocks.append(block)
        elif holder is not block:
            _refuse(
                409,
                'duplicate key value violates unique constraint "unique_label_per_agent" '
                f"DETAIL: Key (agent_id, block_label)=({agent.id}, {block.label}) already exists. [SQL: ...]",
            )
        return _json(agent.row())

    def detach_block(self, call: _Call) -> _Answer:
        agent, block = self._agent(call), self._block(call)
        if block in agent.blocks:
            agent.blocks.remove(block)
        return _json(agent.row())

    def list_blocks(self, call: _Call) -> _Answer:
        label = call.request.query.get("label")
        blocks = [block for block in self._world.blocks.values() if label in (None, block.label)]
        return _json([block.row() for block in blocks[: call.page_size()]])

    def create_block(self, call: _Call) -> _Answer:
        block = _new_block(call.json())
        self._world.blocks[block.id] = block
        return _json(block.row())

    def get_block(self, call: _Call) -> _Answer:
        return _json(self._block(call).row())

    def patch_block(self, call: _Call) -> _Answer:
        return _update_block(self._block(call), call.json())

    def delete_block(self, call: _Call) -> _Answer:
        block = self._block(call)
        del self._world.blocks[block.id]
        for agent in self._world.agents.values():
            agent.blocks = [other for other in agent.blocks if other is not block]
        return _json(None)


_CORE_BLOCKS = "/v1/agents/{agent_id}/core-memory/blocks"
_ROUTES = (
    _Route("GET", "/v1/health/", _Api.health, public=True),
    _Route("GET", "/v1/health", _Api.health, public=True),
    _Route("GET", "/v1/ready/", _Api.health, public=True),
    _Route("GET", "/v1/agents/", _Api.list_agents),
    _Route("POST", "/v1/agents/", _Api.create_agent),
    _Route("GET", "/v1/agents/{agent_id}", _Api.get_agent),
    _Route("GET", "/v1/agents/{agent_id}/messages", _Api.list_agent_messages),
    _Route("POST", "/v1/agents/{agent_id}/messages", _Api.post_agent_messages),
    _Route("GET", _CORE_BLOCKS, _Api.list_core_blocks),
    _Route("GET", _CORE_BLOCKS + "/{label}", _Api.get_core_block),
    _Route("PATCH", _CORE_BLOCKS + "/{label}", _Api.patch_core_block),
    _Route("PATCH", _CORE_BLOCKS + "/attach/{block_id}", _Api.attach_block),
    _Route("PATCH", _CORE_BLOCKS + "/detach/{block_id}", _Api.detach_block),
    _Route("GET", "/v1/blocks/", _Api.list_blocks),
    _Route("POST", "/v1/blocks/", _Api.create_block),
    _Route("GET", "/v1/blocks/{block_id}", _Api.get_block),
    _Route("PATCH", "/v1/blocks/{block_id}", _Api.patch_block),
    _Route("DELETE", "/v1/blocks/{block_id}", _Api.delete_block),
    _Route("GET", "/v1/runs/", _Api.list_runs),
    _Route("GET", "/v1/runs/{run_id}", _Api.get_run),
    _Route("GET", "/v1/conversations/", _Api.list_conversations),
    _Route("POST", "/v1/conversations/", _Api.create_conversation),
    _Route("GET", "/v1/conversations/{conversation_id}", _Api.get_conversation),
    _Route("GET", "/v1/conversations/{conversation_id}/messages", _Api.list_conversation_messages),
    _Route("POST", "/v1/conversations/{conversation_id}/messages", _Api.post_conversation_messages),
)


# -- bodies in and out --------------------------------------------------------------------------------------------


def _items(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects in the body; missing or null is empty."""
    items = body.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        _refuse_invalid("list_type", ("body", name), "Input should be a valid list of objects")
    return items


def _new_message(item: dict[str, Any], index: int, conversation_id: str | None) -> _Message:
    where = ("body", "messages", index)
    if item.get("role") not in _ROLES:
        _refuse_invalid("enum", (*where, "role"), "Input should be 'user', 'system' or 'assistant'")
    content = item.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        # A single text part comes back from listings as a plain string.
        content = content[0]["text"] if len(content) == 1 else content
    elif not isinstance(content, str):
        _refuse_invalid("string_type", (*where, "content"), "Input should be a valid string")
    for name in ("otid", "name", "sender_id"):
        if not isinstance(item.get(name), (str, type(None))):
            _refuse_invalid("string_type", (*where, name), "Input should be a valid string")
    return _Message(
        role=item["role"],
        content=content,
        otid=item.get("otid"),
        name=item.get("name"),
        sender_id=item.get("sender_id"),
        conversation_id=conversation_id,
        received=True,
    )


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _turn_json(messages: list[dict[str, Any]], reason: str, streaming: bool) -> _Answer:
    steps = len(messages)
    stop = {"message_type": "stop_reason", "stop_reason": reason}
    usage = {
        "message_type": "usage_statistics",
        "completion_tokens": 3 * steps,
        "prompt_tokens": 10 * steps,
        "total_tokens": 13 * steps,
        "step_count": steps,
    }
    if streaming:
        return _event_stream("".join(f"data: {json.dumps(event)}\n\n" for event in (*messages, stop, usage)))
    return _json({"messages": messages, "stop_reason": stop, "usage": usage, "logprobs": None, "turns": None})


def _error_stream(error: dict[str, Any]) -> _Answer:
    """Measured: once an answer streams, its failure is HTTP 200 with an error event inside."""
    details = error.get("error", {"type": "llm_error", "message": error.get("detail")})
    return _event_stream(f"event: error\ndata: {json.dumps({'message_type': 'error_message', **details})}\n\n")


def _event_stream(events: str) -> _Answer:
    return _Answer(200, f"{events}data: [DONE]\n\n".encode("ascii"), content_type="text/event-stream")


_BLOCK_TYPES: dict[str, type] = {
    "label": str,
    "value": str,
    "limit": int,
    "description": str,
    "metadata": dict,
    "read_only": bool,
}


def _block_fields(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a block that the body sets. As measured: null is an empty value, NUL vanishes, no limit holds."""
    fields = {name: body[name] for name in _BLOCK_TYPES if body.get(name) is not None}
    for name, value in fields.items():
        if type(value) is not _BLOCK_TYPES[name]:
            _refuse_invalid("type_error", ("body", name), f"Input should be a valid {_BLOCK_TYPES[name].__name__}")
    if "value" in body:
        fields["value"] = fields.get("value", "").replace("\0", "")
    return fields


def _new_block(body: dict[str, Any]) -> _Block:
    for name in ("value", "label"):
        if name not in body:
            _refuse_invalid("missing", ("body", name), "Field required")
    fields = _block_fields(body)
    if not fields.get("label"):
        _refuse_invalid("string_type", ("body", "label"), "Input should be a valid string")
    return _Block(**fields)


def _update_block(block: _Block, body: dict[str, Any]) -> _Answer:
    for name, value in _block_fields(body).items():
        setattr(block, name, value)
    return _json(block.row())


# -- HTTP ---------------------------------------------------------------------------------------------------------


class _Connections:
    """The open connections, so that they can be cut, and so that closing can wait for their threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()

    def add(self, connection: socket.socket) -> None:
        with self._changed:
            self._open.add(connection)

    def discard(self, connection: socket.socket) -> None:
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def cut(self) -> None:
        """End them for the client at once; their threads notice when they next read or write."""
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_until_none(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a held turn would block it; InMemoryLetta.close waits, for a bounded time
    request_queue_size = 128

    def __init__(self, port: int, api: _Api, connections: _Connections) -> None:
        self.api = api
        self.connections = connections
        super().__init__((_HOST, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: that one asks the resolver for this host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _HOST, self.server_address[1]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when a client went away; a mistake of ours, or in a test's predicate, shall be seen."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "InMemoryLetta"
    sys_version = ""
    # TCP_NODELAY: head and body leave as two packets, and Nagle's algorithm would hold the second for 40 ms.
    disable_nagle_algorithm = True

    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing that a client sent is written anywhere."""

    def _serve(self) -> None:
        raw = self._read_body()
        if raw is None:
            return
        try:
            target = urlsplit(self.path)
        except ValueError:
            self._send(_json({"detail": "Bad Request"}, 400))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            method=self.command,
            path=target.path,
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            headers={name: _MASK if name in _CREDENTIALS else value for name, value in headers.items()},
            body=_decoded(raw),
            time=time.monotonic(),
        )
        credentials = {name: headers[name] for name in _CREDENTIALS if name in headers}
        self._send(self.server.api.answer(request, raw, credentials))

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _read_body(self) -> bytes | None:
        """The whole body, or None when there is none to trust: the client broke off, or does not say its length."""
        if self.request_version == "HTTP/0.9":  # how http.server reads a request line that was cut short
            self.close_connection = True
            return None
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(_json({"detail": "Length Required"}, 411))
            return None
        length = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch("[0-9]{1,12}", length):
            self.close_connection = True
            self._send(_json({"detail": "Bad Request"}, 400))
            return None
        raw = self.rfile.read(int(length))
        if len(raw) < int(length):
            self.close_connection = True
            return None
        return raw

    def _send(self, answer: _Answer) -> None:
        if answer.drop:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        bodiless = answer.status in (204, 304) or answer.status < 200
        payload = b"" if bodiless else answer.payload
        self.send_response(answer.status)
        headers = {name.title(): value for name, value in answer.headers.items()}
        if answer.content_type and not bodiless:
            headers.setdefault("Content-Type", answer.content_type)
        if not bodiless:
            headers["Content-Length"] = str(len(payload))
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if payload and self.command != "HEAD":
            self.wfile.write(payload)


def _decoded(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")


# -- the server ---------------------------------------------------------------------------------------------------


class InMemoryLetta:
    """A Letta server on 127.0.0.1 for tests: see the module's docstring for how to use it.

    Every method may be called from any thread. The server listens inside its ``with`` block, or from `start` to
    `close`; what it knows outlives both, and stays readable after `close`.

    Args:
        password: what clients must send as ``Authorization: Bearer <password>``. None: none is asked for.
        port: 0 takes a free one. The port stays the same when the server stops listening and resumes.
        turn_seconds: how long each LLM turn takes.
    """

    def __init__(self, password: str | None = None, *, port: int = 0, turn_seconds: float = 0.0) -> None:
        self._world = _World(password, turn_seconds)
        self._faults = _Faults()
        self._api = _Api(self._world, self._faults)
        self._connections = _Connections()
        self._port = port
        self._lifecycle = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._reserved: socket.socket | None = None

    # lifecycle

    def __enter__(self) -> InMemoryLetta:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen. Does nothing when it does already; OSError when the port is taken."""
        with self._lifecycle:
            if self._server is not None:
                return
            self._release_port()
            self._server = _Server(self._port, self._api, self._connections)
            self._port = self._server.server_port
            with self._world.changed:
                self._world.closed = False
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=(0.02,), name="in-memory-letta", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop listening, cut every connection, abandon turns that are still running. May be called twice."""
        with self._lifecycle:
            with self._world.changed:
                self._world.closed = True
                self._world.changed.notify_all()
            self._stop_serving()
            self._release_port()
            self._connections.wait_until_none(_CLOSE_TIMEOUT)

    def stop_listening(self) -> None:
        """Refuse connections and cut the open ones, as if the network went away.

        The server itself goes on: a turn in progress ends and is stored, only its client does not hear of it.
        """
        with self._lifecycle:
            if self._server is not None:
                self._stop_serving()
                self._reserve_port()

    def resume_listening(self) -> None:
        """Accept connections again, on the same port and with everything that was known."""
        self.start()

    def _stop_serving(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._connections.cut()
        self._thread.join(_CLOSE_TIMEOUT)
        self._server = self._thread = None

    def _reserve_port(self) -> None:
        """Keep the port bound without listening: clients are refused, and no other process can take it."""
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind((_HOST, self._port))
        except OSError:  # a courtesy only: without it the port is refused all the same
            reserved.close()
        else:
            self._reserved = reserved

    def _release_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    # settings

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:PORT``, without a trailing slash; RuntimeError before the first `start`."""
        if not self._port:
            raise RuntimeError("InMemoryLetta has no address yet: use it as a context manager, or call start()")
        return f"http://{_HOST}:{self._port}"

    @property
    def password(self) -> str | None:
        """What clients must send; set it to let a test rotate the password."""
        with self._world.changed:
            return self._world.password

    @password.setter
    def password(self, password: str | None) -> None:
        with self._world.changed:
            self._world.password = password

    @property
    def turn_seconds(self) -> float:
        """Seconds that each LLM turn takes; a turn in progress keeps the value it started to wait with."""
        with self._world.changed:
            return self._world.turn_seconds

    @turn_seconds.setter
    def turn_seconds(self, seconds: float) -> None:
        with self._world.changed:
            self._world.turn_seconds = seconds

    def create_agent(self, name: str = "agent", *, agent_id: str | None = None) -> str:
        """A new agent with an empty memory. Returns its id, ``agent-<uuid4>``, which may be chosen."""
        if agent_id is not None and not re.fullmatch(f"agent-{_UUID4}", agent_id):
            raise ValueError(f"not an id that Letta gives to agents (agent-<uuid4>): {agent_id!r}")
        with self._world.changed:
            if agent_id in self._world.agents:
                raise ValueError(f"agent {agent_id!r} exists already")
            return self._world.new_agent(name, agent_id).id

    def create_conversation(self, agent_id: str, summary: str | None = None) -> str:
        """A new conversation with the agent. Returns its id, ``conv-<uuid4>``."""
        with self._world.changed:
            return self._world.new_conversation(self._world.known_agent(agent_id), summary).id

    # what shall go wrong

    def fail_next(
        self,
        status: int,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
        method: str | None = None,
        path: str | None = None,
    ) -> None:
        """Answer the next requests with this status instead of serving them.

        Comes before the password check, as a proxy in front of the server would. Several calls queue up.

        Args:
            body: sent as JSON; str and bytes as they are; None for ``{"detail": "<the status in words>"}``.
            headers: sent too, ``{"Retry-After": "1"}`` for example; they may replace Content-Type.
            times: how many requests, None for all until `recover`.
            method: only requests with this method (upper case).
            path: only requests whose path, without the query, contains a match of this regular expression.
        """
        self._add_fault(_scripted_answer(status, body, headers), times, method, path)

    def drop_next(
        self,
        times: int | None = 1,
        after_processing: bool = False,
        path: str | None = None,
        *,
        method: str | None = None,
    ) -> None:
        """Close the connection of the next requests without an answer.

        With ``after_processing`` the request takes effect first: a message has then landed, and its client cannot
        know. The other arguments are those of `fail_next`.
        """
        self._add_fault(_DROP, times, method, path, after_processing)

    def _add_fault(
        self, answer: _Answer, times: int | None, method: str | None, path: str | None, after_processing: bool = False
    ) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always, not {times}")
        fault = _Fault(answer, times, method, re.compile(path) if path is not None else None, after_processing)
        with self._world.changed:
            self._faults.scripted.append(fault)

    @contextlib.contextmanager
    def hold(self, agent_id: str | None = None) -> Iterator[Callable[[], None]]:
        """Let turns wait inside the ``with`` block, those of one agent or of all; `HOLD_LIMIT` seconds at most.

        Yields a function that releases them earlier. A held turn has begun: it is an active run, it has taken its
        snapshot of the context, and it counts in `turns` and `prompts`.
        """
        token = object()

        def release() -> None:
            with self._world.changed:
                self._faults.holds.pop(token, None)
                self._world.changed.notify_all()

        with self._world.changed:
            self._faults.holds[token] = agent_id
        try:
            yield release
        finally:
            release()

    def refuse(self, predicate: Callable[[str], bool], status: int = 400, body: Any = None) -> None:
        """Refuse, until `recover`, every request with a message whose content the predicate accepts.

        The whole request is refused, before any LLM turn, so the good messages in it do not land either. The
        predicate runs while the server stands still: it must return at once. ``body`` as in `fail_next`; None
        is what Letta says to content that it cannot use.
        """
        if body is None:
            body = {"detail": "Message content is empty or invalid"}
        with self._world.changed:
            self._faults.refusals.append((predicate, _scripted_answer(status, body, None)))

    def model_failure(self, kind: ModelFailure = "500", times: int | None = None) -> None:
        """Let the server's LLM fail in the next ``times`` turns, or in all of them until `recover`.

        The turn counts, since its LLM calls cost money, but leaves no message in the history.
        """
        if kind not in get_args(ModelFailure):
            raise ValueError(f"unknown failure {kind!r}, expected one of {get_args(ModelFailure)}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always, not {times}")
        with self._world.changed:
            self._faults.model, self._faults.model_left = kind, times

    def recover(self) -> None:
        """Forget all scripted failures, drops, refusals and model failures. Held turns stay held."""
        with self._world.changed:
            self._faults.clear()

    # what happened

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their arrival."""
        with self._world.changed:
            return list(self._world.requests)

    @property
    def turns(self) -> int:
        """LLM turns that began, over all agents: what would have cost money."""
        with self._world.changed:
            return self._world.turns

    def in_flight(self, agent_id: str) -> int:
        """Turns of the agent that are being computed now, its conversations' included."""
        with self._world.changed:
            return self._world.known_agent(agent_id).in_flight

    def in_flight_max(self, agent_id: str) -> int:
        """The most turns that the agent ever had in flight at once, its conversations' included."""
        with self._world.changed:
            return self._world.known_agent(agent_id).in_flight_max

    def messages(self, agent_id: str) -> list[ReceivedMessage]:
        """What clients sent and the server stored, in the order of storing, conversations included.

        The agent's replies are not among them. A message here may be missing from the `context`.
        """
        with self._world.changed:
            return [
                ReceivedMessage(message.role, message.text, message.otid, message.conversation_id)
                for message in self._world.known_agent(agent_id).history
                if message.received
            ]

    def context(self, agent_id: str, conversation_id: str | None = None) -> list[str]:
        """What the agent's next prompt would hold before new messages: one text a message, oldest first.

        The first is the system prompt, with the memory blocks in it; replies (``ack 1``) are included.
        """
        with self._world.changed:
            agent = self._world.known_agent(agent_id)
            if conversation_id is None:
                return agent.prompt(agent.context.messages)
            conversation = self._world.conversations.get(conversation_id)
            if conversation is None or conversation.agent is not agent:
                raise LookupError(f"agent {agent_id!r} has no conversation {conversation_id!r}")
            return agent.prompt(conversation.context.messages)

    def prompts(self, agent_id: str) -> list[list[str]]:
        """What each turn of the agent was shown, in the order in which turns began, shaped like `context`."""
        with self._world.changed:
            return [list(prompt) for prompt in self._world.known_agent(agent_id).prompts]

    def board(self, agent_id: str, label: str = "task_progress") -> str | None:
        """The value of the agent's memory block with this label, None when it has no such block."""
        with self._world.changed:
            block = self._world.known_agent(agent_id).block(label)
            return block.value if block is not None else None

    def reports(self, agent_id: str) -> list[dict[str, Any]]:
        """The progress reports in the agent's stored messages, in order.

        Each is the attributes of one ``<task-progress>`` element by their names (all texts), plus ``"content"``
        and ``"result"`` (None when there is none), unescaped. Raises `xml.etree.ElementTree.ParseError` for an
        element that is not well-formed.
        """
        contents = [message.content for message in self.messages(agent_id) if message.role == "user"]
        return [_report(found.group()) for content in contents for found in _REPORT.finditer(content)]

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Wait until the predicate holds, for ``timeout`` seconds at most; says whether it does.

        It is asked again after each change on the server, so it should be about what the server knows. It runs
        while the server stands still: it must return at once.
        """
        with self._world.changed:
            return self._world.changed.wait_for(predicate, timeout)

    def wait_for_messages(self, agent_id: str, n: int, timeout: float = 5.0) -> list[ReceivedMessage]:
        """Wait until at least ``n`` messages are stored and return them all; TimeoutError after ``timeout`` seconds."""
        if not self.wait_for(lambda: len(self.messages(agent_id)) >= n, timeout):
            raise TimeoutError(f"{len(self.messages(agent_id))} of {n} messages arrived within {timeout:g} s")
        return self.messages(agent_id)


def _report(element: str) -> dict[str, Any]:
    root = ElementTree.fromstring(element)  # noqa: S314 (sent on loopback by the application under test)
    return {**root.attrib, "content": (root.text or "").strip(), "result": root.findtext("result")}
