"""`otel-letta demo` shows three tasks and what the agent hears of them, needs nothing, and always comes to its end."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from otel_letta.cli import main as cli
from otel_letta.cli.demo import picture, show
from otel_letta.cli.demo.receivers import Entry, Received, StandIn
from otel_letta.cli.demo.tasks import TaskRow
from otel_letta.cli.main import app
from otel_letta.testing import InMemoryLetta

SECRET = "correct-horse-battery"


def demo(*arguments: str) -> Result:
    result = CliRunner().invoke(app(), ["demo", "--seconds", "0.5", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    return result


class Terminal:
    """`otel-letta demo` in a terminal of its own. Such a test takes some seconds: a program, all imports."""

    def __init__(self, *arguments: str, columns: int, rows: int, **environ: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "otel_letta", "demo", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "TERM": "xterm-256color", "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8", **environ},
            start_new_session=True,
        )
        os.close(slave)
        self._bytes = b""

    @property
    def screen(self) -> str:
        return self._bytes.decode("utf-8", "replace")

    def read_until(self, text: str, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while text not in self.screen and time.monotonic() < until and self._read():
            pass
        assert text in self.screen

    def interrupt(self) -> None:
        # What Ctrl-C does: the signal goes to everybody in the foreground.
        os.killpg(self._process.pid, signal.SIGINT)

    def exit_code(self, seconds: float = 20.0) -> int:
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until and self._read():
                pass
            return self._process.wait(5)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 1.0)[0]:
            return self._process.poll() is None
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # Linux says so when the other side has closed
            return False
        self._bytes += data
        return bool(data)


# -- in a pipe


@pytest.fixture(scope="module")
def piped() -> str:
    """What a run that goes into a pipe says."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LETTA_", "OTEL_"))}
    command = [sys.executable, "-m", "otel_letta", "demo", "--seconds", "1"]
    environ |= {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_agent_hears_how_three_tasks_end(piped: str) -> None:
    assert "agent  completed 100% Index the docs" in piped
    assert "agent  completed 100% Refactor module" in piped
    assert re.search(r"agent  failed 62% Import sales, [\d.]+ s: ValueError: bad row 1043", piped)
    assert "Everything was delivered: " in piped


def test_plain_lines_show_progress_board_and_a_message_word_for_word(piped: str) -> None:
    assert re.search(r"task    \d\d% Index the docs: \d+/24", piped)
    assert "  In progress: none\n" in piped
    assert re.search(r'  <task-progress task="[^"]+" .*</task-progress>\n', piped)
    assert "\x1b" not in piped


def test_the_users_own_settings_take_no_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with InMemoryLetta() as own:
        monkeypatch.setenv("LETTA_BASE_URL", own.base_url)
        monkeypatch.setenv("LETTA_PASSWORD", SECRET)
        monkeypatch.setenv("OTEL_LETTA_DELIVERY", "loud")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "letta.agent.id=agent-x")
        (tmp_path / ".env").write_text("LETTA_AGENT_ID=agent-mine\nOTEL_LETTA_MAX_STEPS=none\n")
        assert demo().exit_code == 0
        assert own.requests == []


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    before = dict(os.environ)
    assert demo().exit_code == 0
    assert dict(os.environ) == before


def test_a_disabled_sdk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    result = demo()
    assert result.exit_code == 1
    assert "OTEL_SDK_DISABLED=true" in result.output


# -- with a server of one's own


def test_real_talks_to_the_configured_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    with InMemoryLetta(password=SECRET) as letta:
        agent_id = letta.create_agent()
        monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", agent_id)
        monkeypatch.setenv("LETTA_PASSWORD", SECRET)
        result = demo("--real")
        assert result.exit_code == 0, result.output
        assert sorted(report["status"] for report in letta.reports(agent_id)) == ["completed", "completed", "failed"]
        assert f"{letta.turns} agent turn" in result.output
        assert f"to {agent_id} at {letta.base_url}" in result.output
        assert "the agent answers: ack 1" in result.output
        assert "Board: costs no LLM call:\n  Updated " in result.output
        assert "failed 62% Import sales" in result.output
        assert "A message, as the agent reads it:\n  <task-progress " in result.output
        assert result.output.splitlines()[-1].startswith("Next: otel_letta.configure()")


