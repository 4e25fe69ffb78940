"""A program that knows no Letta asks its supervising agent by way of `otel-letta serve`, and waits for what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import Instruction, LettaHeartbeatProcessor, await_instruction, task, wait_for_instruction
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import serving
from tests.support.waiting import until

PATIENCE = 60.0


@pytest.fixture
def service(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent, settings={"delivery": "auto"}) as service:
        yield service


@pytest.fixture
def provider(service: Service) -> Iterator[TracerProvider]:
    provider = TracerProvider(resource=Resource({"service.name": "importer"}), shutdown_on_exit=False)
    provider.add_span_processor(LettaHeartbeatProcessor(f"http://127.0.0.1:{service.options.port}"))
    yield provider
    provider.shutdown()


def asked(letta: InMemoryLetta, agent: str) -> bool:
    return any("waiting" in report for report in letta.reports(agent))


@pytest.mark.parametrize("way", ["blocking", "in a loop"])
@pytest.mark.parametrize("task_id", ["t/1 ü", None])
def test_the_block_in_the_agent_s_answer_reaches_the_program(
    way: str, task_id: str | None, letta: InMemoryLetta, agent: str, provider: TracerProvider
) -> None:
    with task("job", task_id=task_id, tracer=provider.get_tracer("x")) as t:
        context = t.span.get_span_context()
        known = task_id or f"{context.trace_id:032x}-{context.span_id:016x}"
        letta.answer_next(f'<task-instruction task_id="{known}" action="continue">the second</task-instruction>')
        if way == "blocking":
            found = wait_for_instruction(t, PATIENCE, question="which?")
        else:
            found = asyncio.run(await_instruction(t, PATIENCE, question="which?"))
        assert found == Instruction(task_id=known, action="continue", text="the second")
    (asking,) = (report for report in letta.reports(agent) if "waiting" in report)
    assert asking["content"] == "waits for an instruction: which?"


def test_a_call_of_the_agent_s_tool_reaches_the_program(
    letta: InMemoryLetta, agent: str, service: Service, provider: TracerProvider
) -> None:
    with task("job", task_id="t-1", tracer=provider.get_tracer("x")) as t, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(wait_for_instruction, t, PATIENCE, question="which?")
        assert until(lambda: asked(letta, agent), PATIENCE)
        answer = httpx.post(
            f"http://127.0.0.1:{service.options.port}/api/tasks/t-1/instructions",
            json={"action": "reject", "text": "neither"},
            headers={"x-agent-id": agent},
        )
        assert answer.status_code == 200, answer.text
        assert asking.result(PATIENCE) == Instruction(task_id="t-1", action="reject", text="neither")
