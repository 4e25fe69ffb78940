"""Real agent frameworks, and what a Letta agent hears of them through `LettaSpanProcessor`::

    python -m pytest -m agents                                                  # all of them
    python -m pytest -m agents -k "langchain and llm_error"
    python -m tests.support.agent_frameworks run langchain.openinference        # look at one

The first run fills a cache from PyPI (see `tests.support.agent_frameworks`), later ones need no network. Each test has
the id ``FRAMEWORK.INSTRUMENTATION-SCENARIO``; all scenarios of one instrumentation run in one process, once.

The scripted agent uses two tools, ``search_docs`` and ``send_report``, and answers. In the other scenarios
``send_report`` raises and the model is told (``tool_error_recovered``) or nobody catches it (``tool_error_uncaught``),
the model answers the second question with HTTP 500 (``llm_error``), or the run is cancelled while it waits for that
answer (``cancelled``).
"""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from tests.support.agent_frameworks import INTEGRATIONS, Play, play
from tests.support.scripted_openai import MARKER

RUNS = [
    pytest.param(name, scenario, id=f"{name}-{scenario}")
    for name, integration in INTEGRATIONS.items()
    for scenario in integration.scenarios
]


@functools.cache
def played(name: str) -> Play:
    return play(INTEGRATIONS[name])


@pytest.fixture(autouse=True)
def a_second_try_plays_again(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "execution_count", 1) > 1:
        played.cache_clear()


def agent_of(scenario: str) -> str:
    return f"reporter_{scenario}"


def told_of(play: Play, scenario: str) -> list[dict[str, Any]]:
    """The reports of the run's task, oldest first."""
    ids = {report["task_id"] for report in play.reports if report["task"] == agent_of(scenario)}
    assert len(ids) == 1, f"{len(ids)} tasks have that name{play.story(scenario)}"
    return [report for report in play.reports if report["task_id"] in ids]


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_each_run_is_one_task_and_nothing_else_is(name: str) -> None:
    play = played(name)
    last_names = {report["task_id"]: report["task"] for report in play.reports}
    runs = [agent_of(scenario) for scenario in play.integration.scenarios]
    assert sorted(last_names.values()) == sorted(runs), play.story()


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_a_task_starts_once_and_ends_once_as_the_run_did(name: str, scenario: str) -> None:
    play = played(name)
    told = told_of(play, scenario)
    story = play.story(scenario)
    agent = agent_of(scenario)

    outcome = play.outcomes[scenario]
    answered = scenario in ("success", "tool_error_recovered")
    assert (outcome["outcome"] == "answered") == answered, f"the scenario went wrong: {outcome}"

    starts = [report["content"].startswith("Started") for report in told]
    assert not any(starts[1:]), story
    assert starts[0] or not play.integration.known_from_the_start, story
    assert [report["status"] != "in_progress" for report in told] == [False] * (len(told) - 1) + [True], story
    end = told[-1]
    assert end["status"] == ("completed" if answered else "failed"), story
    assert end["task"] == agent
    if answered:
        assert end["content"].startswith(f"Finished '{agent}' in "), story
        assert f", {play.integration.tools} tools" in end["content"], story
        assert end["content"].endswith(", 1 problem") == (scenario == "tool_error_recovered"), story
    else:
        ways = ("failed: ", "stopped: ", *(["was cancelled"] if scenario == "cancelled" else []))
        assert end["content"].startswith(tuple(f"'{agent}' {way}" for way in ways)), story
        assert "\n" not in end["content"], story
        assert len(end["content"]) < 300, story


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_the_end_of_a_failed_task_says_why(name: str, scenario: str) -> None:
    play = played(name)
    reason = {
        "tool_error_uncaught": "the mail server refused it",
        "llm_error": "the model is on strike",
        "cancelled": play.integration.reason_for_cancelled,
    }.get(scenario)
    end = told_of(play, scenario)[-1]
    if reason is None:
        assert "error" not in end, play.story(scenario)
    else:
        assert reason in end["error"], play.story(scenario)
        assert end["error"].count("Refused") <= 1, "a type is said once"


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_tools_are_told_while_the_agent_goes_on(name: str, scenario: str) -> None:
    play = played(name)
    task = told_of(play, scenario)[-1]["task_id"]
    live = [report["content"] for report in play.live[scenario] if report["task_id"] == task]
    story = play.story(scenario)
    assert any(text.startswith("Used tool search_docs") for text in live), story
    if scenario == "success":
        assert any("tool send_report (" in text for text in live), story
    if scenario == "tool_error_recovered":
        assert any(text.startswith("Tool send_report failed") for text in live), story


@pytest.mark.parametrize(("name", "scenario"), RUNS)
def test_reports_carry_the_conversation_of_the_run(name: str, scenario: str) -> None:
    play = played(name)
    told = told_of(play, scenario)
    traces = {span["trace"] for span in play.spans if agent_of(scenario) in span["name"] + str(span["attributes"])}
    expected = {f"conversation-{scenario}"} if play.integration.chat else traces
    first = 0 if play.integration.chat_from_the_start else 1
    assert {report["chat_id"] for report in told[first:]} == expected, play.story(scenario)


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_no_prompt_argument_result_or_answer_is_sent(name: str) -> None:
    play = played(name)
    sent = [(request.path, request.query, request.headers, request.body) for request in play.requests]
    assert MARKER not in json.dumps(sent).lower(), "content was sent"
    # There was something to leave out.
    for text in ("prompt", "query", "found", "report"):
        assert any(f"{MARKER}-{text}" in body for body in play.asked), text
    if play.integration.records_content:
        for text in ("prompt", "query", "found", "answer"):
            assert any(f"{MARKER}-{text}" in json.dumps(span) for span in play.spans), text
