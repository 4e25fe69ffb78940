"""smolagents, instrumented by OpenInference. Errors of its tools never get past the agent."""

from openinference.instrumentation.smolagents import SmolagentsInstrumentor
from scenarios import PROMPT, Scenario, add_letta, interrupt_in_between, play, report_sender, search_docs
from smolagents import OpenAIModel, ToolCallingAgent, tool

provider = add_letta()
SmolagentsInstrumentor().instrument(tracer_provider=provider)


def run(scenario: Scenario) -> object:
    # The decorator reads the source of what it is given, which has to be a function at the top of a module.
    agent = ToolCallingAgent(
        tools=[tool(search_docs), tool(report_sender(scenario))],
        model=OpenAIModel(scenario.model, client_kwargs={"max_retries": 0}),
        name=scenario.agent,
        description="Writes reports.",
        verbosity_level=0,
    )
    interrupt_in_between(scenario, agent.interrupt)
    return agent.run(PROMPT)


play(provider, run)