def test_real_waits_for_a_turn_that_takes_longer_than_a_flush(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(show, "_FLUSH_MILLIS", 100)
    with InMemoryLetta(turn_seconds=0.7) as letta:
        monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", letta.create_agent())
        assert demo("--real").exit_code == 0


def test_real_without_settings_says_what_is_missing() -> None:
    result = demo("--real")
    assert result.exit_code == 1
    assert "set LETTA_AGENT_ID" in result.output and "otel-letta check" in result.output


def test_real_with_a_wrong_password_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with InMemoryLetta(password="another") as letta:
        monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", letta.create_agent())
        monkeypatch.setenv("LETTA_PASSWORD", SECRET)
        result = demo("--real")
    assert result.exit_code == 1
    assert "Invalid credentials (HTTP 401)" in result.output
    assert "Not everything was delivered" in result.output


# -- in a terminal


def test_a_terminal_shows_both_sides_live_and_gets_its_cursor_back() -> None:
    terminal = Terminal("--seconds", "0.8", columns=80, rows=24)
    assert terminal.exit_code() == 0, terminal.screen
    assert "Your program" in terminal.screen and "Memory block" in terminal.screen
    assert terminal.screen.count("Your program") > 5  # frames
    assert terminal.screen.rindex("\x1b[?25h") > terminal.screen.rindex("\x1b[?25l")
    assert "\x1b[3" in terminal.screen  # colours


def test_no_color_is_honoured() -> None:
    terminal = Terminal("--seconds", "0.8", columns=140, rows=40, NO_COLOR="1")
    assert terminal.exit_code() == 0
    assert "Your program" in terminal.screen
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;)[0-9;]*m", terminal.screen)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    terminal = Terminal("--seconds", "0.8", columns=80, rows=24, TERM="dumb")
    assert terminal.exit_code() == 0
    assert "\x1b" not in terminal.screen
    assert "Everything was delivered" in terminal.screen


@pytest.mark.parametrize(("columns", "rows"), [(79, 24), (80, 23)])
def test_a_terminal_that_is_too_small_for_the_picture_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    def chosen(width: int, height: int) -> picture.Picture:
        file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        console = Console(file=file, force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"})
        return picture.picture_for(console, StandIn(letta))

    with InMemoryLetta() as letta:
        assert isinstance(chosen(columns, rows), picture.PlainLines)
        assert isinstance(chosen(80, 24), picture.LivePicture)


def test_ctrl_c_ends_it_cleanly_and_the_agent_hears_why(ctrl_c: None) -> None:
    terminal = Terminal("--seconds", "12", columns=140, rows=40)
    terminal.read_until("1/24")
    terminal.interrupt()
    assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.screen
    assert "interrupted (Ctrl-C)" in terminal.screen
    assert "Stopped: " in terminal.screen
    assert terminal.screen.rindex("\x1b[?25h") > terminal.screen.rindex("\x1b[?25l")


def shown(at_line: Callable[[int], None]) -> int:
    """The exit code of a short show that calls ``at_line`` before each line of `Show.run`, counted from its first."""
    code = show.Show.run.__code__

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line":
            at_line(frame.f_lineno - code.co_firstlineno)
        return trace

    with InMemoryLetta() as letta:
        made = show.Show(StandIn(letta), 0.02, deque())
        tracing = sys.gettrace()
        sys.settrace(trace)
        try:
            return made.run()
        finally:
            sys.settrace(tracing)


def test_ctrl_c_at_any_line_of_the_show_ends_it_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ctrl_c: None
) -> None:
    """Takes some seconds: one show for each line."""
    monkeypatch.setattr(show, "_FRAME", 0.01)
    lines: dict[int, None] = {}
    assert shown(lambda line: lines.setdefault(line)) == 0
    _, *others = lines  # at the first, nothing has been prepared yet
    for chosen in others:
        pressed: list[int] = []

        def press(line: int, chosen: int = chosen, pressed: list[int] = pressed) -> None:
            if line == chosen and not pressed:
                pressed.append(line)
                signal.raise_signal(signal.SIGINT)

        assert (shown(press), pressed) == (130, [chosen])
        assert re.search(r"\n(Stopped|Everything was delivered): .*\n(Next: .*\n)?$", capsys.readouterr().out)
    assert len(others) > 10
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_during_any_command_is_130_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("otel_letta.cli.demo.command.InMemoryLetta", interrupted)
    result = CliRunner().invoke(app(), ["demo"])
    assert (result.exit_code, result.output) == (130, "Aborted!\n")


