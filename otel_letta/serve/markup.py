"""The page as HTML. Every text from outside is escaped here, in `_text`, and nowhere else."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from otel_letta.serve.tasks import COMPLETED, FAILED, WAITING, WORKING, Task, Tasks
from otel_letta.text import clean_line, duration, percent

_WORDS = {WAITING: "Waiting", WORKING: "Under way", COMPLETED: "Completed", FAILED: "Failed"}
_CAP = 300
_REFRESH = 5
"""Seconds between two loads of the page where no script runs."""


class View(NamedTuple):
    """All that the page shows."""

    tasks: Tasks
    troubles: Sequence[str]
    """What waits for Letta, and why: a sentence each."""
    now: float
    """Unix seconds."""
    note: str = ""
    """What else its reader has to know."""


def troubles_of(stats: Mapping[str, Any]) -> list[str]:
    """Write what waits for Letta and why, a sentence each.

    Args:
        stats: see `otel_letta.delivery.desk.Desk.stats`.
    """
    found = []
    for lane, state in stats["lanes"].items():
        waits, why = state["waiting"] + state["in_flight"], state["parked"] or state["last_error"]
        if not waits and not state["parked"]:
            continue
        reports = f"{waits} report{'s' if waits != 1 else ''}"
        if why:
            found.append(f"{reports} for {lane}: {why}")
        elif state["in_flight"]:
            found.append(f"{reports} for {lane}: the agent is taking its turn")
        else:
            found.append(f"{reports} for {lane}: not due yet")
    for agent, state in stats["boards"].items():
        if state["parked"]:
            found.append(f"The board of {agent} cannot be written: {state['parked']}")
    outbox = stats.get("outbox")
    if outbox is not None and outbox["error"]:
        place = f" {outbox['place']}" if outbox["place"] else ""  # without one, it was never opened
        found.append(f"The outbox{place} cannot be used: {outbox['error']}")
    return [clean_line(each, _CAP) for each in found]


def page(view: View, *, signed_in: bool) -> str:
    """Write the whole page.

    Args:
        signed_in: there is something to sign out of.
    """
    sign_out = '<form method="post" action="logout"><button>Sign out</button></form>' if signed_in else ""
    return _document(
        "Tasks",
        f"""<header><h1>Tasks</h1>
<p id="connection" role="status">As of {_clock(view.now)}</p>
<button id="pause" type="button" aria-pressed="false" hidden>Pause updates</button>{sign_out}</header>
<p id="announcements" class="unseen" role="log" aria-live="polite"></p>
<main id="tasks">{fragment(view)}</main>
<script src="page.js" defer></script>""",
        f'<noscript><meta http-equiv="refresh" content="{_REFRESH}"></noscript>',
    )


def fragment(view: View) -> str:
    """Write what changes of the page, in one line."""
    tasks = view.tasks
    more = f"<p>… and {tasks.more} more that are not over</p>" if tasks.more else ""
    parts = [
        f'<div id="state" data-now="{view.now:.3f}">',
        f'<p class="note">{_text(view.note)}</p>' if view.note else "",
        _section("waiting", "Waiting for somebody", tasks.waiting, view.now, "", hidden=not tasks.waiting),
        _section("working", "Under way", tasks.working, view.now, "No task is under way."),
        f'<div id="more">{more}</div>',
        _delivery(view.troubles),
        _section("ended", "Ended", tasks.ended, view.now, "No task has ended yet."),
        "</div>",
    ]
    return " ".join("".join(parts).splitlines())


def sign_in(problem: str = "") -> str:
    """Write the form that takes a token."""
    alert = f'<p role="alert" id="problem">{_text(problem)}</p>' if problem else ""
    described = ' aria-describedby="problem" aria-invalid="true"' if problem else ""
    return _document(
        "Sign in",
        f"""<main class="sign-in"><h1>Tasks</h1>{alert}
<form method="post" action="login"><label for="token">Token of this receiver</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus{described}>
<button>Sign in</button></form></main>""",
    )


def problem(text: str) -> str:
    """Write a page that says why there is none."""
    return _document("Tasks", f'<main><h1>Tasks</h1><p role="alert">{_text(text)}</p></main>')


def _document(title: str, body: str, head: str = "") -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title} – otel_letta</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="page.css">{head}</head>
<body>{body}</body></html>
"""


def _section(name: str, title: str, tasks: Sequence[Task], now: float, empty: str, *, hidden: bool = False) -> str:
    items = "".join(_item(task, now) for task in tasks)
    none = f'<p class="none"{" hidden" if tasks else ""}>{empty}</p>' if empty else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"{" hidden" if hidden else ""}>'
        f'<h2 id="{name}-title">{title} <span class="count">{len(tasks)}</span></h2>{none}'
        f'<ul role="list">{items}</ul></section>'
    )


def _item(task: Task, now: float) -> str:
    name = _text(task.name)
    bar = ""
    if task.state in (WAITING, WORKING):
        done = percent(task.progress)
        bar = (
            f'<p class="bar"><progress max="100" value="{int(task.progress * 100)}" aria-label="{name}">{done}'
            f'</progress> <span aria-hidden="true">{done}</span></p>'
        )
    return (
        f'<li id="t-{task.id}" data-revision="{task.revision}" class="{task.state}">'
        f'<h3>{name}</h3><p class="state">{_WORDS[task.state]}</p>{bar}'
        f'<p class="line">{_text(task.line)}</p><p class="about">{_about(task, now)}</p></li>'
    )


def _about(task: Task, now: float) -> str:
    parts = [_text(task.agent if task.agent.startswith("agent-") else f"agent {task.agent}")]
    parts += [f"chat {_text(task.chat)}"] if task.chat else []
    parts += [_text(task.service)] if task.service else []
    if task.state in (WAITING, WORKING):
        parts += [f"started {_ago(task.started, now)}"] if task.started is not None else []
    else:
        parts += [f"took {duration(task.seconds)}"] if task.seconds is not None else []
        parts += [f"ended {_ago(task.changed, now)}"] if task.changed is not None else []
    return "".join(f"<span>{part}</span> " for part in parts)


def _delivery(troubles: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(each)}</li>" for each in troubles)
    revision = hashlib.blake2b(items.encode(), digest_size=8).hexdigest()
    return (
        f'<section id="delivery" data-revision="{revision}" aria-labelledby="delivery-title"'
        f"{'' if troubles else ' hidden'}>"
        f'<h2 id="delivery-title">Waiting for Letta <span class="count">{len(troubles)}</span></h2>'
        f'<ul role="list">{items}</ul></section>'
    )


def _ago(at: float, now: float) -> str:
    stamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f'<time datetime="{stamp}" data-at="{at:.3f}">{age(now - at)} ago</time>'


def age(seconds: float) -> str:
    """Return an age in words that do not change all the time: ``12 s``, ``3 min``, ``2 h 5 min``, ``3 d``.

    The page's script has the same words.
    """
    minutes = int(max(seconds, 0.0)) // 60
    if not minutes:
        return f"{int(max(seconds, 0.0))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d"


def _clock(now: float) -> str:
    return f"{datetime.fromtimestamp(now, timezone.utc):%H:%M:%S} UTC"


def _text(text: str) -> str:
    return html.escape(clean_line(text, _CAP))
