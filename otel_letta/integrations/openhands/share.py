"""One share in a pipeline for each set of settings: what callbacks, webhooks and hooks report through."""

from __future__ import annotations

import atexit
import socket
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_letta.errors import LettaConfigurationError
from otel_letta.integrations.openhands.events import Event, Origin
from otel_letta.integrations.openhands.runs import Runs
from otel_letta.letta.transport import Transport
from otel_letta.otel.component import Component
from otel_letta.pipeline.instructions import fulfil
from otel_letta.runtime import fork
from otel_letta.settings import Settings

if TYPE_CHECKING:
    from otel_letta.pipeline.instructions import Expected, Instructions


class Share(Component):
    """A share in the pipeline of some settings. Lives until `shutdown`, or the program's end.

    Not one for each callback: a conversation may be forgotten long before its last report is delivered, and nobody
    closes a callback.
    """

    _kind = "otel_letta.integrations.openhands"

    def __init__(self, transport: Transport | None, options: dict[str, Any]) -> None:
        super().__init__(transport=transport, **options)
        if self._handle is not None:
            settings = self._handle.pipeline.settings
            self._runs = self._handle.add_source(
                Runs(
                    host=socket.gethostname(),
                    content_cap=settings.content_cap,
                    wake_on_wait=settings.wake_on_wait,
                    wait_timeout=settings.wait_timeout,
                )
            )

    def report_event(self, conversation_id: str, origin: Origin, event: Event) -> None:
        """Enqueue an event and return. Never raises, never waits."""
        try:
            if self._handle is not None and self.active:
                event = event if event.at else replace(event, at=time.time_ns())
                self._handle.call(self._runs.observe, conversation_id, origin, event)
        except Exception as error:  # noqa: BLE001
            self.swallow(error)

    def expect(self, conversation_id: str) -> Future[Expected | None]:
        """Expect an instruction for the run that is under way, in the answer to its end. Never waits itself.

        The result is None if there is no such run. Whoever gives up before it is there cancels it.
        """
        future: Future[Expected | None] = Future()
        if self._handle is not None and self.active:
            instructions = self._handle.pipeline.instructions
            instructions.prepare()
            self._handle.call(fulfil, future, partial(self._expect, instructions, conversation_id))
        else:
            future.set_result(None)
        return future

    def _expect(self, instructions: Instructions, conversation_id: str) -> Expected | None:
        run = self._runs.run_of(conversation_id)
        if run is None:
            return None
        return instructions.expect(None, run.id, "", (run.run, run.sequence), first_answer=True)

    def leave(self, expected: Expected) -> None:
        """Expect no instruction any more."""
        if self._handle is not None:
            self._handle.pipeline.instructions.leave(expected, forget=True)

    def claim(self, conversation_id: str) -> None:
        """Report a conversation by its events alone: from now on its spans, if there are any, are passed over."""
        if self.active:
            self._runs.claim(conversation_id)

    def swallow(self, error: Exception) -> None:
        """Log a bug of ours instead of raising it in OpenHands."""
        self._swallow("OpenHands events", error)

    def flush(self, timeout: float) -> bool:
        """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
        return self._flush(timeout * 1e3)

    def close(self) -> None:
        """Leave the pipeline. The last one out reports open runs as failed, and delivers."""
        self._close(None)


_shares: dict[Hashable, Share] = {}
_shares_lock = threading.RLock()


def share(transport: Transport | None, options: dict[str, Any]) -> Share:
    """Return the share for these settings, made if there is none. Bad settings are logged, and it does nothing."""
    try:
        settings, _ = Settings.from_options(options, lenient=True)
    except LettaConfigurationError:
        return Share(transport, options)  # it logs the reason
    key = (settings.identity(), id(transport))
    with _shares_lock:
        known = _shares.get(key)
        if known is None:
            known = Share(transport, options)
            if known.active:
                if not _shares:
                    atexit.register(shutdown)
                _shares[key] = known
        return known


def flush(timeout: float = 30.0) -> bool:
    """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
    deadline = time.monotonic() + timeout
    with _shares_lock:
        shares = list(_shares.values())
    delivered = True
    for each in shares:
        delivered &= each.flush(max(deadline - time.monotonic(), 0.0))
    return delivered


def shutdown() -> None:
    """Report runs that are still open as failed, deliver, and stop. Called at the program's end; harmless again.

    Takes at most ``OTEL_LETTA_SHUTDOWN_TIMEOUT`` (5 s) for each set of settings.
    """
    atexit.unregister(shutdown)
    with _shares_lock:
        shares = list(_shares.values())
        _shares.clear()
    for each in shares:
        each.close()


def _after_fork_in_child() -> None:
    global _shares_lock
    _shares_lock = threading.RLock()  # another thread may have held it


fork.in_child(_after_fork_in_child)
