"""`otel-letta init`: from a server to a `.env` that works, asked for or by flags."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dotenv import dotenv_values

from otel_letta.cli.init import command, env_file, servers
from otel_letta.cli.main import app
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from otel_letta.testing.api import Api, Call, Route
from otel_letta.testing.bodies import Answer, json_answer
from tests.support.checking import PASSWORD

MODELS = ["letta/letta-free", "openai/gpt-5", "anthropic/claude"]


class _WithAgents(Api):
    """Letta's routes for making agents, as 0.16.8 answers them."""

    models: list[str] = MODELS

    def list_models(self, call: Call) -> Answer:
        return json_answer([{"handle": handle, "name": handle} for handle in self.models])

    def list_embeddings(self, call: Call) -> Answer:
        return json_answer([{"handle": "openai/embedding"}])

    def create_agent(self, call: Call) -> Answer:
        body = call.json()
        agent = self._world.new_agent(str(body["name"]))
        return json_answer({**agent.row(), "model": body["model"]})


_WithAgents.routes = (
    *Api.routes,
    Route("GET", "/v1/models/", _WithAgents.list_models),
    Route("GET", "/v1/models/embedding", _WithAgents.list_embeddings),
    Route("POST", "/v1/agents/", _WithAgents.create_agent),
)


class Letta(InMemoryLetta):
    _api_type = _WithAgents


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with Letta(password=PASSWORD) as server:
        yield server


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command as at a terminal, with these answers typed in."""

    def run(*arguments: str, answers: list[str]) -> Result:
        monkeypatch.setattr(command.Setup, "_may_ask", staticmethod(lambda wishes: True))
        return CliRunner().invoke(app(), ["init", *arguments], input="\n".join(answers) + "\n")

    return run


def init(*arguments: str) -> Result:
    result = CliRunner().invoke(app(), ["init", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert PASSWORD not in result.output
    return result


def test_by_flags_it_writes_what_a_program_needs_and_proves_it(letta: InMemoryLetta, tmp_path: Path) -> None:
    agent = letta.create_agent("builder")
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--agent", agent, "--yes")
    assert result.exit_code == 0, result.output
    file = tmp_path / ".env"
    assert file.stat().st_mode & 0o777 == 0o600
    settings = Settings.resolve(environ={})
    assert (settings.base_url, settings.agent_id) == (letta.base_url, agent)
    assert settings.password is not None and settings.password.reveal() == PASSWORD
    assert len(letta.reports(agent)) == 1
    assert "otel_letta.configure()" in result.output


def test_the_lines_that_it_prints_are_a_program(letta: InMemoryLetta) -> None:
    compile(command._PROGRAM, "six lines", "exec")
    assert len([line for line in command._PROGRAM.splitlines() if line]) == 5


def test_the_only_agent_is_the_obvious_one(letta: InMemoryLetta, tmp_path: Path) -> None:
    agent = letta.create_agent("builder")
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--no-send", "--yes")
    assert result.exit_code == 0, result.output
    assert dotenv_values(tmp_path / ".env")["LETTA_AGENT_ID"] == agent
    assert letta.turns == 0


def test_of_several_agents_it_chooses_none(letta: InMemoryLetta, tmp_path: Path) -> None:
    first, second = letta.create_agent("one"), letta.create_agent("two")
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--yes")
    assert result.exit_code == 1
    assert "choose one with --agent" in result.output
    assert first in result.output and second in result.output
    assert not (tmp_path / ".env").exists()


@pytest.mark.parametrize(("flags", "name"), [([], "task-watcher"), (["--new-agent", "mine"], "mine")])
def test_an_agent_is_made_where_there_is_none_or_one_is_wanted(
    flags: list[str], name: str, letta: InMemoryLetta, tmp_path: Path
) -> None:
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--yes", *flags)
    assert result.exit_code == 0, result.output
    assert f'agent "{name}" made, model openai/gpt-5' in result.output
    body = next(request.body for request in letta.requests if request.method == "POST")
    assert (body["name"], body["model"], body["embedding"]) == (name, "openai/gpt-5", "openai/embedding")
    agent = dotenv_values(tmp_path / ".env")["LETTA_AGENT_ID"]
    assert agent is not None and len(letta.reports(agent)) == 1


def test_a_server_without_a_model_says_what_to_do(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_WithAgents, "models", [])
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--yes")
    assert result.exit_code == 1
    assert "offers no model" in result.output and "--model" in result.output


@pytest.mark.parametrize("flags", [[], ["--password", "wrong"]])
def test_a_refused_password_is_named(flags: list[str], letta: InMemoryLetta, tmp_path: Path) -> None:
    result = init("--base-url", letta.base_url, "--yes", *flags)
    assert result.exit_code == 1
    assert "LETTA_PASSWORD" in result.output
    assert not (tmp_path / ".env").exists()


def test_an_agent_that_is_not_there(letta: InMemoryLetta) -> None:
    missing = "agent-00000000-0000-4000-8000-000000000000"
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--agent", missing, "--yes")
    assert result.exit_code == 1
    assert "not found" in result.output


def test_it_finds_a_server_on_the_usual_ports(
    letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(servers.found, "__defaults__", (("http://127.0.0.1:9", letta.base_url),))
    letta.create_agent("builder")
    result = init("--password", PASSWORD, "--yes")
    assert result.exit_code == 0, result.output
    assert dotenv_values(tmp_path / ".env")["LETTA_BASE_URL"] == letta.base_url
    first = next(request for request in letta.requests if request.path == "/v1/health/")
    assert "authorization" not in first.headers


def test_where_no_server_answers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.found, "__defaults__", (("http://127.0.0.1:9",),))
    result = init("--yes")
    assert result.exit_code == 1
    assert "No Letta server answers" in result.output and "--base-url" in result.output


def test_asked_for_a_person_chooses(letta: InMemoryLetta, asked: Callable[..., Result], tmp_path: Path) -> None:
    first, second = letta.create_agent("one"), letta.create_agent("two")
    result = asked("--base-url", letta.base_url, answers=["wrong", PASSWORD, "1", "y"])
    chosen = first if f"1  {first}" in result.output else second
    assert result.exit_code == 0, result.output
    assert dotenv_values(tmp_path / ".env")["LETTA_AGENT_ID"] == chosen
    assert dotenv_values(tmp_path / ".env")["LETTA_PASSWORD"] == PASSWORD
    assert PASSWORD not in result.output
    assert len(letta.reports(chosen)) == 1


def test_asked_for_a_person_makes_a_new_agent(
    letta: InMemoryLetta, asked: Callable[..., Result], tmp_path: Path
) -> None:
    letta.create_agent("one")
    result = asked("--base-url", letta.base_url, answers=[PASSWORD, "n", "mine", MODELS[2], "n"])
    assert result.exit_code == 0, result.output
    assert 'agent "mine" made, model anthropic/claude' in result.output
    assert letta.turns == 0


def test_a_secret_of_the_environment_stays_there(
    letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    letta.create_agent("builder")
    monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
    result = init("--base-url", letta.base_url, "--yes")
    assert result.exit_code == 0, result.output
    # A program would send it to no address that only the file names, so that stands where the secret does.
    assert set(dotenv_values(tmp_path / ".env")) == {"LETTA_AGENT_ID"}
    assert f"! Where LETTA_PASSWORD is set, set LETTA_BASE_URL={letta.base_url} as well" in result.output


def test_what_the_environment_beats_is_named(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = letta.create_agent("builder")
    monkeypatch.setenv("LETTA_AGENT_ID", "agent-2")
    result = init("--base-url", letta.base_url, "--password", PASSWORD, "--agent", agent, "--yes")
    assert "LETTA_AGENT_ID is also set in the environment, which beats the file" in result.output


# -- the file


def test_what_else_is_in_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# mine\nOTHER=1\nLETTA_AGENT_ID=old\n")
    file.chmod(0o644)
    env_file.write(file, {"LETTA_AGENT_ID": "new", "LETTA_PASSWORD": 'it\'s "quoted" # here'})
    assert file.read_text().startswith("# mine\nOTHER=1\n")
    assert dotenv_values(file) == {"OTHER": "1", "LETTA_AGENT_ID": "new", "LETTA_PASSWORD": 'it\'s "quoted" # here'}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_value_that_the_file_would_change_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(env_file.EnvFileError) as raised:
        env_file.write(tmp_path / ".env", {"LETTA_PASSWORD": "a${HOME}b"})
    assert "HOME" not in str(raised.value) and "set it in the environment" in str(raised.value)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(env_file.EnvFileError, match="cannot be written"):
        env_file.write(tmp_path / "no-such-folder" / ".env", {"LETTA_AGENT_ID": "a"})


@pytest.mark.parametrize(
    ("ignored", "line"),
    [(None, "/.env is in "), ("*.pyc", "/.env is in "), (".env\n", ""), ("*.env\n", "")],
)
def test_git_ignores_the_file(ignored: str | None, line: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    if ignored is not None:
        (tmp_path / ".gitignore").write_text(ignored)
    done = env_file.ignore_in_git(tmp_path / ".env")
    assert done.startswith(line) and bool(done) == bool(line)
    check = subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "-q", ".env"], check=False)
    assert check.returncode == 0
    if ignored is not None:
        assert (tmp_path / ".gitignore").read_text().startswith(ignored)


def test_a_file_that_git_has_already_is_named(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".env").write_text("A=1\n")
    subprocess.run(["git", "-C", str(tmp_path), "add", ".env"], check=True)
    assert "git rm --cached .env" in env_file.ignore_in_git(tmp_path / ".env")


def test_outside_of_git_nothing_is_written(tmp_path: Path) -> None:
    assert env_file.ignore_in_git(tmp_path / ".env") == ""
    assert list(tmp_path.iterdir()) == []
