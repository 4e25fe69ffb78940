"""Findings as people read them, one by one on a terminal or in a pipe, and as programs do."""

from __future__ import annotations

import json

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from otel_letta.cli.check.findings import Finding, Findings, Line, Mark, Section, SettingsRead, place
from otel_letta.settings import VARIABLES

SCHEMA = 1
"""The number of the JSON's form. It goes up when a name goes away or means something else, not when one is added."""


def as_json(findings: Findings) -> str:
    """Return everything that was found as a JSON object."""
    found = {
        "schema": SCHEMA,
        "ok": not findings.problems,
        **findings.facts,
        "problems": [{"problem": line.text, "fix": line.fix} for line in findings.problems],
        "warnings": [line.text for line in findings.of(Mark.WARNING)],
        "notes": [line.text for line in findings.of(Mark.NOTE)],
    }
    return json.dumps(found, indent=2)


_LOOKS = {
    Mark.GOOD: ("✓", "ok", "green", ""),
    Mark.PLAIN: (" ", "  ", "", ""),
    Mark.NOTE: ("-", " -", "cyan", ""),
    Mark.WARNING: ("!", " !", "yellow", "yellow"),
    Mark.PROBLEM: ("✗", "NO", "bold red", "red"),
}
"""The sign of a judgement, the same for an encoding that does not have it, the style of the sign and of the text."""
_LONGEST = max(len(variable.env) for variable in VARIABLES)


class Lines:
    """Prints findings as they come.

    Args:
        show_all: show the settings that have their defaults too.
    """

    def __init__(self, *, show_all: bool = False) -> None:
        self._show_all = show_all
        # No width where no terminal is: then a line is a line, for grep.
        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, markup=False, emoji=False, width=10_000)
        self._ascii = not (self._console.encoding or "").lower().startswith("utf")
        self._titled = False
        self._waiting: Status | None = None

    def show(self, finding: Finding) -> None:
        """Print one finding."""
        if isinstance(finding, Line):
            self._line(finding)
        elif isinstance(finding, Section):
            self._title(finding.title)
        elif isinstance(finding, SettingsRead):
            self._title("Settings")
            self._settings(finding)
        else:
            self._wait(finding.reason)

    def close(self, findings: Findings) -> None:
        """Print the sum of all."""
        self._console.print()
        number = len(findings.problems)
        if not number:
            self._console.print(Text("A report would get through.", "bold green"))
        else:
            things = "one thing is" if number == 1 else f"{number} things are"
            self._console.print(Text(f"A report would not get through: {things} wrong.", "bold red"))

    def _wait(self, reason: str | None) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None
        if reason is not None and self._console.is_terminal:
            self._waiting = self._console.status(Text(reason))
            self._waiting.start()

    def _settings(self, found: SettingsRead) -> None:
        sources = dict.fromkeys(row.source for row in found.rows)
        for source in sorted(sources, key=lambda source: (source == "default", source != "environment")):
            is_default = source == "default"
            if is_default and not self._show_all:
                number = sum(row.source == source for row in found.rows)
                others = "" if number == len(found.rows) else "other "
                self._console.print(
                    Text(f"  the {number} {others}settings have their defaults (--all shows them)", "dim")
                )
                continue
            self._console.print(Text(f"  from {place(source)}"), style="dim" if is_default else "cyan")
            for row in found.rows:
                if row.source == source:
                    value = Text("not set", "dim") if row.value is None else Text(row.value)
                    self._row(Text(f"    {row.env.ljust(_LONGEST)}  ", "dim" if is_default else ""), value)

    def _line(self, line: Line) -> None:
        sign, ascii_sign, sign_style, style = _LOOKS[line.mark]
        text = Text(line.text, style)
        if line.fix:
            text.append(". ", style).append("Fix: ", "bold").append(line.fix)
        self._row(Text.assemble("  ", (ascii_sign if self._ascii else sign, sign_style), " "), text)

    def _title(self, text: str) -> None:
        if self._titled:
            self._console.print()
        self._titled = True
        self._console.print(Text(text, "bold"))

    def _row(self, lead: Text, text: Text) -> None:
        """Print a line that goes on under its own text where the terminal is too narrow for it."""
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(lead, text)
        self._console.print(grid)
