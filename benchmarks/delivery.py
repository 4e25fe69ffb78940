"""Ends into the outbox, out of it after a restart, and what an hour's outage costs.

*Accepted* is the time until every end of a burst is where a crash cannot take it: in memory without an outbox, where it
can; in the operating system's hands without fsync; on the disk with it. The server does not answer meanwhile.
*Recovery* is a new process that takes over 100,000 ends that another one left: until it knows them all and its first
request is ready, and the memory that costs. The *outage*: 500 tasks with an update a minute each for an hour during
which the server refuses, on a clock of the benchmark's own; then the turns and requests until everything is delivered,
beside one request an update (the original's way, and letta-opencode-plugin's), which is counted, not run.

PostgreSQL is measured where its programs are on the machine and psycopg is installed: a cluster of the benchmark's own,
on loopback.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.figures import Figure, Run
from otel_letta.delivery.desk import Desk
from otel_letta.delivery.records import write_lane, write_report
from otel_letta.delivery.stats import Stats
from otel_letta.errors import LettaConnectionError
from otel_letta.letta.transport import Lane, Message
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from otel_letta.store.choose import open_store
from otel_letta.store.model import Changes, NewEntry
from tests.support.fake_transport import SERVER, FakeTransport

_LANE = Lane(SERVER, "agent-1")
_PAGE = 1_000


def measure(run: Run) -> Iterator[Figure]:
    ends, left = run.pick(20_000, 2_000), run.pick(100_000, 5_000)
    with tempfile.TemporaryDirectory() as folder, _postgres() as url:
        places = [("memory alone", "", {})]
        places += [("SQLite", f"{folder}/a.db", {}), ("SQLite, no fsync", f"{folder}/b.db", {"outbox_fsync": False})]
        if url is not None:
            places += [("PostgreSQL", url, {}), ("PostgreSQL, no fsync", url, {"outbox_fsync": False})]
        memory = 0.0
        for name, place, options in places:
            run.say(f"{ends:,} ends, {name}")
            rate = _accepted(ends, place, options)
            memory = memory or rate
            yield Figure(
                f"{ends:,} ends accepted, {name}",
                f"{rate:,.0f} ends/s",
                note="" if rate == memory else f"{memory / rate:.1f} times as long as memory alone",
                numbers={"ends_per_second": rate},
            )
        for name, place in [("SQLite", f"{folder}/c.db"), *([("PostgreSQL", url)] if url is not None else [])]:
            run.say(f"recovery of {left:,}, {name}")
            yield _recovery(left, name, place)
    yield from _outage(run)


@contextlib.contextmanager
def _postgres() -> Iterator[str | None]:
    if importlib.util.find_spec("psycopg") is None:
        yield None
        return
    from tests.support.postgres import Cluster, programs

    try:
        programs()
    except AssertionError:
        yield None
        return
    with Cluster() as cluster:
        yield cluster.url()


def _settings(place: str, options: dict[str, Any]) -> Settings:
    return Settings.resolve(
        environ={},
        base_url=SERVER,
        agent_id="agent-1",
        delivery="messages",
        outbox=place or None,
        outbox_max_size=10_000,
        wake_budget=1_000_000,
        max_pending_tasks=1_000_000,
        **options,
    )


def _end(number: int) -> ProgressReport:
    return ProgressReport(
        task_id=f"task-{number}",
        name=f"nightly import {number}",
        status=TaskStatus.COMPLETED,
        progress=1.0,
        content="12,000 rows imported, 3 skipped",
        trace_id=f"{number + 1:032x}",
        span_id=f"{number + 1:016x}",
    )


def _accepted(number: int, place: str, options: dict[str, Any]) -> float:
    letta = FakeTransport()
    letta.always = LettaConnectionError("nobody listens")
    desk = Desk(_settings(place, options), letta, Stats())
    if desk.outbox is not None:
        desk.outbox.start()
        desk.outbox.wait_ready(Deadline.after(60.0))
    reports = [_end(each) for each in range(number)]
    began = time.perf_counter()
    for report in reports:
        desk.put(report)
    if desk.outbox is not None:
        desk.outbox.save()
        while desk.outbox.place is None:
            time.sleep(0.001)
    rate = number / (time.perf_counter() - began)
    with contextlib.suppress(Exception):
        desk.close(Deadline.after(0.0))
    if place:
        store = open_store(place)
        store.open()
        while rows := store.all_entries():
            store.remove([entry.id for entry, _ in rows])
        store.close()
    return rate


def _recovery(number: int, name: str, place: str) -> Figure:
    store = open_store(place)
    store.open()
    for start in range(0, number, _PAGE):
        page = [_end(each) for each in range(start, min(start + _PAGE, number))]
        store.apply(
            Changes(entries=[NewEntry(SERVER, write_lane(_LANE), write_report(each), time.time()) for each in page])
        )
    store.close()
    found = json.loads(children.run("delivery", place))
    return Figure(
        f"recovery with {number:,} ends waiting, {name}",
        f"{found['ready']:.2f} s",
        note=f"until the first request is ready; {found['memory']:.1f} MB of memory for it",
        numbers=found,
    )


def _program(place: str) -> None:
    """A process that takes over what another left, up to its first request."""
    logging.disable(logging.CRITICAL)
    first = []
    letta = FakeTransport()

    def turn(lane: Lane, messages: Sequence[Message]) -> None:
        first.append(time.perf_counter())
        raise LettaConnectionError("that is enough")

    letta.on_send = turn
    open_store("/nonexistent")  # what it imports is no part of the recovery
    before = _resident()
    began = time.perf_counter()
    desk = Desk(_settings(place, {}), letta, Stats())
    assert desk.outbox is not None
    desk.outbox.start()
    while not first:
        time.sleep(0.001)
    print(json.dumps({"ready": first[0] - began, "memory": _resident() - before}))
    desk.close(Deadline.after(0.0))


def _resident() -> float:
    """Megabytes now; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


