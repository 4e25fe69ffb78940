"""Whether a process lives, known by a lock on a file that it holds for as long as it does.

A process id says nothing: it is given out again, and another container counts its own. The lock is one of POSIX
(``lockf``): a forked child does not inherit it, and ``execv`` ends it, since the file is closed then. Nor is there
anything to clean up after ``kill -9`` or a power failure.

These locks have a trap: closing any descriptor of a file frees all of this process's locks on it. So what this process
holds is remembered, and never opened twice.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from otel_letta.runtime import fork

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both for a lock that somebody else has
            return False
        return True


_mine: dict[Path, int] = {}
_guard = threading.Lock()


class Life:
    """This process's own life, for those who share a folder of locks.

    Args:
        folder: of the locks; made if it is missing.

    Raises:
        OSError: no lock can be had there.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._path = folder / f"{self.name}.lock"
        with _guard:
            folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                if not _try_lock(fd):
                    raise OSError(f"{self._path} cannot be locked")
            except BaseException:
                os.close(fd)
                raise
            _mine[self._path] = fd

    @property
    def goes_on(self) -> bool:
        """False if somebody removed the file: others take this process for dead."""
        return self._path in _mine and self._path.exists()

    def end(self) -> None:
        """Give the lock up: from now on others take this process for dead. Quiet if that was done."""
        with _guard:
            fd = _mine.pop(self._path, None)
            if fd is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()
                os.close(fd)


def is_alive(folder: Path, name: str) -> bool:
    """Return whether a process lives that took this name there."""
    with dead(folder, name) as found:
        return not found


@contextlib.contextmanager
def dead(folder: Path, name: str) -> Iterator[bool]:
    """Give True if the process of that name is gone; the file goes too when the block ends without an exception."""
    path = folder / f"{name}.lock"
    with _guard:
        if path in _mine:
            yield False
            return
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            yield True
            return
        except OSError:  # nobody can tell: better alive than told as lost
            yield False
            return
        try:
            gone = _try_lock(fd)
            yield gone
        finally:
            os.close(fd)


def forget(folder: Path, name: str) -> None:
    """Remove the file of a process that is gone, once nothing of it is left."""
    with contextlib.suppress(OSError):
        (folder / f"{name}.lock").unlink()


def _forget_in_child() -> None:
    # The locks are the parent's. Closing our copies of the descriptors does nothing to them: they were not inherited.
    global _guard
    _guard = threading.Lock()
    for fd in _mine.values():
        with contextlib.suppress(OSError):
            os.close(fd)
    _mine.clear()


fork.in_child(_forget_in_child)
