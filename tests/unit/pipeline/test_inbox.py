"""The inbox: calls from any thread, in order and one at a time, on one thread that sleeps while there are none."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from otel_letta.pipeline import inbox as module
from otel_letta.pipeline.inbox import Inbox
from otel_letta.runtime.suppress import is_suppressed, on_own_thread


class World:
    def __init__(self) -> None:
        self.made: list[object] = []
        self.errors: list[str] = []
        self.due: Callable[[], float] = lambda: math.inf
        self.tended = threading.Semaphore(0)
        self.inbox = Inbox(self._tend, lambda where, error: self.errors.append(type(error).__name__), lambda: None)

    def _tend(self) -> float:
        self.tended.release()
        return self.due()

    def put(self, what: object) -> None:
        self.inbox.put(partial(self.made.append, what))


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.inbox.stop()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def test_what_is_due_at_once_is_not_slept_over_after_a_ring(world: World) -> None:
    """In Python 3.10 a queue waits for ever for what is due in no time, where it was written to a moment before."""
    rounds = 0

    def due() -> float:
        nonlocal rounds
        rounds += 1
        world.inbox._wake()  # somebody rings while it is awake
        return time.monotonic()

    world.due = due
    world.put("first")
    assert eventually(lambda: rounds > 50)
    assert world.errors == []


def test_a_thread_that_sleeps_again_before_its_start_returned_is_woken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine whoever starts it may be the last to run."""
    start = threading.Thread.start

    def start_slowly(self: threading.Thread) -> None:
        start(self)
        assert eventually(lambda: world.made == ["first"] and world.inbox._asleep)

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    world.put("first")
    world.put("second")
    assert eventually(lambda: world.made == ["first", "second"])


def test_calls_are_made_in_order_on_a_thread_of_its_own(world: World) -> None:
    threads: list[object] = []
    for number in range(100):
        world.put(number)
        world.inbox.put(lambda: threads.append(threading.current_thread()))
    assert eventually(lambda: len(threads) == 100)
    assert world.made == list(range(100))
    assert threading.current_thread() not in threads


def test_there_is_no_thread_before_the_first_call(world: World) -> None:
    assert not world.inbox.has_thread
    world.put(1)
    assert world.inbox.has_thread


def test_a_call_that_raises_does_not_take_the_next_one_along(world: World) -> None:
    world.inbox.put(lambda: {}["missing"])
    world.put("next")
    assert eventually(lambda: world.made == ["next"])
    assert world.errors == ["KeyError"]


def test_calls_know_that_they_run_on_our_own_thread_untraced(world: World) -> None:
    seen: list[bool] = []
    world.inbox.put(lambda: seen.extend((on_own_thread(), is_suppressed())))
    assert eventually(lambda: seen == [True, True])
    assert world.inbox.run(1, lambda: seen.extend((on_own_thread(), is_suppressed())))
    assert seen == [True] * 4
    assert not on_own_thread()


def test_it_tends_after_the_calls_and_when_that_asked_for_it(world: World) -> None:
    dues = iter([time.monotonic() + 0.05])
    world.due = lambda: next(dues, math.inf)
    world.put(1)
    assert world.tended.acquire(timeout=5)
    assert world.tended.acquire(timeout=5)  # without another call
    assert not world.tended.acquire(timeout=0.05)


def test_an_error_while_tending_is_complained_about_and_the_thread_goes_on(world: World) -> None:
    def broken() -> float:
        raise ValueError

    world.due = broken
    world.put(1)
    assert eventually(lambda: world.errors == ["ValueError"])
    world.put(2)
    assert eventually(lambda: world.made == [1, 2])


def test_run_makes_everything_now_and_waits_for_no_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER", 60.0)
    monkeypatch.setattr(module, "_REST", 1e6)
    monkeypatch.setattr(module, "_LONGEST_REST", 1e6)
    world.put(1)
    assert eventually(lambda: world.made == [1])  # now the thread rests
    for number in range(2, 1_000):
        world.put(number)
    assert world.inbox.run(1.0, partial(world.made.append, "then"))
    assert world.made == [*range(1, 1_000), "then"]


