"""A receiver's process that can die, without a network or a port, on a clock by hand: only its spool stays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from otel_letta.pipeline import sharing
from otel_letta.report import ProgressReport
from otel_letta.serve.intake import Intake
from otel_letta.serve.metrics import Metrics
from otel_letta.settings import Settings
from otel_letta.store.choose import open_spool
from otel_letta.store.model import StoreError
from tests.support.fake_transport import FakeTransport
from tests.support.waiting import until

__all__ = ["SECOND", "START", "Receiver"]

SECOND = 10**9
START = 1_795_946_400 * SECOND


class Receiver:
    """One process after the other, all with one spool."""

    def __init__(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = START + 60 * SECOND
        self.reports: list[ProgressReport] = []
        self.disk_fails = False
        self._path = spool
        monkeypatch.setattr(time, "time_ns", lambda: self.now)
        self._start()

    def _start(self) -> None:
        transport = FakeTransport()
        settings = Settings.resolve(agent_id=transport.agent_id, base_url="http://letta.test")
        handle = sharing.join(settings, transport, live=True)
        self._pipeline = handle.pipeline
        desk: Any = self._pipeline.desk
        desk.put = self.reports.append  # nothing is delivered: what counts here is what is said
        self._spool: Any = open_spool(str(self._path), fsync=False)
        self._spool.open()
        database = self._spool._database
        self._write, database.write = database.write, self._write_or_fail
        self._intake = Intake(handle, self._spool, Metrics(dict))
        self._intake.feed._now = self._intake.feed.live._now = lambda: self.now
        self._intake.replay()
        self._settle()

    def _write_or_fail(self, *args: Any, **more: Any) -> Any:
        if self.disk_fails:
            raise StoreError("no space left")
        return self._write(*args, **more)

    def take(self, body: bytes, signal: str = "traces") -> None:
        self._intake.take_here(signal, True, body)
        self._settle()

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass, and have done what is due then."""
        self.now += int(seconds * SECOND)
        with self._intake.feed._lock:
            self._intake.feed.live.tick()
        self._settle()
        self._pipeline._inbox.run(60, self._sweep)
        self._settle()

    def _sweep(self) -> None:
        self._intake.feed._next_sweep = 0

    def _settle(self) -> None:
        for _ in range(3):
            assert self._pipeline.catch_up(60)
            writer = self._spool._together._writer
            if writer is not None:
                writer.submit(int).result()
            self._intake._settler.submit(int).result()

    def restart(self) -> None:
        """Let the process die, and another one begin."""
        before = self._pipeline
        sharing._registry.pop(next(key for key, (each, _) in sharing._registry.items() if each is before))
        self.close()
        self._start()

    def close(self) -> None:
        self._intake.told._fresh.clear()
        self._pipeline._inbox.close()
        self._pipeline._inbox.stop()
        self._intake._settler.shutdown()
        self._spool.close()

    @property
    def kept(self) -> list[str]:
        """The kinds of what is in the spool besides ends."""
        return [item.kind for item in self._spool.unsettled() if item.kind != "end"]

    @property
    def ends(self) -> list[tuple[str, str]]:
        return [(report.name, report.status.value) for report in self.reports if report.status.is_terminal]

    @property
    def open(self) -> set[str]:
        """The names of tasks of whose trace the last report was no end."""
        last = {report.trace_id: report for report in self.reports}
        return {report.name for report in last.values() if not report.status.is_terminal}

    def wait_until_kept(self, *kinds: str) -> None:
        assert until(lambda: sorted(self.kept) == sorted(kinds)), self.kept
