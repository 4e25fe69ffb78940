"""The routes of Letta's REST API that `otel_letta` uses, answered as Letta 0.16.8 was measured to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from urllib.parse import unquote, urlencode

from otel_letta.testing.bodies import (
    DROP,
    Answer,
    Refused,
    error_stream,
    invalid,
    items_of,
    json_answer,
    new_block,
    new_message,
    refused,
    turn_answer,
    update_block,
)
from otel_letta.testing.faults import MODEL_FAILURES, Faults
from otel_letta.testing.script import Script
from otel_letta.testing.world import (
    UUID4,
    Agent,
    Block,
    Context,
    Conversation,
    Message,
    Request,
    Run,
    World,
    now,
)

_VERSION = "0.16.8"
_DEFAULT_PAGE = 100
_PREFIXES = {"agent_id": "agent", "block_id": "block", "conversation_id": "conv", "run_id": "run"}
_ACTIVE = frozenset({"created", "running"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to an endpoint."""

    request: Request
    raw: bytes
    parameters: Mapping[str, str]
    """Path parameters, unquoted."""

    def identifier(self, name: str) -> str:
        """Return the path parameter; refuse with 422 what is no id that Letta could have given out."""
        return well_formed(name, self.parameters[name], "path")

    def flag(self, name: str) -> bool:
        return self.request.query.get(name, "").lower() in ("true", "1", "yes", "on")

    def page_size(self) -> int:
        text = self.request.query.get("limit", str(_DEFAULT_PAGE))
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise invalid("int_parsing", ("query", "limit"), "Input should be a valid integer")
        return max(int(text), 0)

    def json(self) -> dict[str, Any]:
        """Decode the body, which must be a JSON object."""
        if not self.raw:
            raise invalid("missing", ("body",), "Field required")
        try:
            # From the bytes, not from the recorded request: a test may have changed that one.
            body = json.loads(self.raw)
        except (ValueError, RecursionError):
            raise invalid("json_invalid", ("body", 0), "JSON decode error") from None
        if not isinstance(body, dict):
            raise invalid("model_attributes_type", ("body",), "Input should be a valid dictionary")
        return body


def well_formed(name: str, value: str, where: str) -> str:
    prefix = _PREFIXES[name]
    if not re.fullmatch(f"{prefix}-{UUID4}", value):
        message = f"String should match pattern '^{prefix}-{UUID4}$'"
        example = f"{prefix}-123e4567-e89b-42d3-8456-426614174000"
        raise invalid("string_pattern_mismatch", (where, name), message, examples=[example])
    return value


Endpoint: TypeAlias = "Callable[[Any, Call], Answer]"


class Route:
    """One method of one path. ``{parameters}`` in the path stand for one segment each."""

    def __init__(self, method: str, path: str, endpoint: Endpoint, *, public: bool = False) -> None:
        self.method = method
        self.endpoint = endpoint
        self.public = public
        self._pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

    def match(self, path: str) -> dict[str, str] | None:
        """Return the path's parameters, unquoted; None when it is another path."""
        found = self._pattern.fullmatch(path)
        return {name: unquote(value) for name, value in found.groupdict().items()} if found else None


