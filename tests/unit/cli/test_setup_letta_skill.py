"""`otel-letta setup letta` on an App Server: a skill and a token, where they belong, and nobody else's touched.

With a real App Server: `tests/real/letta/test_real_skill.py`.
"""

from __future__ import annotations

import re
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_letta.cli.main import app
from otel_letta.cli.setup.app_server import AppServerAgent
from otel_letta.cli.setup.steps import Refused, Wishes
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import serving
from tests.support.scripted_app_server import ScriptedAppServer, scripted_app_server
from tests.support.stub_server import INFO

ROOT = Path(__file__).parents[3]
BRIDGE = "http://127.0.0.1:1"
ONE, TWO = "agent-local-1", "agent-local-2"


@pytest.fixture
def server() -> Iterator[ScriptedAppServer]:
    with scripted_app_server() as script:
        script.info = INFO
        script.agent(ONE)
        script.agent(TWO)
        yield script


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the user of this command and of the server, whose PATH has the command of this checkout."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    command = tmp_path / "bin dir" / "otel-letta"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m otel_letta "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("sender-token\n")
    return path


@pytest.fixture
def skill(home: Path) -> Path:
    return home / ".letta" / "skills" / "otel-letta-tasks" / "SKILL.md"


def setup(server: ScriptedAppServer, *flags: str | Path, agent: str = ONE, url: str = BRIDGE) -> Result:
    arguments = ["setup", "letta", "--url", url, *map(str, flags)]
    result = CliRunner().invoke(app(), arguments, env={"LETTA_BASE_URL": server.url, "LETTA_AGENT_ID": agent})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def own(home: Path, agent: str = ONE) -> Path:
    return home / ".letta" / "otel-letta" / f"{agent}.token"


