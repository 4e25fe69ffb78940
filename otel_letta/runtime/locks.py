"""Locks that are given in the order of arrival: between the threads of a process, and the processes of a host.

Between processes, advisory locks on files in a private folder of the temporary directory. The operating system drops
them when a process dies, however it dies, so nothing has to be cleaned up after a crash. Processes of different users,
and containers with folders of their own, do not see each other's locks.

The order of arrival is kept by tickets: files that the waiting processes touch all the time. It is a courtesy on top
of the lock: nobody waits long for a process that was killed or stopped while it stood in the queue. Nor for one that
was stopped while it held the lock: those who waited use another one in its place, which keeps them apart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline

_logger = logging.getLogger(__name__)

_STEP = 0.1
"""Seconds within which a thread that waits notices a cancellation."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
"""Seconds between two tries to get a lock."""
_ALIVE = 2.0
"""Seconds. A process that waits touches its ticket more often, even on a busy machine."""
_STOPPED = 10.0
"""Seconds for which the holder of a lock has to be stopped (SIGSTOP, Ctrl-Z) until others go on without it."""

_open_files: set[int] = set()
_open_files_lock = threading.Lock()

if sys.platform == "win32":
    import msvcrt

    def try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        """Closing does it."""

else:
    import fcntl

    def try_lock(fd: int) -> bool:
        """Take the lock of an open file. Return False if somebody else has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        # Closing alone is not enough: a process that was forked between our opening and our noting the file has it
        # open too, and the lock would stay with that one.
        fcntl.flock(fd, fcntl.LOCK_UN)


class FairLock:
    """An exclusive lock between threads. Not reentrant.

    One of `threading` goes to whichever thread comes by first, and a thread in a loop can keep all others out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        """The holder, then the others in the order of their arrival."""

    def acquire(self, until: Deadline, on_wait: Callable[[], None] = lambda: None) -> bool:
        """Wait for the lock. Return False if it was time to give up before. ``on_wait``: called if it is not free."""
        place = object()
        with self._changed:
            self._queue.append(place)
            try:
                if self._queue[0] is not place:
                    on_wait()
                while self._queue[0] is not place:
                    if until.passed:
                        self._leave(place)
                        return False
                    # In short steps, since a deadline that is cancelled cannot be waited for together with this.
                    self._changed.wait(until.left(_STEP))
            except BaseException:
                self._leave(place)
                raise
        return True

    def release(self) -> None:
        """Hand the lock to the thread that has waited longest."""
        with self._changed:
            self._leave(self._queue[0])

    def _leave(self, place: object) -> None:
        self._queue.remove(place)
        self._changed.notify_all()


