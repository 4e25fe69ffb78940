"""`otel-letta setup letta`: what an agent needs to see the tasks that are reported to it, and to instruct them.

On a REST server three tools, on an App Server a skill. Both ask `otel-letta serve`, with a token of the agent's own.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import click

from otel_letta.cli.check.asking import Asking
from otel_letta.cli.check.findings import explained
from otel_letta.cli.init.servers import NAMES
from otel_letta.cli.setup import addresses, app_server, rest
from otel_letta.cli.setup.merge import CannotMerge
from otel_letta.cli.setup.steps import Refused, Step, Wishes
from otel_letta.errors import LettaError
from otel_letta.letta.flavour import Flavour
from otel_letta.letta.server_tools import ServerTools
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
    default=Path("~/.letta/skills"),
    show_default=True,
    help="The skills' folder of an App Server, where that is the server.",
)
@click.option("--write", is_flag=True, help="Do it, or bring it up to date.")
@click.option("--remove", is_flag=True, help="Take all of it back, and nothing else.")
def letta(agent: str | None, url: str, token_file: Path | None, skills: Path, write: bool, remove: bool) -> None:
    """Let your Letta agent see the tasks that are reported to it, and instruct them.

    Asks the Letta server what it is. On a REST server the agent gets the tools list_tasks, get_task and
    instruct_task, with the bridge's address and a token of its own among its secrets. On an App Server a skill is
    put where its agents find it. Without --write or --remove it is only said what would be done.
    """
    if write and remove:
        raise click.UsageError("--write and --remove exclude each other")
    wishes = Wishes(addresses.checked(url, "--url"), token_file, skills.expanduser(), remove)
    try:
        with suppress_tracing():
            sys.exit(_run(Settings.resolve(require_agent=False, agent_id=agent), wishes, write or remove))
    except LettaError as error:
        what, fix = explained(error)
        raise click.ClickException(f"{what}{f'. Fix: {fix}' if fix else ''}") from None
    except Refused as refused:
        raise click.ClickException(f"{refused}. Nothing was changed.") from None
    except (CannotMerge, OSError) as error:
        why = error if isinstance(error, CannotMerge) else error.strerror or type(error).__name__
        raise click.ClickException(f"A file cannot be used: {why}") from None


def _run(settings: Settings, wishes: Wishes, doing: bool) -> int:
    agent_id = settings.agent_id
    if not agent_id:
        raise Refused("No agent is named: --agent does it, or LETTA_AGENT_ID")
    with closing(Asking(settings)) as asking:
        info = asking.info()
        asking.describe(agent_id)  # raises where there is no such agent
    where = f"{NAMES[info.flavour]} {info.version}".rstrip() + f" at {settings.base_url}"
    if info.flavour is Flavour.APP_SERVER:
        click.echo(f"{where}:")
        _work(app_server.steps(wishes, agent_id), doing)
        return 0
    with closing(ServerTools(settings, agent_id)) as server:
        agent = rest.RestAgent(server, agent_id, wishes)
        click.echo(f'Agent "{agent.name}" ({agent_id}), {where}:')
        _work(agent.steps(), doing)
        problem = agent.proof() if doing and not wishes.remove else None
        if doing and not wishes.remove:
            click.echo(f"  {'✗' if problem else '✓'} list_tasks, run by Letta: {problem or 'the bridge answers'}")
        for note in rest.notes(wishes, settings):
            click.echo(note, err=True)
        if not wishes.remove:
            rest.show_mcp(wishes.url)
        return 1 if problem else 0


def _work(steps: list[Step], doing: bool) -> None:
    for step in steps:
        if doing:
            step.run()
        click.echo(f"  {'✓' if doing else '-'} {step.text}")
    if not steps:
        click.echo("  nothing is to be done")
    elif not doing:
        click.echo("Nothing was changed yet.", err=True)
