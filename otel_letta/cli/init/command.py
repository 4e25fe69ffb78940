"""The command `otel-letta init`."""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from otel_letta.cli.check.asking import Asking, cleaned
from otel_letta.cli.check.findings import Findings, explained
from otel_letta.cli.check.report import send_test_report
from otel_letta.cli.check.show import Lines
from otel_letta.cli.init import env_file, servers
from otel_letta.errors import LettaAuthenticationError, LettaError
from otel_letta.letta.flavour import ServerInfo
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings import Settings
from otel_letta.settings.table import BY_NAME

_NEW_AGENT = "task-watcher"
_MOST_AGENTS = 20
_MOST_MODELS = 15
_TRIES = 3
_SECONDS = 30.0
_CAP = 200

_PROGRAM = """\
import otel_letta

otel_letta.configure()

with otel_letta.task("Refactor module", chat_id="chat-123") as t:
    for file in t.track(["a.py", "b.py", "c.py"]):
        print("rewriting", file)"""


@dataclass(frozen=True)
class Wishes:
    """What the command line says; what it leaves open is asked, or decided where nobody can be asked."""

    base_url: str | None
    password: str | None
    api_key: str | None
    agent: str | None
    new_agent: str | None
    model: str | None
    file: Path
    send: bool | None
    yes: bool


@click.command("init", short_help="Set up: find a server, choose an agent, write .env.")
@click.option("--base-url", metavar="URL", help="The Letta server; default: one that answers on this machine.")
@click.option("--password", help="Its password or token, if it has one. Better asked for, or LETTA_PASSWORD.")
@click.option("--api-key", help="The key of Letta Cloud. Better asked for, or LETTA_API_KEY.")
@click.option("--agent", metavar="ID", help="The agent that gets the reports.")
@click.option("--new-agent", metavar="NAME", help="Make an agent of that name.")
@click.option("--model", metavar="HANDLE", help="The new agent's model; default: the server's first.")
@click.option(
    "--env-file", type=click.Path(dir_okay=False, path_type=Path), default=".env", show_default=True, metavar="PATH"
)
@click.option("--send/--no-send", default=None, help="Send a test report: one turn of the agent's LLM.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is given, or the obvious, and send the report.")
def init(
    base_url: str | None,
    password: str | None,
    api_key: str | None,
    agent: str | None,
    new_agent: str | None,
    model: str | None,
    env_file: Path,
    send: bool | None,
    yes: bool,
) -> None:
    """Set up reporting: find a Letta server, choose an agent, write .env.

    Asks for what it cannot find out. The file gets mode 0600, and git ignores it. Exit code: 0 if a report
    would get through, else 1.
    """
    if agent and new_agent:
        raise click.UsageError("--agent and --new-agent exclude each other")
    wishes = Wishes(base_url, password, api_key, agent, new_agent, model, env_file, send, yes)
    with suppress_tracing():
        sys.exit(Setup(wishes).run())


