"""`otel-letta hook`: OpenHands' CLI runs it at each of its hook events.

OpenHands waits for a hook, and one that fails can stop the agent. So this writes one line into a file, makes sure that
a courier runs (`hook_courier`), and is gone; it exits with 0 whatever happens. Sending here would cost OpenHands the
import of an HTTP client and the answer of a server at every tool; and pacing, the board, and one message after another
need a process that remembers, so one courier lives as long as the session has something to report.

Imports as little as it can: that is most of what a hook costs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_letta.runtime.locks import HostLock, folder, folder_warnings

if TYPE_CHECKING:
    import argparse

_MOST_INPUT = 32 * 2**20
"""Bytes of standard input that are read: tool calls come with their input and output."""
_MOST_SPOOL = 2 * 2**20
"""Bytes of a session's file, after which only starts, answers and ends are written."""
_MOST_LOG = 2**20
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_MOST_ITEMS = 1_000
_TEXT_CAP = 8_000
_ID_CAP = 200

_EVENTS = ("UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop", "SessionEnd")
_MILESTONES = {"UserPromptSubmit", "Stop", "SessionEnd"}
"""Events without which a run cannot be reported; so is the answer of the finish tool."""
_LONGEST_WAIT = 50.0
"""Seconds. OpenHands gives a hook 60 by default."""
_START_PATIENCE = 5.0
"""Seconds in which a courier that was started must have its lock; until then no other one is started."""


def main(arguments: Sequence[str]) -> int:
    """Write down the event on standard input. Returns 0, always: another code could stop the agent's work."""
    try:
        options = _parser().parse_args(arguments)
        if options.print_config:
            print(_config(options))
        else:
            _record(options)
            for warning in folder_warnings():
                print(f"otel-letta hook: {warning}", file=sys.stderr)
    except SystemExit:
        pass  # argparse has printed its message
    except BaseException as error:  # noqa: BLE001
        with contextlib.suppress(Exception):
            print(f"otel-letta hook: {type(error).__name__}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        "otel-letta hook",
        description="Report a session of OpenHands' CLI to your Letta agent. OpenHands runs this as its hook: one "
        "event as JSON on standard input. Exits with 0 whatever happens.",
        epilog="Settings come from the environment alone, or from --env-file: the .env of the working directory is the "
        "workspace of an agent, who may write one.",
    )
    parser.add_argument("--print-config", action="store_true", help="Print a .openhands/hooks.json that runs this.")
    parser.add_argument(
        "--chat-id", help="The chat that asked. Default: letta.chat_id in OPENHANDS_OBSERVABILITY_METADATA."
    )
    parser.add_argument("--message-id", help="The message that asked. Default: letta.message_id there.")
    parser.add_argument("--name", help="The task's name. Default: OpenHands.")
    parser.add_argument("--env-file", metavar="PATH", help="Read this .env file.")
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="At the session's end wait until all is delivered, this long at most: for a container that ends then.",
    )
    return parser


# -- an event --------------------------------------------------------------------------------------------------------


def _record(options: argparse.Namespace) -> None:
    raw = json.loads(sys.stdin.buffer.read(_MOST_INPUT))
    session = raw.get("session_id")
    if not isinstance(session, str) or not session or raw.get("event_type") not in _EVENTS:
        return
    line = {
        "at": time.time_ns(),
        "session": session[:_ID_CAP],
        "origin": _origin(options),
        "event": _trimmed(raw),
    }
    key = session_key(session)
    is_milestone = raw["event_type"] in _MILESTONES or raw.get("tool_name") == "finish"
    if _append(spool_path(key), line, is_milestone=is_milestone):
        _ensure_courier(key, options.env_file)
        if raw["event_type"] == "SessionEnd":
            _wait_for_courier(key, options.wait)