def test_ctrl_c_while_the_command_is_being_imported_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(sys, "argv", ["otel-letta", "demo"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


# -- one frame


def frame(width: int, *, board: str | None, messages: tuple[Entry, ...]) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=24, highlight=False, markup=False, emoji=False)
    with InMemoryLetta() as letta:
        live = picture.LivePicture(console, StandIn(letta))
    tasks = [
        TaskRow("Index the docs", 0.5, "12/24", "running", 4.0),
        TaskRow("Refactor module", 1.0, "10 files, all tests pass", "completed", 6.0),
        TaskRow("Import sales", 0.62, "ValueError: bad row 1043", "failed", 3.0),
    ]
    received = Received(board, messages, 2, 9)
    console.print(live._whole(picture.Moment(6.5, tasks, received, ())))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


BOARD = """Updated 2026-11-22 19:57:49 UTC by vm.
In progress: 1
[███████░░░] 75% Index the docs, 6.2 s: 18/24
Ended:
completed 19:57:49 UTC Refactor module (chat chat-7), 6.0 s: 10 files, all tests pass
failed 19:57:46 UTC Import sales, 3.0 s: ValueError: bad row 1043. 1000 rows of 1600"""
MESSAGES = (
    Entry("failed", "failed 62% Import sales, 3.0 s", "ValueError: bad row 1043"),
    Entry("answer", "the agent answers", "ack 1"),
    Entry("completed", "completed 100% Refactor module, 6.0 s", "10 files, all tests pass"),
    Entry("answer", "the agent answers", "ack 2"),
)


@pytest.mark.parametrize("width", [80, 100, 140, 250])
def test_a_frame_fits_its_terminal_and_cuts_no_word(width: int) -> None:
    lines = frame(width, board=BOARD, messages=MESSAGES)
    assert max(len(line) for line in lines) <= width
    assert "…" not in "".join(lines)
    words = set(re.findall(r"\w+", "\n".join(lines)))
    assert {"Refactor", "module", "completed", "Memory", "answers", "tests", "1043", "1600"} <= words


@pytest.mark.parametrize("width", [80, 140])
def test_every_frame_has_the_same_size_so_that_nothing_jumps(width: int) -> None:
    full = frame(width, board=BOARD, messages=MESSAGES * 5)
    empty = frame(width, board=None, messages=())
    assert len(full) == len(empty) <= 22


def test_a_frame_that_overflows_says_so() -> None:
    assert any(" …" in line for line in frame(80, board=BOARD + "\nfailed again" * 9, messages=MESSAGES))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_reason_of_a_failure_stays_in_sight_however_much_comes_after_it(width: int) -> None:
    later = tuple(Entry("completed", f"completed 100% Task {n}", "all is well") for n in range(9))
    answers = (Entry("answer", "the agent answers", "ack"),) * 9
    text = " ".join(" ".join(frame(width, board=None, messages=(MESSAGES[0], *answers, *later))).split())
    assert text.count("ValueError") == 2, "once in the program, once at the agent"
    assert "Task 8" in text


def test_it_ends_with_what_to_do_next(piped: str) -> None:
    assert piped.splitlines()[-1].startswith("Next: 'otel-letta init'")
