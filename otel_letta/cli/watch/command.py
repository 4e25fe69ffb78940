"""The command itself: where the tasks are read from, and how often."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from otel_letta.cli.tokens import token_of
from otel_letta.cli.watch import picture
from otel_letta.cli.watch.places import Boards, NoReceiver, Receiver, Refused, Trouble
from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import Settings

_HERE = "http://127.0.0.1:4318"
_TOKEN = "OTEL_LETTA_SERVE_TOKEN"  # noqa: S105 - a variable's name


@click.command(short_help="Show the tasks, live, in the terminal.")
@click.argument("url", required=False)
@click.option("--board", is_flag=True, help="Read the agent's board, whether a receiver runs here or not.")
@click.option("--agent", help="The board of this agent of your server instead of the configured one's.")
@click.option(
    "--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The receiver's token file."
)
@click.option("--token", envvar=_TOKEN, help=f"The receiver's token. Better set {_TOKEN}: others see command lines.")
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print the tasks and exit; so it is where the output is no terminal.")
def watch(
    url: str | None,
    board: bool,
    agent: str | None,
    token_file: Path | None,
    token: str | None,
    interval: float,
    once: bool,
) -> None:
    """Show the tasks, live: those that wait first, then those under way, then those that ended.

    URL is that of an 'otel-letta serve'; the default is http://127.0.0.1:4318. Where none runs there, and with --board,
    the tasks are read from the board of your Letta agent (LETTA_BASE_URL, LETTA_AGENT_ID), which shows what any program
    reported to it. The same is on a page: open the URL in a browser.
    """
    if url is not None and (board or agent):
        raise click.UsageError("a URL is that of a receiver: leave it out for a board")
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        draw, close = _choose(url, token_of(token, token_file, sender=True), agent, console, board=board)
    except Refused as error:
        raise click.ClickException(str(error)) from None
    try:
        if once or not console.is_terminal:
            console.print(draw(1_000_000))
        else:
            _follow(draw, console, interval)
    except Trouble as error:
        raise click.ClickException(str(error)) from None
    finally:
        close()


_Draw = Callable[[int], RenderableType]
"""Draws what there is now on so many lines; raises Trouble."""


def _choose(
    url: str | None, token: str | None, agent: str | None, console: Console, *, board: bool
) -> tuple[_Draw, Callable[[], None]]:
    if not board and agent is None:
        receiver = Receiver(url or _HERE, token)
        try:
            receiver.read()
        except NoReceiver as error:
            receiver.close()
            if url is not None:
                raise
            why = f"{error}. "
        except Trouble as error:
            if isinstance(error, Refused):
                receiver.close()
                raise
            return _draw_of(receiver, console), receiver.close  # it may answer the next time
        else:
            return _draw_of(receiver, console), receiver.close
    else:
        why = ""
    boards = _boards(agent, why)
    return lambda height: picture.boards(boards.read(), boards.place, height), boards.close


def _draw_of(receiver: Receiver, console: Console) -> _Draw:
    return lambda height: picture.tasks(receiver.read(), receiver.place, console.width, height)


def _boards(agent: str | None, why: str) -> Boards:
    from otel_letta.letta.select import SelectingTransport

    try:
        settings = Settings.resolve(agent_id=agent) if agent else Settings.resolve()
    except LettaConfigurationError as error:
        raise Refused(f"{why}And there is no agent whose board could be read: {error}") from None
    return Boards(SelectingTransport(settings))


def _follow(draw: _Draw, console: Console, interval: float) -> None:
    """Draw again and again until Ctrl-C. What cannot be read for a while stays as it was, and says so."""
    shown: RenderableType = Text("…")
    try:
        with Live(shown, console=console, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    shown = draw(console.height)
                    live.update(shown, refresh=True)
                except Trouble as error:  # a receiver that starts again is there in a moment
                    live.update(Group(Text(f"{error}; trying again. As of before:", "bold red"), shown), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        sys.exit(0)