class Setup:
    """One run of the command."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._asks = self._may_ask(wishes)
        self._typed: str | None = None
        """A secret that was typed in, or given on the command line; it goes into the file."""

    def run(self) -> int:
        """Set everything up. Return the exit code."""
        try:
            settings = self._settings(self._server())
            with closing(Asking(settings)) as asking:
                info = asking.info()
                click.echo(f"✓ {servers.NAMES[info.flavour]} {info.version}".rstrip() + f" at {settings.base_url}")
            settings, agents = self._agents(settings)
            agent_id = self._agent(settings, info, agents)
        except LettaError as error:
            what, fix = explained(error)
            return _fail(f"{what}{f'. Fix: {fix}' if fix else ''}")
        self._write(settings, agent_id)
        return self._prove(settings, agent_id)

    @staticmethod
    def _may_ask(wishes: Wishes) -> bool:
        return not wishes.yes and sys.stdin.isatty()

    # -- the server ------------------------------------------------------------------------------------------------

    def _server(self) -> str:
        if self._wishes.base_url:
            return self._wishes.base_url
        known = Settings.resolve(require_agent=False)
        if known.sources["base_url"] != "default":
            address = known.base_url
            return self._ask("Letta server", address) if self._asks else address
        answering = [address for address, _ in servers.found()]
        if not answering and not self._asks:
            _give_up(
                f"No Letta server answers at {' or '.join(servers.USUAL)}: start one, or name yours with --base-url. "
                "docs/servers.md says how to start each kind"
            )
        first = answering[0] if answering else None
        return self._ask("Letta server", first) if self._asks else str(first)

    def _settings(self, base_url: str) -> Settings:
        wishes = self._wishes
        keywords: dict[str, Any] = {"base_url": base_url, "password": wishes.password, "api_key": wishes.api_key}
        self._typed = wishes.password or wishes.api_key
        settings = Settings.resolve(require_agent=False, **keywords)
        return dataclasses.replace(settings, read_timeout=min(settings.read_timeout, _SECONDS))

    # -- the agent -------------------------------------------------------------------------------------------------

    def _agents(self, settings: Settings) -> tuple[Settings, list[dict[str, Any]]]:
        """Return the server's agents, and the settings with a password that it accepts."""
        for attempt in range(_TRIES):
            try:
                with closing(Asking(settings)) as asking:
                    if self._wishes.agent:
                        return settings, [{"id": self._wishes.agent, **asking.describe(self._wishes.agent)}]
                    return settings, asking.agents(_MOST_AGENTS)
            except LettaAuthenticationError:
                if not self._asks or attempt == _TRIES - 1:
                    raise
            name = "api_key" if settings.is_cloud else "password"
            click.echo(f"The server refuses {settings.token_name or 'a request without a password'}.")
            self._typed = click.prompt("API key" if settings.is_cloud else "Password or token", hide_input=True)
            settings = self._settings_with(settings, name)
        raise AssertionError("unreachable")

    def _settings_with(self, settings: Settings, name: str) -> Settings:
        keywords: dict[str, Any] = {"base_url": settings.base_url, name: self._typed}
        fresh = Settings.resolve(require_agent=False, **keywords)
        return dataclasses.replace(fresh, read_timeout=settings.read_timeout)

    def _agent(self, settings: Settings, info: ServerInfo, agents: list[dict[str, Any]]) -> str:
        wishes = self._wishes
        rows = [row for row in agents if isinstance(row.get("id"), str)]
        if wishes.agent:
            return wishes.agent
        if wishes.new_agent or not rows:
            return self._make(settings, info, wishes.new_agent)
        shown = [f"{cleaned(settings, row['id'], _CAP)}  {_name(settings, row)}".rstrip() for row in rows]
        if not self._asks:
            if len(rows) > 1:
                _give_up("Several agents: choose one with --agent, or --new-agent:\n  " + "\n  ".join(shown))
            click.echo(f"✓ the server's only agent: {shown[0]}")
            return str(rows[0]["id"])
        click.echo("Agents:")
        for number, line in enumerate(shown, 1):
            click.echo(f"  {number:>2}  {line}")
        click.echo("   n  a new one")
        choices = [*map(str, range(1, len(rows) + 1)), "n"]
        answer = click.prompt("Which one gets the reports", default="1", type=click.Choice(choices), show_choices=False)
        return self._make(settings, info, None) if answer == "n" else str(rows[int(answer) - 1]["id"])

    def _make(self, settings: Settings, info: ServerInfo, name: str | None) -> str:
        from otel_letta.letta.first_agent import founding

        name = name or (self._ask("Name of the new agent", _NEW_AGENT) if self._asks else _NEW_AGENT)
        with closing(founding(settings, info)) as server:
            model = self._wishes.model
            if model is None:
                models = server.models()
                if not models:
                    _give_up(
                        "The server offers no model, so no agent can be made: give it a provider first "
                        "(docs/servers.md says how), or name a model with --model"
                    )
                model = self._choose_model([cleaned(settings, each, _CAP) for each in models])
            agent_id = server.create(name, model)
        click.echo(f'✓ agent "{name}" made, model {model}: {agent_id}')
        return agent_id

    def _choose_model(self, models: list[str]) -> str:
        if not self._asks or len(models) == 1:
            return models[0]
        click.echo("Models: " + ", ".join(models[:_MOST_MODELS]) + (" …" if len(models) > _MOST_MODELS else ""))
        return self._ask("Model", models[0])

    # -- the file, and a report ------------------------------------------------------------------------------------

    def _write(self, settings: Settings, agent_id: str) -> None:
        path = self._wishes.file
        values = {"LETTA_BASE_URL": settings.base_url, "LETTA_AGENT_ID": agent_id}
        secret = self._secret_elsewhere(settings)
        if secret:  # no address in a file that a program finds by searching gets that
            del values["LETTA_BASE_URL"]
        if self._typed:
            values["LETTA_API_KEY" if settings.api_key is not None and settings.is_cloud else "LETTA_PASSWORD"] = (
                self._typed
            )
        try:
            env_file.write(path, values)
        except env_file.EnvFileError as error:
            _give_up(str(error))
        click.echo(f"✓ {path}: {', '.join(values)}")
        ignored = env_file.ignore_in_git(path)
        if ignored:
            click.echo(f"- {ignored}")
        for name, value in values.items():
            before = os.environ.get(name, "").strip()
            if before and before != value:
                click.echo(f"! {name} is also set in the environment, which beats the file: unset it", err=True)
        if secret:
            if os.environ.get("LETTA_BASE_URL", "").strip() != settings.base_url:
                click.echo(f"! Where {secret} is set, set LETTA_BASE_URL={settings.base_url} as well", err=True)
            return
        # As a program will read it.
        found = Settings.resolve(require_agent=False, dotenv_path=None if path.name == ".env" else path)
        for warning in found.security_warnings():
            click.echo(f"! {warning}", err=True)

    def _secret_elsewhere(self, settings: Settings) -> str | None:
        """Return the variable of a secret that stays in the environment, if a program would not take the server from
        the file then."""
        name = BY_NAME[settings.token_name].env if settings.token_name else ""
        trusts = settings.trust_dotenv or self._wishes.file.name != ".env"
        return name if name in os.environ and not self._typed and not trusts else None

    def _prove(self, settings: Settings, agent_id: str) -> int:
        send = self._wishes.send
        if send is None:
            send = self._wishes.yes or (
                self._asks
                and click.confirm("Send a test report? It wakes the agent: one turn of its LLM", default=True)
            )
        code = 0
        if send:
            lines = Lines()
            findings = Findings(lines.show)
            send_test_report(findings, dataclasses.replace(settings, agent_id=agent_id, read_timeout=600.0))
            code = 1 if findings.problems else 0
        if not code:
            click.echo(f"\nNow, in a program:\n\n{_PROGRAM}\n\nor around one: otel-letta run -- python app.py")
        return code

    def _ask(self, what: str, default: str | None) -> str:
        return str(click.prompt(what, default=default)).strip()


def _name(settings: Settings, row: dict[str, Any]) -> str:
    name = row.get("name")
    return cleaned(settings, name, 80) if isinstance(name, str) else ""


def _fail(text: str) -> int:
    click.echo(f"✗ {text}", err=True)
    return 1


def _give_up(text: str) -> NoReturn:
    sys.exit(_fail(text))