def files(home: Path) -> dict[str, str]:
    return {str(path.relative_to(home)): path.read_text() for path in home.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_write_the_skill_is_shown_and_nothing_is_written(
    server: ScriptedAppServer, home: Path, skill: Path, tokens: Path
) -> None:
    result = setup(server, "--token-file", tokens)
    assert result.exit_code == 0
    assert "App Server 0.34.12" in result.output
    assert str(skill) in result.output
    assert "\nname: otel-letta-tasks\n" in result.stdout
    assert files(home) == {}
    assert tokens.read_text() == "sender-token\n"


def test_writing_makes_a_skill_that_a_server_can_read_and_a_token_beside_the_skills(
    server: ScriptedAppServer, home: Path, skill: Path, tokens: Path
) -> None:
    setup(server, "--token-file", tokens, "--write")
    token = own(home).read_text().strip()
    assert tokens.read_text() == f"sender-token\n{token} agent={ONE}\n"
    assert (mode(own(home)), mode(own(home).parent)) == (0o600, 0o700)
    text = skill.read_text()
    assert token not in text
    _, front, body = text.split("---\n", 2)
    values = dict(line.split(": ", 1) for line in front.splitlines())
    assert values["name"] == skill.parent.name  # as the format asks (agentskills.io)
    assert 0 < len(values["description"]) <= 1024
    assert "@" not in body
    assert set(files(home)) == {str(path.relative_to(home)) for path in (skill, own(home))}

    before = files(home)
    again = setup(server, "--token-file", tokens, "--write")
    assert "nothing is to be done" in again.output
    assert token not in again.output
    assert files(home) == before


def test_the_commands_of_a_skill_survive_a_shell_whatever_the_paths_are(
    server: ScriptedAppServer, home: Path, skill: Path, tokens: Path
) -> None:
    folder = home / "it's $HOME"
    setup(server, "--token-file", tokens, "--skills", folder / "skills", "--write")
    lines = re.findall(
        r"^.* --json .*$", (folder / "skills" / "otel-letta-tasks" / "SKILL.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 5
    for line in lines:
        command, tasks, *rest = shlex.split(line)
        assert Path(command).name == "otel-letta"
        assert tasks == "tasks"
        assert rest[-1] == f"{folder.resolve()}/otel-letta/$LETTA_AGENT_ID.token"


def test_the_first_command_is_tried_as_the_agent_would_run_it(
    server: ScriptedAppServer, letta: InMemoryLetta, agent: str, tokens: Path
) -> None:
    with serving(letta.base_url, agent, token_file=tokens) as service:
        url = f"http://127.0.0.1:{service.options.port}"
        tried = setup(server, "--token-file", tokens, "--write", url=url)
        assert tried.exit_code == 0, tried.output
        assert "the bridge answers" in tried.output
    gone = setup(server, "--token-file", tokens, "--write", url=url)
    assert gone.exit_code == 1
    assert "Nothing listens" in gone.output
    assert "set up all the same" in gone.output


def test_each_agent_has_a_token_of_its_own_and_the_skill_goes_with_the_last(
    server: ScriptedAppServer, home: Path, skill: Path, tokens: Path
) -> None:
    for agent in (ONE, TWO):
        setup(server, "--token-file", tokens, "--write", agent=agent)
    assert own(home).read_text() != own(home, TWO).read_text()
    kept = own(home, TWO).read_text().strip()

    assert setup(server, "--token-file", tokens, "--remove").exit_code == 0
    assert tokens.read_text() == f"sender-token\n{kept} agent={TWO}\n"
    assert set(files(home)) == {str(path.relative_to(home)) for path in (skill, own(home, TWO))}
    assert setup(server, "--token-file", tokens, "--remove", agent=TWO).exit_code == 0
    assert files(home) == {}
    assert not skill.parent.exists()
    assert not own(home).parent.exists()
    assert tokens.read_text() == "sender-token\n"
    assert "nothing is to be done" in setup(server, "--token-file", tokens, "--remove").output


def test_what_is_not_ours_stays(server: ScriptedAppServer, home: Path, skill: Path, tokens: Path) -> None:
    skill.parent.mkdir(parents=True)
    skill.write_text("---\nname: otel-letta-tasks\ndescription: mine\n---\n")
    before = files(home)
    refused = setup(server, "--token-file", tokens, "--write")
    assert refused.exit_code == 1
    assert "not ours" in refused.output
    assert "Nothing was changed" in refused.output
    assert setup(server, "--token-file", tokens, "--remove").exit_code == 0
    assert files(home) == before
    assert tokens.read_text() == "sender-token\n"


def test_a_file_that_a_person_put_beside_ours_stays(
    server: ScriptedAppServer, home: Path, skill: Path, tokens: Path
) -> None:
    setup(server, "--token-file", tokens, "--write")
    notes = [skill.with_name("notes.md"), own(home).with_name("notes")]
    for path in notes:
        path.write_text("mine")
    setup(server, "--token-file", tokens, "--remove")
    assert set(files(home)) == {str(path.relative_to(home)) for path in notes}


def test_where_the_last_token_goes_it_is_said_that_a_running_bridge_keeps_it(
    server: ScriptedAppServer, tmp_path: Path
) -> None:
    file = tmp_path / "agents"
    setup(server, "--token-file", file, "--write")
    assert mode(file) == 0o600
    said = setup(server, "--token-file", file, "--remove").stderr
    assert "until it starts again" in said
    assert file.read_text() == ""


@pytest.mark.parametrize("agent", ["../../x", "a/b", "..", "a b", "ü", "x" * 101])
def test_an_id_that_would_lead_elsewhere_is_refused(agent: str, home: Path) -> None:
    settings = Settings.resolve(environ={}, base_url="ws://127.0.0.1:1", agent_id=agent)
    with pytest.raises(Refused):
        AppServerAgent(settings, agent, Wishes(BRIDGE, None, None, write=False, remove=False))


def test_a_server_of_another_machine_gets_no_skill_here_unless_a_folder_is_named(home: Path, tmp_path: Path) -> None:
    settings = Settings.resolve(environ={}, base_url="wss://letta.example", agent_id=ONE)
    with pytest.raises(Refused, match="another machine"):
        AppServerAgent(settings, ONE, Wishes(BRIDGE, None, None, write=True, remove=False))
    shown = AppServerAgent(settings, ONE, Wishes(BRIDGE, None, None, write=False, remove=False)).shown()
    assert "tasks list --json" in shown
    mounted = Wishes(BRIDGE, None, tmp_path / "mounted", write=True, remove=False)
    assert AppServerAgent(settings, ONE, mounted).steps()
