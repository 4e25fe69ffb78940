"""An agent's own token: in the file that `otel-letta serve` reads, and where the agent has it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from otel_letta.cli.setup.files import read_settings, write_settings
from otel_letta.cli.setup.steps import Step


class OwnToken:
    """The token of one agent. A line ``TOKEN agent=agent-…`` makes it good for that agent's tasks and nothing else.

    Args:
        path: the file; None where the person names none.
        agent_id: the agent's.
        held: the token that the agent has now; None if it has none.
    """

    def __init__(self, path: Path | None, agent_id: str, held: str | None) -> None:
        self._path = path
        self._agent_id = agent_id
        self._held = held
        self.value = held
        """The token that the agent shall have, once `to_write` was asked."""

    def to_write(self) -> Iterator[Step]:
        """Yield what the file lacks.

        Raises:
            CannotMerge, OSError: it cannot be read.
        """
        path = self._path
        if path is None:
            return
        there = _tokens_of(path, self._agent_id)
        if self._held in there:
            return
        if there:
            self.value = there[-1]
            return
        # Not one that the agent has and the file has not: somebody took it out, and it shall stay worthless.
        self.value = token = secrets.token_urlsafe(32)
        yield Step(f"add a token for this agent alone to {path}", partial(_add, path, self._agent_id, token))

    def to_remove(self) -> Iterator[Step]:
        """Yield what of it is in the file. Raises as `to_write` does."""
        path, token = self._path, self._held
        if path is not None and token is not None and token in _tokens_of(path, self._agent_id):
            yield Step(f"take its token out of {path}", partial(_take_out, path, self._agent_id, token))

    def notes_on_removal(self) -> Iterator[str]:
        """Yield what a person should know about a token that was taken back, or was not."""
        if self._held is None:
            return
        if self._path is None:
            yield "Its token is good as long as it stands in the bridge's file: --token-file takes it out."
        elif not any(_parsed(line)[0] for line in read_settings(self._path).text.splitlines()):
            yield (
                f"{self._path} holds no token any more. A bridge that runs takes that for a file that is being "
                "written, and goes on with the tokens of before until it starts again."
            )


def _tokens_of(path: Path, agent_id: str) -> list[str]:
    found = map(_parsed, read_settings(path).text.splitlines())
    return [token for token, agents in found if token and agents == [agent_id]]


def _add(path: Path, agent_id: str, token: str) -> None:
    before = read_settings(path)
    text = before.text if not before.text or before.text.endswith("\n") else f"{before.text}\n"
    write_settings(path, before, f"{text}{token} agent={agent_id}\n", private=True, backup=False)


def _take_out(path: Path, agent_id: str, token: str) -> None:
    before = read_settings(path)
    kept = [line for line in before.text.splitlines(keepends=True) if _parsed(line) != (token, [agent_id])]
    write_settings(path, before, "".join(kept), private=True, backup=False)


def _parsed(line: str) -> tuple[str, list[str]]:
    """Return the token of a line, empty if it has none, and the agents that it belongs to."""
    token, *marks = line.split() or [""]
    if token.startswith("#"):
        return "", []
    return token, [mark.partition("=")[2] for mark in marks if mark.startswith("agent=")]
