"""The tasks as a terminal shows them. Texts from elsewhere are put in as texts, never as rich's markup."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from otel_letta.cli.watch.places import Board
from otel_letta.serve.markup import age
from otel_letta.text import as_text, clean_line, duration, percent

_STYLES = {"waiting": "bold yellow", "working": "cyan", "completed": "green", "failed": "bold red"}
_SIGNS = {"waiting": "? waiting", "working": "▸ working", "completed": "✓ done", "failed": "✗ failed"}
_SECTIONS = (("waiting", "Waiting for somebody"), ("working", "Under way"), ("ended", "Ended"))
_WIDE = 110
"""Columns from which on a task is one line, and names its agent."""
_CAP = 300


def tasks(document: Mapping[str, Any], place: str, width: int, height: int) -> RenderableType:
    """Draw a receiver's document.

    Args:
        document: see `otel_letta.cli.watch.places.Receiver.read`.
        width, height: columns and lines there are; what has no room is counted, the last that ended first.
    """
    now = _number(document.get("now")) or time.time()
    troubles = [Text(f"! {_line(each)}", "yellow", overflow="ellipsis", no_wrap=True) for each in document["troubles"]]
    note = _line(document.get("note"))
    parts: list[RenderableType] = [_head(document, place)]
    parts += [Text(note, "dim", overflow="ellipsis", no_wrap=True)] if note else []
    parts += troubles[:5]
    room = height - len(parts) - 1
    each = 1 if width >= _WIDE else 2
    left = int(_number(document.get("more")) or 0)
    for name, title in _SECTIONS:
        found = [task for task in document[name] if isinstance(task, dict)]
        shown = found[: max((room - 1) // each, 0)]
        left += len(found) - len(shown)
        if not shown:
            continue
        parts.append(Rule(Text(f"{title} ({len(found)})"), align="left", style="dim"))
        parts.append(_table(shown, now, width))
        room -= 1 + each * len(shown)
    if left:
        parts.append(Text(f"… and {left} more", "dim"))
    return Group(*parts)


def boards(found: Sequence[Board], place: str, height: int) -> RenderableType:
    """Draw boards as they stand, with colours."""
    parts: list[RenderableType] = [Text(f"Board of {place}", "bold", overflow="ellipsis", no_wrap=True)]
    if not found:
        parts.append(Text("It has no board of otel_letta: no program has reported to it yet.", "dim"))
    for board in found:
        parts.append(Rule(Text(board.title), align="left", style="dim"))
        parts += [Text(line, _style_of(line), overflow="ellipsis", no_wrap=True) for line in board.lines]
    return Group(*parts[: max(height - 1, 1)])


def _head(document: Mapping[str, Any], place: str) -> Text:
    counts = ", ".join(
        f"{len(document[name])} {word}"
        for name, word in (("waiting", "waiting"), ("working", "under way"), ("ended", "ended"))
    )
    return Text.assemble((clean_line(place, _CAP), "bold"), f"  {counts}", overflow="ellipsis", no_wrap=True)


def _table(found: Sequence[Mapping[str, Any]], now: float, width: int) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    wide = width >= _WIDE
    table.add_column(width=9, no_wrap=True)
    table.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
    table.add_column(width=10)
    table.add_column(width=4, justify="right", no_wrap=True)
    table.add_column(width=10, justify="right", no_wrap=True, overflow="ellipsis")
    if wide:
        table.add_column(width=14, no_wrap=True, overflow="ellipsis", style="dim")
        table.add_column(ratio=4, no_wrap=True, overflow="ellipsis")
    for task in found:
        state = _line(task.get("state"))
        done = min(max(_number(task.get("progress")) or 0.0, 0.0), 1.0)
        style = _STYLES.get(state, "")
        is_open = state in ("waiting", "working")
        bar: RenderableType = ProgressBar(total=1.0, completed=done, complete_style=style, finished_style=style)
        cells: list[RenderableType] = [
            Text(_SIGNS.get(state, state), style),
            Text(_line(task.get("name")), "bold"),
            bar if is_open else Text(""),
            Text(percent(done) if is_open else ""),
            Text(_time_of(task, now, is_open=is_open), "dim"),
        ]
        line = Text(_line(task.get("line")))
        if wide:
            table.add_row(*cells, Text(_line(task.get("agent"))), line)
        else:
            table.add_row(*cells)
            table.add_row("", line)
    return table


def _time_of(task: Mapping[str, Any], now: float, *, is_open: bool) -> str:
    started = _number(task.get("started"))
    if is_open and started is not None:
        return age(now - started)
    seconds = _number(task.get("seconds"))
    return "" if seconds is None else duration(seconds)


def _style_of(line: str) -> str:
    first = line.partition(" ")[0]
    return {"completed": "green", "failed": "bold red"}.get(first, "cyan" if line.startswith("[") else "")


def _line(value: object) -> str:
    return clean_line(as_text(value) or "", _CAP)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e12 else None
