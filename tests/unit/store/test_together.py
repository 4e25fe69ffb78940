"""Bodies that come while one is written go into the spool in one transaction, and each gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from otel_letta.store.model import StoreError, StoreFullError
from otel_letta.store.together import Together, Waiting, fitting


class Spool:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.written: list[list[bytes]] = []
        self.writes = threading.Event()
        self.may_write = threading.Event()
        self.together = Together(self.write)

    def write(self, waiting: Sequence[Waiting]) -> None:
        self.writes.set()
        assert self.may_write.wait(60)
        if self.error is not None:
            raise self.error
        found = fitting(0, 10, "here", waiting)
        self.written.append([each.body for each in found])
        for number, each in enumerate(found, 1):
            each.id = number

    def append(self, body: bytes) -> Future[int]:
        return self.together.append("kind", body)

    def append_meanwhile(self, *bodies: bytes) -> list[object]:
        """Append bodies while another one is being written. Return what each got."""
        self.writes.clear()
        self.may_write.clear()
        first = self.append(b"")
        assert self.writes.wait(60)
        futures = [self.append(body) for body in bodies]
        assert not any(future.done() for future in [first, *futures])
        self.may_write.set()
        return [type(error) if (error := future.exception(60)) else future.result() for future in futures]


@pytest.fixture
def spool() -> Iterator[Spool]:
    spool = Spool()
    yield spool
    spool.may_write.set()
    spool.together.close()


def test_what_waits_is_written_at_once(spool: Spool) -> None:
    assert spool.append_meanwhile(b"a", b"b", b"c") == [1, 2, 3]
    assert spool.written == [[b""], [b"a", b"b", b"c"]]


def test_a_body_for_which_there_is_no_room_costs_the_others_nothing(spool: Spool) -> None:
    assert spool.append_meanwhile(b"12345", b"1234567", b"12345") == [1, StoreFullError, 2]


@pytest.mark.parametrize("error", [StoreFullError("the disk is full"), RuntimeError("a bug")])
def test_all_of_them_learn_that_nothing_was_written(spool: Spool, error: Exception) -> None:
    spool.error = error
    assert spool.append_meanwhile(b"a", b"b") == [type(error)] * 2
    spool.error = None
    assert spool.append_meanwhile(b"c") == [1]


def test_what_waits_is_written_before_it_closes(spool: Spool) -> None:
    spool.may_write.set()
    future = spool.append(b"a")
    spool.together.close()
    assert future.done()
    assert spool.append(b"b").result(60) == 1  # and the next one opens it again


def test_each_has_its_own_error_where_the_whole_fails(spool: Spool) -> None:
    def fail(waiting: Sequence[Waiting]) -> None:
        assert not fitting(0, 1, "here", waiting)
        raise StoreError("gone")

    spool.together._write = fail
    with pytest.raises(StoreFullError):
        spool.append(b"12").result(60)
