"""`otel-letta outbox`: what is not delivered yet, why, and what to do about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from otel_letta.delivery.records import read_lane, read_report
from otel_letta.errors import LettaConfigurationError
from otel_letta.pipeline.drain import drain, leave_behind
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings
from otel_letta.settings.outbox import OutboxAddress
from otel_letta.store.choose import open_store
from otel_letta.store.model import Entry, Standing, Store, StoreError
from otel_letta.text import clean_line

_PAGE = 1_000
_NAME = 60

_IN_JSON = click.option("--json", "in_json", is_flag=True, help="Print JSON, for programs.")
_ENV_FILE = click.option("--env-file", type=click.Path(), metavar="PATH", help="Read this .env file.")


@click.group(invoke_without_command=True, short_help="Show and deliver what an outbox keeps.")
@click.pass_context
def outbox(context: click.Context) -> None:
    """Show and deliver the reports that OTEL_LETTA_OUTBOX keeps until an agent has them.

    Without a command: list.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


@outbox.command("list")
@_IN_JSON
@_ENV_FILE
def list_(in_json: bool = False, env_file: str | None = None) -> None:
    """List what waits, and why."""
    settings = _settings(env_file)
    with _store(settings) as store:
        entries = [_entry_facts(entry, alive) for entry, alive in _all_entries(store)]
        tasks = [_task_facts(standing, alive) for standing, alive in ([] if store is None else store.all_standings())]
    if in_json:
        click.echo(json.dumps({"outbox": _address(settings).shown, "ends": entries, "tasks": tasks}, indent=2))
        return
    click.echo(f"{_address(settings).shown}: {_count(len(entries), 'end')}, {_count(len(tasks), 'task')} under way")
    for facts in entries:
        click.echo(_line(facts))
    for facts in tasks:
        state = "waits for somebody" if facts["waiting"] else "under way"
        whose = "" if facts["process_alive"] or facts["waiting"] else "; its process is gone"
        click.echo(f"        {state}: {clean_line(str(facts['name']), _NAME)} ({facts['task_id']}){whose}")


@outbox.command
@click.option("--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds to try for.")
@click.option("--detach", is_flag=True, help="Leave it to a process that goes on, for an hour at most.")
@_IN_JSON
@_ENV_FILE
def retry(timeout: float, detach: bool, in_json: bool, env_file: str | None) -> None:
    """Deliver what processes that are gone have left, for the server that the settings name.

    A process that is alive delivers its own. Exit code: 0 if nothing is left, else 1.
    """
    settings = _settings(env_file, agent=True)
    if detach:
        sys.exit(0 if leave_behind(settings) else 1)
    with _complaints():
        found = drain(settings, timeout)
    with _store(settings) as store:
        left = sum(not alive for _, alive in _all_entries(store))
    if in_json:
        click.echo(json.dumps({**found._asdict(), "left": left}))
    else:
        click.echo(f"{_count(found.sent, 'report')} delivered, {found.dropped} given up, {left} left")
        if found.error:
            click.echo(f"last error: {found.error}", err=True)
    sys.exit(0 if found.done and not left else 1)


@outbox.command
@click.argument("ids", nargs=-1, type=int, metavar="[ID]…")
@click.option("--all", "everything", is_flag=True, help="All whose process is gone.")
@_ENV_FILE
def drop(ids: tuple[int, ...], everything: bool, env_file: str | None) -> None:
    """Give up ends by their numbers in the list; not those of a process that is alive, which would send them still."""
    if bool(ids) == everything:
        raise click.UsageError("name the numbers of the ends, or --all")
    with _store(_settings(env_file)) as store:
        chosen = [entry.id for entry, alive in _all_entries(store) if not alive] if everything else list(ids)
        number = 0 if store is None else store.remove(chosen)
    click.echo(f"{_count(number, 'end')} dropped")
    sys.exit(0 if number == len(chosen) else 1)


@outbox.command
@click.argument("file", type=click.File("w", encoding="utf-8", lazy=True), default="-")
@_ENV_FILE
def export(file: Any, env_file: str | None) -> None:
    """Write what waits as JSON lines, whole reports, to FILE or the standard output."""
    with _store(_settings(env_file)) as store:
        for entry, alive in _all_entries(store):
            facts = _entry_facts(entry, alive)
            try:
                facts["report"] = json.loads(entry.body)
            except ValueError:
                facts["report"] = None
            file.write(json.dumps(facts) + "\n")


# -- what is shown -----------------------------------------------------------------------------------------------------


def _entry_facts(entry: Entry, alive: bool) -> dict[str, Any]:
    return {
        "id": entry.id,
        **_facts(entry.body, entry.lane),
        "created": _utc(entry.created),
        "posted": None if entry.posted is None else _utc(entry.posted),
        "why": entry.note,
        "process_alive": alive,
    }


def _task_facts(standing: Standing, alive: bool) -> dict[str, Any]:
    return {**_facts(standing.body, standing.lane), "waiting": standing.waiting, "process_alive": alive}


def _facts(body: str, lane: str) -> dict[str, Any]:
    try:
        report = read_report(body)
    except ValueError:
        report = ProgressReport(name="(unreadable)")
    try:
        server, agent, conversation = read_lane(lane)
    except ValueError:
        server, agent, conversation = "?", "?", None
    return {
        "task_id": clean_line(report.task_id, 200),
        "name": clean_line(report.name, 200),
        "status": report.status.value,
        "server": clean_line(server, 300),
        "agent_id": clean_line(agent, 200),
        "conversation_id": None if conversation is None else clean_line(conversation, 200),
    }


def _line(facts: dict[str, Any]) -> str:
    if facts["process_alive"]:
        why = "its process delivers it"
    elif facts["posted"]:
        why = f"a request with it may have gone out {facts['posted']}"
    else:
        why = "its process is gone"
    why += f": {clean_line(facts['why'], 200)}" if facts["why"] else ""
    name = clean_line(facts["name"], _NAME)
    what = f"{facts['status']}: {name} ({facts['task_id']}) to {facts['agent_id']}"
    return f"{facts['id']:>7} {facts['created']} {what}; {why}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


# -- the outbox --------------------------------------------------------------------------------------------------------


def _settings(env_file: str | None, *, agent: bool = False) -> Settings:
    try:
        settings = Settings.resolve(dotenv_path=env_file, require_agent=agent)
    except LettaConfigurationError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if settings.outbox is None:
        click.echo("There is no outbox: OTEL_LETTA_OUTBOX is not set", err=True)
        sys.exit(1)
    return settings


def _address(settings: Settings) -> OutboxAddress:
    assert settings.outbox is not None
    return settings.outbox


@contextmanager
def _store(settings: Settings) -> Iterator[Store | None]:
    """Open the outbox; None if there is nothing at its place yet."""
    address = _address(settings)
    if not address.is_postgresql and not Path(address.reveal()).exists():
        yield None
        return
    with _complaints():
        store = open_store(address.reveal(), address.shown)
        store.open()
        try:
            yield store
        finally:
            store.close()


@contextmanager
def _complaints() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        click.echo(f"The outbox cannot be used: {error}", err=True)
        sys.exit(1)


def _all_entries(store: Store | None) -> Iterator[tuple[Entry, bool]]:
    after = 0
    while store is not None:
        page = store.all_entries(after, _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1][0].id
