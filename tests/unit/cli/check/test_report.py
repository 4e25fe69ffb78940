"""The test report of ``--send``."""

from __future__ import annotations

import json

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.checking import PASSWORD, check, problems


def test_a_test_report_shows_what_it_cost_and_what_the_agent_answers(letta: InMemoryLetta, agent_id: str) -> None:
    result = check("--send")
    assert result.exit_code == 0, result.output
    assert "it cost 1 agent turn, 1 LLM step, 13 tokens" in result.output
    assert "The agent answers: ack 1" in result.output
    (report,) = letta.reports(agent_id)
    assert (report["status"], report["chat_id"]) == ("completed", "otel-letta-check")
    assert json.loads(check("--send", "--json").output)["test_report"]["answer"] == "ack 2"


def test_no_test_report_is_sent_where_something_is_wrong(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    result = check("--send")
    assert "The test report was not sent." in result.output
    assert letta.turns == 0


def test_a_test_report_that_fails_is_a_problem(letta: InMemoryLetta, agent_id: str) -> None:
    letta.model_failure("401")
    result = check("--send")
    (problem,) = problems(result)
    assert problem.startswith("The Letta server's LLM failed (HTTP 401)")
    assert "your own settings are fine" in problem


def test_a_hostile_answer_reaches_no_terminal(letta: InMemoryLetta, agent_id: str) -> None:
    said = [{"type": "text", "text": f"\x1b]52;c;ZXZpbA==\x07hello\x1b[8m {PASSWORD}"}]
    answer = {"messages": [{"message_type": "assistant_message", "content": said}], "usage": "none"}
    letta.fail_next(200, answer, method="POST")
    result = check("--send")
    assert "The agent answers: hello [redacted]" in result.output
    assert "52;c" not in result.output
