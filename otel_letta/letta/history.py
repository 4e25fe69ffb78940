"""The stored messages of a REST server: how old they are, what became of them, whose answer they are. Pure.

What the comments call measured was measured on a real Letta 0.16.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from otel_letta.letta.answers import moment

_MOST_ROWS = 2_000
"""Rows that are looked through for the answer to a message."""
_READS_BEFORE = timedelta(seconds=5)
"""How long before its first message a turn may have read the context: above a second on a busy server (measured), whose
dates have whole seconds."""


def answers_in(newest: Iterable[dict[str, Any]], otids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the answers to messages, each in the form of a turn's: otid → answer.

    All rows of a turn carry the id of its run, the message's own among them (measured).

    Args:
        newest: stored messages, the newest first.
        otids: of the messages.
    """
    wanted = set(otids)
    runs: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    later: list[dict[str, Any]] = []
    for row in newest:
        otid, run_id = row.get("otid"), row.get("run_id")
        if isinstance(otid, str) and otid in wanted:
            wanted.discard(otid)  # an older one of the same report was erased before this was sent
            if isinstance(run_id, str):
                found[otid] = runs.setdefault(run_id, {"run_id": run_id})
        if not wanted or len(later) == _MOST_ROWS:
            break
        later.append(row)
    for run_id, answer in runs.items():
        rows = [row for row in reversed(later) if row.get("run_id") == run_id]
        answer["messages"] = [row for row in rows if row.get("message_type") != "user_message"]
    return {otid: answer for otid, answer in found.items() if answer["messages"]}


def is_older(row: dict[str, Any], now: datetime, seconds: float) -> bool:
    date = moment(row.get("date"))
    return date is not None and (now - date).total_seconds() > seconds


def was_put_away(message_id: str, eldest: str, stored: Sequence[dict[str, Any]]) -> bool:
    """Return True if a compaction or a reset took a message out of the context, and not a turn at the same time.

    Such a turn writes the context as it was when it began, and what it adds itself (measured). A compaction begins
    with its summary, which is stored after all that it stands for; after a reset the context begins with a later turn.
    What begins in the next seconds may still be at the same time, and so it counts: who is told twice loses nothing.

    Args:
        message_id: is not in the context.
        eldest: the first message that is, after the system's.
        stored: stored messages, the newest first, as far back as the message at least.
    """
    by_id = {str(row.get("id")): position for position, row in enumerate(stored)}
    ours, first = by_id[message_id], by_id.get(eldest)
    if first is None or first > ours:
        return False  # something older is still there
    run, our_run = stored[first].get("run_id"), stored[ours].get("run_id")
    if run is None or run == our_run:
        return True  # compacted by a person, or by our own turn
    our_end = max(_dates_of(our_run, stored), default=None)
    its_begin = min(_dates_of(run, stored), default=None)
    return its_begin is not None and (our_end is None or its_begin - our_end > _READS_BEFORE)


def _dates_of(run: object, stored: Sequence[dict[str, Any]]) -> Iterator[datetime]:
    for row in stored:
        date = moment(row.get("date")) if row.get("run_id") == run else None
        if date is not None:
            yield date.astimezone(timezone.utc)