def _trimmed(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are reported: no prompt, argument or output is ever written down."""
    tool = raw.get("tool_name")
    event: dict[str, Any] = {"event_type": raw["event_type"]}
    if isinstance(tool, str):
        event["tool_name"] = tool[:_ID_CAP]
    given, answer = raw.get("tool_input"), raw.get("tool_response")
    if tool == "finish" and isinstance(given, dict) and isinstance(given.get("message"), str):
        event["tool_input"] = {"message": given["message"][:_TEXT_CAP]}
    if isinstance(answer, dict):
        event["tool_response"] = {"is_error": answer.get("is_error") is True}
        tasks = answer.get("task_list")
        if tool == "task_tracker" and isinstance(tasks, list):
            items = [task.get("status") for task in tasks[:_MOST_ITEMS] if isinstance(task, dict)]
            event["tool_response"]["task_list"] = [{"status": "done" if item == "done" else ""} for item in items]
    return event


def _origin(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the chat and message that asked: from the command line, else from the metadata that OpenHands puts on its
    spans."""
    metadata: Any = None
    with contextlib.suppress(ValueError):
        metadata = json.loads(os.environ.get("OPENHANDS_OBSERVABILITY_METADATA") or "null")
    known = metadata if isinstance(metadata, dict) else {}

    def of(option: str | None, *names: str) -> str | None:
        found = option or next((known[name] for name in names if known.get(name)), None)
        return found[:_ID_CAP] if isinstance(found, str) and found else None

    return {
        "chat_id": of(options.chat_id, "letta.chat_id", "letta.chat.id"),
        "message_id": of(options.message_id, "letta.message_id", "letta.message.id"),
        "name": of(options.name, "letta.task.name"),
    }


# -- the session's file ----------------------------------------------------------------------------------------------


def session_key(session: str) -> str:
    """Make a file name for a session: its id can hold any character."""
    return hashlib.sha256(session.encode("utf-8", "replace")).hexdigest()[:32]


def spool_path(key: str) -> Path:
    """Return the file of a session's events."""
    return folder() / f"openhands-{key}.jsonl"


def courier_lock(key: str) -> HostLock:
    """Return the lock that the session's courier holds while it lives."""
    return HostLock(f"openhands courier {key}")


def starting_path(key: str) -> Path:
    """Return the file that is touched when a courier is started and removed when it leaves."""
    return folder() / f"openhands-{key}.starting"


def _append(path: Path, line: dict[str, Any], *, is_milestone: bool) -> bool:
    # The first line break ends what a full disk left unfinished: it must not spoil the line after it as well.
    data = b"\n" + json.dumps(line, separators=(",", ":")).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size > (2 * _MOST_SPOOL if is_milestone else _MOST_SPOOL):
            return False
        # One write to a file that is open for appending: hooks that run side by side do not mix their lines.
        os.write(fd, data)
    finally:
        os.close(fd)
    return True


# -- the courier -----------------------------------------------------------------------------------------------------

_ROOT = str(Path(__file__).absolute().parents[3])
_LEAVE_WORKSPACE = f"import os, sys; sys.path[:] = [*(p for p in sys.path if p not in ('', os.getcwd())), {_ROOT!r}]"
"""First statements of each Python that starts here. `-m` and `-c` search the working directory for modules first, and
so does a PYTHONPATH with an empty or relative entry. The agent writes there: its json.py would take the place of
Python's, and end a hook with a code of its own."""


def _ensure_courier(key: str, env_file: str | None) -> None:
    lock = courier_lock(key)
    if not lock.try_acquire():
        return  # it lives, and reads the file once more after it has given its lock back
    lock.release()
    starting = starting_path(key)
    with contextlib.suppress(OSError):
        if 0 <= time.time() - starting.stat().st_mtime < _START_PATIENCE:
            return
    os.close(os.open(starting, os.O_WRONLY | os.O_CREAT | _NO_LINK, 0o600))
    os.utime(starting)
    _start_courier(key, env_file)


def _start_courier(key: str, env_file: str | None) -> None:
    import subprocess

    code = f"{_LEAVE_WORKSPACE}; from otel_letta.integrations.openhands.hook_courier import main; main()"
    # For appending: the couriers of other sessions write to the same file.
    log = os.open(folder() / "openhands-hook.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINK, 0o600)
    try:
        if os.fstat(log).st_size > _MOST_LOG:
            os.ftruncate(log, 0)
        # Nothing of ours may hold OpenHands' pipes: it reads them to their end.
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code, key, *([str(Path(env_file).absolute())] if env_file else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=folder(),
            **_detached(),
        )
    finally:
        os.close(log)


def _wait_for_courier(key: str, seconds: float) -> None:
    """Wait until the courier has left, which it does when all is delivered."""
    deadline = time.monotonic() + min(seconds, _LONGEST_WAIT)
    while starting_path(key).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _detached() -> dict[str, Any]:
    """Return the options of a process that outlives its hook: OpenHands ends the process group of a hook that takes too
    long, and the terminal its own."""
    if sys.platform == "win32":
        import subprocess

        return {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


# -- the configuration -----------------------------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> str:
    import math
    import shlex

    command = _command()
    for name in ("chat_id", "message_id", "name", "env_file"):
        value = getattr(options, name)
        if value:
            value = str(Path(value).absolute()) if name == "env_file" else value
            command += [f"--{name.replace('_', '-')}", value]
    if options.wait > 0:
        command += ["--wait", f"{options.wait:g}"]
    timeout = 10 + math.ceil(min(max(options.wait, 0.0), _LONGEST_WAIT))
    hook = {"type": "command", "command": shlex.join(command), "timeout": timeout}
    # The plan and the final answer are in the output of these two tools; of the others the start is enough.
    matchers = {"PostToolUse": "task_tracker|finish"}
    hooks = {event: [{"matcher": matchers.get(event, "*"), "hooks": [hook]}] for event in _EVENTS}
    return json.dumps({"hooks": hooks}, indent=2)


def _command() -> list[str]:
    import shutil

    script = Path(sys.argv[0])
    if script.name.startswith("otel-letta") and script.is_file():
        return [str(script.absolute()), "hook"]
    found = shutil.which("otel-letta")
    if found:
        return [found, "hook"]
    return [sys.executable, "-c", f"{_LEAVE_WORKSPACE}; from otel_letta.cli.main import main; main()", "hook"]
