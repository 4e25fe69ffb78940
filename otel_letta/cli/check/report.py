"""The test report of ``otel-letta check --send``: the only request that costs the agent a turn."""

from __future__ import annotations

import time

from otel_letta.cli.check.asking import cleaned
from otel_letta.cli.check.findings import Findings
from otel_letta.errors import LettaError
from otel_letta.letta.replies import answer_of
from otel_letta.reporter import LettaReporter
from otel_letta.settings import Settings

_ANSWER_CAP = 400
_CHAT = "otel-letta-check"


def send_test_report(findings: Findings, settings: Settings) -> None:
    """Send a report, which wakes the agent, and find out what it cost."""
    findings.section("Test report")
    began = time.monotonic()
    try:
        with LettaReporter(settings=settings) as reporter, findings.waiting("The agent's turn …"):
            answer = reporter.send_progress_report_sync(
                chat_id=_CHAT,
                message_id=_CHAT,
                content="Test report of otel-letta: reports get through. No action is needed.",
                progress=1.0,
                status="completed",
            )
    except LettaError as error:
        findings.facts["test_report"] = {"delivered": False}
        findings.error(error)
        return
    seconds = time.monotonic() - began
    said = answer_of(settings.agent_id, answer, reasoning=False)
    steps, tokens = (said.usage.get(name) for name in ("step_count", "total_tokens"))
    text = cleaned(settings, said.text, _ANSWER_CAP)
    findings.facts["test_report"] = {
        "delivered": True,
        "seconds": round(seconds, 3),
        "turns": 1,
        "steps": steps,
        "tokens": tokens,
        "answer": text,
    }
    costs = ["1 agent turn"]
    costs += [f"{steps} LLM step{'' if steps == 1 else 's'}"] if steps is not None else []
    costs += [f"{tokens} tokens"] if tokens is not None else []
    findings.good(f"delivered in {seconds:.1f} s; it cost {', '.join(costs)}")
    findings.plain(f"The agent answers: {text}" if text else "The agent answers nothing.")
