"""How many verdicts stay right when a load balancer splits telemetry over replicas, by what it chooses a replica.

    python -m tests.support.affinity                   # all recordings; writes the table in docs/scale.md

It splits as the Collector's load_balancing exporter does (0.161.0, read): spans by the key of their resource or trace,
log records likewise, and those without a trace id at random where the trace is the key. Two keys never share a replica
while there is another one, so that no luck makes a key look good. Every replica has a tracker of its own; all clocks
stand at the newest that any of them was sent.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import heapq
import io
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta import semconv
from otel_letta.cli.replay import Replay, _opened, _place_of
from otel_letta.otlp.batch import Batch, LogRecord
from otel_letta.otlp.json import read_batches
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings
from otel_letta.tracking import Reading
from otel_letta.tracking.conventions import Role
from otel_letta.tracking.reading import SpanKey, key_of
from tests.support.recorded import TRACES
from tests.support.recorded_agents import CASES, Played, verdicts

__all__ = ["KEYS", "RECORDINGS", "SHIPPED", "kept", "measured", "moved", "play_split", "table"]

Item = ReadableSpan | LogRecord
Key = Callable[[Item, random.Random], object]
Change = Callable[[ReadableSpan], ReadableSpan]

REPLICAS = 3
SHIPPED = "`letta.route` of the resource (shipped)"
_SEED = 14
_PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
_BEGIN, _END = "<!-- affinity: begin -->\n", "<!-- affinity: end -->\n"
RECORDINGS = CASES | {
    f"traces/{file.name.split('.otlp')[0]}": [file] for file in sorted(TRACES.glob("*.otlp.jsonl.gz"))
}


def _route(item: Item, chance: random.Random) -> object:
    """What `collector/privacy.yaml` makes of a resource; `tests/real/collector/test_scale_out.py` compares."""
    own = item.resource.attributes
    name, instance, host = (own.get(key) for key in (semconv.SERVICE_NAME, "service.instance.id", semconv.HOST_NAME))
    if own.get(semconv.AGENT_ID) is not None:
        return own[semconv.AGENT_ID]
    if instance is not None:
        return name, instance
    return (name, host, own.get("process.pid")) if host is not None else name


def _trace(item: Item, chance: random.Random) -> object:
    trace = item.trace_id if isinstance(item, LogRecord) else item.context.trace_id
    return trace or chance.random()


def _service(item: Item, chance: random.Random) -> object:
    return item.resource.attributes.get(semconv.SERVICE_NAME)


def _random(item: Item, chance: random.Random) -> object:
    return chance.random()


KEYS: dict[str, Key] = {
    SHIPPED: _route,
    "`service.name`": _service,
    "`traceID`": _trace,
    "none: at random": _random,
}


class _Balancer:
    """Chooses replicas; a key that is new gets the next one."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._chance = random.Random(_SEED)
        self._chosen: dict[object, int] = {}

    def __call__(self, item: Item) -> int:
        key = self._key(item, self._chance)
        if isinstance(key, float):
            return self._chance.randrange(REPLICAS)
        return self._chosen.setdefault(key, len(self._chosen) % REPLICAS)


def _same(span: ReadableSpan) -> ReadableSpan:
    return span


def play_split(files: Iterable[Path], key: Key, change: Change = _same) -> Played:
    """Play files through replicas, and return the reports of all, in the order in which they were made."""
    reports: list[ProgressReport] = []
    settings = Settings.resolve(require_agent=False, environ={}, dotenv_path=os.devnull)
    chosen = _Balancer(key)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said), ExitStack() as stack:
        replicas = [Replay(settings, [reports.append]) for _ in range(REPLICAS)]
        sources = [replicas[0]._batches(str(file), stack.enter_context(_opened(str(file)))) for file in files]
        for name, batch in heapq.merge(*sources, key=_place_of):
            parts = [Batch(batch.line) for _ in replicas]
            for span in map(change, batch.spans):
                parts[chosen(span)].spans.append(span)
            for record in batch.records:
                parts[chosen(record)].records.append(record)
            for replica, part in zip(replicas, parts, strict=True):
                replica._pass_time(batch.newest)
                replica._play(name, part)
        for replica in replicas:
            replica.finish()
    return Played(reports, said.getvalue())


