"""The memory of bounded size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from otel_letta.recent import Recent


def test_an_entry_is_bounded_however_it_is_made() -> None:
    memory: Recent[int, int] = Recent(3)
    for n in range(10):
        memory.setdefault(n, n)
    memory.update({n: n for n in range(10, 20)})
    memory[20] = 20
    memory.put(18, 18)
    memory.put(21, 21)
    assert list(memory) == [20, 18, 21]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns after a few bytecodes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_may_share_one() -> None:
    memory: Recent[tuple[int, int], None] = Recent(40)

    def fill(thread: int) -> None:
        for n in range(5_000):
            memory[thread, n] = None
            memory.put((0, n), None)  # everybody's

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(fill, thread) for thread in range(4)]:
            done.result()
    assert 0 < len(memory) <= 40 + 4
