"""One request in flight per lane, never into a running turn: among threads, event loops and processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_letta.delivery.gate import exchange, hold, settle
from otel_letta.errors import LettaRequestError, LettaServerError, LettaTimeoutError
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Lane, Message, Run
from otel_letta.reporter import LettaReporter
from otel_letta.runtime import locks
from otel_letta.runtime.locks import HostLock
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.fake_transport import FakeTransport


def never(seconds: float) -> bool:
    """Wait, and never give up."""
    time.sleep(min(seconds, 0.02))
    return False


def messages(*contents: str) -> list[Message]:
    return [Message(content, str(uuid.uuid4())) for content in contents]


@pytest.fixture
def lane() -> Lane:
    return Lane("http://letta.test", f"agent-{uuid.uuid4()}")  # a lock file of its own


def send(letta: FakeTransport, lane: Lane, content: str = "hello", **options: object) -> None:
    keywords: dict[str, object] = {"wait": never, "patience": 5.0, "busy_patience": 5.0, **options}
    exchange(letta, lane, messages(content), **keywords)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(*targets: object) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=target) for target in targets]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


# -- one at a time ------------------------------------------------------------------------------------------------


def test_threads_of_a_process_take_turns_and_nothing_is_lost() -> None:
    with InMemoryLetta(turn_seconds=0.02) as server:
        agent = server.create_agent()
        letta = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        lane = letta.lane(None, None)

        def work(number: int) -> None:
            exchange(letta, lane, messages(f"report {number}"), wait=never, patience=20, busy_patience=5)

        with running(*(lambda n=n: work(n) for n in range(8))):  # type: ignore[misc]
            pass
        letta.close()
        assert server.in_flight_max(agent) == 1
        context = " ".join(server.context(agent))
        assert all(f"report {number}" in context for number in range(8))


def test_event_loops_in_several_threads_take_turns() -> None:
    with InMemoryLetta(turn_seconds=0.05) as server:
        agent = server.create_agent()
        options = {"base_url": server.base_url, "agent_id": agent}

        def loop(name: str) -> None:
            async def main() -> None:
                async with LettaReporter(**options) as reporter:  # type: ignore[arg-type]
                    await asyncio.gather(*(reporter.send_progress_report(name, str(n), name) for n in range(3)))

            asyncio.run(main())

        with running(lambda: loop("a"), lambda: loop("b")):
            pass
        assert server.in_flight_max(agent) == 1
        assert len(server.messages(agent)) == 6


_SENDER = """
import sys
from otel_letta import LettaReporter
with LettaReporter() as reporter:
    sys.stdin.readline()
    for number in range(4):
        reporter.send_progress_report_sync("chat", str(number), f"process {sys.argv[1]} report {number}")
