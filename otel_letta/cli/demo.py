"""`otel-letta demo`: three traced tasks on one side, what the Letta agent gets to know on the other, live.

The left side is what OpenTelemetry knows (the spans' own attributes), the right side what arrived at the server; only
`LettaSpanProcessor` is between them. The server is the stand-in of `otel_letta.testing`, unless ``--real`` is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import StatusCode, Tracer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from otel_letta import semconv
from otel_letta.errors import LettaConfigurationError
from otel_letta.otel.helpers import task
from otel_letta.otel.processor import LettaSpanProcessor
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from otel_letta.text import clean_line, percent

__all__ = ["demo"]

_FRAME = 0.1
_TURN_SECONDS = 0.4
_AFTER_CTRL_C = 5.0
"""Seconds in which the agent may still hear that its tasks were interrupted."""
_FLUSH_MILLIS = 8_000
_FAREWELL_MILLIS = 500
_LEAST_COLUMNS = 80
_LEAST_ROWS = 24


@click.command
@click.option(
    "--real", is_flag=True, help="Talk to the server of your settings: up to three turns of your agent's LLM."
)
@click.option(
    "--seconds", type=click.FloatRange(0.2, 600), default=8.0, show_default=True, help="How long the tasks take."
)
def demo(real: bool, seconds: float) -> None:
    """Watch three traced tasks, and what a Letta agent hears about them.

    Needs no server, no settings and no network: a stand-in for Letta on this machine plays the agent.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        click.echo("OTEL_SDK_DISABLED=true is set, so nothing can be traced: unset it for the demo.", err=True)
        sys.exit(1)
    with _log_lines() as heard, contextlib.ExitStack() as stack:
        if real:
            try:
                settings = Settings.resolve()
            except LettaConfigurationError as error:
                click.echo(f"{error}\n'otel-letta check' says more.", err=True)
                sys.exit(1)
            for warning in settings.security_warnings():
                click.echo(f"! {warning}", err=True)
            receiver: _Receiver = _RealAgent(settings)
        else:
            stack.enter_context(_no_proxy_on_loopback())
            letta = stack.enter_context(InMemoryLetta(turn_seconds=_TURN_SECONDS))
            receiver = _StandIn(letta)
        code = _Show(receiver, seconds, heard).run()
    sys.exit(code)


# -- the tasks -------------------------------------------------------------------------------------------------------


