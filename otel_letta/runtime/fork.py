"""Forks while another thread is in the middle of something that a child could never finish."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

__all__ = ["hold_forks"]

_T = TypeVar("_T")

_PATIENCE = 1.0
"""Seconds. A fork is not kept waiting any longer: the lock may belong to a thread that is stuck."""


def hold_forks(
    instances: weakref.WeakSet[_T], lock_of: Callable[[_T], threading.Lock], in_child: Callable[[_T], None]
) -> None:
    """Have every fork wait for the locks of these objects, and make the child's copies usable.

    Args:
        instances: the objects; may change at any time.
        lock_of: the lock of one, held while it does what must not be cut in two by a fork.
        in_child: called in the child with each, whose lock belongs to nobody there and has to be made anew.
    """
    if not hasattr(os, "register_at_fork"):
        return
    held: list[threading.Lock] = []

    def before() -> None:
        for instance in list(instances):
            lock = lock_of(instance)
            if lock.acquire(timeout=_PATIENCE):
                held.append(lock)

    def after_in_parent() -> None:
        while held:
            held.pop().release()

    def after_in_child() -> None:
        held.clear()
        for instance in list(instances):
            in_child(instance)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)
