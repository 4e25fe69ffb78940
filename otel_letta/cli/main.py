"""The command `otel-letta`.

``check`` finds out whether a report would get through, ``demo`` shows how reports look, ``replay`` turns recorded
spans into reports, ``serve`` receives OTLP, ``watch`` shows the tasks, ``outbox`` shows and delivers what is not
delivered yet, ``setup`` makes coding programs report; ``hook`` and ``openhands-webhooks`` take events from OpenHands.

Its libraries, click and rich above all, are the extra ``cli`` and are imported when the command runs, never before;
``hook``, which OpenHands waits for at every step, does without them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def app() -> click.Group:
    """The command with its subcommands. ImportError without the extra ``cli``."""
    import click

    from otel_letta.cli.check.command import check
    from otel_letta.cli.demo.command import demo
    from otel_letta.cli.openhands_webhooks import openhands_webhooks
    from otel_letta.cli.outbox import outbox
    from otel_letta.cli.replay import replay
    from otel_letta.cli.serve import serve
    from otel_letta.cli.setup.command import setup
    from otel_letta.cli.watch.command import watch
    from otel_letta.integrations.openhands.hook import main as run_hook

    @click.command(
        "hook",
        short_help="Report a session of OpenHands' CLI: OpenHands runs it as its hook.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def hook(arguments: tuple[str, ...]) -> None:
        run_hook(arguments)

    class Group(click.Group):
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
        commands=[check, demo, replay, serve, watch, outbox, setup, hook, openhands_webhooks],
        context_settings={"help_option_names": ["-h", "--help"]},
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
