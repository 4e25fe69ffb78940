"""`otel-letta hook`: OpenHands' CLI waits for it at every step, so it is quick, quiet, and always says 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations.openhands import hook as hook_module
from otel_letta.integrations.openhands import hook_courier
from otel_letta.integrations.openhands.callbacks import Share
from otel_letta.integrations.openhands.hook import courier_lock, session_key, spool_path, starting_path
from otel_letta.integrations.openhands.hook_courier import Courier
from otel_letta.runtime import locks
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import recorded
from tests.support.fake_transport import Clock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")

SESSION = recorded("hooks")[0]["session_id"]
KEY = session_key(SESSION)


@pytest.fixture(autouse=True)
def private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks and sessions of this test alone."""
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"otel_letta-{os.getuid()}"


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server


@pytest.fixture
def agent(letta: InMemoryLetta) -> str:
    return letta.create_agent()


def hook(raw: object, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "otel_letta", "hook", *arguments],
        input=raw if isinstance(raw, str) else json.dumps(raw),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def no_courier() -> None:
    """Make hooks believe that a courier was started just now."""
    starting_path(KEY).touch()


def wait_for_courier() -> None:
    """Until the session's courier has left."""
    deadline = time.monotonic() + 30
    while starting_path(KEY).exists() or not courier_lock(KEY).try_acquire():
        assert time.monotonic() < deadline, "the courier stays"
        time.sleep(0.02)  # another process's doing: nothing to wait on


def ends(letta: InMemoryLetta, agent: str) -> list[dict[str, Any]]:
    return [report for report in letta.reports(agent) if report["status"] != "in_progress"]


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_session_is_told_by_its_courier(letta: InMemoryLetta, agent: str, private_folder: Path) -> None:
    settings = {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent}
    for raw in recorded("hooks"):
        done = hook(raw, "--chat-id", "chat-1", **settings)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert letta.wait_for(lambda: bool(ends(letta, agent)), 20)
    (end,) = ends(letta, agent)
    assert (end["status"], end["result"], end["chat_id"]) == (
        "completed",
        "hello.py prints hello 0, 1 and 2.",
        "chat-1",
    )
    assert end["task_id"].startswith(f"{SESSION}/")
    wait_for_courier()
    assert not list(private_folder.glob("*.jsonl"))


def test_the_last_hook_can_wait_for_the_delivery(letta: InMemoryLetta, agent: str) -> None:
    """For a container, which takes the courier along when OpenHands ends."""
    settings = {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent}
    hook({"event_type": "UserPromptSubmit", "session_id": SESSION}, "--wait", "20", **settings)
    hook({"event_type": "SessionEnd", "session_id": SESSION}, "--wait", "20", **settings)
    assert [end["status"] for end in ends(letta, agent)] == ["failed"]


def test_waiting_for_the_delivery_has_an_end(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    no_courier()
    began = time.monotonic()
    assert hook({"event_type": "SessionEnd", "session_id": SESSION}, "--wait", "0.2").returncode == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "raw", ["", "{", "[]", "null", "5", '{"session_id": 5}', '{"event_type": "Stop"}', "[" * 100_000, "\ud800"]
)
def test_nonsense_is_answered_with_success(raw: str) -> None:
    data = raw.encode("utf-8", "surrogatepass")
    done = subprocess.run([sys.executable, "-m", "otel_letta", "hook"], input=data, capture_output=True, timeout=30)
    assert done.returncode == 0
    assert done.stdout == b""


def test_a_wrong_option_is_answered_with_success() -> None:
    """Code 2, which is usual, would deny the agent its tool."""
    done = hook("{}", "--no-such-option")
    assert done.returncode == 0
    assert "--no-such-option" in done.stderr


