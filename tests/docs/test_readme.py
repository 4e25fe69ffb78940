"""The README's code runs, and its table of settings is the one that the code follows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from otel_letta.settings import VARIABLES
from otel_letta.testing import InMemoryLetta
from tests.support.settings import documented

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- python: (\w+) -->\n```python\n(.*?)```", README, flags=re.DOTALL))


def test_the_table_of_settings_is_the_one_that_the_code_follows() -> None:
    table = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert table == f"| variable | default | meaning |\n| --- | --- | --- |\n{documented(VARIABLES, 'help')}"


def test_every_keyword_is_its_variable_in_lower_case() -> None:
    for variable in VARIABLES:
        assert variable.env.lower().removeprefix("otel_").removeprefix("letta_") == variable.name


@pytest.mark.parametrize("name", ["instrument", "reporter", "testing"])
def test_a_snippet_runs_by_itself(name: str, tmp_path: Path) -> None:
    run_snippet(BLOCKS[name], tmp_path)


@pytest.mark.parametrize("name", ["live", "exporter", "beside"])
def test_a_provider_of_the_readme_reports_the_instrumented_task(name: str, tmp_path: Path) -> None:
    code = BLOCKS[name] + "\n" + BLOCKS["instrument"] + "\nprovider.shutdown()\n"
    reports = run_snippet(code, tmp_path)
    assert [(r["status"], r["chat_id"], r["message_id"], r["result"]) for r in reports] == [
        ("completed", "chat-123", "msg-456", "10 files rewritten")
    ]


def test_the_helpers_of_the_readme_report_two_tasks(tmp_path: Path) -> None:
    reports = run_snippet(BLOCKS["live"] + "\n" + BLOCKS["helpers"] + "\nprovider.shutdown()\n", tmp_path)
    assert sorted((r["task"], r["status"], r["chat_id"]) for r in reports) == [
        ("Import sales", "completed", "chat-124"),
        ("Refactor module", "completed", "chat-123"),
    ]


def run_snippet(code: str, folder: Path) -> list[dict[str, object]]:
    """Run the code as a program of its own, with a stand-in server in its environment; returns what was received."""
    with InMemoryLetta(password="secret") as letta, InMemoryLetta() as no_backend:
        agent_id = letta.create_agent()
        (folder / ".env").write_text(
            f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent_id}\nLETTA_PASSWORD=secret\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                "PATH": "",
                "OTEL_EXPORTER_OTLP_ENDPOINT": no_backend.base_url,
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            },
        )
        assert done.returncode == 0, done.stderr
        return letta.reports(agent_id)
