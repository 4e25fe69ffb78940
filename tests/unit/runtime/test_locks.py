"""Locks between threads and between processes: exclusive, in the order of arrival, free again when a holder dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_letta.runtime import locks
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import FairLock, HostLock


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- between processes --------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locks, "_warned", False)
    monkeypatch.setattr(locks, "_folder_warnings", set())
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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux shows in a file that a process is stopped")
def test_a_process_that_was_stopped_while_it_holds_a_lock_does_not_block_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_STOPPED", 0.2)
    name = str(uuid.uuid4())
    code = """
import sys
from otel_letta.runtime.locks import HostLock
lock = HostLock(sys.argv[1])
print(lock.try_acquire(), flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""
    process = python(code, name)
    try:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "True\n"
        first, second = HostLock(name), HostLock(name)
        assert not first.acquire(Deadline.after(1.0))  # it works: it is waited for
        os.kill(process.pid, signal.SIGSTOP)
        assert first.acquire(Deadline.after(60.0))
        assert f"process {process.pid} holds a lock and is stopped" in caplog.text
        assert not second.acquire(Deadline.after(1.5))  # they are kept apart all the same
        first.release()
        assert second.acquire(Deadline.after(60.0))
        second.release()
        os.kill(process.pid, signal.SIGCONT)
        assert not first.acquire(Deadline.after(1.0))  # it holds it again
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "released\n"
        assert first.acquire(Deadline.after(60.0))
        first.release()
    finally:
        process.kill()
        process.communicate()


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


def _open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


OBSTACLES = {
    _a_file: "is no folder",
    _a_link: "is a symbolic link",
    _somebody_else_s: "belongs to user 12345",
    _open_to_all: "can be written to by others (mode 0777)",
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_folder_that_is_not_ours_alone_is_replaced_by_a_fresh_one_and_one_warning_says_so(
    temporary: Path, obstacle: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle is _somebody_else_s and os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = temporary / f"otel_letta-{os.getuid()}"
    obstacle(folder)
    first, second = HostLock("a"), HostLock("a")
    assert first.try_acquire()
    assert not second.try_acquire(), "processes are kept apart as ever"
    first.release()
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning == f"{folder} {OBSTACLES[obstacle]}: {folder}.1 is used instead"
    assert (temporary / f"{folder.name}.1").stat().st_mode & 0o777 == 0o700
    assert not folder.is_dir() or not list(folder.iterdir())
    assert not (temporary / "elsewhere").exists() or not list((temporary / "elsewhere").iterdir())


def test_all_processes_take_the_same_fresh_one(temporary: Path) -> None:
    folder = temporary / f"otel_letta-{os.getuid()}"
    _open_to_all(folder)
    (temporary / f"{folder.name}.1").write_text("in the way as well")
    code = "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
    code += "from otel_letta.runtime.locks import folder; print(folder())"
    found = {python(code, str(temporary)).communicate(timeout=60)[0].strip() for _ in range(2)}
    assert found == {str(locks.folder())} == {f"{folder}.2"}


def test_where_all_are_somebody_else_s_one_warning_says_so_and_reporting_goes_on(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = temporary / f"otel_letta-{os.getuid()}"
    for number in range(locks._MOST_FOLDERS):
        (temporary / f"{folder.name}.{number}" if number else folder).write_text("in the way")
    for name in ("a", "b"):
        lock = HostLock(name)
        assert lock.try_acquire()
        lock.release()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "cannot lock files" in warnings[0].getMessage()


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

    monkeypatch.setattr(locks, "try_lock", unsupported)
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


# -- the order of arrival -----------------------------------------------------------------------------------------


def until(predicate: Callable[[], bool]) -> None:
    limit = Deadline.after(20.0)
    while not predicate():
        assert not limit.wait(0.005), "waited in vain"


def test_threads_get_a_lock_in_the_order_in_which_they_came() -> None:
    lock = FairLock()
    order: list[int] = []

    def work(number: int) -> None:
        assert lock.acquire(Deadline())
        order.append(number)
        lock.release()

    assert lock.acquire(Deadline())
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for place, thread in enumerate(threads, 2):
        thread.start()
        until(lambda place=place: len(lock._queue) == place)  # type: ignore[misc]
    lock.release()
    for thread in threads:
        thread.join(60)
    assert order == list(range(8))


def test_a_thread_in_a_tight_loop_does_not_overtake_a_waiting_one() -> None:
    lock = FairLock()
    turns: list[str] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            assert lock.acquire(Deadline())
            turns.append("loop")
            while len(lock._queue) == 1 and not stop.is_set():
                stop.wait(0.001)  # until the other one waits
            lock.release()

    thread = threading.Thread(target=loop)
    thread.start()
    for _ in range(20):
        assert lock.acquire(Deadline())
        turns.append("waited")
        lock.release()
    seen = " ".join(turns)
    stop.set()
    thread.join(60)
    assert "loop loop" not in seen
    assert seen.count("waited") == 20


def test_a_thread_that_gives_up_leaves_the_queue() -> None:
    lock = FairLock()
    assert lock.acquire(Deadline())
    assert not lock.acquire(Deadline.after(0.01))
    assert not lock.acquire(Deadline(cancelled=lambda: True))
    lock.release()
    assert lock.acquire(Deadline())
    lock.release()


def test_a_process_that_gives_up_leaves_the_queue(temporary: Path) -> None:
    holder, other = HostLock("name"), HostLock("name")
    assert holder.acquire(Deadline())
    assert not other.acquire(Deadline.after(0.01))
    assert not other.acquire(Deadline(cancelled=lambda: True))
    assert tickets(temporary) == []
    holder.release()


def tickets(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("otel_letta*/*.queue/*"))


_WAITER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import HostLock
lock = HostLock("name")
assert lock.acquire(Deadline())
print("has it", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_a_process_that_was_killed_or_stopped_in_the_queue_does_not_block_the_others(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    monkeypatch.setattr(locks, "_ALIVE", 0.1)
    holder, other = HostLock("name"), HostLock("name")
    assert holder.acquire(Deadline())
    waiter = python(_WAITER, str(temporary))
    until(lambda: len(tickets(temporary)) == 1)
    waiter.send_signal(signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
    holder.release()

    assert other.acquire(Deadline.after(30.0))  # although it came later
    other.release()
    if fate == "stopped":
        waiter.send_signal(signal.SIGCONT)
    output, _ = waiter.communicate(timeout=30)
    assert output == ("" if fate == "killed" else "has it\n")
    assert tickets(temporary) == []


def test_a_queue_that_cannot_be_made_does_not_keep_anybody_from_the_lock(temporary: Path) -> None:
    lock = HostLock("name")
    assert lock.acquire(Deadline())
    lock.release()
    (file,) = (temporary / f"otel_letta-{os.getuid()}").iterdir()
    file.with_suffix(".queue").write_text("in the way")
    assert lock.acquire(Deadline())
    assert not HostLock("name").acquire(Deadline.after(0.01))
    lock.release()
    assert HostLock("name").acquire(Deadline())


def test_a_ticket_from_a_future_that_a_clock_was_set_back_from_is_nobodys(temporary: Path) -> None:
    queue = temporary / f"otel_letta-{os.getuid()}" / f"{HostLock('name')._name}.queue"
    queue.mkdir(parents=True)
    queue.parent.chmod(0o700)
    ticket = queue / "00000000000000000000-1-1"
    ticket.touch()
    os.utime(ticket, (4e9, 4e9))
    assert HostLock("name").acquire(Deadline.after(30.0))
    assert tickets(temporary) == []
