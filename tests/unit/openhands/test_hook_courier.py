"""The process that delivers what hooks wrote down: when it leaves, what it forgets, and how it follows another."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations.openhands import hook, hook_courier
from otel_letta.integrations.openhands.hook import courier_lock, session_key, spool_path
from otel_letta.integrations.openhands.hook_courier import SessionCourier
from otel_letta.integrations.openhands.share import Share
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import ends, recorded
from tests.support.fake_transport import Clock

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="flock"),
    pytest.mark.usefixtures("private_folder"),
]

SESSION = recorded("hooks")[0]["session_id"]
KEY = session_key(SESSION)
ASKED = {"event_type": "UserPromptSubmit"}
FINISH = {"event_type": "PostToolUse", "tool_name": "finish", "tool_input": {"message": "done"}}
STOP = {"event_type": "Stop"}
END = {"event_type": "SessionEnd"}


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
        courier = SessionCourier(KEY, share, clock=self.clock, wait=wait)
        try:
            courier.run()
            courier.forget()
        except Killed:
            assert share.flush(10)
            share._runs.shutdown = lambda: None  # type: ignore[method-assign]
        finally:
            share.close()


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


def test_what_was_delivered_is_not_reported_again(letta: InMemoryLetta, agent: str) -> None:
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
        hook._append(spool_path(KEY), {**line, "event": raw}, is_milestone=True)
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


def test_a_courier_that_starts_while_a_hook_checks_for_it_stays(
    letta: InMemoryLetta, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook holds the lock for that moment, and starts no other one."""
    (tmp_path / "env").write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    Session(letta, agent).write(ASKED, FINISH, STOP, END)
    held = courier_lock(KEY)
    assert held.try_acquire()
    monkeypatch.setattr(sys, "argv", ["courier", KEY, str(tmp_path / "env")])
    monkeypatch.setattr(hook_courier.time, "sleep", lambda _: held.release())
    hook_courier.main()
    assert len(ends(letta, agent)) == 1


def test_stale_files_are_removed(private_folder: Path) -> None:
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
