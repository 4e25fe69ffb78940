"""An agent of an App Server: a skill for it, in the folder of skills on the server's own machine, and a token.

Facts about the App Server were measured on 0.34.12: every agent finds what is in ``~/.letta/skills``, and its shell
has the agent's id as ``LETTA_AGENT_ID``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from otel_letta.cli.setup.files import read_settings, write_settings
from otel_letta.cli.setup.steps import Refused, Step, Wishes
from otel_letta.cli.setup.token_file import OwnToken
from otel_letta.settings import Settings
from otel_letta.text import clean_line

_NAME = "otel-letta-tasks"
_TEMPLATE = Path(__file__).with_name("skill") / "SKILL.md"
_MARK = "<!-- Written by `otel-letta setup letta`"
_PATIENCE = 60.0
_CAP = 300


class AppServerAgent:
    """The setting up of one agent, as it is found on this machine.

    Args:
        settings: of the server.
        agent_id: the agent's.
        wishes: where its skill and token go.
    """

    probe = "the skill's first command"

    def __init__(self, settings: Settings, agent_id: str, wishes: Wishes) -> None:
        if wishes.skills is None and wishes.doing and not settings.is_loopback:
            raise Refused(
                "This App Server runs on another machine, and a skill belongs there: run this command there, "
                "or name a folder that it sees with --skills"
            )
        if not re.fullmatch(r"[\w-]{1,100}", agent_id, re.ASCII):
            raise Refused("The agent's id is none that could be the name of a file")
        self._agent_id = agent_id
        self._wishes = wishes
        skills = (wishes.skills or Path("~/.letta/skills")).expanduser().resolve()
        self._skill = skills / _NAME / "SKILL.md"
        self._tokens = skills.parent / "otel-letta"
        """Beside the skills, not among them: an agent is shown what is in a skill's folder."""
        self._own = self._tokens / f"{agent_id}.token"
        self._held = read_settings(self._own).text.strip() or None
        self._token = OwnToken(wishes.token_file, agent_id, self._held)

    def steps(self) -> list[Step]:
        """Return what is to be done; nothing if all of it is there, or gone.

        Raises:
            Refused: a skill of the same name is somebody else's.
            CannotMerge, OSError: a file cannot be read.
        """
        return list(self._to_remove() if self._wishes.remove else self._to_write())

    def close(self) -> None:
        """Nothing is open between calls."""

    def notes(self) -> Iterator[str]:
        """Return lines about the address, the token and the skill."""
        if self._wishes.remove:
            yield from self._token.notes_on_removal()
            return
        yield "Every agent of the App Server finds the skill; tokens are as private as files are among its agents."

    def shown(self) -> str:
        """Return the skill, for who wants to read or copy it."""
        return "" if self._wishes.remove else f"\n{self.text()}"

    def text(self) -> str:
        """Return the skill."""
        options = f" --url {shlex.quote(self._wishes.url)}"
        if self._wishes.token_file is not None or self._has_tokens():
            options += f' --token-file {shlex.quote(str(self._tokens))}/"$LETTA_AGENT_ID".token'
        return _TEMPLATE.read_text("utf-8").replace("@TASKS@", _tasks()).replace("@OPTIONS@", options)

    def proof(self) -> str | None:
        """Run the skill's first command as the agent's shell would. Return what went wrong, or None."""
        (line,) = re.findall(r"^.* list --json.*$", self.text(), re.MULTILINE)
        environ = {**os.environ, "LETTA_AGENT_ID": self._agent_id}
        try:
            done = subprocess.run(  # noqa: S603 - our own line
                ["/bin/sh", "-c", line], env=environ, capture_output=True, timeout=_PATIENCE, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return type(error).__name__
        if done.returncode == 0:
            return None
        return clean_line((done.stderr or done.stdout).decode("utf-8", "replace"), _CAP) or "it fails"

    # -- there ---------------------------------------------------------------------------------------------------------

    def _to_write(self) -> Iterator[Step]:
        before = self._ours()
        yield from self._token.to_write()
        token = self._token.value
        if token != self._held:
            yield Step(f"write it to {self._own}", partial(self._write, self._own, lambda: f"{token}\n"))
        if before != self.text():
            yield Step(f"write the skill {self._skill}", partial(self._write, self._skill, self.text))

    def _write(self, path: Path, text: Callable[[], str]) -> None:
        path.parent.mkdir(mode=0o700 if path == self._own else 0o777, parents=True, exist_ok=True)
        write_settings(path, read_settings(path), text(), private=path == self._own, backup=False)

    # -- gone ----------------------------------------------------------------------------------------------------------

    def _to_remove(self) -> Iterator[Step]:
        yield from self._token.to_remove()
        if self._held is not None:
            yield Step(f"delete {self._own}", partial(self._delete, self._own))
        if self._skill.exists() and self._ours() and not self._has_tokens(of_others=True):
            yield Step(f"delete the skill {self._skill.parent}", partial(self._delete, self._skill))

    def _delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is something else in it
            path.parent.rmdir()

    # -- what there is -------------------------------------------------------------------------------------------------

    def _ours(self) -> str:
        """Return the skill that is there; empty if there is none."""
        text = read_settings(self._skill).text
        if text and _MARK not in text and not self._wishes.remove:
            raise Refused(f"{self._skill} is a skill that is not ours. Rename it, or delete it, if it is not needed")
        return text if _MARK in text else ""

    def _has_tokens(self, *, of_others: bool = False) -> bool:
        return any(path != self._own or not of_others for path in self._tokens.glob("*.token"))


def _tasks() -> str:
    """Return this program as the server's shell can call it, whose PATH may be another."""
    program = shutil.which("otel-letta")
    found = shlex.quote(program) if program else f"{shlex.quote(sys.executable)} -m otel_letta"
    return f"{found} tasks"
