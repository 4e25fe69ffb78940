"""`otel-letta init` against the real servers: a first agent is made, and it gets a report."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from dotenv import dotenv_values

from otel_letta.cli.main import app
from tests.support.either import Either, EitherAppServer, EitherRest
from tests.support.program import told_in

pytestmark = pytest.mark.letta


@pytest.fixture(params=["rest", "app-server"])
def server(request: pytest.FixtureRequest) -> Either:
    if request.param == "rest":
        return EitherRest(request.getfixturevalue("letta"))
    return EitherAppServer(request.getfixturevalue("app_server"))


def test_it_makes_an_agent_with_the_servers_first_model_and_sends_it_a_report(server: Either, tmp_path: Path) -> None:
    flags = ["--base-url", server.base_url, "--new-agent", "newcomer", "--yes"]
    if server.password:
        flags += ["--password", server.password]
    result = CliRunner().invoke(app(), ["init", *flags])
    assert result.exit_code == 0, result.output
    written = dotenv_values(tmp_path / ".env")
    agent = written["LETTA_AGENT_ID"]
    assert agent is not None
    assert 'agent "newcomer" made' in result.output
    told = [report for text in server.heard(agent) for report in told_in(text)]
    assert [report["status"] for report in told] == ["completed"]