"""


def python(code: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_of_a_host_take_turns_and_nothing_is_lost() -> None:
    with InMemoryLetta(turn_seconds=0.05) as server:
        agent = server.create_agent()
        environ = {"LETTA_BASE_URL": server.base_url, "LETTA_AGENT_ID": agent}
        processes = [python(_SENDER, str(number), **environ) for number in range(2)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            _, complaints = process.communicate(timeout=30)
            assert (process.returncode, complaints) == (0, "")
        assert server.in_flight_max(agent) == 1
        context = " ".join(server.context(agent))
        assert all(f"process {p} report {n}" in context for p in range(2) for n in range(4))


def test_other_lanes_flow_meanwhile(letta: FakeTransport, lane: Lane) -> None:
    inside, finish = threading.Event(), threading.Event()
    slow = lane

    def wait_in_slow_lane(where: Lane, _: object) -> None:
        if where == slow:
            inside.set()
            assert finish.wait(10)

    letta.on_send = wait_in_slow_lane
    with running(lambda: send(letta, slow)):
        assert inside.wait(5)
        send(letta, Lane(lane.server, lane.agent_id + "-other"))
        send(letta, Lane(lane.server, lane.agent_id, "conv-1"))
        assert [where for where, _ in letta.delivered] != [] and slow not in [where for where, _ in letta.delivered]
        finish.set()
    assert len(letta.delivered) == 3


def test_whoever_waits_for_the_lane_gives_up_after_its_patience(letta: FakeTransport, lane: Lane) -> None:
    with hold(lane, never, 1.0), pytest.raises(LettaTimeoutError, match="still being answered") as raised:
        send(letta, lane, patience=0.05)
    assert not letta.requests and not raised.value.may_have_landed


def test_whoever_waits_for_the_lane_can_be_told_to_give_up(letta: FakeTransport, lane: Lane) -> None:
    with hold(lane, never, 1.0), pytest.raises(LettaTimeoutError):
        send(letta, lane, patience=1_000, wait=lambda seconds: True)
    assert not letta.requests


def test_who_was_cancelled_in_the_queue_is_not_heard_when_its_turn_comes(letta: FakeTransport, lane: Lane) -> None:
    cancelled = threading.Event()
    letta.runs = []

    class Late(FakeTransport):
        def active_runs(self, lane: Lane) -> list[Run]:
            cancelled.set()  # while the last look is under way
            return []

    late = Late()
    with pytest.raises(LettaTimeoutError, match="Gave up before"):
        send(late, lane, wait=lambda seconds: cancelled.is_set())
    assert late.requests == []


def test_the_lane_is_free_again_after_a_failure(letta: FakeTransport, lane: Lane) -> None:
    letta.failures = [LettaServerError(status=503)]
    with pytest.raises(LettaServerError):
        send(letta, lane)
    send(letta, lane, patience=0.5)
    assert len(letta.delivered) == 1


# -- never into a running turn ------------------------------------------------------------------------------------


def test_a_report_waits_for_a_turn_that_somebody_else_started() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        ours = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        theirs = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        lane = ours.lane(None, None)
        with server.hold() as release:
            person = lambda: theirs.send(lane, messages("a person's question"))  # noqa: E731
            report = lambda: exchange(ours, lane, messages("report"), wait=never, patience=9, busy_patience=9)  # noqa: E731
            with running(person):
                assert server.wait_for(lambda: server.in_flight(agent) == 1)
                with running(report):
                    looks = lambda: [r for r in server.requests if r.path == "/v1/runs/"]  # noqa: E731
                    assert server.wait_for(lambda: len(looks()) >= 2)  # it looked, and looked again
                    assert server.turns == 1
                    release()
        ours.close(), theirs.close()
        assert server.in_flight_max(agent) == 1
        text = " ".join(server.context(agent))
        assert "a person's question" in text and "report" in text


def test_the_wait_is_bounded_and_a_run_that_outlasted_it_is_not_waited_for_again(
    letta: FakeTransport, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", 10.0)]
    send(letta, lane, busy_patience=0.3)
    assert letta.calls.count("active_runs") > 1
    assert "sending anyway" in caplog.text

    letta.calls.clear()
    send(letta, lane, busy_patience=5.0)
    assert letta.calls.count("active_runs") == 1


def test_a_run_older_than_a_turn_can_last_is_ignored(letta: FakeTransport, lane: Lane) -> None:
    letta.runs = [Run("run-left-behind", 901.0)]
    send(letta, lane, busy_patience=5.0)
    assert letta.calls == ["active_runs", "send"]


def test_a_run_of_unknown_age_counts(letta: FakeTransport, lane: Lane) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", None)]
    send(letta, lane, busy_patience=0.15)
    assert letta.calls.count("active_runs") > 1


def test_a_server_that_refuses_to_list_its_runs_has_not_refused_the_message(letta: FakeTransport, lane: Lane) -> None:
    class NoRuns(FakeTransport):
        def active_runs(self, lane: Lane) -> list[Run]:
            raise LettaRequestError(status=405)

    blind = NoRuns()
    send(blind, lane)
    assert len(blind.delivered) == 1


# -- messages that must stay --------------------------------------------------------------------------------------


def exchange_end(letta: FakeTransport, lane: Lane, message: Message, **options: object) -> None:
    keywords: dict[str, object] = {"wait": never, "patience": 5.0, "busy_patience": 1.0, **options}
    exchange(letta, lane, [message], confirm={message.otid}, **keywords)  # type: ignore[arg-type]


def test_a_message_that_stayed_in_the_context_is_sent_once(letta: FakeTransport, lane: Lane) -> None:
    exchange_end(letta, lane, Message("end", "otid"))
    assert letta.calls == ["active_runs", "send", "active_runs", "landed", "in_context"]


def test_a_message_that_was_erased_from_the_context_is_sent_again_once(
    letta: FakeTransport, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    letta.forgotten = {"otid"}
    woke: list[int] = []
    exchange_end(letta, lane, Message("end", "otid"), woke=lambda: woke.append(1))

    assert [m.content for _, sent in letta.requests for m in sent] == ["end", "end"]
    assert "erased from the agent's context" in caplog.text
    assert len(woke) == 2  # each costs the agent a turn


def test_the_context_is_judged_only_when_the_agent_is_quiet(letta: FakeTransport, lane: Lane) -> None:
    """The context is written a moment before the run ends (measured)."""
    run = Run(f"run-{uuid.uuid4()}", 1.0)
    looks = 0

    class Slow(FakeTransport):
        def active_runs(self, lane: Lane) -> list[Run]:
            nonlocal looks
            if not self.delivered:
                return []
            looks += 1
            if looks == 3:
                self.forgotten.clear()
            return [run] if looks < 3 else []

    slow = Slow()
    slow.forgotten = {"otid"}
    exchange_end(slow, lane, Message("end", "otid"))
    assert len(slow.requests) == 1 and looks == 3


def test_progress_is_not_looked_after(letta: FakeTransport, lane: Lane) -> None:
    letta.forgotten = {"x"}
    exchange(letta, lane, [Message("progress", "x")], wait=never, patience=1, busy_patience=1)
    assert letta.calls == ["active_runs", "send"]


def test_a_failing_look_afterwards_does_not_turn_a_delivery_into_a_failure(letta: FakeTransport, lane: Lane) -> None:
    class Shy(FakeTransport):
        def in_context(self, lane: Lane, message_ids: object) -> set[str]:
            raise LettaServerError(status=500)

    shy = Shy()
    exchange_end(shy, lane, Message("end", "otid"))
    assert len(shy.delivered) == 1


def test_an_end_erased_by_somebody_else_s_turn_is_in_the_next_prompt_after_all() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        ours = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        lane = ours.lane(None, None)
        end = Message("the end", "otid-end")

        class Racing(RestTransport):
            """A person's turn starts between the look and the request, and ends after it."""

            def send(self, lane: Lane, batch: Sequence[Message]) -> dict[str, Any]:
                if server.turns:
                    return super().send(lane, batch)
                server.turn_seconds = 0.4
                person = threading.Thread(target=lambda: ours.send(lane, messages("question")))
                person.start()
                assert server.wait_for(lambda: server.in_flight(agent) == 1)
                server.turn_seconds = 0.0
                answer = super().send(lane, batch)
                assert "the end" in " ".join(server.context(agent))
                person.join(5)
                assert "the end" not in " ".join(server.context(agent))
                return answer

        racing = Racing(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        exchange(racing, lane, [end], wait=never, patience=5, busy_patience=5, confirm={"otid-end"})
        racing.close(), ours.close()
        text = " ".join(server.context(agent))
        assert "question" in text and "the end" in text


# -- after silence ------------------------------------------------------------------------------------------------


def test_settle_says_which_messages_the_server_has(letta: FakeTransport, lane: Lane) -> None:
    letta.stored = {"a": "message-1"}
    assert settle(letta, lane, ["a", "b"], never, 1.0) == {"a"}


def test_settle_does_not_answer_while_the_turn_may_still_run(letta: FakeTransport, lane: Lane) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", 5.0)]
    with pytest.raises(LettaTimeoutError, match="still runs") as raised:
        settle(letta, lane, ["a"], never, 0.15)
    assert raised.value.may_have_landed and "landed" not in letta.calls
    # Nor does it get used to such a run.
    with pytest.raises(LettaTimeoutError):
        settle(letta, lane, ["a"], never, 0.15)


def test_a_second_try_sends_only_what_the_server_does_not_have(letta: FakeTransport, lane: Lane) -> None:
    letta.stored = {"a": "message-1"}
    batch = [Message("first", "a"), Message("second", "b")]
    exchange(letta, lane, batch, wait=never, patience=1, busy_patience=1, look_first=True)
    assert letta.texts() == [["second"]]


def test_a_second_try_sends_nothing_when_everything_landed_and_wakes_nobody(letta: FakeTransport, lane: Lane) -> None:
    letta.stored = {"a": "message-1"}
    woke: list[int] = []
    answer = exchange(
        letta,
        lane,
        [Message("first", "a")],
        wait=never,
        patience=1,
        busy_patience=1,
        look_first=True,
        woke=lambda: woke.append(1),
    )
    assert (answer, letta.requests, woke) == ({}, [], [])


def test_a_refused_look_is_not_a_refused_message(letta: FakeTransport, lane: Lane) -> None:
    class Blind(FakeTransport):
        def landed(self, lane: Lane, otids: object) -> dict[str, str]:
            raise LettaRequestError(status=422)

    with pytest.raises(LettaServerError) as raised:
        exchange(Blind(), lane, messages("x"), wait=never, patience=1, busy_patience=1, look_first=True)
    assert raised.value.may_have_landed


# -- locks of the host --------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locks, "_warned", False)
    return tmp_path


def test_a_lock_is_held_by_one_and_free_afterwards() -> None:
    name = str(uuid.uuid4())
    first, second = HostLock(name), HostLock(name)
    assert first.try_acquire()
    assert not second.try_acquire() and not first.try_acquire()
    first.release()
    first.release()
    assert second.try_acquire()
    second.release()


def test_locks_of_other_names_do_not_meet() -> None:
    first, second = HostLock(f"{uuid.uuid4()}"), HostLock(f"{uuid.uuid4()}")
    assert first.try_acquire() and second.try_acquire()
    first.release(), second.release()


_HOLDER = """
import sys
from otel_letta.runtime.locks import HostLock
lock = HostLock(sys.argv[1])
print(lock.try_acquire(), flush=True)
sys.stdin.readline()
"""


def test_a_killed_process_releases_its_lock() -> None:
    name = str(uuid.uuid4())
    lock = HostLock(name)
    holder = python(_HOLDER, name)
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    assert not lock.try_acquire()
    holder.kill()
    holder.communicate(timeout=10)
    assert lock.try_acquire()
    lock.release()


def test_the_folder_of_the_locks_is_ours_alone(temporary: Path) -> None:
    lock = HostLock("name")
    assert lock.try_acquire()
    lock.release()
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())


