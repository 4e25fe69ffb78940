"""`otel-letta replay`: what would the agent be told of these recorded spans and logs?

Reads what an OpenTelemetry Collector's file exporter writes. Time passes as it did when they were recorded: the clock
stands at the newest span's end, or log record, that has arrived, so that tasks are decided when they would have been.
"""

from __future__ import annotations

import errno
import gzip
import heapq
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import click

from otel_letta.errors import LettaConfigurationError
from otel_letta.otlp.batch import Batch
from otel_letta.otlp.json import read_batches
from otel_letta.otlp.lines import InputTooLongError, bounded_lines
from otel_letta.pipeline.trackers import tracker_for
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings
from otel_letta.text import clean_line, percent
from otel_letta.tracking import Reading
from otel_letta.tracking.log_events import LogEvent
from otel_letta.tracking.opt_in import OptIn
from otel_letta.tracking.order import in_order

_GZIP = b"\x1f\x8b"
_FIELDS = (
    "task_id",
    "name",
    "chat_id",
    "message_id",
    "status",
    "progress",
    "content",
    "sequence",
    "timestamp",
    "trace_id",
)
_DOUBTS = 2
"""Lines of a file that may be wrong at its beginning before the file is taken for something else than OTLP."""
_HEAD_START = 2_000_000_000
"""Nanoseconds. Programs send logs and spans of one moment side by side, and spans can join what logs have told of."""
_LONGEST_PAUSE = 60.0
"""Seconds of real time. With ``--speed`` a night without spans is not waited for."""


@click.command(short_help="Turn recorded spans and logs into reports.")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--dry-run", is_flag=True, help="Send nothing; needs no settings.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="Lines for people, or JSON lines."
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Play so many times as fast as it was recorded; default is as fast as can be.",
)
def replay(files: tuple[str, ...], dry_run: bool, form: str, speed: float | None) -> None:
    """Print the reports that recorded spans and logs make, and send them.

    FILE holds OTLP-JSON: one export request a line, as the OpenTelemetry Collector's file exporter writes them, or one
    document. It may be compressed with gzip; "-" is the standard input. Several files, such as spans and logs of the
    same runs, are read side by side in the order of their times; a line without a time comes when it is its turn in its
    file. When all is read, tasks without an end are told as lost. Lines that cannot be read are named and skipped; the
    exit code is 1 then.
    """
    show = _as_json if form == "json" else _as_text
    try:
        settings = Settings.resolve(require_agent=not dry_run)
    except LettaConfigurationError as error:
        if not dry_run:
            for name in files:
                _warn_if_missing(name)
            click.echo(f"{error}\n'otel-letta check' says more; --dry-run needs no settings.", err=True)
            sys.exit(1)
        settings = Settings.resolve(require_agent=False, environ={}, dotenv_path=os.devnull)
    sender = None if dry_run else _Sender(settings)
    try:
        player = Replay(settings, [show, *([] if sender is None else [sender])], speed)
        player.read(*files)
        player.finish()
        if not player.reports:
            click.echo(f"No task in {player.seen}.", err=True)
    finally:
        delivered = sender is None or sender.close()
    if not delivered:
        click.echo("Not every report was delivered.", err=True)
    sys.exit(0 if delivered and not player.broken else 1)


