"""The token with which a command goes to a receiver, from its option, or from a receiver's own token file."""

from __future__ import annotations

from pathlib import Path


def token_of(token: str | None, file: Path | None, *, sender: bool = False) -> str | None:
    """Return the token; None without one.

    Args:
        token: as it was given.
        file: its first token is taken.
        sender: no token of an agent will do.

    Raises:
        OSError: the file cannot be read.
    """
    if file is None:
        return (token or "").strip() or None
    lines = (line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    tokens = (words for words in lines if words and not words[0].startswith("#"))
    return next((words[0] for words in tokens if not (sender and len(words) > 1)), None)
