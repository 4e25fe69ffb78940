"""The command `otel-letta`.

``init`` sets reporting up, ``check`` finds out whether a report would get through, ``run`` reports the tasks of a
program as it is, ``demo`` shows how reports look, ``replay`` turns recorded spans into reports, ``serve`` receives
OTLP, ``watch`` shows the tasks, ``tasks`` lists and instructs them, ``outbox`` shows and delivers what is not delivered
yet, ``setup`` makes coding programs report; ``hook`` and ``openhands-webhooks`` take events from OpenHands.

Its libraries, click and rich above all, are the extra ``cli`` and are imported when the command runs, never before;
``hook``, which OpenHands waits for at every step, does without them.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


_COMMANDS = {
    "init": "otel_letta.cli.init.command:init",
    "check": "otel_letta.cli.check.command:check",
    "run": "otel_letta.cli.run.command:run",
    "demo": "otel_letta.cli.demo.command:demo",
    "replay": "otel_letta.cli.replay:replay",
    "serve": "otel_letta.cli.serve:serve",
    "watch": "otel_letta.cli.watch.command:watch",
    "tasks": "otel_letta.cli.tasks:tasks",
    "outbox": "otel_letta.cli.outbox:outbox",
    "setup": "otel_letta.cli.setup.command:setup",
    "hook": "otel_letta.cli.hook:hook",
    "openhands-webhooks": "otel_letta.cli.openhands_webhooks:openhands_webhooks",
}
"""The subcommands, in the order of the help. Each is imported when it is used."""


def app() -> click.Group:
    """The command with its subcommands. ImportError without the extra ``cli``."""
    import click
    import rich  # noqa: F401 - most subcommands need it, and it comes with the same extra

    class Group(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(_COMMANDS)

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            where = _COMMANDS.get(name)
            if where is None:
                return None
            module, _, attribute = where.partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command

        def invoke(self, ctx: click.Context) -> object:
            # By itself click exits with 1, as if the command had found something wrong.
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                click.echo("Aborted!", err=True)
                sys.exit(130)

    group = Group(
        "otel-letta",
        help="OpenTelemetry spans of agent tasks become progress reports for a Letta agent.",
        epilog="Begin with 'otel-letta demo', then 'otel-letta init'.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )
    return click.version_option(package_name="otel-letta", prog_name="otel-letta")(group)


def main() -> None:
    """Entry point of the console script; exits with the command's code, 2 without the extra ``cli``, 130 on Ctrl-C."""
    if sys.argv[1:2] == ["hook"]:
        from otel_letta.integrations.openhands.hook import main as hook

        sys.exit(hook(sys.argv[2:]))
    for stream in (sys.stdout, sys.stderr):
        # A terminal or file that cannot hold a character gets a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        command = app()
    except KeyboardInterrupt:  # the imports take a moment
        sys.exit(130)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich", "tomlkit"}:
            raise
        print("otel-letta needs more libraries: pip install 'otel-letta[cli]'", file=sys.stderr)
        sys.exit(2)
    # The name in usage and errors, also after `python -m otel_letta`.
    command(prog_name="otel-letta")
