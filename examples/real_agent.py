"""An agent (pydantic-ai) whose tools report progress while they work.

    pip install pydantic-ai-slim
    python examples/real_agent.py

The model is scripted, so that this runs without a key: put a real one in its place, "anthropic:claude-sonnet-4-5" for
example. Expect one task with the tools' progress on the board, and the agent's answer as its result. The agent's own
spans (model requests, tool calls) go to your tracing backend, if the provider has one; the Letta agent gets none of
their prompts and answers.
"""

from __future__ import annotations

import asyncio
import time

from _stand_in import letta_agent
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from otel_letta import LettaSpanProcessor, report_progress, task


def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """What a model would decide: look, write, and say so."""
    turn = sum(isinstance(message, ModelResponse) for message in messages)
    return ModelResponse(
        parts=[
            [ToolCallPart("search", {"query": "electric bicycles"})],
            [ToolCallPart("write_report", {"title": "Electric bicycles"})],
            [TextPart("The report on electric bicycles is ready: 3 sources, 5 pages.")],
        ][turn]
    )


researcher = Agent(FunctionModel(script), name="researcher")


@researcher.tool_plain
async def search(query: str) -> list[str]:
    """Search the archive."""
    for found in range(1, 4):
        await asyncio.sleep(0.2)
        report_progress(found / 10, f"{found} sources found")
    return [f"{query} {number}" for number in range(1, 4)]


@researcher.tool_plain
def write_report(title: str) -> str:  # pydantic-ai runs this one on a thread; the task is found there too
    """Write the report."""
    for page in range(1, 6):
        time.sleep(0.2)
        report_progress(0.4 + page / 10, f"{page} of 5 pages written")
    return f"{title}.pdf"


async def main() -> None:
    async with task("Market research", chat_id="chat-9", message_id="msg-1") as t:
        answer = await researcher.run("Write a report on electric bicycles.")
        t.result(answer.output)
        print("The agent says:", answer.output)


if __name__ == "__main__":
    with letta_agent():
        provider = TracerProvider(resource=Resource.create({"service.name": "research"}))
        provider.add_span_processor(LettaSpanProcessor())
        trace.set_tracer_provider(provider)
        Agent.instrument_all()
        asyncio.run(main())
        provider.shutdown()
