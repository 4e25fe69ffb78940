"""`otel-letta tasks`: what an agent, or a person, may ask of a receiver, from a shell."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from otel_letta.cli.tokens import token_of
from otel_letta.text import as_text, clean_line, duration, percent

_PATIENCE = 10.0
"""Seconds for an answer."""
_MOST_BYTES = 4_000_000
_LONGEST_HEADER = 4_000
_CAP = 300
_NAME = 60
_ACTIONS = "continue", "accept", "reject"

_Decorator = Callable[[Any], Any]
_OPTIONS: tuple[_Decorator, ...] = (
    click.option(
        "--url", envvar="OTEL_LETTA_URL", default="http://127.0.0.1:4318", show_default=True, help="The receiver's."
    ),
    click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Its first token is used; may be the receiver's own.",
    ),
    click.option("--token", envvar="OTEL_LETTA_TOKEN", help="Better set OTEL_LETTA_TOKEN: others see command lines."),
    click.option("--agent", envvar="LETTA_AGENT_ID", help="Whose tasks; default is LETTA_AGENT_ID, else all."),
    click.option("--json", "in_json", is_flag=True, help="Print the receiver's JSON, for programs."),
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group(short_help="List, show and instruct tasks of a receiver.")
def tasks() -> None:
    """List, show and instruct the tasks of an agent, as 'otel-letta serve' knows them.

    To instruct takes a token of that agent's (a line 'TOKEN agent=agent-...' of the receiver's token file), where the
    receiver has tokens. Exit code: 0, or 1 if the receiver refuses or cannot be reached; the reason is on stderr.
    """


@tasks.command("list")
@_with_options
def list_(in_json: bool, **where: Any) -> None:
    """List the tasks.

    Those that wait come first, then those under way, then those that ended last.
    """
    body, found = _ask("GET", "", **where)
    if in_json:
        click.echo(body)
        return
    for task in _dicts(found.get("tasks")):
        click.echo(_line_of(task))
    if not found.get("tasks"):
        click.echo("No tasks.")
    if found.get("more"):
        click.echo(f"... and {_text(found.get('more'))} more")
    if found.get("note"):
        click.echo(_text(found.get("note")), err=True)


@tasks.command()
@click.argument("task_id")
@_with_options
def show(task_id: str, in_json: bool, **where: Any) -> None:
    """Show one task.

    Its steps and times, its result or error, the link to its trace, and what became of instructions.
    """
    body, found = _ask("GET", f"/{quote(task_id, safe='')}", **where)
    if in_json:
        click.echo(body)
        return
    click.echo(_line_of(found))
    for name in (
        "agent_id",
        "chat_id",
        "message_id",
        "service",
        "host",
        "started",
        "changed",
        "result",
        "error",
        "trace",
    ):
        if found.get(name):
            click.echo(f"  {name:10} {_text(found[name])}")
    for step in _dicts(found.get("steps")):
        click.echo(
            f"  {_clock(step.get('at'))}  {percent(_number(step.get('progress'))):>4}  {_text(step.get('line'))}"
        )
    for kept in _dicts(found.get("instructions")):
        said = ": ".join(filter(None, (_text(kept.get("action")), _text(kept.get("text")))))
        click.echo(f"  {_clock(kept.get('at'))}  instruction, {_text(kept.get('state'))}: {said}")


@tasks.command()
@click.argument("task_id")
@click.argument("action", type=click.Choice(_ACTIONS))
@click.argument("text", default="")
@_with_options
def instruct(task_id: str, action: str, text: str, in_json: bool, **where: Any) -> None:
    """Instruct the program that does a task.

    'continue' with a TEXT, which is its next message; 'accept' or 'reject' what it waits for, the TEXT is the reason. A
    TEXT of '-' is read from stdin.
    """
    if text == "-":
        text = sys.stdin.read(_MOST_BYTES)
    path = f"/{quote(task_id, safe='')}/instructions"
    body, found = _ask("POST", path, content={"action": action, "text": text}, **where)
    click.echo(body if in_json else _text(found.get("message")))


# -- the receiver ------------------------------------------------------------------------------------------------------


def _ask(
    method: str,
    path: str,
    *,
    url: str,
    token: str | None,
    token_file: Path | None,
    agent: str | None,
    content: Mapping[str, str] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Ask the receiver. Returns its JSON as it came, and what that holds."""
    place = url.strip().rstrip("/")
    headers = {}
    if secret := token_of(token, token_file):
        headers["Authorization"] = f"Bearer {secret}"
    if agent and agent.strip():
        headers["x-agent-id"] = agent
    try:
        with (
            httpx.Client(headers=_as_lines(headers), timeout=_PATIENCE) as client,
            client.stream(method, f"{place}/api/tasks{path}", json=content) as answer,
        ):
            body = b"".join(_bounded(answer.iter_bytes(), place))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise click.ClickException(f"{_text(place)} is no address: it begins with http:// or https://") from None
    except httpx.ConnectError:
        raise click.ClickException(f"Nothing listens on {_text(place)}") from None
    except httpx.HTTPError as error:
        raise click.ClickException(f"{_text(place)} does not answer ({type(error).__name__})") from None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or (answer.status_code == 200 and not {"tasks", "task_id"} & set(found)):
        raise click.ClickException(f"{_text(place)} is no otel-letta serve, or one of an older version")
    if answer.status_code != 200:
        raise click.ClickException(_text(found.get("message")) or f"HTTP {answer.status_code}")
    # What cannot be printed safely is escaped: JSON may do so anywhere.
    return json.dumps(found).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"), found


def _as_lines(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return headers whose values stay in their lines, whatever characters they have."""
    return {name.encode(): clean_line(value, _LONGEST_HEADER).encode() for name, value in headers.items()}


def _bounded(parts: Iterator[bytes], place: str) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > _MOST_BYTES:
            raise click.ClickException(f"{_text(place)} sends too much to be tasks")
        yield part


# -- what is shown -----------------------------------------------------------------------------------------------------


def _line_of(task: Mapping[str, Any]) -> str:
    seconds = task.get("seconds")
    took = f", {duration(_number(seconds))}" if seconds is not None else ""
    name = clean_line(as_text(task.get("name")) or "", _NAME)
    done = percent(_number(task.get("progress")))
    head = f"{_text(task.get('state')):9} {done:>4}  {name} ({_text(task.get('task_id'))}{took})"
    return f"{head}: {_text(task.get('line'))}"


def _text(value: object) -> str:
    return clean_line(as_text(value) or "", _CAP)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e12 else 0.0


def _clock(value: object) -> str:
    """Return a time as a clock of this place shows it."""
    try:
        return datetime.fromisoformat(_text(value).replace("Z", "+00:00")).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "--:--:--"


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