class Api:
    """The endpoints. Each takes a `Call` and runs with the world's condition held; turns let go of it to wait."""

    routes: ClassVar[tuple[Route, ...]]

    def __init__(self, world: World, faults: Faults, script: Script) -> None:
        self._world = world
        self._faults = faults
        self._script = script

    def answer(self, request: Request, raw: bytes, credentials: Mapping[str, str]) -> Answer:
        """Record the request and answer it: with a scripted mishap if there is one, else as Letta would."""
        with self._world.changed:
            self._world.requests.append(request)
            self._world.changed.notify_all()
            fault = self._faults.take(request.method, request.path)
            if fault is not None and not fault.after_processing:
                return fault.answer
            try:
                answer = self._dispatch(request, raw, credentials)
            except Refused as refusal:
                answer = refusal.answer
            finally:
                self._world.changed.notify_all()
            return answer if fault is None else fault.answer

    def _dispatch(self, request: Request, raw: bytes, credentials: Mapping[str, str]) -> Answer:
        matches = [(route, found) for route in self.routes if (found := route.match(request.path)) is not None]
        # The password is checked before anything else is said: an outsider learns no route and no redirect.
        if not any(route.public for route, _ in matches) and not self._authorized(credentials):
            raise refused(401, "Unauthorized")
        for route, parameters in matches:
            if route.method == request.method:
                return route.endpoint(self, Call(request, raw, parameters))
        if matches:
            raise refused(405, "Method Not Allowed")
        other = request.path[:-1] if request.path.endswith("/") else request.path + "/"
        if any(route.match(other) is not None for route in self.routes):
            query = "?" + urlencode(request.query) if request.query else ""
            return Answer(307, headers={"Location": other + query})
        raise refused(404, "Not Found")

    def _authorized(self, credentials: Mapping[str, str]) -> bool:
        password = self._world.password
        return password is None or (
            credentials.get("authorization") == f"Bearer {password}"
            or credentials.get("x-bare-password") == f"password {password}"
        )

    # health

    def health(self, call: Call) -> Answer:
        return json_answer({"version": _VERSION, "status": "ok"})

    # agents

    def _agent(self, call: Call) -> Agent:
        return self._agent_by_id(call.identifier("agent_id"))

    def _agent_by_id(self, agent_id: str) -> Agent:
        agent = self._world.agents.get(agent_id)
        if agent is None:
            raise refused(404, f"Agent with ID {agent_id} not found")
        return agent

    def list_agents(self, call: Call) -> Answer:
        name = call.request.query.get("name")
        agents = [agent for agent in self._world.agents.values() if name is None or agent.name == name]
        return json_answer([agent.row() for agent in agents[::-1][: call.page_size()]])

    def get_agent(self, call: Call) -> Answer:
        return json_answer(self._agent(call).row())

    # messages

    def list_agent_messages(self, call: Call) -> Answer:
        return self._page(call, self._agent(call).history)

    def list_conversation_messages(self, call: Call) -> Answer:
        conversation = self._conversation(call)
        rows = [row for row in conversation.agent.history if row.conversation_id == conversation.id]
        return self._page(call, rows)

    def _page(self, call: Call, history: list[Message]) -> Answer:
        """Return one page. Measured: ``desc``, the default, takes the newest page but lists it oldest first.

        ``after`` and ``before`` mean later and earlier in time under either order, so a client that follows the
        last row of a default page finds nothing more.
        """
        query = call.request.query
        first = self._position(history, query["after"]) + 1 if query.get("after") else 0
        last = self._position(history, query["before"]) if query.get("before") else len(history)
        rows, size = history[first:last], call.page_size()
        page = rows[:size] if query.get("order", "desc") == "asc" else rows[max(len(rows) - size, 0) :]
        return json_answer([message.row() for message in page])

    def _position(self, history: list[Message], message_id: str) -> int:
        for position, message in enumerate(history):
            if message.id == message_id:
                return position
        raise refused(404, f"Message with id {message_id} not found")

    def post_agent_messages(self, call: Call) -> Answer:
        agent, body = self._agent(call), call.json()
        streaming = bool(body.get("streaming"))
        if streaming and not call.request.headers.get("x-stainless-package-version", "").startswith("1."):
            raise refused(422, "streaming=true is only supported for SDK v1.0+ clients.")
        messages = self._incoming(body, None)
        return self._turn_answer(agent, agent.context, messages, body, streaming)

    def post_conversation_messages(self, call: Call) -> Answer:
        conversation, body = self._conversation(call), call.json()
        messages = self._incoming(body, conversation.id)
        streaming = bool(body.get("streaming", True))
        return self._turn_answer(conversation.agent, conversation.context, messages, body, streaming)

    def _incoming(self, body: dict[str, Any], conversation_id: str | None) -> list[Message]:
        """Read the request's messages, or raise the refusal that Letta has for them before any LLM is asked."""
        if (body.get("input") is None) == (body.get("messages") is None):
            raise invalid("value_error", ("body",), "Value error, exactly one of input or messages must be given")
        if body.get("messages") is None:
            items = [{"role": "user", "content": body["input"]}]
        else:
            items = items_of(body, "messages")
        messages = [new_message(item, index, conversation_id) for index, item in enumerate(items)]
        if not messages:
            raise refused(422, "Messages must not be empty")
        if not all(message.text for message in messages):
            raise refused(400, "Message content is empty or invalid")
        refusal = self._faults.refusal_of(message.text for message in messages)
        if refusal is not None:
            raise Refused(refusal)
        return messages

    def _turn_answer(
        self, agent: Agent, context: Context, messages: list[Message], body: dict[str, Any], streaming: bool
    ) -> Answer:
        steps = body.get("max_steps", 50)
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise invalid("int_type", ("body", "max_steps"), "Input should be a valid integer")
        if steps <= 0:  # measured for 0: accepted, no LLM call, and the messages are gone
            return turn_answer([], "max_steps", streaming)
        # Measured: such a run never learns that it ended, nor which conversation it belongs to.
        forgotten = context.conversation_id is not None and not streaming
        snapshot = list(context.messages)
        if self._world.run_delay:
            # Letta reads the agent first, and then makes the run that others can see.
            self._world.changed.wait_for(lambda: self._world.closed, self._world.run_delay)
        run = self._world.new_run(agent, None if forgotten else context.conversation_id)
        if context.conversation_id is not None:
            run.run_type = "send_conversation_message"  # the only thing that tells such a run apart (measured)
        outcome = self._take_turn(agent, context, snapshot, messages, run)
        if not forgotten:
            run.status = "failed" if isinstance(outcome, str) else "completed"
            run.stop_reason = "llm_api_error" if isinstance(outcome, str) else "end_turn"
            run.completed = now()
        if not isinstance(outcome, str):
            return turn_answer([row.row() for row in outcome], "end_turn", streaming)
        if self._world.closed:
            return DROP
        status, error = MODEL_FAILURES[outcome]
        return error_stream(error) if streaming else json_answer(error, status)

    def _take_turn(
        self, agent: Agent, context: Context, snapshot: list[Message], messages: list[Message], run: Run
    ) -> list[Message] | str:
        """Take one LLM turn; return the replies, or how the model failed.

        As measured, a turn works on the context as it was when it began and writes that back with its own messages
        at its end. Of two turns at once, the one that ends last therefore erases the other from the context, while
        the history keeps both. A turn that fails stores nothing.
        """
        world = self._world
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
            if not self._faults.wait_while_held(world, agent.id):
                failure = "504"
            if world.turn_seconds > 0:
                world.changed.wait_for(lambda: world.closed, world.turn_seconds)
        finally:
            agent.in_flight -= 1
        if failure is not None or world.closed:
            return failure or "504"
        replies = self._script.replies(agent.id, number, run.id, context.conversation_id)
        agent.history += [*messages, *replies]
        context.messages = [*snapshot, *messages, *replies]
        if context.compacts:
            context.compacts = False
            context.compact(agent, run.id)
        return replies

    # runs

    def list_runs(self, call: Call) -> Answer:
        query = call.request.query
        wanted = {name: query[name] for name in ("agent_id", "conversation_id") if name in query}
        runs = [
            run
            for run in self._world.runs.values()
            if all(getattr(run, name) == value for name, value in wanted.items())
            and (run.status in _ACTIVE or not call.flag("active"))
        ]
        ordered = runs if query.get("order", "desc") == "asc" else runs[::-1]
        return json_answer([run.row() for run in ordered[: call.page_size()]])

    # conversations

    def _conversation(self, call: Call) -> Conversation:
        conversation_id = call.identifier("conversation_id")
        conversation = self._world.conversations.get(conversation_id)
        if conversation is None:
            raise refused(404, f"Conversation not found with id='{conversation_id}'")
        return conversation

    def get_conversation(self, call: Call) -> Answer:
        return json_answer(self._conversation(call).row())

    # blocks

    def _block(self, call: Call) -> Block:
        block_id = call.identifier("block_id")
        block = self._world.blocks.get(block_id)
        if block is None:
            raise refused(404, f"Block not found with id='{block_id}'")
        return block

    def list_core_blocks(self, call: Call) -> Answer:
        return json_answer([block.row() for block in self._agent(call).blocks])

    def attach_block(self, call: Call) -> Answer:
        agent, block = self._agent(call), self._block(call)
        holder = agent.block(block.label)
        if holder is None:
            agent.blocks.append(block)
        elif holder is not block:
            raise refused(
                409,
                'duplicate key value violates unique constraint "unique_label_per_agent" '
                f"DETAIL: Key (agent_id, block_label)=({agent.id}, {block.label}) already exists. [SQL: ...]",
            )
        return json_answer(agent.row())

    def create_block(self, call: Call) -> Answer:
        block = new_block(call.json())
        self._world.blocks[block.id] = block
        return json_answer(block.row())

    def patch_block(self, call: Call) -> Answer:
        return update_block(self._block(call), call.json())

    def delete_block(self, call: Call) -> Answer:
        block = self._block(call)
        del self._world.blocks[block.id]
        for agent in self._world.agents.values():
            agent.blocks = [other for other in agent.blocks if other is not block]
        return json_answer(None)


CORE_BLOCKS = "/v1/agents/{agent_id}/core-memory/blocks"
Api.routes = (
    Route("GET", "/v1/health/", Api.health, public=True),
    Route("GET", "/v1/agents/", Api.list_agents),
    Route("GET", "/v1/agents/{agent_id}", Api.get_agent),
    Route("GET", "/v1/agents/{agent_id}/messages", Api.list_agent_messages),
    Route("POST", "/v1/agents/{agent_id}/messages", Api.post_agent_messages),
    Route("GET", CORE_BLOCKS, Api.list_core_blocks),
    Route("PATCH", CORE_BLOCKS + "/attach/{block_id}", Api.attach_block),
    Route("POST", "/v1/blocks/", Api.create_block),
    Route("PATCH", "/v1/blocks/{block_id}", Api.patch_block),
    Route("DELETE", "/v1/blocks/{block_id}", Api.delete_block),
    Route("GET", "/v1/runs/", Api.list_runs),
    Route("GET", "/v1/conversations/{conversation_id}", Api.get_conversation),
    Route("GET", "/v1/conversations/{conversation_id}/messages", Api.list_conversation_messages),
    Route("POST", "/v1/conversations/{conversation_id}/messages", Api.post_conversation_messages),
)
