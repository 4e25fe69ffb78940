"""The command where all is well, and as people run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.checking import NO_SUCH_AGENT, PASSWORD, WRONG, check

# -- all is well


def test_it_names_server_version_and_agent_and_exits_0(letta: InMemoryLetta, agent_id: str) -> None:
    result = check()
    assert result.exit_code == 0, result.output
    assert f"Letta REST server 0.16.8 at {letta.base_url}" in result.output
    assert "LETTA_PASSWORD is accepted" in result.output
    assert 'agent "assistant"' in result.output
    assert "A report would get through." in result.output


def test_it_sends_nothing_to_the_agent(letta: InMemoryLetta, agent_id: str) -> None:
    check()
    assert {request.method for request in letta.requests} == {"GET"}
    assert letta.turns == 0


def test_it_shows_where_each_setting_came_from(agent_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LETTA_PASSWORD")
    (tmp_path / ".env").write_text(f"LETTA_PASSWORD='{PASSWORD}'\nOTEL_LETTA_BOARD_LABEL=board\n", encoding="utf-8")
    lines = [line.split() for line in check("--all").output.splitlines()]
    environment, dotenv, defaults = (
        next(i for i, line in enumerate(lines) if line == ["from", *words])
        for words in (["the", "environment"], [str(tmp_path / ".env")], ["the", "defaults"])
    )
    assert environment < lines.index(["LETTA_AGENT_ID", agent_id]) < dotenv
    assert dotenv < lines.index(["LETTA_PASSWORD", "***"]) < defaults
    assert dotenv < lines.index(["OTEL_LETTA_BOARD_LABEL", "board"]) < defaults
    assert defaults < lines.index(["LETTA_API_KEY", "not", "set"])
    assert defaults < lines.index(["OTEL_LETTA_BOARD_INTERVAL", "15", "s"])


def test_switches_are_shown_as_the_environment_spells_them(agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ["OTEL_LETTA_BAGGAGE", "false"] in [line.split() for line in check("--all").output.splitlines()]
    monkeypatch.setenv("OTEL_LETTA_BAGGAGE", "TRUE")
    assert ["OTEL_LETTA_BAGGAGE", "true"] in [line.split() for line in check().output.splitlines()]


def test_another_env_file_can_be_named(
    letta: InMemoryLetta, agent_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("LETTA_PASSWORD", "LETTA_BASE_URL", "LETTA_AGENT_ID"):
        monkeypatch.delenv(name)
    path = tmp_path / "other.env"
    path.write_text(
        f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent_id}\nLETTA_PASSWORD='{PASSWORD}'\n", encoding="utf-8"
    )
    result = check("--env-file", str(path))
    assert result.exit_code == 0, result.output
    assert f"from {path}" in result.output


def test_the_model_is_named_where_the_server_gives_it(letta: InMemoryLetta, agent_id: str) -> None:
    for row in ({"model": "openai/gpt-5"}, {"llm_config": {"handle": "openai/gpt-5", "model": "gpt-5"}}):
        letta.fail_next(200, {"id": agent_id, "name": "assistant", **row}, path=f"{agent_id}$")
        assert 'agent "assistant", model openai/gpt-5' in check().output


def test_a_server_without_a_password_needs_none(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> None:
    with InMemoryLetta() as open_server:
        monkeypatch.setenv("LETTA_BASE_URL", open_server.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", open_server.create_agent())
        result = check()
    assert result.exit_code == 0
    assert "no password needed" in result.output


@pytest.mark.parametrize(
    ("mode", "cost"), [("auto", "1 agent turn"), ("messages", "up to 5 agent turns"), ("board", "no agent turn")]
)
def test_it_shows_what_one_task_costs(agent_id: str, monkeypatch: pytest.MonkeyPatch, mode: str, cost: str) -> None:
    monkeypatch.setenv("OTEL_LETTA_DELIVERY", mode)
    result = check()
    assert result.exit_code == 0
    assert f"{mode}: " in result.output
    assert f"One task costs {cost} " in result.output


def test_programs_read_the_same_as_json(letta: InMemoryLetta, agent_id: str) -> None:
    found = json.loads(check("--json").output)
    assert found["ok"] is True
    assert found["problems"] == found["warnings"] == []
    assert found["settings"]["LETTA_PASSWORD"] == {"value": "***", "source": "environment"}
    assert found["settings"]["LETTA_API_KEY"] == {"value": None, "source": "default"}
    assert found["server"] == {
        "flavour": "rest",
        "version": "0.16.8",
        "url": letta.base_url,
        "credentials": "accepted",
    }
    assert found["agent"] == {"id": agent_id, "name": "assistant", "model": None}
    assert found["board"] == {"possible": True, "label": "task_progress", "state": "new"}
    assert found["delivery"] == {"mode": "auto", "turns_per_task_at_most": 1, "turns_per_hour_at_most": 60}
    assert found["test_report"] is None


# -- as people run it


def run(*arguments: str, code: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "otel_letta"] if code is None else [sys.executable, "-c", code]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**kept, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8", **environ},
    )


def test_the_module_is_the_command(agent_id: str) -> None:
    done = run("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert PASSWORD not in done.stdout and "\x1b" not in done.stdout
    refused = run("check", LETTA_PASSWORD=WRONG)
    assert refused.returncode == 1
    assert WRONG not in refused.stdout + refused.stderr


def test_a_line_is_not_broken_in_a_pipe_and_never_too_long_on_a_terminal(agent_id: str) -> None:
    piped = run("check", LETTA_AGENT_ID=NO_SUCH_AGENT)
    assert sum("Fix:" in line and "(assistant)" in line for line in piped.stdout.splitlines()) == 1
    shown = run("check", LETTA_AGENT_ID=NO_SUCH_AGENT, FORCE_COLOR="1", NO_COLOR="1", COLUMNS="80", TERM="xterm")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown.stdout)
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout).splitlines()) <= 80


def test_an_encoding_without_marks_is_no_traceback(agent_id: str) -> None:
    done = run("check", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "ok LETTA_PASSWORD is accepted" in done.stdout


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    done = run("--version")
    assert done.stdout.strip() == f"otel-letta, version {version('otel-letta')}"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_names_in_one_line_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from otel_letta.cli.main import main; main()"
    done = run(code=code)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "otel-letta needs more libraries: pip install 'otel-letta[cli]'\n"


def test_importing_the_package_loads_neither_click_nor_rich() -> None:
    done = run(code="import sys, otel_letta, otel_letta.cli.main; sys.exit(bool({'click', 'rich'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
