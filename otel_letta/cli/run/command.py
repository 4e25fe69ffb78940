"""The command `otel-letta run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

_FIRST = str(Path(__file__).parent / "first_on_path")


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="",
    short_help="Run a Python program and report its tasks.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND…")
def run(command: tuple[str, ...]) -> None:
    """Run a Python program and report its tasks: otel-letta run -- python app.py

    Needs no change of the program and no Collector. Spans with letta.* attributes are tasks, and those of agent
    frameworks that trace. Instrumentations that are installed are turned on, as by opentelemetry-instrument; spans go
    nowhere else unless OTEL_TRACES_EXPORTER or the program says so.
    """
    executable = shutil.which(command[0])
    if executable is None:
        click.echo(f"otel-letta run: {command[0]} is not found", err=True)
        sys.exit(127)
    flag = _hiding_flag(command)
    if flag:
        click.echo(f"otel-letta run: nothing is reported, python {flag} takes nothing from the environment", err=True)
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_FIRST, *([before] if before else [])])}
    if os.name == "nt":  # there exec returns to the shell at once
        sys.exit(subprocess.run([executable, *command[1:]], env=environment, check=False).returncode)  # noqa: S603
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(executable, command, environment)  # noqa: S606


def _hiding_flag(command: tuple[str, ...]) -> str | None:
    """Return the flag that has a Python ignore PYTHONPATH, or not import `sitecustomize`; None for none."""
    if not Path(command[0]).name.startswith(("python", "pypy")):
        return None
    flags = iter(command[1:])
    for flag in flags:
        if not flag.startswith("-") or flag.startswith("--") or flag[1:2] in ("c", "m", ""):
            break
        if flag in ("-W", "-X"):
            next(flags, None)
        elif flag[1] not in "WX" and not {"I", "E", "S"}.isdisjoint(flag.partition("c")[0].partition("m")[0]):
            return flag
    return None
