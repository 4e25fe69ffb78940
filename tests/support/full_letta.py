"""The in-memory Letta with the routes that only tests of the stand-in itself and Letta's own client ask for."""

from __future__ import annotations

from otel_letta.testing import InMemoryLetta
from otel_letta.testing.api import CORE_BLOCKS, Api, Call, Route, well_formed
from otel_letta.testing.bodies import Answer, invalid, items_of, json_answer, new_block, refused, update_block
from otel_letta.testing.world import Block


class _FullApi(Api):
    def create_agent(self, call: Call) -> Answer:
        body = call.json()
        blocks = [new_block(block) for block in items_of(body, "memory_blocks")]
        agent = self._world.new_agent(str(body.get("name") or "agent"))
        for block in blocks:
            self._world.blocks[block.id] = block
            agent.blocks.append(block)
        return json_answer(agent.row())

    def get_run(self, call: Call) -> Answer:
        run = self._world.runs.get(call.identifier("run_id"))
        if run is None:
            raise refused(404, "Run not found")
        return json_answer(run.row())

    def create_conversation(self, call: Call) -> Answer:
        agent_id = call.request.query.get("agent_id")
        if agent_id is None:
            raise invalid("missing", ("query", "agent_id"), "Field required")
        agent = self._agent_by_id(well_formed("agent_id", agent_id, "query"))
        # The body may be missing; an id in it is ignored, as ids are Letta's to give.
        summary = call.json().get("summary") if call.raw else None
        return json_answer(self._world.new_conversation(agent, summary).row())

    def list_conversations(self, call: Call) -> Answer:
        agent_id = call.request.query.get("agent_id")
        found = [item for item in self._world.conversations.values() if agent_id in (None, item.agent.id)]
        return json_answer([conversation.row() for conversation in found[::-1][: call.page_size()]])

    def _core_block(self, call: Call) -> Block:
        agent, label = self._agent(call), call.parameters["label"]
        block = agent.block(label)
        if block is None:
            raise refused(404, f"No block with label '{label}' found for agent '{agent.id}'")
        return block

    def get_core_block(self, call: Call) -> Answer:
        return json_answer(self._core_block(call).row())

    def patch_core_block(self, call: Call) -> Answer:
        return update_block(self._core_block(call), call.json())

    def detach_block(self, call: Call) -> Answer:
        agent, block = self._agent(call), self._block(call)
        if block in agent.blocks:
            agent.blocks.remove(block)
        return json_answer(agent.row())

    def list_blocks(self, call: Call) -> Answer:
        label = call.request.query.get("label")
        blocks = [block for block in self._world.blocks.values() if label in (None, block.label)]
        return json_answer([block.row() for block in blocks[: call.page_size()]])

    def get_block(self, call: Call) -> Answer:
        return json_answer(self._block(call).row())


_FullApi.routes = (
    *Api.routes,
    Route("GET", "/v1/health", Api.health, public=True),
    Route("GET", "/v1/ready/", Api.health, public=True),
    Route("POST", "/v1/agents/", _FullApi.create_agent),
    Route("GET", CORE_BLOCKS + "/{label}", _FullApi.get_core_block),
    Route("PATCH", CORE_BLOCKS + "/{label}", _FullApi.patch_core_block),
    Route("PATCH", CORE_BLOCKS + "/detach/{block_id}", _FullApi.detach_block),
    Route("GET", "/v1/blocks/", _FullApi.list_blocks),
    Route("GET", "/v1/blocks/{block_id}", _FullApi.get_block),
    Route("GET", "/v1/runs/{run_id}", _FullApi.get_run),
    Route("GET", "/v1/conversations/", _FullApi.list_conversations),
    Route("POST", "/v1/conversations/", _FullApi.create_conversation),
)


class FullLetta(InMemoryLetta):
    _api_type = _FullApi
