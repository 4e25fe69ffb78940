"""Locks between threads and between processes: exclusive, in the order of arrival, free again when a holder dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from otel_letta.runtime import locks
from otel_letta.runtime.locks import HostLock


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