def _a_file(folder: Path) -> None:
    folder.write_text("in the way")


def _a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def _somebody_else_s(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("obstacle", [_a_file, _a_link, _somebody_else_s])
def test_a_folder_that_is_not_ours_is_not_used_one_warning_tells_and_reporting_goes_on(
    temporary: Path, obstacle: object, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle is _somebody_else_s and os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = temporary / f"otel_letta-{os.getuid()}"
    obstacle(folder)  # type: ignore[operator]
    for name in ("a", "b"):
        lock = HostLock(name)
        assert lock.try_acquire()
        lock.release()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "cannot lock files" in warnings[0].getMessage()
    assert not (temporary / "elsewhere").exists() or not list((temporary / "elsewhere").iterdir())


def test_no_temporary_directory_at_all_is_one_warning(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert HostLock("a").try_acquire() and HostLock("b").try_acquire()
    assert caplog.text.count("cannot lock files") == 1


def test_a_link_in_place_of_a_lock_file_is_not_followed(temporary: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = HostLock("name")
    lock.try_acquire()
    lock.release()
    (file,) = (temporary / f"otel_letta-{os.getuid()}").iterdir()
    file.unlink()
    file.symlink_to(temporary / "precious")
    assert lock.try_acquire()
    assert not (temporary / "precious").exists()
    assert "cannot lock files" in caplog.text


def test_a_file_system_without_locks_is_one_warning(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(fd: int) -> bool:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "_try_lock", unsupported)
    assert HostLock("a").try_acquire() and HostLock("b").try_acquire()
    assert caplog.text.count("Operation not supported") == 1


_FORKER = """
import os, sys
from otel_letta.runtime import locks
from otel_letta.runtime.locks import HostLock
lock = HostLock(sys.argv[1])
assert lock.try_acquire()
fds = list(locks._open_files)
child = os.fork()
if child == 0:
    for fd in fds:
        try:
            os.fstat(fd)
        except OSError:
            pass
        else:
            os._exit(3)      # the child inherited the open lock file
    if HostLock(sys.argv[1]).try_acquire():
        os._exit(4)          # closing it unlocked the parent's
    lock.release()           # of no effect
    if HostLock(sys.argv[1]).try_acquire():
        os._exit(5)
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert not HostLock(sys.argv[1]).try_acquire()
lock.release()
assert HostLock(sys.argv[1]).try_acquire()
sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_closes_inherited_lock_files_without_unlocking_the_parent_s() -> None:
    forker = python(_FORKER, str(uuid.uuid4()))
    _, complaints = forker.communicate(timeout=20)
    assert (forker.returncode, complaints) == (0, "")


_FORK_WITH_LANE = """
import os, sys, threading
from otel_letta.delivery.gate import hold
from otel_letta.letta.transport import Lane
lane = Lane("http://letta.test", sys.argv[1])
inside, leave = threading.Event(), threading.Event()
def work():
    with hold(lane, lambda s: False, 5):
        inside.set()
        leave.wait(10)
thread = threading.Thread(target=work)
thread.start()
inside.wait(5)
child = os.fork()
if child == 0:
    # The thread that holds the lane does not exist here, but the parent's file lock does: wait for it.
    print("child waits", flush=True)
    with hold(lane, lambda s: False, 10):
        print("child holds", flush=True)
    os._exit(0)
sys.stdin.readline()
print("parent leaves", flush=True)
leave.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_thread_holds_a_lane_can_use_the_lane_after_the_parent() -> None:
    forker = python(_FORK_WITH_LANE, str(uuid.uuid4()))
    assert forker.stdout is not None and forker.stdin is not None
    assert forker.stdout.readline() == "child waits\n"
    output, complaints = forker.communicate("go\n", timeout=20)
    assert (forker.returncode, output.split("\n")[:2]) == (0, ["parent leaves", "child holds"]), complaints
