"""One registry of what has to happen at a fork, and in the child.

A forked child has one thread, and a copy of everything else: locks that belong to threads which do not exist there,
sockets that are the parent's, questions whose answer would never come. Each room registers how its own is made anew.

Python runs that by itself only if Python forked. A program in C that embeds it may not say that it did: uWSGI does not,
by default. So whoever enqueues, flushes or shuts down calls `check` first, which compares the process id.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

_PATIENCE = 1.0
"""Seconds. A fork is not kept waiting any longer: the lock may belong to a thread that is stuck."""

_renewals: list[Callable[[], None]] = []
_waits: list[Callable[[], list[threading.Lock]]] = []
_preparations: list[Callable[[], None]] = []
_held: list[threading.Lock] = []

_pid = os.getpid()
_renewing = 0
"""The process id for which the renewals run now."""
_turns: dict[int, threading.RLock] = {}
"""By process id: a lock that another thread of the parent may hold is of no use in the child."""
_forked_at = 0
_late = False


def in_child(renew: Callable[[], None]) -> None:
    """Have every forked child call ``renew``, in the order of registration."""
    _renewals.append(renew)


def in_child_each(instances: weakref.WeakSet[_T], renew: Callable[[_T], None]) -> None:
    """Have every forked child call ``renew`` with each object that is in the set then."""

    def renew_each() -> None:
        for instance in list(instances):
            renew(instance)

    in_child(renew_each)


def before(prepare: Callable[[], None]) -> None:
    """Have every fork by Python call ``prepare`` first, which takes milliseconds at most: to close what no child may
    inherit even unused."""
    _preparations.append(prepare)


def hold_for(instances: weakref.WeakSet[_T], lock_of: Callable[[_T], threading.Lock]) -> None:
    """Have every fork wait for the locks of these objects, held by whoever must not be cut in two by it.

    Such as a thread that is in the middle of an import or of OpenSSL, whose own locks a child could never take. The
    child finds the locks of the objects held, so `in_child_each` has to give them new ones.
    """
    _waits.append(lambda: [lock_of(instance) for instance in list(instances)])


def check() -> bool:
    """Make everything anew if this process was forked without Python's hooks; True if this very call found that out.

    A system call (50 to 200 ns), so it is not for what every span of a program passes.
    """
    pid = os.getpid()
    return pid != _pid and _renew_late(pid)


def forked_at() -> int:
    """Return when this process was forked, Unix nanoseconds; 0 if it was not."""
    return _forked_at


def was_noticed_late() -> bool:
    """Return True if the child had been running for a while when its fork was noticed."""
    return _late


def _renew_late(pid: int) -> bool:
    with _turns.setdefault(pid, threading.RLock()):
        # Another thread has done it meanwhile; or a renewal enqueues something, on this one.
        if pid in (_pid, _renewing):
            return False
        _renew_all(_began_at(), late=True)
        return True


def _began_at() -> int:
    """Return when this process had begun, as exactly as the system tells; else now."""
    now = time.time_ns()
    # Linux: the 22nd field, in ticks since the machine started; the second one may hold blanks and parentheses.
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError), open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        ticks = int(file.read().rpartition(b")")[2].split()[19])
        hertz = os.sysconf("SC_CLK_TCK")
        up = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        # Ticks are rounded down. One more, so that nothing of the parent's counts as begun here.
        return min(now, now - up + (ticks + 1) * 1_000_000_000 // hertz)
    return now


def _before() -> None:
    for locks in _waits:
        for lock in locks():
            if lock.acquire(timeout=_PATIENCE):
                _held.append(lock)
    for prepare in _preparations:
        with contextlib.suppress(Exception):
            prepare()


def _after_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_in_child() -> None:
    _renew_all(time.time_ns(), late=False)


def _renew_all(at: int, *, late: bool) -> None:
    global _pid, _forked_at, _late, _renewing
    _held.clear()
    _renewing = os.getpid()
    _forked_at, _late = at, late
    for renew in _renewals:
        renew()
    _pid = _renewing


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
