"""Bodies of several threads go into the spool in one transaction, and each gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from otel_letta.store.model import StoreError, StoreFullError
from otel_letta.store.together import Together, Waiting, fitting
from tests.support.waiting import until


class Spool:
    def __init__(self, error: StoreError | None = None) -> None:
        self.error = error
        self.written: list[list[bytes]] = []
        self.lock = threading.RLock()
        self.together = Together(self.write)

    def write(self, waiting: Sequence[Waiting]) -> None:
        if self.error is not None:
            raise self.error
        found = fitting(0, 10, "here", waiting)
        self.written.append([each.body for each in found])
        for number, each in enumerate(found, 1):
            each.id = number


def append_at_once(spool: Spool, *bodies: bytes) -> list[object]:
    """Have threads append while nobody can write; return what each got, in the order of the bodies."""
    found: list[object] = [None] * len(bodies)

    def work(place: int) -> None:
        try:
            found[place] = spool.together.append(spool.lock, "kind", bodies[place])
        except StoreError as error:
            found[place] = type(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(bodies))]
    with spool.lock:
        for number, thread in enumerate(threads, 1):
            thread.start()
            assert until(lambda number=number: len(spool.together._waiting) == number)  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    return found


def test_what_waits_is_written_at_once() -> None:
    spool = Spool()
    assert append_at_once(spool, b"a", b"b", b"c") == [1, 2, 3]
    assert spool.written == [[b"a", b"b", b"c"]]


def test_a_body_for_which_there_is_no_room_costs_the_others_nothing() -> None:
    spool = Spool()
    assert append_at_once(spool, b"12345", b"1234567", b"12345") == [1, StoreFullError, 2]


def test_all_of_them_learn_that_nothing_was_written() -> None:
    spool = Spool(StoreFullError("the disk is full"))
    assert append_at_once(spool, b"a", b"b") == [StoreFullError, StoreFullError]
    spool.error = None
    assert append_at_once(spool, b"c") == [1]


def test_a_bug_is_raised_once_and_leaves_nobody_believing() -> None:
    spool = Spool()

    def fail(waiting: Sequence[Waiting]) -> None:
        raise RuntimeError("a bug")

    spool.together._write = fail
    with pytest.raises(RuntimeError):
        spool.together.append(spool.lock, "kind", b"a")
