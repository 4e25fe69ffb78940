"""The fixture `in_memory_letta` is there for users' tests, and costs those who do not use it nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from otel_letta import LettaReporter
from otel_letta.testing import InMemoryLetta


def test_the_fixture_is_a_listening_server(in_memory_letta: InMemoryLetta) -> None:
    agent_id = in_memory_letta.create_agent()
    with LettaReporter(base_url=in_memory_letta.base_url, agent_id=agent_id) as reporter:
        reporter.send_progress_report_sync("chat-1", "msg-1", "done", 1.0, "completed")
    assert [report["status"] for report in in_memory_letta.reports(agent_id)] == ["completed"]


THEIRS = """
import sys
import pytest

def test_a_project_that_does_not_use_it_loads_neither_server_nor_client_nor_command():
    heavy = {"httpx", "click", "rich", "otel_letta.testing.server", "otel_letta.letta.rest", "http.server"}
    assert heavy.isdisjoint(sys.modules), heavy.intersection(sys.modules)

def get(url):
    import httpx
    return httpx.get(url + "/v1/health/")

urls = []

def test_it_listens(in_memory_letta):
    urls.append(in_memory_letta.base_url)
    assert get(urls[0]).status_code == 200

def test_it_is_closed_after_its_test():
    with pytest.raises(Exception, match="refused"):
        get(urls[0])

def test_each_test_has_its_own(in_memory_letta):
    assert in_memory_letta.requests == []
"""


def test_pytest_finds_the_plugin_by_itself_and_it_costs_nothing_unused(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    # anyio's and respx's own pytest plugins load httpx, which would hide that ours does not.
    others = [option for name in ("anyio", "respx", "hypothesispytest") for option in ("-p", f"no:{name}")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *others],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_entry_point_names_the_plugin() -> None:
    (found,) = (point for point in entry_points(group="pytest11") if point.name == "otel_letta")
    assert found.value == "otel_letta.testing.pytest_plugin"
