"""The demo's appearance: a live picture of two sides in a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from otel_letta.cli.demo.receivers import Entry, Received, Receiver
from otel_letta.cli.demo.tasks import TaskRow
from otel_letta.text import clean_line, percent

_LEAST_COLUMNS = 80
_LEAST_ROWS = 24


@dataclass(frozen=True)
class Moment:
    """What both sides know at one moment, so many seconds after the start."""

    seconds: float
    tasks: list[TaskRow]
    received: Received
    log_lines: tuple[str, ...]


def picture_for(console: Console, receiver: Receiver) -> Picture:
    lively = (
        console.is_terminal
        and sys.stdout.isatty()
        and not console.is_dumb_terminal
        and (console.encoding or "").lower().startswith("utf")
        and console.width >= _LEAST_COLUMNS
        and console.height >= _LEAST_ROWS
    )
    return LivePicture(console, receiver) if lively else PlainLines(receiver)


class Picture(ABC):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def begin(self) -> None:  # noqa: B027 - not every picture needs it
        """Show what is there before anything happens."""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        yield

    @abstractmethod
    def frame(self, moment: Moment) -> None:
        """Show this moment."""

    @abstractmethod
    def end(self, moment: Moment, *, delivered: bool, interrupted: bool) -> None:
        """Show the last moment, the verdict and an example of a message."""


def _verdict(moment: Moment, *, delivered: bool, interrupted: bool) -> str:
    turns, writes = moment.received.turns, moment.received.board_writes
    cost = f"{turns} agent turn{'' if turns == 1 else 's'}, {writes} board write{'' if writes == 1 else 's'}"
    if interrupted:
        return f"Stopped: {cost}."
    if not delivered:
        return f"Not everything was delivered: {cost}. 'otel-letta check' says what is wrong."
    return f"Everything was delivered: {cost} (no LLM call)."


# -- plain lines -----------------------------------------------------------------------------------------------------


class PlainLines(Picture):
    """For files, pipes and simple terminals: one line for each thing that happens."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self._shown: tuple[Entry, ...] = ()
        self._logged = 0
        self._quarters: dict[int, tuple[str, int]] = {}

    def begin(self) -> None:
        self._print(f"Three traced tasks report to {self._receiver.title}.")

    def frame(self, moment: Moment) -> None:
        at = f"{moment.seconds:5.1f} s"
        for number, one in enumerate(moment.tasks):
            now = (one.state, int(one.progress * 4))
            if self._quarters.get(number) != now:
                self._quarters[number] = now
                state = "" if one.state == "running" else f" {one.state}"
                text = f": {one.text}" if one.text else ""
                self._print(f"{at}  task   {percent(one.progress):>4} {one.name}{state}{text}")
        for number, entry in enumerate(moment.received.messages):
            if self._shown[number : number + 1] != (entry,):
                self._print(f"{at}  agent  {entry.head}{': ' if entry.text else ''}{entry.text}")
        self._shown = moment.received.messages
        for line in moment.log_lines[self._logged :]:
            self._print(f"{at}  log    {line}")
        self._logged = len(moment.log_lines)

    def end(self, moment: Moment, *, delivered: bool, interrupted: bool) -> None:
        self.frame(moment)
        if moment.received.board is not None:
            self._print(f"\n{self._receiver.board_title}:")
            for line in moment.received.board.splitlines():
                self._print(f"  {clean_line(line, 600)}")
        example = self._receiver.example()
        if example:
            self._print(f"\nA message, as the agent reads it:\n  {clean_line(example, 4_000)}")
        self._print("\n" + _verdict(moment, delivered=delivered, interrupted=interrupted))
        if delivered and not interrupted:
            self._print(self._receiver.next_step)

    def _print(self, text: str) -> None:
        click.echo(text)
        sys.stdout.flush()


# -- the live picture ------------------------------------------------------------------------------------------------


_STYLES = {"running": "cyan", "in_progress": "cyan", "completed": "green", "failed": "red", "answer": "dim"}
_SIGNS = {"running": "●", "in_progress": "●", "completed": "✓", "failed": "✗", "answer": "↳"}


