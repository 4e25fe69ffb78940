"""The process that delivers what `otel-letta hook` wrote down: one a session, while it has something to report.

The session's file is the memory: each courier reads it from the place up to which everything was delivered, so one that
dies loses nothing. The next one reports an end under the same id, by which delivery knows it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from otel_letta.integrations.openhands.events import Event, EventKind, Origin, read_hook
from otel_letta.integrations.openhands.hook import courier_lock, spool_path, starting_path
from otel_letta.integrations.openhands.share import Share
from otel_letta.runtime.locks import folder

_READ_INTERVAL = 0.2
"""Seconds between two reads of the file."""
_PATIENCE = 3_600.0
"""Seconds of silence after which a run that is under way counts as lost: its OpenHands was killed."""
_REST = 60.0
"""Seconds of silence after which a courier with nothing under way leaves."""
_FLUSH = 30.0
_STALE = 7 * 86_400.0
"""Seconds that the file of a session is kept which never reported its end."""
_MOST_READ = 2**20
_LOCK_PATIENCE = 1.0
"""Seconds in which a courier that starts tries to get its lock: a hook that checks whether it lives holds it for a
moment, and then relies on it."""


class SessionCourier:
    """Reads one session's file and reports what was added to it.

    Args:
        key: the session's; see `session_key`.
        share: reports the events.
        clock: monotonic seconds.
        wait: sleeps for so many seconds.
    """

    def __init__(
        self,
        key: str,
        share: Share,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spool = spool_path(key)
        self._mark = self._spool.with_suffix(".delivered")
        self._share = share
        self._clock = clock
        self._wait = wait
        self._offset = self._delivered_to()
        self._session = ""
        self._origin = Origin()
        self._over = False

    def run(self) -> None:
        """Report until there is nothing more to report."""
        last_read = self._clock()
        while True:
            ended, grew = self._read()
            if grew:
                last_read = self._clock()
            silence = self._clock() - last_read
            if ended or (silence > _REST and not self._has_open_run()):
                # With a server that is away, the pipeline goes on trying: stay for as long as a run might.
                settled = self._flush() and not self._has_open_run()
                if settled:
                    self._mark_delivered()
                if (settled or silence > _PATIENCE) and (self._over or silence > _REST):
                    return
            elif silence > _PATIENCE:
                self._report(Event(EventKind.CLOSED, text="nothing was heard of OpenHands for an hour"))
                if self._flush():
                    self._mark_delivered()
                return
            if not grew:
                self._wait(_READ_INTERVAL)

    def has_more(self) -> bool:
        """Return whether the file has grown since it was read."""
        with contextlib.suppress(OSError):
            return self._spool.stat().st_size > self._offset
        return False

    def forget(self) -> None:
        """Remove the files of a session that is over and delivered; one that is resumed makes new ones."""
        if self._over and self._delivered_to() == self._offset and not self.has_more():
            for path in (self._spool, self._mark):
                path.unlink(missing_ok=True)

    def _has_open_run(self) -> bool:
        return bool(self._share.stats().get("open_tasks"))

    def _flush(self) -> bool:
        return self._share.flush(_FLUSH)

    def _read(self) -> tuple[bool, bool]:
        """Report what was added; True if something ended, and True if there was anything."""
        try:
            with self._spool.open("rb") as spool:
                spool.seek(self._offset)
                data = spool.read(_MOST_READ)
        except OSError:
            return False, False
        if len(data) < _MOST_READ or b"\n" in data:  # else one line is longer than any of ours: it is passed over
            data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        ended = False
        for line in data.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                ended |= self._take(json.loads(line))
        return ended, bool(data)

    def _take(self, line: dict[str, Any]) -> bool:
        self._session = str(line["session"])
        self._origin = Origin(**line["origin"])
        event = read_hook(line["event"])
        if event is None:
            return False
        self._over = event.kind is EventKind.CLOSED
        self._report(replace(event, at=int(line["at"])))
        return event.kind in (EventKind.STOPPED, EventKind.CLOSED)

    def _report(self, event: Event) -> None:
        self._share.report_event(self._session, self._origin, event)

    def _delivered_to(self) -> int:
        """Return the offset up to which everything was delivered."""
        try:
            return int(self._mark.read_text())
        except (OSError, ValueError):
            return 0

    def _mark_delivered(self) -> None:
        fresh = self._mark.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(fd, "w") as mark:
            mark.write(str(self._offset))
        fresh.replace(self._mark)


def main() -> None:
    """Entry point of the process. Arguments: the session's key, and perhaps a `.env` file."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key, *rest = sys.argv[1:]
    lock = courier_lock(key)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while not lock.try_acquire():
        if time.monotonic() > deadline:
            return  # another one lives
        time.sleep(0.01)
    _remove_stale(time.time())
    # Without one, none: the working directory's belongs to the agent, and so would the server that it names.
    share = Share(None, {"dotenv_path": rest[0] if rest else os.devnull})
    try:
        while share.active:
            courier = SessionCourier(key, share)
            courier.run()
            courier.forget()
            starting_path(key).unlink(missing_ok=True)
            lock.release()
            # A hook that found the lock taken relies on this check.
            if not courier.has_more() or not lock.try_acquire():
                break
    finally:
        share.close()
        lock.release()


def _remove_stale(now: float) -> None:
    for path in folder().glob("openhands-*"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > _STALE:
                path.unlink()
