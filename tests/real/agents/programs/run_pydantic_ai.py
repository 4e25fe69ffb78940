"""Pydantic AI, which traces by itself."""

from openai import AsyncOpenAI
from pydantic_ai import Agent, InstrumentationSettings, ModelRetry
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import (
    INSTRUCTIONS,
    PROMPT,
    Refused,
    Scenario,
    add_letta,
    cancel_in_between,
    play,
    report_sender,
    search_docs,
)


class RefusedForNow(ModelRetry):
    """Pydantic AI's way to tell the model of an error."""

    def __init__(self) -> None:
        super().__init__(str(Refused()))


provider = add_letta()
Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))


async def run(scenario: Scenario) -> object:
    async with AsyncOpenAI(max_retries=0) as client:
        agent = Agent(
            OpenAIChatModel(scenario.model, provider=OpenAIProvider(openai_client=client)),
            name=scenario.agent,
            instructions=INSTRUCTIONS,
            tools=[search_docs, report_sender(scenario, RefusedForNow if scenario.agent_recovers else Refused)],
        )
        result = await cancel_in_between(scenario, agent.run(PROMPT, conversation_id=scenario.conversation))
        return result.output


play(provider, run)