class _Work:
    """Three tasks as a program would write them; on a thread, in an event loop, and one with bad luck."""

    def __init__(self, tracer: Tracer, seconds: float) -> None:
        self._tracer = tracer
        self._seconds = seconds
        self.stop = threading.Event()

    def run(self) -> None:
        jobs = (self._index, lambda: asyncio.run(self._refactor()), self._import)
        threads = [threading.Thread(target=_quietly, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
            self.stop.wait(self._seconds / 50)  # one after another, so that they stand in the same order each time
        for thread in threads:
            thread.join()

    def _index(self) -> None:
        with task("Index the docs", tracer=self._tracer) as t:
            for _page in t.track(range(24)):
                self._pause(self._seconds / 24)
            t.result("24 pages, 312 links, none broken")

    async def _refactor(self) -> None:
        async with task("Refactor module", chat_id="chat-7", message_id="msg-42", tracer=self._tracer) as t:
            for done in range(1, 11):
                await asyncio.sleep(self._seconds * 0.75 / 10)
                self._pause(0)
                t.progress(done / 10, f"Rewrote {done} of 10 files")
            t.result("10 files, all tests pass")

    def _import(self) -> None:
        with task("Import sales", tracer=self._tracer) as t:
            for row in range(1, 9):
                self._pause(self._seconds * 0.5 / 8)
                if row == 6:
                    raise ValueError("bad row 1043")
                t.progress(row / 8, f"{row * 200} rows of 1600")

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds else self.stop.is_set():
            raise KeyboardInterrupt  # what would come up here if this was the main thread


def _quietly(job: Callable[[], None]) -> None:
    # The span has told it already. On a thread Python would print a traceback into the picture.
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        job()


class _Spans(SpanProcessor):
    """Keeps the spans, so that their attributes can be shown: what any other backend would see."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.spans.append(span)

    def tasks(self) -> list[_Task]:
        return [_task_of(span) for span in list(self.spans)]


@dataclass(frozen=True)
class _Task:
    name: str
    progress: float
    says: str
    state: str
    """running, completed or failed."""
    seconds: float


def _task_of(span: ReadableSpan) -> _Task:
    attributes = dict(span.attributes or {})
    progress = attributes.get(semconv.TASK_PROGRESS)
    says = str(attributes.get(semconv.TASK_CONTENT, ""))
    state = "running"
    if span.end_time is not None:
        state = "failed" if span.status.status_code is StatusCode.ERROR else "completed"
        says = (span.status.description or "") if state == "failed" else str(attributes.get(semconv.TASK_RESULT, says))
    until = span.end_time or time.time_ns()
    return _Task(
        span.name,
        1.0 if state == "completed" else float(progress) if isinstance(progress, (int, float)) else 0.0,
        clean_line(says, 200),
        state,
        max(until - (span.start_time or until), 0) / 1e9,
    )


# -- who hears about them --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Heard:
    """What the receiving side knows at one moment."""

    board: str | None
    messages: tuple[_Told, ...]
    turns: int
    board_writes: int


@dataclass(frozen=True)
class _Told:
    """One report in a message, or what the agent answered to it."""

    state: str
    head: str
    says: str


class _Receiver:
    title: str
    board_title: str
    messages_title: str
    settings: Settings
    patience: float
    """Seconds after which deliveries that are still on their way are not waited for any more."""

    def heard(self, stats: dict[str, Any]) -> _Heard:
        raise NotImplementedError

    def example(self) -> str | None:
        """A message as the agent reads it, word for word."""
        return None


class _StandIn(_Receiver):
    def __init__(self, letta: InMemoryLetta) -> None:
        self._letta = letta
        self._agent_id = letta.create_agent("demo")
        self.title = "a stand-in for Letta on this machine"
        self.board_title = "Memory block: costs no LLM call"
        self.messages_title = "Messages: one LLM turn each"
        self.patience = 0.0
        # Nothing of the user's own settings: the demo is the same everywhere, and no secret of theirs takes part.
        self.settings = Settings.resolve(
            environ={},
            dotenv_path=os.devnull,
            base_url=letta.base_url,
            agent_id=self._agent_id,
            board_interval=0.5,
            poll_interval=0.1,
        )

    def heard(self, stats: dict[str, Any]) -> _Heard:
        reports = iter(self._letta.reports(self._agent_id))
        told = []
        for text in self._letta.context(self._agent_id)[1:]:
            if not text.startswith("<task-progress"):
                told.append(_Told("answer", "the agent answers", text))
                continue
            for report in (next(reports, None) for _ in range(text.count("<task-progress "))):
                if report is not None:
                    told.append(_told(report))
        return _Heard(
            self._letta.board(self._agent_id), tuple(told), self._letta.turns, int(stats.get("board_writes", 0))
        )

    def example(self) -> str | None:
        messages = self._letta.messages(self._agent_id)
        return messages[-1].content if messages else None


def _told(report: dict[str, Any]) -> _Told:
    says = report.get("result") or report.get("error") or report["content"]
    head = f"{report['status']} {report['progress']} {report.get('task', '')}, {report.get('duration', '')}"
    return _Told(report["status"], head, says)


class _RealAgent(_Receiver):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.title = "your Letta agent"
        self.board_title = "Sent"
        self.messages_title = "State"
        self.patience = 180.0

    def heard(self, stats: dict[str, Any]) -> _Heard:
        lines = [
            f"to {clean_line(self.settings.agent_id, 200)}",
            f"at {self.settings.base_url}",
            f"messages sent: {stats.get('sent', 0)} (agent turns: {stats.get('requests', 0)})",
            f"board writes: {stats.get('board_writes', 0)} (no LLM call)",
        ]
        dropped = stats.get("dropped") or {}
        lines += [f"dropped: {number} ({clean_line(str(reason), 80)})" for reason, number in dropped.items()]
        told = []
        troubles: dict[str, list[str]] = {}
        for board in (stats.get("boards") or {}).values():
            if board.get("parked"):
                troubles.setdefault(clean_line(str(board["parked"]), 300), []).append("board")
            elif board.get("label"):
                told.append(_Told("completed", f"board: memory block {board['label']}", ""))
        for lane in (stats.get("lanes") or {}).values():
            trouble = lane.get("parked") or lane.get("last_error")
            if trouble:
                troubles.setdefault(clean_line(str(trouble), 300), []).append("messages")
            elif lane.get("in_flight"):
                told.append(_Told("in_progress", "the agent's turn on a message", ""))
            elif lane.get("waiting"):
                told.append(_Told("in_progress", f"messages: {lane['waiting']} waiting", ""))
        told += [_Told("failed", " and ".join(dict.fromkeys(where)), what) for what, where in troubles.items()]
        return _Heard("\n".join(lines), tuple(told), int(stats.get("requests", 0)), int(stats.get("board_writes", 0)))


# -- the show --------------------------------------------------------------------------------------------------------


class _Show:
    def __init__(self, receiver: _Receiver, seconds: float, log_lines: deque[str]) -> None:
        self._receiver = receiver
        self._log_lines = log_lines
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._spans = _Spans()
        # Nothing that the environment says about sampling or resources shall change the demo.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource({"service.name": "otel-letta demo"}), shutdown_on_exit=False
        )
        self._processor = LettaSpanProcessor(settings=receiver.settings)
        self._provider.add_span_processor(self._spans)
        self._provider.add_span_processor(self._processor)
        self._work = _Work(self._provider.get_tracer("otel-letta demo"), seconds)
        self._began = time.monotonic()
        self._over = threading.Event()
        self._delivered = False

    def run(self) -> int:
        picture = _picture_for(self._console)
        picture.begin(self._receiver)
        director = threading.Thread(target=self._direct, daemon=True)
        director.start()
        interrupted = over = False
        until = math.inf
        with picture.shown():
            while not over and time.monotonic() < until:
                try:
                    over = self._over.wait(_FRAME)
                    picture.frame(self._moment())
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    # The tasks end as failed; the agent hears that too, and it is shown.
                    interrupted, until = True, time.monotonic() + _AFTER_CTRL_C
                    self._work.stop.set()
        moment = self._moment()
        if not self._delivered:
            self._processor.shutdown(_FAREWELL_MILLIS)  # flushing has had its chance
        self._provider.shutdown()
        picture.end(moment, self._receiver, delivered=self._delivered, interrupted=interrupted)
        return 130 if interrupted else 0 if self._delivered else 1

    def _direct(self) -> None:
        try:
            self._work.run()
            self._delivered = self._flushed()
        finally:
            self._over.set()

    def _flushed(self) -> bool:
        """Wait for the deliveries as long as one is on its way: a turn of a real agent may take a while."""
        until = time.monotonic() + self._receiver.patience
        while not self._processor.force_flush(_FLUSH_MILLIS):
            lanes = self._processor.stats().get("lanes", {}).values()
            if time.monotonic() >= until or not any(lane["in_flight"] for lane in lanes):
                return False
        return True

    def _moment(self) -> _Moment:
        heard = self._receiver.heard(self._processor.stats())
        return _Moment(time.monotonic() - self._began, self._spans.tasks(), heard, tuple(self._log_lines))


@dataclass(frozen=True)
class _Moment:
    seconds: float
    tasks: list[_Task]
    heard: _Heard
    log_lines: tuple[str, ...]


def _picture_for(console: Console) -> _Picture:
    lively = (
        console.is_terminal
        and sys.stdout.isatty()
        and not console.is_dumb_terminal
        and (console.encoding or "").lower().startswith("utf")
        and console.width >= _LEAST_COLUMNS
        and console.height >= _LEAST_ROWS
    )
    return _LivePicture(console) if lively else _PlainLines()


class _Picture:
    def begin(self, receiver: _Receiver) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def frame(self, moment: _Moment) -> None:
        raise NotImplementedError

    def end(self, moment: _Moment, receiver: _Receiver, *, delivered: bool, interrupted: bool) -> None:
        raise NotImplementedError


def _verdict(moment: _Moment, *, delivered: bool, interrupted: bool) -> str:
    turns, writes = moment.heard.turns, moment.heard.board_writes
    cost = f"{turns} agent turn{'' if turns == 1 else 's'}, {writes} board write{'' if writes == 1 else 's'}"
    if interrupted:
        return f"Stopped: {cost}."
    if not delivered:
        return f"Not everything was delivered: {cost}. 'otel-letta check' says what is wrong."
    return f"Everything was delivered: {cost} (no LLM call)."


# -- plain lines -----------------------------------------------------------------------------------------------------


@dataclass
class _PlainLines(_Picture):
    """For files, pipes and simple terminals: one line for each thing that happens."""

    _told: tuple[_Told, ...] = ()
    _logged: int = 0
    _quarters: dict[int, tuple[str, int]] = field(default_factory=dict)

    def begin(self, receiver: _Receiver) -> None:
        self._say(f"Three traced tasks report to {receiver.title}.")

    def frame(self, moment: _Moment) -> None:
        at = f"{moment.seconds:5.1f} s"
        for number, one in enumerate(moment.tasks):
            now = (one.state, int(one.progress * 4))
            if self._quarters.get(number) != now:
                self._quarters[number] = now
                state = "" if one.state == "running" else f" {one.state}"
                says = f": {one.says}" if one.says else ""
                self._say(f"{at}  task   {percent(one.progress):>4} {one.name}{state}{says}")
        for number, told in enumerate(moment.heard.messages):
            if self._told[number : number + 1] != (told,):
                self._say(f"{at}  agent  {told.head}{': ' if told.says else ''}{told.says}")
        self._told = moment.heard.messages
        for line in moment.log_lines[self._logged :]:
            self._say(f"{at}  log    {line}")
        self._logged = len(moment.log_lines)

    def end(self, moment: _Moment, receiver: _Receiver, *, delivered: bool, interrupted: bool) -> None:
        self.frame(moment)
        if moment.heard.board is not None:
            self._say(f"\n{receiver.board_title}:")
            for line in moment.heard.board.splitlines():
                self._say(f"  {clean_line(line, 600)}")
        example = receiver.example()
        if example:
            self._say(f"\nA message, as the agent reads it:\n  {clean_line(example, 4_000)}")
        self._say("\n" + _verdict(moment, delivered=delivered, interrupted=interrupted))

    def _say(self, text: str) -> None:
        click.echo(text)
        sys.stdout.flush()


# -- the live picture ------------------------------------------------------------------------------------------------


_STYLES = {"running": "cyan", "in_progress": "cyan", "completed": "green", "failed": "red", "answer": "dim"}
_SIGNS = {"running": "●", "in_progress": "●", "completed": "✓", "failed": "✗", "answer": "↳"}


class _LivePicture(_Picture):
    """Two sides of fixed size, drawn again ten times a second: what moves is only what changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._receiver: _Receiver | None = None
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def begin(self, receiver: _Receiver) -> None:
        self._receiver = receiver

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self._live:
            yield

    def frame(self, moment: _Moment) -> None:
        self._live.update(self._whole(moment), refresh=True)

    def end(self, moment: _Moment, receiver: _Receiver, *, delivered: bool, interrupted: bool) -> None:
        for line in moment.log_lines:
            self._console.print(Text(line, "yellow"))
        verdict = _verdict(moment, delivered=delivered, interrupted=interrupted)
        self._console.print(Text(verdict, "bold green" if delivered and not interrupted else "bold yellow"))
        example = receiver.example() if self._console.height >= _LEAST_ROWS + 10 else None
        if example:  # else it would push the picture out of sight
            self._console.print(Text("\nThe last message, as the agent reads it:"))
            self._console.print(Padding(Text(clean_line(example, 4_000), "dim"), (0, 2)))

    def _whole(self, moment: _Moment) -> RenderableType:
        assert self._receiver is not None
        width = self._console.width
        left = max(28, min(46, width * 2 // 5 - 2))
        right = width - left - 1
        lines_each = 1 if right >= 92 else 2
        board_rows, message_rows = 3 + 3 * lines_each, 6
        head = Text.assemble(("otel-letta demo", "bold"), f"  three traced tasks and {self._receiver.title}")
        head.truncate(width - 1, overflow="ellipsis")
        sides = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        sides.add_column(width=left)
        sides.add_column(width=right)
        sides.add_row(
            _panel("Your program", self._tasks(moment.tasks, left - 4), board_rows + message_rows + 2),
            Group(
                _panel(self._receiver.board_title, _board(moment.heard.board, right - 4, board_rows), board_rows),
                _panel(
                    self._receiver.messages_title,
                    _messages(moment.heard.messages, right - 4, message_rows),
                    message_rows,
                ),
            ),
        )
        heard = moment.heard
        foot = Text(f"{moment.seconds:4.1f} s   agent turns {heard.turns}   board writes {heard.board_writes}", "dim")
        return Group(head, sides, foot)

    def _tasks(self, tasks: list[_Task], width: int) -> RenderableType:
        lines: list[RenderableType] = []
        for one in tasks:
            style = _STYLES[one.state]
            side = f"{one.seconds:.1f} s"
            name = Text(f"{_SIGNS[one.state]} {one.name}", "bold")
            name.truncate(width - len(side) - 1, overflow="ellipsis", pad=True)
            name.append(" " + side, "dim")
            share = f" {percent(one.progress):>4}"
            cells = width - len(share)
            filled = int(one.progress * cells + 1e-9)
            bar = Text.assemble(("█" * filled, style), ("░" * (cells - filled), "dim"), share)
            says = _wrapped(one.says, width, "", "red" if one.state == "failed" else "dim")[:2]
            lines += [name, bar, *says, *[Text("")] * (3 - len(says))]
        return Group(*lines)


def _panel(title: str, inside: RenderableType, rows: int) -> Panel:
    return Panel(inside, title=Text(title, "bold"), title_align="left", height=rows + 2, border_style="dim")


def _board(text: str | None, width: int, rows: int) -> RenderableType:
    if text is None:
        return Text("not there yet", "dim")
    lines: list[Text] = []
    for line in text.splitlines():
        style = next(
            (style for word, style in (("completed", "green"), ("failed", "red")) if line.startswith(word)), ""
        )
        lines += _wrapped(clean_line(line, 600), width, "  ", style)
    if len(lines) > rows:
        lines[rows - 1].truncate(width - 2, overflow="ignore")
        lines[rows - 1].append(" …", "dim")
    return Group(*lines[:rows])


def _messages(told: tuple[_Told, ...], width: int, rows: int) -> RenderableType:
    lines: list[Text] = []
    for one in told:
        text = f"{_SIGNS[one.state]} {one.head}{': ' if one.says else ''}{one.says}"
        lines += _wrapped(clean_line(text, 400), width, "  ", _STYLES[one.state])
    return Group(*lines[-rows:]) if lines else Text("none yet", "dim")


def _wrapped(text: str, width: int, indent: str, style: str) -> list[Text]:
    """Lines of whole words; what follows the first is indented."""
    console = Console(width=width)
    first, *others = Text(text).wrap(console, width) or [Text("")]
    lines = [first]
    if others:
        rest = Text(text[len(first.plain.rstrip()) :].strip())
        lines += [Text(indent) + line for line in rest.wrap(console, width - len(indent))]
    for line in lines:
        line.rstrip()
        line.stylize(style)
    return lines


# -- surroundings ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _log_lines() -> Iterator[deque[str]]:
    """What the package logs as wrong, to be shown beside the picture and not in the middle of it."""
    lines: deque[str] = deque(maxlen=20)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(clean_line(record.getMessage(), 300))

    logger, handler = logging.getLogger("otel_letta"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _no_proxy_on_loopback() -> Iterator[None]:
    """A company's proxy could not reach the stand-in on this machine."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    try:
        for name, value in before.items():
            os.environ[name] = f"{value},127.0.0.1" if value else "127.0.0.1"
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
