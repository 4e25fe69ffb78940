"""Reading and replacing a settings file: whole or not at all, with a backup, through links."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from otel_letta.cli.setup.merge import CannotMerge

_MOST = 10_000_000
"""Bytes; no settings file of a person is that long."""


@dataclass(frozen=True)
class Before:
    """A settings file as it was read."""

    text: str
    exists: bool


def read_settings(path: Path) -> Before:
    """Read a file, which may not exist. CannotMerge if it is no text, OSError if it cannot be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST + 1)
    except FileNotFoundError:
        return Before("", exists=False)
    if len(raw) > _MOST:
        raise CannotMerge("it is too long")
    try:
        return Before(raw.decode("utf-8"), exists=True)
    except UnicodeDecodeError:
        raise CannotMerge("it is not UTF-8") from None


def write_settings(path: Path, before: Before, text: str, *, private: bool, backup: bool = True) -> Path | None:
    """Put a new text in place of a file, all at once, and return where the old one is kept.

    Args:
        path: a link is followed, not replaced.
        before: what the file was when it was read. CannotMerge if it is not that any more.
        text: its new content.
        private: it holds a secret, and a new file is for its owner alone.
        backup: False keeps nothing of the old one: it held secrets that shall be gone.
    """
    if before != read_settings(path):
        raise CannotMerge("somebody changed it just now")
    real = path.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    kept = _backup(real) if backup and before.exists else None
    handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if before.exists:
            shutil.copymode(real, name)
            _give_to_owner_of(real, name)
        elif not private:
            Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(real)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return kept


def _backup(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        backup = path.with_name(f"{path.name}.{stamp}{f'-{number}' if number > 1 else ''}.bak")
        if not backup.exists():
            shutil.copy2(path, backup)
            return backup
    raise CannotMerge("it has too many backups")


def _give_to_owner_of(path: Path, name: str) -> None:
    """Let root change a file of somebody else, who goes on to read it: a service, for one."""
    owner = path.stat()
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.chown(name, owner.st_uid, owner.st_gid)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
