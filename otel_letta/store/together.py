"""Bodies of several threads in one transaction: the disk confirms them together, and takes as long as for one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from otel_letta.store.model import StoreError, StoreFullError


class Waiting:
    """A body on its way into the spool."""

    __slots__ = ("body", "done", "error", "id", "kind")

    def __init__(self, kind: str, body: bytes) -> None:
        self.kind = kind
        self.body = body
        self.done = False
        self.id = 0
        self.error: StoreError | None = None
        """Why it, and not the others, was not written."""


class Together:
    """Whoever gets the lock writes all bodies that wait for it; the others find theirs written.

    Args:
        write: writes bodies in one transaction, and sets the id or the error of each. What it raises, all of them get.
    """

    def __init__(self, write: Callable[[Sequence[Waiting]], None]) -> None:
        self._write = write
        self._waiting: deque[Waiting] = deque()

    def append(self, lock: threading.RLock, kind: str, body: bytes) -> int:  # type: ignore[valid-type, unused-ignore]
        """Have a body written; return its id. Raises StoreError.

        Args:
            lock: of the database.
        """
        mine = Waiting(kind, body)
        self._waiting.append(mine)
        with lock:
            if not mine.done:
                self._write_all()
        if mine.error is not None:
            raise mine.error
        return mine.id

    def _write_all(self) -> None:
        found = []
        while self._waiting:
            found.append(self._waiting.popleft())
        try:
            self._write(found)
        except StoreError as error:
            for each in found:
                each.error = each.error or error
        except BaseException:
            for each in found:
                each.error = each.error or StoreError("it was not written, for a reason that is logged elsewhere")
            raise
        finally:
            for each in found:
                each.done = True


def fitting(held: int, most: int | None, place: str, waiting: Sequence[Waiting]) -> list[Waiting]:
    """Return those of some bodies for which there is room beside what is held; the others get their error.

    Args:
        held, most: bytes; None for no bound.
    """
    found = []
    for each in waiting:
        if most is not None and held + len(each.body) > most:
            each.error = StoreFullError(f"{place} holds {held / 1e6:.0f} MB of bodies, which is as much as it may")
        else:
            held += len(each.body)
            found.append(each)
    return found