def test_a_folder_that_cannot_be_written_is_answered_with_success(private_folder: Path) -> None:
    private_folder.write_text("in the way")
    done = hook(recorded("hooks")[1])
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_written_down_is_private_and_holds_no_prompt_argument_or_output(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    no_courier()
    for raw in recorded("hooks")[:-2]:
        no_courier()
        hook(raw)
    spool = spool_path(KEY)
    assert spool.stat().st_mode & 0o777 == 0o600
    assert private_folder.stat().st_mode & 0o777 == 0o700
    text = spool.read_text()
    for private in ("Write hello.py", "print(", "Create hello.py", "/app/ws", "python3"):
        assert private not in text
    assert "hello.py prints hello 0, 1 and 2." in text


def test_hooks_at_once_do_not_mix_their_lines(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    no_courier()
    raw = json.dumps({"event_type": "PreToolUse", "tool_name": "x" * 150, "session_id": SESSION})
    running = [
        subprocess.Popen([sys.executable, "-m", "otel_letta", "hook"], stdin=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in running:
        process.communicate(raw, timeout=30)
    lines = spool_path(KEY).read_text().split()
    assert [json.loads(line)["event"]["tool_name"] for line in lines] == ["x" * 150] * 8


def test_a_file_that_has_grown_long_takes_only_what_a_run_cannot_do_without(
    private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_folder.mkdir(mode=0o700)
    monkeypatch.setattr(hook_module, "_MOST_SPOOL", 8)  # one line has nine bytes
    spool = spool_path(KEY)
    milestones = [False, False, True, True]
    assert [hook_module._append(spool, {"n": n}, is_milestone=m) for n, m in enumerate(milestones)] == [
        True,
        False,
        True,
        False,  # twice the limit is the end of all
    ]
    assert [json.loads(line) for line in spool.read_text().split()] == [{"n": 0}, {"n": 2}]


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ({"event_type": "UserPromptSubmit"}, True),
        ({"event_type": "PostToolUse", "tool_name": "finish"}, True),
        ({"event_type": "Stop"}, True),
        ({"event_type": "SessionEnd"}, True),
        ({"event_type": "PreToolUse", "tool_name": "terminal"}, False),
    ],
)
def test_a_long_session_still_tells_its_next_run(private_folder: Path, raw: dict[str, Any], kept: bool) -> None:
    """An end alone would be the end of a run that never began, and told to nobody."""
    private_folder.mkdir(mode=0o700)
    no_courier()
    spool = spool_path(KEY)
    spool.write_bytes(b" " * (hook_module._MOST_SPOOL + 1))
    hook({**raw, "session_id": SESSION})
    assert (raw["event_type"] in spool.read_text()) is kept


def test_what_a_plan_says_cannot_make_a_line_long(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    no_courier()
    tasks = [{"status": "done"}, {"status": "x" * 2_000_000}, {"status": {"deep": [1] * 1_000}}, {}]
    raw = {"event_type": "PostToolUse", "tool_name": "task_tracker", "tool_response": {"task_list": tasks}}
    hook({**raw, "session_id": SESSION})
    (line,) = spool_path(KEY).read_text().split()
    assert json.loads(line)["event"]["tool_response"]["task_list"] == [{"status": s} for s in ("done", "", "", "")]


def test_modules_of_the_workspace_do_not_take_part(tmp_path: Path) -> None:
    """The agent writes there: a json.py of its own ended the hook with 2, which denies it its tools."""
    workspace = tmp_path / "workspace"
    (workspace / "otel_letta").mkdir(parents=True)
    for module in ("json.py", "argparse.py", "otel_letta/__init__.py"):
        (workspace / module).write_text("raise SystemExit(2)\n")
    code = (
        "import sys; sys.argv = ['-m']; from otel_letta.integrations.openhands import hook; "
        "print(__import__('json').dumps(hook._command()))"
    )
    environment = {**os.environ, "PATH": ""}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    command = json.loads(asked.stdout)
    assert command[0] == sys.executable
    done = subprocess.run(
        [*command, "--no-such-option"], cwd=workspace, stdin=subprocess.DEVNULL, capture_output=True, timeout=30
    )
    assert done.returncode == 0
    assert b"--no-such-option" in done.stderr


def test_couriers_of_two_sessions_do_not_overwrite_each_other_s_log(
    private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_folder.mkdir(mode=0o700)
    log = private_folder / "openhands-hook.log"
    log.write_text("why the other one failed\n")
    started: list[list[str]] = []

    def start(command: list[str], *, stderr: int, **_: object) -> None:
        started.append(command)
        os.write(stderr, b"mine\n")

    monkeypatch.setattr(subprocess, "Popen", start)
    hook_module._start_courier("one", None)
    assert log.read_text() == "why the other one failed\nmine\n"
    monkeypatch.setattr(hook_module, "_MOST_LOG", 10)
    hook_module._start_courier("two", None)
    assert log.read_text() == "mine\n"
    assert [command[-1] for command in started] == ["one", "two"]


def test_who_asked_comes_from_where_openhands_looks(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    no_courier()
    metadata = {"letta.chat_id": "chat-9", "letta.message.id": "msg-9", "letta.task.name": "Tidy up"}
    hook(recorded("hooks")[1], OPENHANDS_OBSERVABILITY_METADATA=json.dumps(metadata))
    hook(recorded("hooks")[1], "--chat-id", "mine", OPENHANDS_OBSERVABILITY_METADATA='{"letta.chat.id": 5')
    origins = [json.loads(line)["origin"] for line in spool_path(KEY).read_text().splitlines() if line]
    assert origins == [
        {"chat_id": "chat-9", "message_id": "msg-9", "name": "Tidy up"},
        {"chat_id": "mine", "message_id": None, "name": None},
    ]


def test_the_configuration_runs_this_command() -> None:
    done = hook("", "--print-config", "--chat-id", "chat 1")
    hooks = json.loads(done.stdout)["hooks"]
    assert set(hooks) == {"UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop", "SessionEnd"}
    for (matcher,) in hooks.values():
        (one,) = matcher["hooks"]
        assert one["type"] == "command"
        assert one["command"].endswith("hook --chat-id 'chat 1'")
    assert hooks["PostToolUse"][0]["matcher"] == "task_tracker|finish"


def test_the_heavy_libraries_are_not_imported() -> None:
    code = (
        "import sys; sys.argv[1:] = ['hook']\n"
        "from otel_letta.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as done: print(done.code, [m for m in ('click', 'httpx', 'opentelemetry', 'subprocess') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], input="{}", capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "0 []"


# -- the courier -------------------------------------------------------------------------------------------------------


class Session:
    """A session's file, and couriers that read it in this process, with a clock that passes only when they wait."""

    def __init__(self, letta: InMemoryLetta, agent: str) -> None:
        self._settings = {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages", "message_interval": 0}
        self.clock = Clock()
        self.slept = 0.0
        spool_path(KEY).parent.mkdir(mode=0o700, exist_ok=True)

    def write(self, *raws: dict[str, Any], at: int = 1_800_000_000_000_000_000) -> None:
        origin = {"chat_id": "chat-1", "message_id": None, "name": None}
        with spool_path(KEY).open("a") as spool:
            for raw in raws:
                spool.write(json.dumps({"at": at, "session": SESSION, "origin": origin, "event": raw}) + "\n")

    def courier(self, *, keep_open: bool = False) -> None:
        """One courier from its start until it leaves, or, with ``keep_open``, until it would wait for more."""

        class Killed(BaseException):
            pass

        def wait(seconds: float) -> None:
            if keep_open:
                raise Killed
            self.clock.advance(60.0)

        share = Share(None, dict(self._settings))
        courier = Courier(KEY, share, clock=self.clock, wait=wait)
        try:
            courier.run()
            courier.forget()
        except Killed:
            assert share.flush(10)
            share._handle.pipeline._conversations.shutdown = lambda: None  # type: ignore[union-attr, method-assign]
        finally:
            share.close()


ASKED = {"event_type": "UserPromptSubmit"}
FINISH = {"event_type": "PostToolUse", "tool_name": "finish", "tool_input": {"message": "done"}}
STOP = {"event_type": "Stop"}
END = {"event_type": "SessionEnd"}


def test_a_courier_leaves_when_the_session_is_over_and_takes_its_files_along(
    letta: InMemoryLetta, agent: str, private_folder: Path
) -> None:
    session = Session(letta, agent)
    session.write(ASKED, FINISH, STOP, END)
    session.courier()
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]
    assert not list(private_folder.glob("openhands-*"))


def test_a_run_that_ends_without_stop_has_failed(letta: InMemoryLetta, agent: str) -> None:
    session = Session(letta, agent)
    session.write(ASKED, END)
    session.courier()
    assert [end["error"] for end in ends(letta, agent)] == ["the session ended before the task was finished"]


def test_a_courier_that_was_killed_is_followed_by_one_that_knows_the_run(letta: InMemoryLetta, agent: str) -> None:
    session = Session(letta, agent)
    session.write(ASKED)
    session.courier(keep_open=True)
    started = letta.reports(agent)[0]["task_id"]
    session.write(FINISH, STOP, END)
    session.courier()
    assert [(end["task_id"], end["status"]) for end in ends(letta, agent)] == [(started, "completed")]


def test_what_was_told_is_not_told_again(letta: InMemoryLetta, agent: str) -> None:
    session = Session(letta, agent)
    session.write(ASKED, FINISH, STOP)
    session.courier()
    session.write(ASKED, FINISH, STOP, END, at=1_800_000_001_000_000_000)
    session.courier()
    assert len({end["task_id"] for end in ends(letta, agent)}) == len(ends(letta, agent)) == 2


def test_silence_for_an_hour_means_that_openhands_was_killed(letta: InMemoryLetta, agent: str) -> None:
    session = Session(letta, agent)
    session.write(ASKED)
    session.courier()
    assert [end["error"] for end in ends(letta, agent)] == ["nothing was heard of OpenHands for an hour"]


def test_lines_that_are_not_ours_are_passed_over(letta: InMemoryLetta, agent: str) -> None:
    session = Session(letta, agent)
    session.write(ASKED)
    with spool_path(KEY).open("a") as spool:
        spool.write('{"half\n[]\n{"at": "x", "session": 1, "origin": {}, "event": {"event_type": "Stop"}}\n')
        spool.write('{"at": 1, "session": "s", "origin": {"evil": 1}, "event": {}}\n')
    session.write(FINISH, STOP, END)
    session.courier()
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]


def test_a_line_that_a_full_disk_cut_off_costs_none_but_itself(letta: InMemoryLetta, agent: str) -> None:
    session = Session(letta, agent)
    session.write(ASKED)
    with spool_path(KEY).open("a") as spool:
        spool.write('{"at": 1, "session": "s", "ori')
    line = {"at": 1_800_000_000_000_000_000, "session": SESSION, "origin": {}}
    for raw in (FINISH, STOP, END):
        hook_module._append(spool_path(KEY), {**line, "event": raw}, is_milestone=True)
    session.courier()
    assert [(end["status"], end["result"]) for end in ends(letta, agent)] == [("completed", "done")]


def test_a_line_that_is_too_long_to_be_ours_is_passed_over(
    letta: InMemoryLetta, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_courier, "_MOST_READ", 1_000)
    session = Session(letta, agent)
    session.write(ASKED)
    with spool_path(KEY).open("a") as spool:
        spool.write("x" * 5_000 + "\n")
    session.write(FINISH, STOP, END)
    session.courier()
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]


def test_a_courier_that_starts_while_a_hook_looks_for_it_stays(
    letta: InMemoryLetta, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook holds the lock for that moment, and starts no other one."""
    (tmp_path / "env").write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    Session(letta, agent).write(ASKED, FINISH, STOP, END)
    look = courier_lock(KEY)
    assert look.try_acquire()
    monkeypatch.setattr(sys, "argv", ["courier", KEY, str(tmp_path / "env")])
    monkeypatch.setattr(hook_courier.time, "sleep", lambda _: look.release())
    hook_courier.main()
    assert len(ends(letta, agent)) == 1


def test_files_that_nobody_needs_any_more_are_removed(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    old, new, lock = (private_folder / name for name in ("openhands-old.jsonl", "openhands-new.jsonl", "x.lock"))
    for path in (old, new, lock):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(lock, (1, 1))
    hook_courier._remove_stale(time.time())
    assert sorted(path.name for path in private_folder.iterdir()) == ["openhands-new.jsonl", "x.lock"]


def test_an_env_file_of_the_workspace_is_not_read(
    letta: InMemoryLetta, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent works there: it could name a server of its own, to which the password of the environment would go."""
    (tmp_path / ".env").write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["courier", KEY])
    Session(letta, agent).write(ASKED, FINISH, STOP, END)
    hook_courier.main()
    assert letta.requests == []
    monkeypatch.setattr(sys, "argv", ["courier", KEY, str(tmp_path / ".env")])
    hook_courier.main()
    assert len(ends(letta, agent)) == 1
