"""Recordings of agent programs that are no Python libraries, and how far what `replay` makes of them is right.

`tests/data/agents` holds what each program sent, ``expected.json`` what each run really was, ``repro`` small inputs
made by hand, and ``not_yet.json`` which of all these are still wrong, each with a short reason. The list only becomes
shorter: `tests/behaviour/test_recorded_agents.py` fails when an entry has become right. To write it anew:

    python -m tests.support.recorded_agents            # say what is wrong now; write the list and the pages' tables
    python -m tests.support.recorded_agents NAME…      # every report of some recordings; writes nothing
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from otel_letta.cli.replay import Replay, _as_json, _as_text
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings

__all__ = [
    "AGENTS",
    "CASES",
    "REPROS",
    "Played",
    "faults",
    "faults_of",
    "not_yet",
    "play",
    "play_case",
    "play_repro",
    "verdicts",
]

AGENTS = Path(__file__).parent.parent / "data" / "agents"
EXPECTED: dict[str, dict[str, Any]] = json.loads((AGENTS / "expected.json").read_text("utf-8"))
_NOT_YET = AGENTS / "not_yet.json"
_FAULT = re.compile(
    r"(reversed|tasks|ends|waiting|tools|name|words|chats|used a tool|no report of): |leak|ended twice|goes on|its p"
)
"""How `faults` begins what it found; any other reason was written by a person."""
_MARKER = "SECRET-"
"""Every prompt, argument and output of the recorded programs begins with it."""
_STOPPED = re.compile(r"stopped|cancelled|interrupted")
_LOST = re.compile(r"\blost\b")
_TOOL = re.compile(r"Used tool|Tool .*(failed|denied)|Denied tool")
_NO_NAME_FOR_PEOPLE = re.compile(r"agent$|invoke_agent$|.*\w\.[A-Za-z_]")
_SHOWN_ERROR = re.compile(r'"code": ?2\b|"exception|"error')
"""A status, an event or an attribute that says what went wrong. Where there is none, "stopped" is all that can be known
(rig 0.44 sets neither: a failed call is one without an answer)."""
_WORDS = (
    # A verdict in expected.json, what the content of an end needs to hold, and what it must not.
    ("cancelled or lost", re.compile(f"{_STOPPED.pattern}|{_LOST.pattern}"), None),
    ("cancel", _STOPPED, _LOST),
    ("stopped", _STOPPED, _LOST),
    ("failed: lost", _LOST, None),
    ("timed out", re.compile(r"timed out|timeout|deadline", re.IGNORECASE), None),
    ("blocked", re.compile("filter|blocked|safety", re.IGNORECASE), None),
    ("completed+problem", re.compile("problem"), None),
    ("failed", None, re.compile(f"{_STOPPED.pattern}|{_LOST.pattern}")),
)


class Played(NamedTuple):
    """What was reported of a recording, and what a person at the terminal and a program were shown."""

    reports: list[ProgressReport]
    shown: str

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(report.task_id for report in self.reports))

    @property
    def ends(self) -> list[ProgressReport]:
        return [report for report in self.reports if report.status.is_terminal]

    @property
    def tools(self) -> int:
        return sum(bool(_TOOL.match(report.content)) for report in self.reports)

    @property
    def waiting(self) -> int:
        """The tasks whose last report is that they wait for somebody."""
        last = {report.task_id: report for report in self.reports}
        return sum(report.waiting for report in last.values())


def _cases() -> dict[str, list[Path]]:
    """The cases: of each recording its spans alone, and spans and logs where there are logs."""
    cases = {}
    for name in sorted(EXPECTED):
        spans, logs = AGENTS / f"{name}.otlp.jsonl.gz", AGENTS / f"{name}.logs.jsonl.gz"
        cases[name] = [spans]
        if logs.exists():
            cases[f"{name}+logs"] = [spans, logs]
    return cases


CASES = _cases()
REPROS = sorted(path.stem for path in (AGENTS / "repro").glob("*.jsonl"))


def not_yet() -> dict[str, str]:
    """Return what is known to be wrong: cases and small inputs, with reasons."""
    found: dict[str, str] = json.loads(_NOT_YET.read_text("utf-8"))
    return found


def play(files: Iterable[Path]) -> Played:
    """Play files through what `otel-letta replay` is made of."""
    reports: list[ProgressReport] = []
    settings = Settings.resolve(require_agent=False, environ={}, dotenv_path=os.devnull)
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(shown):
        player = Replay(settings, [reports.append, _as_text, _as_json])
        player.read(*map(str, files))
        player.finish()
    return Played(reports, shown.getvalue())


@functools.cache
def play_case(name: str, reverse: bool = False) -> Played:
    """Play a case once, as recorded or with the spans of each request in reverse order."""
    return _play_reversed(CASES[name]) if reverse else play(CASES[name])


@functools.cache
def play_repro(name: str, reverse: bool = False) -> Played:
    file = AGENTS / "repro" / f"{name}.jsonl"
    return _play_reversed([file]) if reverse else play([file])


def verdicts(played: Played) -> list[object]:
    """Return tasks with their ends, chats and names, how many wait, and how many tools were reported."""
    ends = sorted((report.task_id, report.status.value) for report in played.ends)
    chats = sorted({(report.task_id, report.chat_id or "") for report in played.reports})
    names = sorted({(report.task_id, report.name) for report in played.reports})
    return [ends, len(played.tasks), played.waiting, played.tools, chats, names]


def _play_reversed(files: Iterable[Path]) -> Played:
    with tempfile.TemporaryDirectory() as folder:
        turned = [Path(folder) / f"{number}.jsonl" for number, _ in enumerate(files)]
        for file, target in zip(files, turned, strict=True):
            opened = gzip.open if file.suffix == ".gz" else open
            with opened(file, "rt", encoding="utf-8") as lines:
                target.write_text("".join(_turned_round(line) for line in lines), "utf-8")
        return play(turned)


def _turned_round(line: str) -> str:
    request = json.loads(line)
    for resource in request.get("resourceSpans", []):
        for scope in resource.get("scopeSpans", []):
            scope.get("spans", []).reverse()
        resource.get("scopeSpans", []).reverse()
    request.get("resourceSpans", []).reverse()
    return json.dumps(request) + "\n"


def faults(name: str) -> list[str]:
    """Compare a case, in both orders of its spans, with what the run really was; nothing if all is right."""
    expected = EXPECTED[name.removesuffix("+logs")]
    played, turned, shown = play_case(name), play_case(name, reverse=True), _shows_error(name)
    found = _faults(played, expected, shown)
    if found:
        return found
    found = [f"reversed: {fault}" for fault in _faults(turned, expected, shown)]
    if not found and _identity(played) != _identity(turned):
        found = ["reversed: other ids or ends"]
    return found


def faults_of(name: str, played: Played) -> list[str]:
    """Compare what was reported of a case, however it was played, with what the run really was."""
    return _faults(played, EXPECTED[name.removesuffix("+logs")], _shows_error(name))


def _identity(played: Played) -> list[tuple[str, str]]:
    return sorted((report.task_id, report.status.value) for report in played.ends)


@functools.cache
def _shows_error(name: str) -> bool:
    return any(_SHOWN_ERROR.search(gzip.decompress(file.read_bytes()).decode()) for file in CASES[name])


def _faults(played: Played, expected: dict[str, Any], shown: bool) -> list[str]:
    """Of what no recording shows only what holds for any run is asked."""
    found = _faults_of_any(played)
    if not expected.get("knowable", True):
        return found
    statuses = sorted(report.status.value for report in played.ends)
    if len(played.tasks) != expected["tasks"]:
        found.append(f"tasks: {len(played.tasks)}, not {expected['tasks']}")
    if statuses != sorted(expected["ends"]):
        found.append(f"ends: {'+'.join(statuses) or 'none'}, not {'+'.join(sorted(expected['ends'])) or 'none'}")
    if played.waiting != expected["waiting"]:
        found.append(f"waiting: {played.waiting}, not {expected['waiting']}")
    if expected["tools"] is not None and played.tools != expected["tools"]:
        found.append(f"tools: {played.tools}, not {expected['tools']}")
    return found + _faults_of_words(played, expected, shown)


def _faults_of_any(played: Played) -> list[str]:
    found = []
    if any(count > 1 for count in Counter(report.task_id for report in played.ends).values()):
        found.append("ended twice")
    ended: set[str] = set()
    for report in played.reports:
        if report.task_id in ended and not report.status.is_terminal:
            found.append("goes on after its end")
            break
        if report.status.is_terminal:
            ended.add(report.task_id)
    if names := sorted({report.name for report in played.reports if _NO_NAME_FOR_PEOPLE.match(report.name)}):
        found.append(f"name: {', '.join(names)}")
    fields = "".join(json.dumps(report.to_dict(), default=str) for report in played.reports)
    if _MARKER in fields or _MARKER in played.shown:
        found.append("leak")
    return found


def _faults_of_words(played: Played, expected: dict[str, Any], shown: bool) -> list[str]:
    verdict, contents = expected["verdict"], [report.content for report in played.ends]
    if verdict.startswith("in_progress") and expected["ends"] and sum(r.waiting for r in played.reports) != 1:
        return ["its pause is not reported once"]
    if not contents or len(set(expected["ends"])) != 1:
        return []  # nothing, or several kinds of ends: the statuses were compared
    for word, needed, forbidden in _WORDS:
        if word in verdict:
            for content in contents:
                if not shown and "stopped" in content:
                    continue
                if (needed and not needed.search(content)) or (forbidden and forbidden.search(content)):
                    return [f"words: {content[:70]}"]
            return []
    return []


# --- The list -------------------------------------------------------------------------------------------------------


def wrong_now(repro_faults: Callable[[str], list[str]]) -> dict[str, str]:
    """Return what is wrong, with the reason that somebody wrote down, or else what is wrong about it."""
    known = not_yet() if _NOT_YET.exists() else {}
    found = {name: faults(name) for name in CASES} | {f"repro/{name}": repro_faults(name) for name in REPROS}
    written = {name: reason for name, reason in known.items() if not _FAULT.match(reason)}
    return {name: written.get(name, "; ".join(what)) for name, what in sorted(found.items()) if what}


def main(names: list[str]) -> None:
    from tests.behaviour.test_recorded_agents import repro_faults
    from tests.support.agent_tables import write_tables

    for name in names:
        played = play_repro(name.removeprefix("repro/")) if name.startswith("repro/") else play_case(name)
        print(f"{name}: {'; '.join(repro_faults(name[6:]) if name.startswith('repro/') else faults(name)) or 'right'}")
        for report in played.reports:
            print(
                f"  {report.status.value:11} {report.task_id[-16:]} {report.name!r} {report.chat_id}: {report.content}"
            )
    if not names:
        wrong = wrong_now(repro_faults)
        _NOT_YET.write_text(json.dumps(wrong, indent=0, ensure_ascii=False) + "\n", "utf-8")
        write_tables()
        for name, reason in wrong.items():
            print(f"{name}: {reason}")
        print(f"{len(wrong)} of {len(CASES) + len(REPROS)} are wrong.")


if __name__ == "__main__":
    main(sys.argv[1:])
