"""Findings without a terminal: they need neither click nor rich, and what programs read is what people see."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from otel_letta.cli.check.findings import Finding, Findings, Line, Mark, Section, SettingsRead, Waiting, explained
from otel_letta.cli.check.probe import probe
from otel_letta.cli.check.show import as_json
from otel_letta.errors import LettaConfigurationError, LettaConnectionError, LettaError, LettaRateLimitError
from otel_letta.testing import InMemoryLetta


def test_a_report_that_would_get_through_has_no_problem(letta: InMemoryLetta, agent_id: str) -> None:
    findings = Findings()
    probe(findings, None, send=False)
    assert findings.problems == []
    assert findings.facts["agent"] == {"id": agent_id, "name": "assistant", "model": None}
    assert Line(Mark.GOOD, 'agent "assistant"') in findings.lines


def test_each_is_passed_on_when_it_is_found(letta: InMemoryLetta, agent_id: str) -> None:
    found: list[Finding] = []
    findings = Findings(found.append)
    probe(findings, None, send=True)
    assert isinstance(found[0], SettingsRead)
    assert [each.title for each in found if isinstance(each, Section)] == ["Server", "Delivery", "Test report"]
    assert [each for each in found if isinstance(each, Line)] == findings.lines
    assert [each.reason for each in found if isinstance(each, Waiting)] == ["The agent's turn …", None]


def test_a_wait_is_over_where_it_ends_in_an_error(letta: InMemoryLetta, agent_id: str) -> None:
    found: list[Finding] = []
    letta.model_failure("401")
    probe(Findings(found.append), None, send=True)
    assert [each.reason for each in found if isinstance(each, Waiting)][-1] is None


def test_a_warning_that_is_found_and_logged_is_one() -> None:
    findings = Findings()
    findings.warning("plain http")
    findings.warning("plain http")
    assert findings.of(Mark.WARNING) == [Line(Mark.WARNING, "plain http")]


def test_programs_read_every_subject_also_where_nothing_was_found_out() -> None:
    found = json.loads(as_json(Findings()))
    assert found == {
        "schema": 1,
        "ok": True,
        **dict.fromkeys(("settings", "outbox", "server", "agent", "board", "delivery", "test_report")),
        "problems": [],
        "warnings": [],
        "notes": [],
    }


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (LettaError("It broke", hint="mend it"), "It broke", "mend it"),
        (LettaConfigurationError("X cannot be 1", hint="allowed: 2, 3"), "X cannot be 1", "use 2, 3"),
        (LettaConfigurationError("dotenv_path 'x' cannot be read"), "--env-file 'x' cannot be read", ""),
        (LettaConnectionError("ssl: WRONG_VERSION_NUMBER"), "ssl: WRONG_VERSION_NUMBER", "write http:// in LETTA_BASE"),
        (LettaConnectionError("CERTIFICATE_VERIFY_FAILED"), "CERTIFICATE_VERIFY_FAILED", "SSL_CERT_FILE can name"),
        (LettaRateLimitError(), "limits the rate", "wait, and try again"),
        (LettaError("\x1b[31mred\n"), "red", ""),
    ],
)
def test_an_error_is_explained_by_what_is_wrong_and_a_remedy(error: LettaError, what: str, fix: str) -> None:
    shown = explained(error)
    assert what in shown[0] and fix in shown[1]
    assert all(text.isprintable() for text in shown)


def test_probing_needs_neither_click_nor_rich() -> None:
    code = (
        "import sys; sys.modules['click'] = sys.modules['rich'] = None\n"
        "from otel_letta.cli.check.findings import Findings\n"
        "from otel_letta.cli.check.probe import probe\n"
        "findings = Findings()\n"
        "probe(findings, None, send=False)\n"
        "print(findings.problems[0].text)"
    )
    environ = {**os.environ, "LETTA_BASE_URL": "x"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environ)
    assert done.stdout.startswith("LETTA_BASE_URL from the environment cannot be 'x'"), done.stderr