# --- Agents in processes of their own --------------------------------------------------------------------------------


def moved(files: Iterable[Path], **resource: str) -> Change | None:
    """Return what gives each agent below another one a process of its own; None if a recording has no such agent.

    No recording here has a trace of several processes, which real programs have: so their sub-agents are moved.

    Args:
        resource: attributes that all processes get.
    """
    spans = [span for file in files for span in _spans(file)]
    parents = {key_of(span): (span.context.trace_id, span.parent.span_id) for span in spans if span.parent is not None}
    agents = {key_of(span) for span in spans if Reading.of(span).role is Role.AGENT}
    below = {key for key in map(key_of, spans) if sum(each in agents for each in _upwards(key, parents)) > 1}
    if not below:
        return None

    def change(span: ReadableSpan) -> ReadableSpan:
        other = {semconv.SERVICE_NAME: "sub-agent", "service.instance.id": "sub"} if key_of(span) in below else {}
        found = copy.copy(span)
        found._resource = Resource({**span.resource.attributes, **other, **resource})
        return found

    return change


def _spans(file: Path) -> list[ReadableSpan]:
    with gzip.open(file) as lines:
        return [span for batch in read_batches(lines) for span in batch.spans]


def _upwards(key: SpanKey, parents: dict[SpanKey, SpanKey]) -> Iterator[SpanKey]:
    """Return a span and those above it. A recording may hold a cycle: hostile ones do."""
    seen: set[SpanKey] = set()
    at: SpanKey | None = key
    while at is not None and at not in seen:
        seen.add(at)
        yield at
        at = parents.get(at)


# --- The table -------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What three replicas report of a recording, beside what one does."""

    same: bool
    """Verdicts, names, chats, tools and tasks that wait are the same."""
    ends: bool
    """Every end is there with its verdict; there may be more."""


def kept(name: str, key: Key, change: Change = _same) -> Kept:
    whole = play_split(RECORDINGS[name], lambda item, chance: 0, change)
    split = play_split(RECORDINGS[name], key, change)
    return Kept(verdicts(split) == verdicts(whole), _ends(split) >= _ends(whole))


def _ends(played: Played) -> set[tuple[str, str]]:
    return {(report.task_id, report.status.value) for report in played.ends}


def measured() -> list[list[str]]:
    """Return a row for each set of recordings: its name, how many it has, and how many each key keeps the same."""
    rows: list[tuple[str, dict[str, Change]]] = [("as recorded", dict.fromkeys(sorted(RECORDINGS), _same))]
    for label, extra in (("sub-agents moved", {}), ("the same, with `letta.agent.id`", {semconv.AGENT_ID: "agent-1"})):
        changes = {name: moved(files, **extra) for name, files in sorted(RECORDINGS.items())}
        rows.append((label, {name: change for name, change in changes.items() if change is not None}))
    found = []
    for label, chosen in rows:
        cells = []
        for key in KEYS.values():
            all_kept = [kept(name, key, change) for name, change in chosen.items()]
            cells.append(f"{sum(each.same for each in all_kept)} / {sum(each.ends for each in all_kept)}")
        found.append([label, str(len(chosen)), *cells])
    return found


def table(rows: list[list[str]]) -> str:
    head = ["recordings", "of them", *KEYS]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def main() -> None:
    found = table(measured())
    before, _, rest = _PAGE.read_text("utf-8").partition(_BEGIN)
    _PAGE.write_text(f"{before}{_BEGIN}{found}{_END}{rest.partition(_END)[2]}", "utf-8")
    print(found, end="")


if __name__ == "__main__":
    main()
