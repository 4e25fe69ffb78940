"""`otel-letta check` as a test runs it. No secret, escape sequence or traceback may ever be in what it prints."""

from __future__ import annotations

from click.testing import CliRunner, Result

from otel_letta.cli.main import app

PASSWORD = "correct-horse-Grüße"
WRONG = "wrong-horse-battery"
NO_SUCH_AGENT = "agent-00000000-0000-4000-8000-000000000000"


def check(*arguments: str) -> Result:
    """Run the command."""
    result = CliRunner().invoke(app(), ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    for secret in (PASSWORD, WRONG):
        assert secret not in result.output
    assert "\x1b" not in result.output
    assert "Traceback" not in result.output
    return result


def problems(result: Result) -> list[str]:
    """Return the problems that it printed, of which there are some."""
    assert result.exit_code == 1, result.output
    return [line.strip().removeprefix("✗ ") for line in result.output.splitlines() if line.strip().startswith("✗")]
