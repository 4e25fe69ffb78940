"""Four containers, each with a temporary folder of its own, that report to one real agent at the same moment."""

from __future__ import annotations

import re

from benchmarks.hosts import round_of
from tests.support.letta_harness import LettaHarness


class _Real:
    """The real server, as the benchmark wants it."""

    def __init__(self, letta: LettaHarness) -> None:
        self.letta = letta
        self.base_url = letta.base_url
        self.password: str | None = letta.password

    @property
    def turns(self) -> int:
        return len(self.letta.llm.prompts)

    def create_agent(self) -> str:
        return self.letta.create_agent()

    def context(self, agent_id: str) -> list[str]:
        prompt = self.letta.next_prompt(agent_id)
        return ["", *re.findall(r"<task-progress .*?</task-progress>", prompt, re.DOTALL)]


def test_a_real_agent_has_every_end_of_four_containers_once(letta: LettaHarness) -> None:
    # On two cores that twenty programs wanted, a round took 62 s (measured): a flush of a minute was at its end.
    rounds = [round_of(_Real(letta), 4, 60.0, flush=240) for _ in range(3)]
    print(rounds)
    assert [(each["in_context"], each["twice"]) for each in rounds] == [(8, 0)] * 3, rounds
