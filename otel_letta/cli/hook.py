"""`otel-letta hook`, for the help and for tests: `main` runs it without click, since OpenHands waits for it."""

from __future__ import annotations

import click

from otel_letta.integrations.openhands.hook import main


@click.command(
    "hook",
    short_help="Report a session of OpenHands' CLI: OpenHands runs it.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def hook(arguments: tuple[str, ...]) -> None:
    """Report a session of OpenHands' CLI."""
    main(arguments)
