"""Whether a process lives, known to PostgreSQL by an advisory lock that its session holds in its name.

When the session ends, however that happens, others may take over what the process left. A restart of the server ends
all sessions, and says nothing about the processes: then they get a while to come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_letta.runtime.deadline import Deadline
from otel_letta.store import statements as sql
from otel_letta.store.model import StoreError
from otel_letta.store.sessions import Session, first, halves_of, number_of

if TYPE_CHECKING:
    import psycopg

GRACE = 90.0
"""Seconds after the server's own start that processes have to come back, before the others take them for dead."""
_LATE = 5.0
"""Seconds that a session of this process has to end which the server still has after the network failed."""


def be_born(connection: psycopg.Connection[Any], place: str, name: str) -> None:
    """Take the lock that says that the process of this name lives. StoreError if its last session does not end."""
    number = number_of(f"owner {name}")
    until = Deadline.after(_LATE)
    while not first(connection.execute(sql.TAKE, (number,))):
        if until.passed:
            raise StoreError(f"{place}: an earlier session of this process does not end")
        # The network failed, and the server has not noticed yet.
        connection.execute(sql.END_SESSION, halves_of(number))
        until.wait(0.1)
    connection.execute(sql.BE_BORN, (name,))


def lives(session: Session, name: str) -> bool:
    """Return whether the process of that name lives."""
    return bool(_rows(session, sql.IS_LOCKED, halves_of(number_of(f"owner {name}"))))


def is_gone_for_good(session: Session, name: str, grace: float = GRACE) -> bool:
    """Return whether a process is gone, and not just on its way back to a server that was started again."""
    if lives(session, name):
        return False
    known = _rows(session, sql.OUTLIVED, (name,))
    # The server has been there all the time since that session began, or long enough for it to come back.
    return not known or bool(known[0][0]) or float(known[0][1]) >= grace


def take_estate(connection: psycopg.Connection[Any], name: str) -> bool:
    """Return True to the only heir; until the end of his transaction the dead one cannot come back."""
    return bool(first(connection.execute(sql.TAKE_DEAD, (number_of(f"owner {name}"),))))


def _rows(session: Session, statement: str, values: tuple[Any, ...]) -> list[Any]:
    return session.transact(lambda connection: connection.execute(statement, values).fetchall(), durable=False)