class HostLock:
    """An exclusive lock between processes, by name. Not reentrant, and not for use by two threads at once.

    Where no lock file can be made (a read-only disk, a folder that somebody else owns), it can always be acquired, and
    one warning is logged that processes are not kept apart: reporting goes on.
    """

    def __init__(self, name: str) -> None:
        import hashlib  # this and tempfile: 7 ms that most programs need only when they first report

        self._name = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:32]
        self._fd: int | None = None
        self._stopped: _Stopped | None = None
        """The holder that is not waited for any more, if it was stopped."""

    def acquire(self, until: Deadline, on_wait: Callable[[], None] = lambda: None) -> bool:
        """Wait for the lock, behind the processes that came before. Return False if it was time to give up before.

        ``on_wait`` is called if it is not free.
        """
        ticket = _Ticket(self._name)
        if not ticket.others_wait() and self.try_acquire():
            return True
        on_wait()
        began = time.monotonic()
        holder = _Stopped(self._name)
        try:
            while not (ticket.is_first() and self.try_acquire()):
                if self._stopped is None and holder.is_lasting():
                    self._stopped = holder
                    _logger.warning("process %d holds a lock and is stopped: going on without it", holder.pid)
                    continue
                # A pause of a twentieth of the wait costs little, whether requests take milliseconds or minutes.
                if until.wait(min(_SHORTEST_PAUSE + (time.monotonic() - began) / 20, _LONGEST_PAUSE)):
                    return False
        finally:
            ticket.give_back()
        return True

    def _path(self) -> Path:
        # All who wait for the same stopped process use the same file instead.
        stopped = self._stopped
        if stopped is not None and not stopped.is_stopped():
            self._stopped = stopped = None
        return folder() / (f"{self._name}.lock" if stopped is None else f"{self._name}.{stopped.pid}.lock")

    def try_acquire(self) -> bool:
        """Take the lock if it is free, whoever waits for it. Never waits."""
        if self._fd is not None:
            return False
        try:
            fd = os.open(self._path(), os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError as error:
            _warn_once(error)
            return True
        try:
            taken = try_lock(fd)
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
        if sys.platform != "win32":  # there a locked file cannot be read
            with contextlib.suppress(OSError):
                # Always as many bytes: cutting the file off first takes the file system 4 ms (measured, ext4).
                os.pwrite(fd, f"{os.getpid():<20}".encode(), 0)
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


class _Stopped:
    """Whether the process that holds a lock is stopped. It is named in the lock's file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._since: float | None = None
        self._next = 0.0
        self.pid = 0

    def is_lasting(self) -> bool:
        """Return True if it has been stopped for a while. Cheap enough to be called all the time."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + min(_STOPPED / 10, 1.0)
        pid = self._holder()
        if pid != self.pid:
            self.pid, self._since = pid, None
        if not self.is_stopped():
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= _STOPPED

    def is_stopped(self) -> bool:
        """Return True if the process is stopped now; False where that cannot be known."""
        if self.pid <= 0:
            return False
        try:
            # After the name, which may hold anything: the state.
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state in (b"T", b"t")

    def _holder(self) -> int:
        try:
            return int((folder() / f"{self._name}.lock").read_bytes()[:20])
        except (OSError, ValueError):
            return 0


class _Ticket:
    """A place in the queue for a lock: a file whose name sorts by the time of arrival.

    A file that was not touched for a while belongs to a process that was killed, stopped, or is very slow. Whoever
    waits behind it removes it; a process that goes on makes it again, under its old name.
    """

    def __init__(self, name: str) -> None:
        self._queue = f"{name}.queue"
        # The monotonic clock is the same for all processes of a host.
        self._name = f"{time.monotonic_ns():020}-{os.getpid()}-{threading.get_ident()}"
        self._path: Path | None = None

    def others_wait(self) -> bool:
        """Return True if anybody stands in the queue already."""
        try:
            return any(True for _ in (folder() / self._queue).iterdir())
        except OSError:
            return False

    def is_first(self) -> bool:
        """Take or confirm the place. Return True if nobody alive stands before it, or if there can be no queue."""
        try:
            queue = folder() / self._queue
            queue.mkdir(mode=0o700, exist_ok=True)
            path = self._path = queue / self._name
            path.touch(0o600)
            return not any(_is_alive(other) for other in queue.iterdir() if other.name < self._name)
        except OSError:
            return True

    def give_back(self) -> None:
        """Leave the queue."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _is_alive(ticket: Path) -> bool:
    try:
        idle = time.time() - ticket.stat().st_mtime
        if abs(idle) < _ALIVE:  # negative: the clock was set back
            return True
        ticket.unlink()
    except FileNotFoundError:
        pass  # its owner has left
    return False


def folder() -> Path:
    """Return this user's private folder below the temporary directory, made if there is none.

    Raises:
        OSError: it cannot be made, or everything that is there is somebody else's, or open to others.
    """
    import tempfile

    if sys.platform == "win32":
        path = Path(tempfile.gettempdir()) / "otel_letta"
        path.mkdir(exist_ok=True)
        return path
    problem = ""
    for number in range(_MOST_FOLDERS):
        # In this order for every process of the user: they have to meet in the same one.
        path = Path(tempfile.gettempdir()) / f"otel_letta-{os.getuid()}{f'.{number}' if number else ''}"
        wrong = _wrong_with(path)
        if not wrong:
            if problem:
                _warn_of_folder(f"{problem}: {path} is used instead")
            return path
        problem = problem or f"{path} {wrong}"
    raise PermissionError(problem)


_MOST_FOLDERS = 10


def _wrong_with(path: Path) -> str:
    """Return why a folder, made if there is none, is not to be trusted; empty if it is.

    The temporary directory is everybody's: anyone may have put something there first, and whoever may write into the
    folder could plant files and links in it.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.getuid():
        return f"belongs to user {found.st_uid}"
    if found.st_mode & 0o022:
        return f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


_folder_warnings: set[str] = set()


def folder_warnings() -> list[str]:
    """Return what was wrong with the folders that are not used, for a program that shows no logs."""
    return sorted(_folder_warnings)


def _warn_of_folder(text: str) -> None:
    if text not in _folder_warnings:
        _folder_warnings.add(text)
        _logger.warning("%s", text)


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
        import tempfile

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
