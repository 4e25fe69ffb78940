"""The settings on disk: a `.env` that only its owner reads, and that git does not take."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class EnvFileError(Exception):
    """The settings cannot be kept in that file; the text says why, and holds no value."""


def write(path: Path, values: Mapping[str, str]) -> None:
    """Set these variables in the file, which is made if there is none, and leave everything else in it as it is.

    Raises:
        EnvFileError: it cannot be written, or a value would not be read again as it is.
    """
    from dotenv import dotenv_values, set_key, unset_key

    try:
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        for name, value in values.items():
            set_key(path, name, value, quote_mode="auto")
        path.chmod(0o600)
        read = dotenv_values(path)
    except OSError as error:
        raise EnvFileError(f"{path} cannot be written: {error.strerror or type(error).__name__}") from None
    for name, value in values.items():
        if read.get(name) != value:
            unset_key(path, name)
            raise EnvFileError(f"{name} holds characters that a .env file does not keep: set it in the environment")


def ignore_in_git(path: Path) -> str:
    """Have git ignore the file, if it is in a work tree. Return what was done, for a reader; empty for nothing."""
    folder = path.absolute().parent
    if not any((each / ".git").exists() for each in (folder, *folder.parents)):
        return ""
    if _git(folder, "ls-files", "--error-unmatch", path.name) == 0:
        return f"{path} is in git: its password will be too. Take it out: git rm --cached {path.name}"
    if _git(folder, "check-ignore", "--quiet", path.name) == 0:
        return ""
    ignored = folder / ".gitignore"
    before = ignored.read_text(encoding="utf-8") if ignored.exists() else ""
    line = f"/{path.name}"
    if line in before.split():
        return ""
    with contextlib.suppress(OSError):
        ignored.write_text(before + ("\n" if before and not before.endswith("\n") else "") + line + "\n", "utf-8")
        return f"{line} is in {ignored} now"
    return f"{ignored} cannot be written: keep {path.name} out of git"


def _git(folder: Path, *arguments: str) -> int | None:
    """Return the exit code; None where there is no git."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode
