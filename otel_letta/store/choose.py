"""The choice of the database by its address."""

from __future__ import annotations

from pathlib import Path

from otel_letta.store.model import Spool, Store

POSTGRESQL = ("postgresql://", "postgres://")


def open_store(address: str, shown: str | None = None, *, fsync: bool = True, most_bytes: int | None = None) -> Store:
    """Make the store of an outbox, not opened yet.

    Args:
        address: a file's path, or ``postgresql://…``.
        shown: the address without secrets, for people.
        fsync: whether the disk confirms what must not be lost.
        most_bytes: bound of its size.
    """
    if address.startswith(POSTGRESQL):
        from otel_letta.store.postgres import PostgresStore

        return PostgresStore(address, shown or address, fsync=fsync, most_bytes=most_bytes)
    from otel_letta.store.sqlite_store import SqliteStore

    return SqliteStore(Path(address).expanduser(), fsync=fsync, most_bytes=most_bytes)


def open_spool(address: str, shown: str | None = None, *, fsync: bool = True, most_bytes: int | None = None) -> Spool:
    """Make a spool, not opened yet; arguments as `open_store`. In the same file or database as an outbox, if wanted."""
    if address.startswith(POSTGRESQL):
        from otel_letta.store.postgres_spool import PostgresSpool

        return PostgresSpool(address, shown or address, fsync=fsync, most_bytes=most_bytes)
    from otel_letta.store.sqlite_store import SqliteSpool

    return SqliteSpool(Path(address).expanduser(), fsync=fsync, most_bytes=most_bytes)
