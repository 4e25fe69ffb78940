"""Findings: facts and judged lines, kept for programs and passed on one by one for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from otel_letta.errors import LettaError, LettaRateLimitError, LettaServerError
from otel_letta.text import clean_line

SUBJECTS = ("settings", "outbox", "server", "agent", "board", "delivery", "test_report")


class Mark(Enum):
    """A judgement."""

    GOOD = "good"
    PLAIN = "plain"
    """None: it goes on where the line before it ended."""
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"
    """A report would not get through."""


@dataclass(frozen=True)
class Row:
    """A setting, as it is shown; `value` is None where it is not set."""

    env: str
    value: str | None
    source: str


@dataclass(frozen=True)
class SettingsRead:
    """All settings that can be used."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """From here on it is about something else."""

    title: str


@dataclass(frozen=True)
class Waiting:
    """From here on it may take a while; over when there is no reason."""

    reason: str | None


@dataclass(frozen=True)
class Line:
    """A judged line; `fix` is how to get rid of a problem."""

    mark: Mark
    text: str
    fix: str = ""


Finding = SettingsRead | Section | Waiting | Line


class Findings:
    """All that an examination found.

    Args:
        on_finding: is called with each finding at once; it must not raise.
    """

    def __init__(self, on_finding: Callable[[Finding], None] = lambda finding: None) -> None:
        self._on_finding = on_finding
        self.facts: dict[str, Any] = dict.fromkeys(SUBJECTS)
        """By subject, for programs; None where nothing was found out."""
        self.lines: list[Line] = []

    @property
    def problems(self) -> list[Line]:
        """The lines that keep a report from getting through."""
        return self.of(Mark.PROBLEM)

    def of(self, mark: Mark) -> list[Line]:
        """Return the lines that were judged so."""
        return [line for line in self.lines if line.mark is mark]

    def settings(self, rows: tuple[Row, ...]) -> None:
        """Add the settings that can be used."""
        self.facts["settings"] = {row.env: {"value": row.value, "source": row.source} for row in rows}
        self._on_finding(SettingsRead(rows))

    def section(self, title: str) -> None:
        """Begin with another subject."""
        self._on_finding(Section(title))

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Wait inside for something that takes a while."""
        self._on_finding(Waiting(reason))
        try:
            yield
        finally:
            self._on_finding(Waiting(None))

    def good(self, text: str) -> None:
        self._add(Line(Mark.GOOD, text))

    def plain(self, text: str) -> None:
        self._add(Line(Mark.PLAIN, text))

    def note(self, text: str) -> None:
        self._add(Line(Mark.NOTE, text))

    def warning(self, text: str) -> None:
        line = Line(Mark.WARNING, text)
        if line not in self.lines:  # it is logged as well as found
            self._add(line)

    def problem(self, text: str, fix: str) -> None:
        self._add(Line(Mark.PROBLEM, text, fix))

    def error(self, error: LettaError) -> None:
        """Add a problem: what went wrong, and the remedy."""
        self.problem(*explained(error))

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        self._on_finding(line)


def explained(error: LettaError) -> tuple[str, str]:
    """Return what is wrong, and how to fix it, each on a line that can be shown."""
    what = str(error)
    if error.hint:
        what = what.removesuffix(f" - {error.hint}")
    what = what.replace("dotenv_path", "--env-file", 1) if what.startswith("dotenv_path ") else what
    fix = error.hint
    if "WRONG_VERSION_NUMBER" in what or "record layer failure" in what:
        fix = "the server seems to speak plain http: write http:// in LETTA_BASE_URL"
    elif "CERTIFICATE_VERIFY_FAILED" in what:
        fix = "SSL_CERT_FILE can name the certificate of your own authority"
    elif not fix and isinstance(error, LettaRateLimitError):
        fix = "wait, and try again"
    elif not fix and isinstance(error, LettaServerError):
        fix = "see the log of the server, and try again"
    elif fix.startswith("allowed: "):
        fix = fix.replace("allowed:", "use", 1)
    return clean_line(what, 600), clean_line(fix, 600)


def place(source: str) -> str:
    """Return where a setting comes from, for a reader."""
    return {"environment": "the environment", "default": "the defaults"}.get(source, clean_line(source, 500))
