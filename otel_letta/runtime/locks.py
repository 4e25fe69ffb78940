"""Locks between the processes of one host.

Advisory locks on files in a private folder of the temporary directory. The operating system drops them when a
process dies, however it dies, so nothing has to be cleaned up after a crash. Processes of different users, and
containers with folders of their own, do not see each other's locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import sys
import tempfile
import threading
from pathlib import Path

from otel_letta.runtime import fork

__all__ = ["HostLock", "folder", "scope"]

_logger = logging.getLogger(__name__)

_open_files: set[int] = set()
_open_files_lock = threading.Lock()

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        """Closing does it."""

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        # Closing alone is not enough: a process that was forked between our opening and our noting the file has it
        # open too, and the lock would stay with that one.
        fcntl.flock(fd, fcntl.LOCK_UN)


class HostLock:
    """An exclusive lock by name. Not reentrant; not for use by two threads at once (a gate sees to that).

    Where no lock file can be made (a read-only disk, a folder that somebody else owns), `try_acquire` says True and
    one warning tells that processes are not kept apart: reporting goes on.
    """

    def __init__(self, name: str) -> None:
        self._file = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:32] + ".lock"
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free. Never waits."""
        if self._fd is not None:
            return False
        try:
            fd = os.open(folder() / self._file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError as error:
            _warn_once(error)
            return True
        try:
            taken = _try_lock(fd)
        except OSError as error:  # a file system without locks
            os.close(fd)
            _warn_once(error)
            return True
        if not taken:
            os.close(fd)
            return False
        with _open_files_lock:
            _open_files.add(fd)
        self._fd = fd
        return True

    def touch(self) -> None:
        """Keep a held lock's file from cleaners of temporary folders, which remove what was not touched for days."""
        if self._fd is not None and os.utime in os.supports_fd:
            with contextlib.suppress(OSError):
                os.utime(self._fd)

    def release(self) -> None:
        """Give the lock back; quiet if it is not held."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        with _open_files_lock:
            mine = fd in _open_files
            _open_files.discard(fd)
        # After a fork the number may already belong to another file: the child closed it below.
        if mine:
            with contextlib.suppress(OSError):
                _unlock(fd)
            os.close(fd)


def folder() -> Path:
    """Return this user's private folder below the temporary directory, made if there is none.

    Raises:
        OSError: it cannot be made, or what is there belongs to somebody else.
    """
    if sys.platform == "win32":
        path = Path(tempfile.gettempdir()) / "otel_letta"
        path.mkdir(exist_ok=True)
        return path
    path = Path(tempfile.gettempdir()) / f"otel_letta-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    # The temporary directory is everybody's: a folder or link that somebody put there first is not trusted.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path} is not our own folder")
    return path


def scope() -> str | None:
    """Tells apart processes that cannot see each other's locks although their host has one name: containers with
    the host's network, services with a private /tmp, other users. None where nothing can be locked."""
    try:
        found = folder().stat()
    except OSError:
        return None
    return f"{found.st_dev}-{found.st_ino}"


_warned = False


def _warn_once(error: OSError) -> None:
    global _warned
    if not _warned:
        _warned = True
        _logger.warning(
            "cannot lock files in %s (%s): processes on this host may write to one Letta agent at the same time, "
            "and then Letta can lose messages",
            tempfile.tempdir or "the temporary directory",
            error.strerror or str(error) or type(error).__name__,
        )


def _forget_in_child() -> None:
    # A lock belongs to the open file, which parent and child share: unlocking here would unlock the parent's, and
    # keeping it open would hold the lock after the parent died. Closing our copy does neither.
    global _open_files_lock
    _open_files_lock = threading.Lock()
    for fd in _open_files:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open_files.clear()


fork.in_child(_forget_in_child)
