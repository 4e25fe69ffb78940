"""`otel-letta hook`: OpenHands' CLI waits for it at every step, so it is quick, quiet, and always exits with 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations.openhands import hook as hook_module
from otel_letta.integrations.openhands.hook import courier_lock, session_key, spool_path, starting_path
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import ends, recorded

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="flock"),
    pytest.mark.usefixtures("private_folder"),
]

SESSION = recorded("hooks")[0]["session_id"]
KEY = session_key(SESSION)


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
    """Wait until the session's courier has left."""
    deadline = time.monotonic() + 30
    while starting_path(KEY).exists() or not courier_lock(KEY).try_acquire():
        assert time.monotonic() < deadline, "the courier stays"
        time.sleep(0.02)  # another process's doing: nothing to wait on


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_session_is_reported_by_its_courier(letta: InMemoryLetta, agent: str, private_folder: Path) -> None:
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
def test_a_long_session_still_reports_its_next_run(private_folder: Path, raw: dict[str, Any], kept: bool) -> None:
    """An end alone would be the end of a run that never began, and not be reported."""
    private_folder.mkdir(mode=0o700)
    no_courier()
    spool = spool_path(KEY)
    spool.write_bytes(b" " * (hook_module._MOST_SPOOL + 1))
    hook({**raw, "session_id": SESSION})
    assert (raw["event_type"] in spool.read_text()) is kept


def test_the_items_of_a_plan_cannot_make_a_line_long(private_folder: Path) -> None:
    private_folder.mkdir(mode=0o700)
    no_courier()
    tasks = [{"status": "done"}, {"status": "x" * 2_000_000}, {"status": {"deep": [1] * 1_000}}, {}]
    raw = {"event_type": "PostToolUse", "tool_name": "task_tracker", "tool_response": {"task_list": tasks}}
    hook({**raw, "session_id": SESSION})
    (line,) = spool_path(KEY).read_text().split()
    assert json.loads(line)["event"]["tool_response"]["task_list"] == [{"status": s} for s in ("done", "", "", "")]


@pytest.mark.parametrize("searched", ["", ":/nowhere", "."])
def test_modules_of_the_workspace_do_not_take_part(tmp_path: Path, searched: str) -> None:
    """The agent writes there: a json.py of its own ended the hook with 2, which denies it its tools."""
    workspace = tmp_path / "workspace"
    (workspace / "otel_letta").mkdir(parents=True)
    for module in ("json.py", "argparse.py", "otel_letta/__init__.py"):
        (workspace / module).write_text("raise SystemExit(2)\n")
    code = (
        "import json, sys; sys.argv = ['-m']; from otel_letta.integrations.openhands import hook; "
        "print(json.dumps([sys.executable, hook._command()]))"
    )
    environment = {**os.environ, "PATH": ""}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    python, command = json.loads(asked.stdout)
    assert command[0] == python
    done = subprocess.run(
        [*command, "--no-such-option"],
        cwd=workspace,
        env={**environment, "PYTHONPATH": searched},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
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


def test_chat_and_message_come_from_openhands_metadata(private_folder: Path) -> None:
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


@pytest.mark.parametrize("obstacle", ["open to all", "a link", "a file"])
def test_no_event_is_lost_where_the_private_folder_is_not_ours_alone(
    letta: InMemoryLetta, agent: str, private_folder: Path, obstacle: str
) -> None:
    planted = private_folder.parent / "planted"
    planted.mkdir()
    if obstacle == "a link":
        private_folder.symlink_to(planted)
    elif obstacle == "a file":
        private_folder.write_text("in the way")
    else:
        private_folder.mkdir()
        private_folder.chmod(0o777)
        (private_folder / spool_path(KEY).name).symlink_to(planted / "theirs")
    settings = {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent}
    said = ""
    for raw in recorded("hooks"):
        done = hook(raw, "--wait", "30", **settings)
        assert done.returncode == 0
        said += done.stderr
    assert f"{private_folder}.1 is used instead" in said
    wait_for_courier()
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]
    assert not list(planted.iterdir())
