"""The README's code runs, and what it links to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from otel_letta.settings import VARIABLES
from otel_letta.testing import InMemoryLetta

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- python: (\w+) -->\n```python\n(.*?)```", README, flags=re.DOTALL))


def test_every_keyword_is_its_variable_in_lower_case() -> None:
    for variable in VARIABLES:
        assert variable.env.lower().removeprefix("otel_").removeprefix("letta_") == variable.name


@pytest.mark.parametrize("name", ["configure", "instrument", "reporter"])
def test_a_snippet_runs_by_itself(name: str, tmp_path: Path) -> None:
    run_snippet(BLOCKS[name], tmp_path)


def test_the_first_program_is_whole(tmp_path: Path) -> None:
    (report,) = run_snippet(BLOCKS["configure"], tmp_path)
    assert (report["task"], report["status"], report["chat_id"]) == ("Refactor module", "completed", "chat-123")


def test_one_call_before_it_reports_the_instrumented_task(tmp_path: Path) -> None:
    (report,) = run_snippet(f"import otel_letta; otel_letta.configure()\n{BLOCKS['instrument']}", tmp_path)
    assert (report["status"], report["message_id"], report["result"]) == ("completed", "msg-456", "10 files rewritten")


def test_every_block_is_known_to_a_test() -> None:
    assert set(BLOCKS) == {"configure", "instrument", "reporter"}


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("target", sorted(set(re.findall(r"""(?:\]\(|src="|srcset=")([^)"#]+)""", README))))
def test_what_it_links_to_is_there(target: str) -> None:
    assert target.startswith("https://docs.letta.com") or (ROOT / target).is_file()


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
