"""Spans and logs come by two exporters, each in its own time: the same run is reported, whichever comes first.

Every recording of both is played in many orders. Within the grace all that is said at the end has to be the same;
beyond it what it was, since an end has to be told some time: `docs/limits.md` says what can be missing then.
"""

from __future__ import annotations

import dataclasses
import gzip
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from otel_letta.otlp.batch import Batch
from otel_letta.otlp.json import read_batches
from otel_letta.report import ProgressReport
from tests.behaviour.test_any_order import arrival, batches_of, play
from tests.support.recorded_agents import CASES, Played, faults_of

SECOND = 10**9
BOTH = sorted(name for name in CASES if name.endswith("+logs"))
Requests = list[tuple[int, Batch]]
Order = Callable[[list[Batch]], Requests]


def late(*, logs: int = 0, spans: int = 0) -> Order:
    """Each request comes when the newest in it has happened, and so many seconds later."""
    return lambda batches: [(b.newest + (logs if b.records else spans) * SECOND, b) for b in batches]


def file_by_file(*, spans_first: bool, pause: float = 0) -> Order:
    """All of one kind, and after a pause all of the other, when the run is over."""

    def requests(batches: list[Batch]) -> Requests:
        over = max(batch.newest for batch in batches)
        second = int(pause * SECOND) + len(batches)
        return [
            (over + place + (second if bool(batch.spans) is not spans_first else 0), batch)
            for place, batch in enumerate(batches)
        ]

    return requests


WITHIN: dict[str, Order] = {
    "as it happened": late(),
    "logs 1 s late": late(logs=1),
    "spans 1 s late": late(spans=1),
    "spans, then logs": file_by_file(spans_first=True),
    "logs, then spans": file_by_file(spans_first=False),
    "spans, 1 s, logs": file_by_file(spans_first=True, pause=1),
    "logs, 1 s, spans": file_by_file(spans_first=False, pause=1),
}
BEYOND: dict[str, Order] = {
    "logs 5 s late": late(logs=5),
    "logs 30 s late": late(logs=30),
    "spans 5 s late": late(spans=5),
    "spans 30 s late": late(spans=30),
    "spans, 5 s, logs": file_by_file(spans_first=True, pause=5),
    "spans, 30 s, logs": file_by_file(spans_first=True, pause=30),
    "logs, 5 s, spans": file_by_file(spans_first=False, pause=5),
    "logs, 30 s, spans": file_by_file(spans_first=False, pause=30),
}
ONLY_LOGS_KNOW = {"claude_code_2_1_197.cancel_tool+logs": "tools: 1, not 2"}
"""What is missing where the logs come when the end was told: this program never exports the span of the tool that it
was stopped in."""


class End(NamedTuple):
    """All that is said of a task at its end, and how many tools were told of until then."""

    task_id: str
    name: str
    chat: str | None
    status: str
    progress: float
    content: str
    tools: int


def ends_of(reports: list[ProgressReport]) -> list[End]:
    found = []
    for end in (report for report in reports if report.status.is_terminal or report.waiting):
        told = Played([report for report in reports if report.task_id == end.task_id], "")
        found.append(End(end.task_id, end.name, end.chat_id, end.status.value, end.progress, end.content, told.tools))
    return sorted(found)


def merged(batches: list[Batch]) -> list[ProgressReport]:
    """As `otel-letta replay` plays two files."""
    return play([(arrival(batch), batch) for batch in batches])


@pytest.mark.parametrize("name", BOTH)
def test_within_the_grace_the_end_says_the_same_in_any_order(name: str) -> None:
    batches = batches_of(name)
    expected = ends_of(merged(batches))
    for order, requests in WITHIN.items():
        assert ends_of(play(requests(batches))) == expected, order


@pytest.mark.parametrize("name", BOTH)
def test_beyond_the_grace_a_run_is_one_task_and_ends_as_it_did(name: str) -> None:
    batches = batches_of(name)
    known = {*faults_of(name, Played(merged(batches), "")), ONLY_LOGS_KNOW.get(name, "")}
    statuses = [end.status for end in ends_of(merged(batches))]
    for order, requests in BEYOND.items():
        reports = play(requests(batches))
        assert set(faults_of(name, Played(reports, ""))) <= known, order
        assert [end.status for end in ends_of(reports)] == statuses, order


# --- Two turns of one conversation ----------------------------------------------------------------------------------

_TIME = re.compile(rb'("\w*[tT]imeUnixNano": ?)"(\d+)"')
_ID = re.compile(rb'("(?:traceId|spanId|parentSpanId)": ?)"(..)')
_PROMPT = re.compile(rb'("key": ?"prompt[._]id", ?"value": ?\{"stringValue": ?")')
TALKS = [name for name in BOTH if name.startswith("gemini") and "llm_error" not in name]
"""Their spans do not say which turn they are of. The failed call takes longer than the pause here."""


def again(line: bytes, seconds: int) -> bytes:
    """The same, later, with ids of its own, in the same conversation."""
    line = _TIME.sub(lambda found: b'%s"%d"' % (found[1], int(found[2]) + seconds * SECOND), line)
    return _PROMPT.sub(rb"\1next-", _ID.sub(rb'\1"ee', line))


def two_turns(name: str) -> list[Batch]:
    found: list[Batch] = []
    for file in CASES[name]:
        lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
        found += read_batches([*lines, *(again(line, 20) for line in lines)])
    return found


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("order", [*WITHIN, "spans, 5 s, logs"])
def test_what_came_before_its_prompt_is_counted_in_its_own_turn(name: str, order: str) -> None:
    (once,) = ends_of(merged(batches_of(name)))

    ends = ends_of(play((WITHIN | BEYOND)[order](two_turns(name))))

    assert [(end.status, end.progress) for end in ends] == [(once.status, once.progress)] * 2
    # Without the prompt's record a turn begins with its first span, a moment later.
    assert {re.sub(r" in [\d.]+ s", "", end.content) for end in ends} == {re.sub(r" in [\d.]+ s", "", once.content)}
    took = [float(found) for end in ends for found in re.findall(r" in ([\d.]+) s", end.content)]
    assert all(seconds < 5 for seconds in took)


# --- Each span for itself ---------------------------------------------------------------------------------------------

GEMINI = sorted(name for name in CASES if name.startswith("gemini") and not name.endswith("+logs"))
"""Nothing but a span without a role, the last one to end, is above all its calls."""


def one_by_one(batches: list[Batch], seed: int) -> Requests:
    """Each span in a request of its own, up to a second and a half late."""
    chance = random.Random(seed)
    return [
        ((span.end_time or 0) + int(chance.uniform(0, 1.5) * SECOND), dataclasses.replace(batch, spans=[span]))
        for batch in batches
        for span in batch.spans
    ]


@pytest.mark.parametrize("name", GEMINI)
def test_spans_that_come_one_by_one_each_a_little_late_are_one_task(name: str) -> None:
    batches = batches_of(name)
    once = [(end.status, end.tools) for end in ends_of(merged(batches))]
    for seed in range(6):
        assert [(end.status, end.tools) for end in ends_of(play(one_by_one(batches, seed)))] == once, seed
