"""CrewAI, instrumented by OpenInference. Errors of its tools never get past the agent."""

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool
from openinference.instrumentation.crewai import CrewAIInstrumentor
from scenarios import INSTRUCTIONS, PROMPT, Scenario, add_letta, play, report_sender, search_docs

provider = add_letta()
CrewAIInstrumentor().instrument(tracer_provider=provider)


def run(scenario: Scenario) -> object:
    agent = Agent(
        role=scenario.agent,
        goal=PROMPT,
        backstory=INSTRUCTIONS,
        llm=LLM(model=scenario.model, provider="openai", max_retries=0),
        tools=[tool("search_docs")(search_docs), tool("send_report")(report_sender(scenario))],
        max_retry_limit=0,
        verbose=False,
    )
    task = Task(description=PROMPT, expected_output="a report", agent=agent)
    return Crew(name=scenario.agent, agents=[agent], tasks=[task], verbose=False).kickoff()


play(provider, run)