class Replay:
    """Feeds recorded spans and log records to a tracker.

    Args:
        settings: what counts as a task, and times.
        outputs: each is given every report.
        speed: how much faster than recorded; None does not wait.
    """

    def __init__(
        self, settings: Settings, outputs: list[Callable[[ProgressReport], None]], speed: float | None = None
    ) -> None:
        self.broken = 0
        """Lines, spans and log records that could not be read."""
        self.spans = 0
        self.records = 0
        self.reports = 0
        self._outputs = outputs
        self._speed = speed
        self._now = 0
        self._doubts: dict[str, list[str] | None] = {}
        """Complaints about a file in which nothing has been OTLP so far; None for one in which something was."""
        self._opt_in = OptIn(settings.tasks, None)
        self._tracker = tracker_for(settings, self._emit, lambda: self._now)

    @property
    def seen(self) -> str:
        records = f" and {_counted(self.records, 'log record')}" if self.records else ""
        return f"{_counted(self.spans, 'span')}{records}"

    def read(self, *names: str) -> None:
        """Read files side by side, in the order of their times; ``-`` is the standard input."""
        with ExitStack() as stack:
            sources = []
            for name in names:
                try:
                    lines = stack.enter_context(_opened(name))
                except OSError as error:
                    self._complain(f"{name}: {error.strerror or type(error).__name__}")
                else:
                    sources.append(self._batches(name, lines))
            # One file needs no order, and may be a pipe whose next line is far away.
            for name, batch in sources[0] if len(sources) == 1 else heapq.merge(*sources, key=_place_of):
                self._play(name, batch)

    def _play(self, name: str, batch: Batch) -> None:
        doubts = self._doubts.setdefault(name, [])
        for why in batch.broken:
            self._doubt(name, f"{name}, line {batch.line}: {why}")
        if (batch.spans or batch.records) and doubts is not None:
            self._settle(name)
        self._pass_time(batch.newest)
        self.spans += len(batch.spans)
        self.records += len(batch.records)
        for record in sorted(batch.records, key=lambda record: record.time):
            event = LogEvent.of(
                record.event_name,
                record.attributes,
                record.resource.attributes,
                time=record.time,
                trace_id=record.trace_id,
                span_id=record.span_id,
                scope=record.scope.name,
            )
            if event is not None:
                self._tracker.event(event)
        for span in in_order(batch.spans):
            self._tracker.ended_alone(Reading.of(span, self._opt_in.name_of(span)))

    def _batches(self, name: str, lines: IO[bytes]) -> Iterator[tuple[str, Batch]]:
        """A generator of its own, so that only what goes wrong with the input is complained of as that."""
        number = 0
        try:
            for batch in read_batches(bounded_lines(lines)):
                number = batch.line
                yield name, batch
        except InputTooLongError as error:
            self._complain(f"{name}: {error}, the rest is not read")
        except (OSError, EOFError, zlib.error) as error:
            where = f"after line {number}" if number else "at its beginning"
            self._complain(f"{name}, {where}: {type(error).__name__}, the rest cannot be read")

    def _doubt(self, name: str, what: str) -> None:
        """Complain of a line; or wait with it, as long as nothing has shown that the file is OTLP at all."""
        doubts = self._doubts[name]
        if doubts is None:
            self._complain(what)
        else:
            self.broken += 1
            doubts.append(what)
            del doubts[_DOUBTS + 1 :]

    def _settle(self, name: str) -> None:
        """Say what was wrong so far: one line, if there is a reason for all of it."""
        doubts, self._doubts[name] = self._doubts[name], None
        if not doubts:
            return
        if len(doubts) > _DOUBTS:
            what = doubts[0].removeprefix(f"{name}, ")
            _warn(f"{name} does not begin as OTLP-JSON ({what}): it takes what a Collector's file exporter writes")
            return
        for doubt in doubts:
            _warn(doubt)

    def finish(self) -> None:
        """The input is over: all waiting counts as done."""
        for name in self._doubts:
            self._settle(name)
        self._tracker.finish()

    def _emit(self, report: ProgressReport) -> None:
        self.reports += 1
        for output in self._outputs:
            output(report)

    def _pass_time(self, until: int) -> None:
        """Let the clock go on, with everything that is due on the way."""
        while True:
            due = self._tracker.tick()
            if due is None or due > until:
                break
            self._wait(due)
            self._now = max(self._now, due)
        self._wait(until)
        self._now = max(self._now, until)

    def _wait(self, until: int) -> None:
        if self._speed is not None and self._now and until > self._now:
            time.sleep(min((until - self._now) / 1e9 / self._speed, _LONGEST_PAUSE))

    def _complain(self, what: str) -> None:
        self.broken += 1
        _warn(what)


def _warn(what: str) -> None:
    click.echo(clean_line(what, 300), err=True)


def _warn_if_missing(name: str) -> None:
    if name != "-" and not Path(name).exists():
        _warn(f"{name}: {os.strerror(errno.ENOENT)}")


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        raw: Any = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        if raw.peek(len(_GZIP))[: len(_GZIP)] == _GZIP:
            raw = stack.enter_context(gzip.open(raw))
        yield raw


def _place_of(read: tuple[str, Batch]) -> int:
    """Return the time at which a batch of one of several files is played, Unix nanoseconds."""
    batch = read[1]
    return batch.newest - _HEAD_START if batch.records else batch.newest


def _counted(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else f'{what}s'}"


def _as_text(report: ProgressReport) -> None:
    at = f"{report.timestamp:%H:%M:%S}" if report.timestamp is not None else "--:--:--"
    # Several agents of one name may be at work at once.
    chat = f" (chat {report.chat_id})" if report.chat_id not in (None, report.trace_id) else ""
    quiet = "" if report.wakes or not report.status.is_terminal else " (board only)"
    text = clean_line(f"{report.name}{chat}: {report.content}{quiet}", 2_000)
    click.echo(f"{at}  {report.status.value:<11} {percent(report.progress):>4}  {text}")


def _as_json(report: ProgressReport) -> None:
    fields = report.to_dict()
    click.echo(json.dumps({name: fields[name] for name in _FIELDS}, allow_nan=False))


class _Sender:
    """Sends reports as the exporter would."""

    def __init__(self, settings: Settings) -> None:
        from otel_letta.pipeline.sharing import join

        self._timeout = settings.read_timeout
        self._handle = join(settings, None, live=False)

    def __call__(self, report: ProgressReport) -> None:
        self._handle.pipeline.desk.put(report)

    def close(self) -> bool:
        """Wait until all was delivered, as long as a turn of the agent may take; False if not all was."""
        delivered = self._handle.pipeline.flush(self._timeout)
        return self._handle.close(self._timeout) and delivered
