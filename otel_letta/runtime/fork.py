"""One registry of what has to happen at a fork, and in the child.

A forked child has one thread, and a copy of everything else: locks that belong to threads which do not exist there,
sockets that are the parent's, questions whose answer would never come. Each room registers how its own is made anew.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

_PATIENCE = 1.0
"""Seconds. A fork is not kept waiting any longer: the lock may belong to a thread that is stuck."""

_renewals: list[Callable[[], None]] = []
_waits: list[Callable[[], list[threading.Lock]]] = []
_held: list[threading.Lock] = []


def in_child(renew: Callable[[], None]) -> None:
    """Have every forked child call ``renew``, in the order of registration."""
    _renewals.append(renew)


def in_child_each(instances: weakref.WeakSet[_T], renew: Callable[[_T], None]) -> None:
    """Have every forked child call ``renew`` with each object that is in the set then."""

    def renew_each() -> None:
        for instance in list(instances):
            renew(instance)

    in_child(renew_each)


def hold_for(instances: weakref.WeakSet[_T], lock_of: Callable[[_T], threading.Lock]) -> None:
    """Have every fork wait for the locks of these objects, held by whoever must not be cut in two by it.

    Such as a thread that is in the middle of an import or of OpenSSL, whose own locks a child could never take. The
    child finds the locks of the objects held, so `in_child_each` has to give them new ones.
    """
    _waits.append(lambda: [lock_of(instance) for instance in list(instances)])


def _before() -> None:
    for locks in _waits:
        for lock in locks():
            if lock.acquire(timeout=_PATIENCE):
                _held.append(lock)


def _after_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_in_child() -> None:
    _held.clear()
    for renew in _renewals:
        renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
