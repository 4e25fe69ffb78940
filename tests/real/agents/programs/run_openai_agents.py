"""OpenAI's Agents SDK; instrumented by OpenTelemetry's own package, or by OpenInference's."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    default_tool_error_function,
    function_tool,
    set_trace_processors,
)
from openai import AsyncOpenAI
from scenarios import (
    INSTRUCTIONS,
    PROMPT,
    Scenario,
    add_letta,
    cancel_in_between,
    instrumentation,
    play,
    report_sender,
    search_docs,
)

provider = add_letta()
set_trace_processors([])  # the SDK's own one sends to OpenAI
if instrumentation == "genai":
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
    from opentelemetry.instrumentation.genai.openai_agents import OpenAIAgentsInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=provider)
else:
    from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor
OpenAIAgentsInstrumentor().instrument(tracer_provider=provider)


async def run(scenario: Scenario) -> object:
    async with AsyncOpenAI(max_retries=0) as client:
        agent = Agent(
            name=scenario.agent,
            instructions=INSTRUCTIONS,
            model=OpenAIChatCompletionsModel(model=scenario.model, openai_client=client),
            model_settings=ModelSettings(parallel_tool_calls=False),
            tools=[
                function_tool(search_docs),
                function_tool(
                    report_sender(scenario),
                    failure_error_function=default_tool_error_function if scenario.agent_recovers else None,
                ),
            ],
        )
        config = RunConfig(workflow_name=scenario.agent, group_id=scenario.conversation)
        result = await cancel_in_between(scenario, Runner.run(agent, PROMPT, run_config=config))
        return result.final_output


play(provider, run)
