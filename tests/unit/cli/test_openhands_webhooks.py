"""`otel-letta openhands-webhooks`: the receiver as a program."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from otel_letta.cli.main import app as cli


def test_the_command_refuses_to_listen_to_everybody_without_a_token() -> None:
    done = CliRunner().invoke(cli(), ["openhands-webhooks", "--host", "0.0.0.0"])
    assert done.exit_code == 2
    assert "set OTEL_LETTA_WEBHOOK_TOKEN" in done.output


def test_a_blank_token_is_none_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_WEBHOOK_TOKEN", " \n")
    assert CliRunner().invoke(cli(), ["openhands-webhooks", "--host", "0.0.0.0"]).exit_code == 2


def test_the_command_names_the_package_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(cli(), ["openhands-webhooks"])
    assert done.exit_code == 1
    assert "pip install 'otel-letta[webhooks]'" in done.output
