"""The delivery of what an outbox holds, without a program that makes reports: for people, and for a process that a
program leaves behind at its exit.

As a module it is that process. It reads its settings from the standard input, as JSON: variables and their texts. So no
secret of a keyword stands in its command line or environment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from typing import NamedTuple

from otel_letta.delivery.desk import Desk
from otel_letta.delivery.stats import Stats
from otel_letta.errors import LettaConfigurationError
from otel_letta.letta.transport import Transport
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import VARIABLES, Secret, Settings
from otel_letta.settings.outbox import OutboxAddress
from otel_letta.store.model import StoreError

_logger = logging.getLogger(__name__)

DETACHED_PATIENCE = 3_600.0
"""Seconds that the process left behind goes on trying. The agent's turn that waits for the program may take minutes."""
_PAUSE = 1.0
"""Seconds between two looks whether something can be delivered."""


class Drained(NamedTuple):
    """What became of it."""

    sent: int
    """Reports that reached the agents."""
    dropped: int
    """Reports that were given up."""
    done: bool
    """Nothing is left that this process could deliver."""
    error: str | None
    """What was wrong last."""


def drain(settings: Settings, seconds: float, *, transport: Transport | None = None, insist: bool = False) -> Drained:
    """Deliver what processes that are gone have left in the outbox, for the server that the settings name.

    Args:
        settings: with an outbox.
        seconds: the time that it may take.
        transport: None is the server that the settings name.
        insist: go on until the time is over, also while another try is far off.

    Raises:
        StoreError: the outbox cannot be used.
    """
    if transport is None:
        from otel_letta.letta.select import SelectingTransport

        transport = SelectingTransport(settings)
    stats = Stats()
    desk = Desk(settings, transport, stats)
    outbox = desk.outbox
    if outbox is None:
        raise StoreError("OTEL_LETTA_OUTBOX is not set, or OTEL_LETTA_DELIVERY=board, which sends no messages")
    until = Deadline.after(seconds)
    outbox.start()
    try:
        if not outbox.wait_ready(until) or outbox.error is not None:
            raise outbox.error or StoreError("the outbox did not open in time")
        done = desk.flush(until)
        while insist and not done and not until.passed:
            until.wait(_PAUSE)
            done = desk.flush(until)
    finally:
        errors = [str(lane["last_error"]) for lane in desk.stats()["lanes"].values() if lane["last_error"]]
        desk.close(Deadline.after(0.0))
    counts = stats.snapshot()
    return Drained(counts["sent"], sum(counts["dropped"].values()), done, errors[0] if errors else None)


def leave_behind(settings: Settings) -> bool:
    """Start a process that delivers what the outbox holds when this one has ended. Return False if that failed."""
    values = {
        variable.env: _text(getattr(settings, variable.name), variable.write(getattr(settings, variable.name)))
        for variable in VARIABLES
    }
    try:
        # It has a session of its own: a signal to this one's group, such as Ctrl-C, is none to it.
        child = subprocess.Popen(  # noqa: S603 - ourselves, with no argument from anywhere
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
        )
        assert child.stdin is not None
        with child.stdin as pipe:
            pipe.write(json.dumps(values).encode())
    except (OSError, RuntimeError) as error:
        _logger.warning("no process could be started that delivers the outbox: %s", error)
        return False
    child.returncode = 0  # nobody waits for it, and its object does not complain about that
    return True


def _text(value: object, shown: str) -> str:
    return value.reveal() if isinstance(value, (Secret, OutboxAddress)) else shown


def main() -> None:
    """Entry point of the process that is left behind."""
    logging.basicConfig(level=logging.WARNING)
    values = json.loads(sys.stdin.buffer.read())
    with contextlib.suppress(LettaConfigurationError, StoreError):
        # No .env: the folder that the program ended in may be anybody's.
        settings = Settings.resolve(environ={str(k): str(v) for k, v in values.items()}, dotenv_path=os.devnull)
        drain(settings, DETACHED_PATIENCE, insist=True)


if __name__ == "__main__":
    main()
