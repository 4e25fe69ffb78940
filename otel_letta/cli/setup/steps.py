"""What `otel-letta setup letta` is asked for, and what it would do about it, a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wishes:
    """What the command line says."""

    url: str
    """The bridge's address, for the machine of the Letta server."""
    token_file: Path | None
    """The file that the bridge reads tokens from."""
    skills: Path | None
    """An App Server's folder of skills; None for the usual one."""
    write: bool
    remove: bool

    @property
    def doing(self) -> bool:
        """Whether anything may be changed."""
        return self.write or self.remove


@dataclass(frozen=True)
class Step:
    """One thing to do, and how it is called."""

    text: str
    run: Callable[[], None]


class Refused(Exception):
    """It cannot be done without a risk for something that is not ours; the text says why. Nothing was changed."""