def test_a_stop_of_the_process_in_a_slice_makes_no_longer_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST", 1_000.0)
    monkeypatch.setattr(module, "_LONGEST_REST", math.inf)
    with world.inbox.lock:
        world.inbox.put(time.sleep, 0.2)
        world.put(1)
    assert eventually(lambda: world.made == [1])  # by the clock it would rest 200 s


def test_however_long_a_slice_took_the_rest_is_short(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE", 0.0)
    monkeypatch.setattr(module, "_REST", 1e9)
    with world.inbox.lock:
        world.put(1)
        world.put(2)
    assert eventually(lambda: world.made == [1, 2])


def test_run_gives_up_when_somebody_else_makes_calls_for_too_long(world: World) -> None:
    with world.inbox.lock:
        assert not world.inbox.run(0.01)


def test_a_long_backlog_shortens_the_rests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CROWD", 10)
    monkeypatch.setattr(module, "_SLICE", 0.0)  # one call, then a rest
    monkeypatch.setattr(module, "_REST", 1e9)
    monkeypatch.setattr(module, "_LONGEST_REST", 1e9)
    with world.inbox.lock:
        for number in range(30):
            world.put(number)
    assert eventually(lambda: len(world.made) >= 20)


def test_hooks_make_calls_themselves_when_too_many_wait(
    world: World, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    monkeypatch.setattr(Inbox, "backlog", 10)
    for number in range(50):
        world.put(number)
    assert len(world.inbox) <= 10
    assert world.made == list(range(len(world.made)))


def test_without_a_thread_the_calls_wait_for_who_flushes(world: World, no_threads: None) -> None:
    world.put(1)
    assert not world.inbox.has_thread
    assert world.made == []
    assert world.inbox.run(1)
    assert world.made == [1]


def test_a_thread_that_could_not_be_started_is_started_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_THREAD_RETRY", 0.0)

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        world.put(1)
    world.put(2)
    assert eventually(lambda: world.made == [1, 2])


def test_once_closed_it_takes_nothing_in_and_what_is_in_can_be_run(world: World, no_threads: None) -> None:
    world.put(1)
    world.inbox.close()
    world.put(2)
    assert world.inbox.run(1)
    assert world.made == [1]


def test_stop_ends_the_thread(world: World) -> None:
    world.put(1)
    thread = world.inbox._thread
    assert thread is not None
    world.inbox.stop()
    thread.join(5)
    assert not thread.is_alive()


# -- bounds -------------------------------------------------------------------------------------------------------


def test_a_hook_that_helps_leaves_what_may_take_long_to_others(
    world: World, no_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inbox, "backlog", 3)
    for number in range(8):
        world.put(number)
    assert world.made  # it helped
    assert not world.tended.acquire(blocking=False)


def test_more_than_so_many_calls_are_only_counted(
    world: World, no_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inbox, "backlog", 3)
    monkeypatch.setattr(module, "_MOST", 5)
    with world.inbox.lock:  # somebody makes a call that takes long
        other = threading.Thread(target=lambda: [world.put(number) for number in range(9)])
        other.run()
    assert (len(world.inbox), world.inbox.overflowed) == (5, 4)
    assert world.inbox.run(30.0)
    assert world.made == [0, 1, 2, 3, 4]


def test_run_ends_when_its_time_is_over_and_says_so(world: World, no_threads: None) -> None:
    passed = threading.Event()
    for number in range(3):
        world.put(number)
    world.inbox.put(time.sleep, 0.02)
    world.put("too late")
    assert world.inbox.run(0.01, passed.set) is False
    assert passed.is_set()  # what has to be done in any case
    assert len(world.inbox) <= 4
    assert world.inbox.run(30.0) is True
    assert world.made[-1] == "too late"


def test_a_thread_that_sleeps_learns_of_what_is_due_after_calls_that_others_made(world: World) -> None:
    world.put(1)
    assert eventually(lambda: world.inbox._asleep)  # for good, since nothing is due
    threads: list[threading.Thread] = []

    def due() -> float:
        threads.append(threading.current_thread())
        return time.monotonic() + 0.001 if len(threads) == 1 else math.inf

    world.due = due
    assert world.inbox.run(30)  # whoever flushes
    assert eventually(lambda: len(threads) > 1)
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threads[0]
