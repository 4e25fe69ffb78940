"""Order is no evidence: the same spans tell the same tasks, in whatever order they come.

Every recording is played as it was recorded, and with the spans of each request shuffled and each request late by less
than the grace. The number of tasks, their names, how each ended and is known again, and the tools used have to be the
same. ``OTEL_LETTA_TEST_ORDERS=20`` tries as many orders of each; one is tried without.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from otel_letta.cli.replay import Replay, _opened
from otel_letta.otlp.json import Batch, read_batches
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings
from tests.support.recorded import TRACES, play_live, traces
from tests.support.recorded_agents import CASES

SETTINGS = Settings.resolve(require_agent=False, environ={}, dotenv_path=os.devnull)
GRACE = int(SETTINGS.grace * 1e9)
ORDERS = int(os.environ.get("OTEL_LETTA_TEST_ORDERS", "1"))
RECORDINGS: dict[str, list[Path]] = {**CASES, **{name: [TRACES / f"{name}.otlp.jsonl.gz"] for name in traces()}}
_HEAD_START = 2_000_000_000
"""Logs are played before the spans of the same moment, as `otel-letta replay` does."""


class Task(NamedTuple):
    """What has to be the same of a task."""

    ends: tuple[tuple[str, str, str], ...]
    name: str
    tools: tuple[str, ...]


def batches_of(name: str) -> list[Batch]:
    found: list[Batch] = []
    for file in RECORDINGS[name]:
        with _opened(str(file)) as lines:
            found += read_batches(lines)
    return found


def arrival(batch: Batch) -> int:
    return batch.newest - _HEAD_START if batch.records else batch.newest


def play(requests: Iterable[tuple[int, Batch]]) -> list[ProgressReport]:
    reports: list[ProgressReport] = []
    player = Replay(SETTINGS, [reports.append])
    for at, batch in sorted(requests, key=lambda request: request[0]):
        player._pass_time(at)
        player._play("recording", batch)
    player.finish()
    return reports


def shuffled(batches: list[Batch], seed: str) -> list[tuple[int, Batch]]:
    chance, found = random.Random(seed), []
    for batch in batches:
        turned = copy.copy(batch)
        turned.spans, turned.records = list(batch.spans), list(batch.records)
        chance.shuffle(turned.spans)
        chance.shuffle(turned.records)
        found.append((arrival(batch) + chance.randrange(GRACE), turned))
    return found


def tasks_of(reports: list[ProgressReport]) -> list[Task]:
    found: dict[tuple[str, int], list[ProgressReport]] = {}
    for report in reports:
        found.setdefault((report.task_id, report.run), []).append(report)
    return sorted(map(_task, found.values()))


def _task(reports: list[ProgressReport]) -> Task:
    ends = [report for report in reports if report.status.is_terminal or report.waiting]
    # How long a tool took is for logs and spans to say, and they may differ by a moment.
    used = (report.content.partition(";")[0].partition(" (")[0] for report in reports)
    tools = sorted(content for content in used if content.startswith(("Used tool", "Tool ")))
    return Task(tuple((end.identity, str(end.status), end.content) for end in ends), reports[-1].name, tuple(tools))


@pytest.mark.parametrize("name", RECORDINGS)
def test_requests_in_any_order_within_the_grace_tell_the_same_tasks(name: str) -> None:
    batches = batches_of(name)
    expected = tasks_of(play((arrival(batch), batch) for batch in batches))
    for seed in range(ORDERS):
        assert tasks_of(play(shuffled(batches, f"{name} {seed}"))) == expected, f"seed {seed}"


@pytest.mark.parametrize("name", traces())
def test_what_happens_at_the_same_moment_may_happen_in_any_order_in_a_process(name: str) -> None:
    def seen(chance: random.Random | None) -> list[Task]:
        live = play_live(name, chance=chance)
        for seconds in (3, 1_000, 8_000):
            live.clock.pass_seconds(seconds)
            live.tracker.tick()
        return tasks_of(live.reports)

    expected = seen(None)
    for seed in range(ORDERS):
        again = seen(random.Random(f"{name} {seed}"))
        assert sorted(map(without_ids, again)) == sorted(map(without_ids, expected))  # each play makes new ids


def without_ids(task: Task) -> Task:
    return task._replace(ends=tuple(("", status, content) for _, status, content in task.ends))
