"""LangChain's `create_agent`, a LangGraph; instrumented by OpenTelemetry's own package, or by OpenInference's."""

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ToolCallRequest, wrap_tool_call
from langchain.messages import ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from scenarios import (
    INSTRUCTIONS,
    PROMPT,
    Refused,
    Scenario,
    add_letta,
    cancel_in_between,
    instrumentation,
    play,
    report_sender,
    search_docs,
)

provider = add_letta()
if instrumentation == "genai":
    from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor
else:
    from openinference.instrumentation.langchain import LangChainInstrumentor
LangChainInstrumentor().instrument(tracer_provider=provider)


@wrap_tool_call
async def tell_the_model(request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]) -> Any:
    try:
        return await handler(request)
    except Refused as error:
        return ToolMessage(content=str(error), tool_call_id=request.tool_call["id"], status="error")


async def run(scenario: Scenario) -> object:
    agent = create_agent(
        ChatOpenAI(model=scenario.model, max_retries=0),
        tools=[tool(search_docs), tool(report_sender(scenario))],
        system_prompt=INSTRUCTIONS,
        middleware=[tell_the_model] if scenario.agent_recovers else [],
        name=scenario.agent,
    )
    # The two instrumentations read the conversation from different places.
    config = {
        "configurable": {"thread_id": scenario.conversation},
        "metadata": {"session_id": scenario.conversation},
    }
    messages = {"messages": [{"role": "user", "content": PROMPT}]}
    result = await cancel_in_between(scenario, agent.ainvoke(messages, config))
    return result["messages"][-1].content


play(provider, run)
