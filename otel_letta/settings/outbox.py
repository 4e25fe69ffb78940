"""The settings of the outbox: where it is, and what the exit does with what it holds."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import NoReturn

from otel_letta.settings.kinds import Kind, Refused, has_control, plain_text
from otel_letta.settings.secret import Secret

_POSTGRESQL = ("postgresql://", "postgres://")
_LONGEST = 4_000


class OutboxExit(str, Enum):
    """What the exit does with ends that the outbox holds: wait for their delivery as long as the exit may take, leave
    them to the next process at once, or start one that delivers them."""

    DELIVER = "deliver"
    LEAVE = "leave"
    DETACH = "detach"

    def __str__(self) -> str:
        return self.value


class OutboxAddress:
    """The path of a file, absolute, or the URL of a PostgreSQL database, which is shown without its password."""

    __slots__ = ("_full", "shown")

    def __init__(self, full: str) -> None:
        self._full = Secret(full)
        self.shown = without_password(full)

    def reveal(self) -> str:
        """Return all of it, a password in it included."""
        return self._full.reveal()

    @property
    def is_postgresql(self) -> bool:
        return self.shown.startswith(_POSTGRESQL)

    def __repr__(self) -> str:
        return self.shown

    def __eq__(self, other: object) -> bool:
        return self._full == other._full if isinstance(other, OutboxAddress) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.shown)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("the address of an outbox cannot be pickled: its password would be in clear")


class OutboxKind(Kind[OutboxAddress]):
    """An `OutboxAddress`, from a text."""

    allowed = "the path of a file, or postgresql://user@host/database"

    def parse(self, value: object) -> OutboxAddress:
        if isinstance(value, OutboxAddress):
            return value
        if isinstance(value, Path):
            value = str(value)
        text = plain_text(value)
        is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None
        if not text or len(text) > _LONGEST or has_control(text):
            raise Refused("it is empty, too long or has control characters", show=False)
        if is_url:
            if not text.startswith(_POSTGRESQL):
                raise Refused("no other database is known than PostgreSQL", show=False)
            return OutboxAddress(text)
        try:
            # Absolute at once: a program may change its working directory, and the outbox stays where it is.
            return OutboxAddress(str(Path(text).expanduser().absolute()))
        except (OSError, RuntimeError):
            raise Refused("this path leads nowhere") from None

    def write(self, value: OutboxAddress) -> str:
        return value.shown


def without_password(address: str) -> str:
    """Return the address with its passwords replaced, in the authority and in the query."""
    if not address.startswith(_POSTGRESQL):
        return address
    scheme, _, rest = address.partition("://")
    place, mark, query = rest.partition("?")
    authority, slash, path = place.rpartition("/") if "/" in place else (place, "", "")
    user, at, host = authority.rpartition("@")
    if at:
        user = user.partition(":")[0] + (":***" if ":" in user else "")
    query = re.sub(r"(?i)((?:ssl)?pass(?:word|file)?)=[^&]*", r"\1=***", query)
    return f"{scheme}://{user}{at}{host}{slash}{path}{mark}{query}"