class LivePicture(Picture):
    """Two sides of fixed size, drawn again ten times a second: what moves is only what changed."""

    def __init__(self, console: Console, receiver: Receiver) -> None:
        super().__init__(receiver)
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self._live:
            yield

    def frame(self, moment: Moment) -> None:
        self._live.update(self._whole(moment), refresh=True)

    def end(self, moment: Moment, *, delivered: bool, interrupted: bool) -> None:
        for line in moment.log_lines:
            self._console.print(Text(line, "yellow"))
        verdict = _verdict(moment, delivered=delivered, interrupted=interrupted)
        self._console.print(Text(verdict, "bold green" if delivered and not interrupted else "bold yellow"))
        example = self._receiver.example() if self._console.height >= _LEAST_ROWS + 10 else None
        if example:  # else it would push the picture out of sight
            self._console.print(Text("\nThe last message, as the agent reads it:"))
            self._console.print(Padding(Text(clean_line(example, 4_000), "dim"), (0, 2)))
        if delivered and not interrupted:
            self._console.print(Text(("\n" if example else "") + self._receiver.next_step))

    def _whole(self, moment: Moment) -> RenderableType:
        width = self._console.width
        left = max(28, min(46, width * 2 // 5 - 2))
        right = width - left - 1
        lines_each = 1 if right >= 92 else 2
        board_rows, message_rows = 3 + 3 * lines_each, 6
        head = Text.assemble(("otel-letta demo", "bold"), f"  three traced tasks and {self._receiver.title}")
        head.truncate(width - 1, overflow="ellipsis")
        sides = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        sides.add_column(width=left)
        sides.add_column(width=right)
        sides.add_row(
            _panel("Your program", self._tasks(moment.tasks, left - 4), board_rows + message_rows + 2),
            Group(
                _panel(self._receiver.board_title, _board(moment.received.board, right - 4, board_rows), board_rows),
                _panel(
                    self._receiver.messages_title,
                    _messages(moment.received.messages, right - 4, message_rows),
                    message_rows,
                ),
            ),
        )
        costs = f"agent turns {moment.received.turns}   board writes {moment.received.board_writes}"
        foot = Text(f"{moment.seconds:4.1f} s   {costs}", "dim")
        return Group(head, sides, foot)

    def _tasks(self, tasks: list[TaskRow], width: int) -> RenderableType:
        lines: list[RenderableType] = []
        for one in tasks:
            style = _STYLES[one.state]
            side = f"{one.seconds:.1f} s"
            name = Text(f"{_SIGNS[one.state]} {one.name}", "bold")
            name.truncate(width - len(side) - 1, overflow="ellipsis", pad=True)
            name.append(" " + side, "dim")
            share = f" {percent(one.progress):>4}"
            cells = width - len(share)
            filled = int(one.progress * cells + 1e-9)
            bar = Text.assemble(("█" * filled, style), ("░" * (cells - filled), "dim"), share)
            text = _wrapped(one.text, width, "", "red" if one.state == "failed" else "dim")[:2]
            lines += [name, bar, *text, *[Text("")] * (3 - len(text))]
        return Group(*lines)


def _panel(title: str, inside: RenderableType, rows: int) -> Panel:
    return Panel(inside, title=Text(title, "bold"), title_align="left", height=rows + 2, border_style="dim")


def _board(text: str | None, width: int, rows: int) -> RenderableType:
    if text is None:
        return Text("not there yet", "dim")
    lines: list[Text] = []
    for line in text.splitlines():
        style = next(
            (style for word, style in (("completed", "green"), ("failed", "red")) if line.startswith(word)), ""
        )
        lines += _wrapped(clean_line(line, 600), width, "  ", style)
    if len(lines) > rows:
        lines[rows - 1].truncate(width - 2, overflow="ignore")
        lines[rows - 1].append(" …", "dim")
    return Group(*lines[:rows])


def _messages(entries: tuple[Entry, ...], width: int, rows: int) -> RenderableType:
    shown = [(one.state, _entry(one, width)) for one in entries]
    # What an agent answers goes before what went well, and that before the reason of a failure.
    for unimportant in (("answer",), ("answer", "in_progress", "completed"), tuple(_SIGNS)):
        while sum(len(lines) for _, lines in shown) > rows:
            number = next((number for number, (state, _) in enumerate(shown) if state in unimportant), None)
            if number is None or len(shown) == 1:
                break
            del shown[number]
    return Group(*[line for _, lines in shown for line in lines][:rows]) if shown else Text("none yet", "dim")


def _entry(one: Entry, width: int) -> list[Text]:
    text = f"{_SIGNS[one.state]} {one.head}{': ' if one.text else ''}{one.text}"
    return _wrapped(clean_line(text, 400), width, "  ", _STYLES[one.state])


def _wrapped(text: str, width: int, indent: str, style: str) -> list[Text]:
    """Break into lines of whole words; those after the first are indented."""
    console = Console(width=width)
    first, *others = Text(text).wrap(console, width) or [Text("")]
    lines = [first]
    if others:
        rest = Text(text[len(first.plain.rstrip()) :].strip())
        lines += [Text(indent) + line for line in rest.wrap(console, width - len(indent))]
    for line in lines:
        line.rstrip()
        line.stylize(style)
    return lines
