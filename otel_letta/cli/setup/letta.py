"""`otel-letta setup letta`: what an agent needs to see the tasks that are reported to it, and to instruct them.

On a REST server three tools, on an App Server a skill. Both ask `otel-letta serve`, with a token of the agent's own.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import click

from otel_letta.cli.check.asking import Asking, cleaned
from otel_letta.cli.check.findings import explained
from otel_letta.cli.init.servers import NAMES
from otel_letta.cli.setup import addresses
from otel_letta.cli.setup.app_server import AppServerAgent
from otel_letta.cli.setup.merge import CannotMerge
from otel_letta.cli.setup.rest import RestAgent
from otel_letta.cli.setup.steps import Refused, Wishes
from otel_letta.errors import LettaError
from otel_letta.letta.flavour import Flavour
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings import Settings


@click.command("letta", short_help="Let your Letta agent see its tasks, and instruct them.")
@click.option("--agent", metavar="ID", help="The agent; LETTA_AGENT_ID names it otherwise.")
@click.option(
    "--url",
    default="http://127.0.0.1:4318",
    show_default=True,
    help="Where 'otel-letta serve' can be reached from the machine of the Letta server.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file that 'otel-letta serve --token-file' reads: a token for this agent alone is added.",
)
@click.option(
    "--skills",
    type=click.Path(file_okay=False, path_type=Path),
    help="An App Server's folder of skills; default is ~/.letta/skills, where the server runs on this machine.",
)
@click.option("--write", is_flag=True, help="Do it, or bring it up to date.")
@click.option("--remove", is_flag=True, help="Take all of it back, and nothing else.")
def letta(agent: str | None, url: str, token_file: Path | None, skills: Path | None, write: bool, remove: bool) -> None:
    """Let your Letta agent see the tasks that are reported to it, and instruct them.

    Asks the Letta server what it is. On a REST server the agent gets the tools list_tasks, get_task and
    instruct_task, with the bridge's address and a token of its own among its secrets. On an App Server a skill is
    put where its agents find it. Without --write or --remove it is only said what would be done.
    """
    if write and remove:
        raise click.UsageError("--write and --remove exclude each other")
    wishes = Wishes(addresses.checked(url, "--url"), token_file, skills, write, remove)
    try:
        with suppress_tracing():
            sys.exit(_run(Settings.resolve(require_agent=False, agent_id=agent), wishes))
    except LettaError as error:
        what, fix = explained(error)
        raise click.ClickException(f"{what}{f'. Fix: {fix}' if fix else ''}") from None
    except Refused as refused:
        raise click.ClickException(f"{refused}. Nothing was changed.") from None
    except (CannotMerge, OSError) as error:
        why = error if isinstance(error, CannotMerge) else error.strerror or type(error).__name__
        raise click.ClickException(f"A file cannot be used: {why}") from None


def _run(settings: Settings, wishes: Wishes) -> int:
    """Say what would be done, or do it. Return the exit code."""
    agent_id = settings.agent_id
    if not agent_id:
        raise Refused("No agent is named: --agent does it, or LETTA_AGENT_ID")
    with closing(Asking(settings)) as asking:
        info, row = asking.info(), asking.describe(agent_id)
    name = f'"{cleaned(settings, row["name"], 80)}" ' if isinstance(row.get("name"), str) else ""
    where = f"{NAMES[info.flavour]} {info.version}".rstrip() + f" at {settings.base_url}"
    make = AppServerAgent if info.flavour is Flavour.APP_SERVER else RestAgent
    with closing(make(settings, agent_id, wishes)) as agent:
        steps = agent.steps()
        click.echo(f"Agent {name}({agent_id}), {where}:")
        for step in steps:
            if wishes.doing:
                step.run()
            click.echo(f"  {'✓' if wishes.doing else '-'} {step.text}")
        if not steps:
            click.echo("  nothing is to be done")
        problem = agent.proof() if wishes.write else None
        if wishes.write:
            click.echo(f"  {'✗' if problem else '✓'} {agent.probe}: {problem or 'the bridge answers'}")
        if problem:
            file = f" --token-file {wishes.token_file}" if wishes.token_file else ""
            click.echo(
                f"It is set up all the same: now 'otel-letta serve{file}' has to answer at {wishes.url}.", err=True
            )
        if steps and not wishes.doing:
            click.echo("Nothing was changed yet: --write does it.", err=True)
        for note in agent.notes():
            click.echo(note, err=True)
        if not wishes.doing:
            click.echo(agent.shown(), nl=False)
    return 1 if problem else 0