# -- an hour's outage --------------------------------------------------------------------------------------------------


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _outage(run: Run) -> Iterator[Figure]:
    tasks, minutes = run.pick(500, 50), 60
    clock, letta = _Clock(), FakeTransport()
    letta.always = LettaConnectionError("nobody listens")
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(_settings(f"{folder}/outbox.db", {}), letta, Stats(), clock=clock)
        assert desk.outbox is not None
        desk.outbox.start()
        desk.outbox.wait_ready(Deadline.after(60.0))
        for minute in range(minutes):
            for task in range(tasks):
                share = minute / minutes
                desk.put(_update(task, share))
            _pass(desk, clock, 60.0)
        for task in range(tasks):
            desk.put(_end(task))
        tries = len(letta.requests)
        letta.always = None
        _pass(desk, clock, 3_600.0)
        done = desk.flush(Deadline.after(300.0))
        delivered = {message.otid for _, messages in letta.delivered for message in messages}
        turns = len(letta.delivered)
        desk.close(Deadline.after(0.0))
    each = tasks * (minutes + 1)
    yield Figure(
        f"{tasks} tasks, an hour's outage: LLM turns until all is delivered",
        f"{turns:,}",
        note=f"{len(delivered):,} reports in {turns} requests; {tries} requests failed during the hour. One request an "
        f"update: {each:,} requests, and as many turns once the server is back"
        + ("" if done else "; NOT everything was delivered"),
        numbers={"turns": turns, "failed_requests": tries, "calls": len(letta.calls), "one_each": each},
    )


def _update(task: int, share: float) -> ProgressReport:
    return ProgressReport(
        task_id=f"task-{task}",
        name=f"nightly import {task}",
        progress=share,
        content=f"{share:.0%} of the rows",
        trace_id=f"{task + 1:032x}",
        span_id=f"{task + 1:016x}",
    )


def _pass(desk: Desk, clock: _Clock, seconds: float) -> None:
    """Let time pass, a second at a time, with the lanes awake."""
    for _ in range(int(seconds) if seconds <= 60 else 1):
        clock.now += 1.0 if seconds <= 60 else seconds
        with desk._crew.lock:
            for worker in desk._courier.workers():
                worker.wake()
        time.sleep(0.001)


if __name__ == "__main__":
    _program(sys.argv[1])
