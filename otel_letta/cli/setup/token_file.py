"""The file of tokens that `otel-letta serve` reads: an agent's own line in it."""

from __future__ import annotations

from pathlib import Path

from otel_letta.cli.setup.files import read_settings, write_settings


def tokens_of(path: Path, agent_id: str) -> list[str]:
    """Return the tokens that are good for that agent alone; none if there is no file.

    Raises:
        CannotMerge, OSError: it cannot be read.
    """
    found = map(_parsed, read_settings(path).text.splitlines())
    return [token for token, agent in found if token and agent == agent_id]


def add(path: Path, agent_id: str, token: str) -> None:
    """Add a token that is good for one agent. A new file is for its owner alone (0600)."""
    before = read_settings(path)
    text = before.text if not before.text or before.text.endswith("\n") else f"{before.text}\n"
    write_settings(path, before, f"{text}{token} agent={agent_id}\n", private=True, backup=False)


def take_out(path: Path, agent_id: str, token: str) -> None:
    """Take the line with that token of that agent out, and no other."""
    before = read_settings(path)
    kept = [line for line in before.text.splitlines(keepends=True) if _parsed(line) != (token, agent_id)]
    write_settings(path, before, "".join(kept), private=True, backup=False)


def _parsed(line: str) -> tuple[str, str]:
    """Return the token and the agent that it belongs to, either of them empty."""
    token, *marks = line.split() or [""]
    if token.startswith("#"):
        return "", ""
    return token, next((mark.partition("=")[2] for mark in marks if mark.startswith("agent=")), "")
