"""`otel-letta setup PROGRAM`: print what makes a program report here, or merge it into the program's own settings.

And `otel-letta setup letta`, for an agent that shall see the tasks: see `otel_letta.cli.setup.letta`.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click

from otel_letta.cli.setup.addresses import checked, is_private
from otel_letta.cli.setup.files import read_settings, write_settings
from otel_letta.cli.setup.letta import letta
from otel_letta.cli.setup.merge import CannotMerge, merge, render
from otel_letta.cli.setup.programs import PROGRAMS, Program, Target

_STAND_IN = "TOKEN"
"""What a printed block has in place of a token: it may end in a terminal's history, or in a bug report."""
_TOKEN = r"[A-Za-z0-9._~+/-]+=*"  # noqa: S105 - RFC 6750's form of a token, the one that all these programs pass on unharmed


@click.group(short_help="Make a coding program report, or let your agent see tasks.")
def setup() -> None:
    """Make a coding program report its tasks, or give your Letta agent the means to see them and to instruct them.

    For a program: print its settings, or write them. They leave content out: prompts, answers, the arguments and
    outputs of tools. What cannot be said in the program's settings file is printed as lines for your shell.
    """


def _command_for(program: Program) -> click.Command:
    @click.command(program.name, short_help=f"Make {program.title} report its tasks.")
    @click.option(
        "--write", is_flag=True, help="Merge it into the program's own settings; a backup is kept beside them."
    )
    @click.option("--replace", is_flag=True, help="With --write: also where the settings have another value.")
    @click.option(
        "--endpoint", default="http://127.0.0.1:4318", show_default=True, help="Where the program reports to."
    )
    @click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file whose first line is the token that the endpoint asks for.",
    )
    def command(write: bool, replace: bool, endpoint: str, token_file: Path | None) -> None:
        _set_up(program, write, replace, endpoint, token_file)

    command.help = f"Make {program.title} report its tasks: print its settings, or write them."
    return command


for _program in PROGRAMS.values():
    setup.add_command(_command_for(_program))
setup.add_command(letta)


def _set_up(chosen: Program, write: bool, replace: bool, endpoint: str, token_file: Path | None) -> None:
    target = Target(checked(endpoint, "--endpoint"), None if token_file is None else _token(token_file))
    if write:
        done = _write(chosen, target, replace)
    else:
        done = True
        _print_file(chosen, target)
    _print_environment(chosen, target, token_file)
    for note in chosen.notes:
        click.echo(note, err=True)
    if target.token and not is_private(target.endpoint):
        click.echo(f"The token goes to {target.endpoint} unencrypted.", err=True)
    sys.exit(0 if done else 1)


def _print_file(program: Program, target: Target) -> None:
    shown = Target(target.endpoint, target.token and _STAND_IN)
    settings = program.settings(shown)
    if not settings:
        return
    text = render(program.file, settings)
    also = f", with your token for {_STAND_IN}" if target.token and _STAND_IN in text else ""
    click.echo(f"Merge this into {program.path()}{also}; --write does it:", err=True)
    click.echo(text, nl=False)


def _print_environment(program: Program, target: Target, token_file: Path | None) -> None:
    variables = program.environment(Target(target.endpoint, target.token and _STAND_IN))
    if not variables:
        return
    click.echo(f"Set this in the environment that {program.title} starts in:", err=True)
    for name, value in variables.items():
        text = shlex.quote(value)
        if token_file and _STAND_IN in value:
            # The shell reads the token when it needs it, and nobody sees it here.
            file = shlex.quote(str(token_file.resolve()))
            text = f'"{value.partition(_STAND_IN)[0]}$(head -n 1 {file})"'
        click.echo(f"export {name}={text}")


def _write(program: Program, target: Target, replace: bool) -> bool:
    """Merge the settings into the program's file, and say what was done; False if nothing could be written."""
    if not program.file:
        click.echo(f"{program.title} has no settings file for this: nothing was written.", err=True)
        return False
    path = program.path()
    try:
        before = read_settings(path)
        merged = merge(program.file, before.text, program.settings(target))
        if merged.changed and not replace:
            names = "".join(f"\n  {name}" for name in merged.changed)
            click.echo(
                f"{path} has other values already, so nothing was written:{names}\n"
                "--replace overwrites them. If another backend shall go on receiving, let a Collector send to both.",
                err=True,
            )
            return False
        if not merged.is_new:
            click.echo(f"{path} has all of it: nothing was changed.", err=True)
            return True
        backup = write_settings(path, before, merged.text, private=bool(target.token))
    except (CannotMerge, OSError) as error:
        why = error if isinstance(error, CannotMerge) else error.strerror or type(error).__name__
        click.echo(
            f"{path} cannot be merged into: {why}. Nothing was written; without --write this is printed.", err=True
        )
        return False
    said = [f"{len(names)} {word}" for names, word in ((merged.added, "added"), (merged.changed, "replaced")) if names]
    kept = f" The file as it was is {backup}." if backup else ""
    click.echo(f"{path}: {', '.join(said)}.{kept} It takes effect when {program.title} starts again.", err=True)
    return True


def _token(file: Path) -> str:
    try:
        line = file.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        raise click.BadParameter("it cannot be read as text", param_hint="--token-file") from None
    if not re.fullmatch(_TOKEN, line):
        raise click.BadParameter("its first line is no bearer token", param_hint="--token-file")
    return line


__all__ = ["setup"]
