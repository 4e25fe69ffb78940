"""Courses of an agent's runs, and the reports that have to come of each, whatever the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.openhands_llm import Step, fail, finish, plan, say, tool

__all__ = ["SCENARIOS", "Scenario"]


@dataclass(frozen=True)
class Scenario:
    """A script for the model, and the end that has to be reported."""

    name: str
    steps: Callable[[str], list[Step]]
    """Given the folder to work in."""
    status: str
    error: str | None = None
    """What the reason begins with."""
    result: str | None = None
    content: str | None = None
    summaries: frozenset[str] = frozenset()
    """Contents that are reported on the way."""
    progress: frozenset[str] = frozenset()
    max_iterations: int = 50
    raises: bool = False
    by_events: bool = True
    """The callback alone knows of it; else only the status shows it."""

    def __str__(self) -> str:
        return self.name


SCENARIOS = [
    Scenario(
        "success with a plan",
        lambda folder: [
            plan("in_progress", "todo"),
            tool("file_editor", command="create", path=f"{folder}/a.py", file_text="print(1)\n", summary="create a.py"),
            plan("done", "in_progress"),
            tool("terminal", command=f"python3 {folder}/a.py", summary="run a.py"),
            plan("done", "done"),
            finish("a.py prints 1."),
        ],
        "completed",
        result="a.py prints 1.",
        summaries=frozenset({"create a.py", "run a.py"}),
        progress=frozenset({"50%"}),
    ),
    Scenario(
        "an end by text",
        lambda folder: [say("Which file do you mean?")],
        "completed",
        result="Which file do you mean?",
        content="Ended with a message: it may be a question",
    ),
    Scenario("LLM 500", lambda folder: [fail(500)], "failed", error="LLMServiceUnavailableError", raises=True),
    Scenario("LLM 401", lambda folder: [fail(401)], "failed", error="LLMAuthenticationError", raises=True),
    Scenario(
        "a tool error that is recovered from",
        lambda folder: [
            tool("no_such_tool"),
            tool("file_editor", command="view", path=f"{folder}/absent", summary="look at absent"),
            finish("Recovered."),
        ],
        "completed",
        result="Recovered.",
        summaries=frozenset({"look at absent"}),
    ),
    Scenario(
        "a tool that crashes until OpenHands is stuck",
        lambda folder: [tool("explode", reason="private", summary="explode")],
        "failed",
        error="stuck",
        summaries=frozenset({"explode"}),
        by_events=False,
    ),
    Scenario(
        "max iterations",
        lambda folder: [tool("terminal", command=f"echo {n}", summary=f"step {n}") for n in range(3)],
        "failed",
        error="MaxIterationsReached",
        max_iterations=2,
    ),
]
