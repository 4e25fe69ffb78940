"""One request in flight per lane, never into a running turn: among threads, event loops and processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_letta.delivery import gate, visit
from otel_letta.delivery.gate import exchange, hold, settle
from otel_letta.delivery.runs import contention
from otel_letta.delivery.visit import Attempt
from otel_letta.errors import LettaRequestError, LettaServerError, LettaTimeoutError
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Lane, Message, Run
from otel_letta.reporter import LettaReporter
from otel_letta.runtime import locks
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.fake_transport import Clock, FakeTransport

NEVER = Deadline()
"""Never give up."""


def messages(*contents: str) -> list[Message]:
    return [Message(content, str(uuid.uuid4())) for content in contents]


@pytest.fixture
def lane() -> Lane:
    return Lane("http://letta.test", f"agent-{uuid.uuid4()}")  # a lock file of its own


def send(letta: FakeTransport, lane: Lane, content: str = "hello", **options: object) -> None:
    keywords: dict[str, object] = {"until": NEVER, "patience": 5.0, "busy_patience": 5.0, **options}
    exchange(letta, lane, messages(content), **keywords)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(*targets: object) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=target) for target in targets]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


# -- one at a time ------------------------------------------------------------------------------------------------


def test_threads_of_a_process_take_turns_and_nothing_is_lost() -> None:
    with InMemoryLetta(turn_seconds=0.02) as server:
        agent = server.create_agent()
        letta = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        lane = letta.lane(None, None)

        def work(number: int) -> None:
            exchange(letta, lane, messages(f"report {number}"), until=NEVER, patience=20, busy_patience=5)

        with running(*(lambda n=n: work(n) for n in range(8))):  # type: ignore[misc]
            pass
        letta.close()
        assert server.in_flight_max(agent) == 1
        context = " ".join(server.context(agent))
        assert all(f"report {number}" in context for number in range(8))


def test_event_loops_in_several_threads_take_turns() -> None:
    with InMemoryLetta(turn_seconds=0.05) as server:
        agent = server.create_agent()
        options = {"base_url": server.base_url, "agent_id": agent}

        def loop(name: str) -> None:
            async def main() -> None:
                async with LettaReporter(**options) as reporter:  # type: ignore[arg-type]
                    await asyncio.gather(*(reporter.send_progress_report(name, str(n), name) for n in range(3)))

            asyncio.run(main())

        with running(lambda: loop("a"), lambda: loop("b")):
            pass
        assert server.in_flight_max(agent) == 1
        assert len(server.messages(agent)) == 6


_SENDER = """
import sys
from otel_letta import LettaReporter
with LettaReporter() as reporter:
    sys.stdin.readline()
    for number in range(4):
        reporter.send_progress_report_sync("chat", str(number), f"process {sys.argv[1]} report {number}")
"""


def python(code: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_of_a_host_take_turns_and_nothing_is_lost() -> None:
    with InMemoryLetta(turn_seconds=0.05) as server:
        agent = server.create_agent()
        environ = {"LETTA_BASE_URL": server.base_url, "LETTA_AGENT_ID": agent}
        processes = [python(_SENDER, str(number), **environ) for number in range(2)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            _, complaints = process.communicate(timeout=30)
            assert (process.returncode, complaints) == (0, "")
        assert server.in_flight_max(agent) == 1
        context = " ".join(server.context(agent))
        assert all(f"process {p} report {n}" in context for p in range(2) for n in range(4))


_IN_A_LOOP = """
import sys, time
from otel_letta.delivery.gate import hold
from otel_letta.letta.transport import Lane
from otel_letta.runtime import locks
from otel_letta.runtime.deadline import Deadline
locks._ALIVE = float("inf")
with open(sys.argv[2], "ab", buffering=0) as log:
    while True:
        with hold(Lane("http://letta.test", sys.argv[1]), Deadline(), 1_000):
            log.write(b".")
            time.sleep(0.002)  # a request
"""


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_in_a_tight_loop_overtake_a_waiting_one_at_most_once_each(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(locks, "_ALIVE", float("inf"))  # a process that the machine keeps waiting counts as alive
    log = tmp_path / "log"
    log.touch()

    class Waiting(Deadline):
        """Notes how often the others had had the lane when this one stood in the queue."""

        had: int | None = None

        def wait(self, seconds: float) -> bool:
            if self.had is None:
                self.had = log.stat().st_size
            return super().wait(seconds)

    loops = [python(_IN_A_LOOP, lane.agent_id, str(log)) for _ in range(processes)]
    try:
        overtaken = []
        for _ in range(10):
            had, limit = log.stat().st_size, Deadline.after(30.0)
            while log.stat().st_size == had:  # the others are at it
                assert not limit.wait(0.001)
            lock = gate._lock_of(lane)
            waiting = Waiting()
            assert lock.host.acquire(waiting)
            overtaken.append(0 if waiting.had is None else log.stat().st_size - waiting.had)
            lock.host.release()
        assert max(overtaken) <= processes, overtaken
    finally:
        for process in loops:
            process.kill()
            process.communicate()


def test_other_lanes_flow_meanwhile(letta: FakeTransport, lane: Lane) -> None:
    inside, finish = threading.Event(), threading.Event()
    slow = lane

    def wait_in_slow_lane(where: Lane, _: object) -> None:
        if where == slow:
            inside.set()
            assert finish.wait(60)

    letta.on_send = wait_in_slow_lane
    with running(lambda: send(letta, slow)):
        assert inside.wait(60)
        send(letta, Lane(lane.server, lane.agent_id + "-other"))
        send(letta, Lane(lane.server, lane.agent_id, "conv-1"))
        assert [where for where, _ in letta.delivered] != [] and slow not in [where for where, _ in letta.delivered]
        finish.set()
    assert len(letta.delivered) == 3


def test_whoever_waits_for_the_lane_gives_up_after_its_patience(letta: FakeTransport, lane: Lane) -> None:
    with hold(lane, NEVER, 1.0), pytest.raises(LettaTimeoutError, match="still being answered") as raised:
        send(letta, lane, patience=0.05)
    assert not letta.requests and not raised.value.may_have_landed


def test_whoever_waits_for_the_lane_can_be_told_to_give_up(letta: FakeTransport, lane: Lane) -> None:
    with hold(lane, NEVER, 1.0), pytest.raises(LettaTimeoutError):
        send(letta, lane, patience=1_000, until=Deadline(cancelled=lambda: True))
    assert not letta.requests


def test_who_was_cancelled_in_the_queue_is_not_heard_when_its_turn_comes(letta: FakeTransport, lane: Lane) -> None:
    cancelled = threading.Event()
    letta.runs = []

    class Late(FakeTransport):
        def active_runs(self, lane: Lane, **_: object) -> list[Run]:
            cancelled.set()  # while the last look is under way
            return []

    late = Late()
    with pytest.raises(LettaTimeoutError, match="Gave up before"):
        send(late, lane, until=Deadline(cancelled=cancelled.is_set))
    assert late.requests == []


def test_the_lane_is_free_again_after_a_failure(letta: FakeTransport, lane: Lane) -> None:
    letta.failures = [LettaServerError(status=503)]
    with pytest.raises(LettaServerError):
        send(letta, lane)
    send(letta, lane, patience=0.5)
    assert len(letta.delivered) == 1


# -- never into a running turn ------------------------------------------------------------------------------------


def test_a_report_waits_for_a_turn_that_somebody_else_started() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        ours = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        theirs = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        lane = ours.lane(None, None)
        with server.hold() as release:
            person = lambda: theirs.send(lane, messages("a person's question"))  # noqa: E731
            report = lambda: exchange(ours, lane, messages("report"), until=NEVER, patience=9, busy_patience=9)  # noqa: E731
            with running(person):
                assert server.wait_for(lambda: server.in_flight(agent) == 1)
                with running(report):
                    looks = lambda: [r for r in server.requests if r.path == "/v1/runs/"]  # noqa: E731
                    assert server.wait_for(lambda: len(looks()) >= 2)  # it looked, and looked again
                    assert server.turns == 1
                    release()
        ours.close(), theirs.close()
        assert server.in_flight_max(agent) == 1
        text = " ".join(server.context(agent))
        assert "a person's question" in text and "report" in text


def test_the_wait_is_bounded_and_a_run_that_outlasted_it_is_not_waited_for_again(
    letta: FakeTransport, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", 10.0)]
    send(letta, lane, busy_patience=0.3)
    assert letta.calls.count("active_runs") > 1
    assert "sending anyway" in caplog.text

    letta.calls.clear()
    send(letta, lane, busy_patience=5.0)
    assert letta.calls.count("active_runs") == 2  # once more, since others were seen to send


def test_time_in_which_this_process_stood_still_is_no_wait(
    letta: FakeTransport, lane: Lane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP, a frozen container: the turn that runs after it is one that just began."""
    stood_still = 0.0
    monkeypatch.setattr(visit.time, "monotonic", lambda real=time.monotonic: real() + stood_still)
    looks = 0

    class Busy(FakeTransport):
        def active_runs(self, lane: Lane, **_: object) -> list[Run]:
            nonlocal looks, stood_still
            looks += 1
            stood_still = 3_600.0 if looks > 1 else 0.0
            return [] if looks > 3 else [Run(f"run-{looks}", 1.0)]

    busy = Busy()
    send(busy, lane, busy_patience=60.0)
    assert looks > 3
    assert len(busy.delivered) == 1
    assert "sending anyway" not in caplog.text


def test_a_run_older_than_a_turn_can_last_is_ignored(letta: FakeTransport, lane: Lane) -> None:
    letta.runs = [Run("run-left-behind", 901.0)]
    send(letta, lane, busy_patience=5.0)
    assert letta.calls == ["active_runs", "send"]


def test_a_run_of_unknown_age_counts(letta: FakeTransport, lane: Lane) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", None)]
    send(letta, lane, busy_patience=0.15)
    assert letta.calls.count("active_runs") > 1


def test_a_server_that_refuses_to_list_its_runs_has_not_refused_the_message(letta: FakeTransport, lane: Lane) -> None:
    class NoRuns(FakeTransport):
        def active_runs(self, lane: Lane, **_: object) -> list[Run]:
            raise LettaRequestError(status=405)

    blind = NoRuns()
    send(blind, lane)
    assert len(blind.delivered) == 1


# -- messages that must stay --------------------------------------------------------------------------------------


def exchange_end(letta: FakeTransport, lane: Lane, message: Message, **options: object) -> None:
    keywords: dict[str, object] = {"until": NEVER, "patience": 5.0, "busy_patience": 1.0, **options}
    exchange(letta, lane, [message], must_stay={message.otid}, **keywords)  # type: ignore[arg-type]


def test_a_message_that_stayed_in_the_context_is_sent_once(letta: FakeTransport, lane: Lane) -> None:
    exchange_end(letta, lane, Message("end", "otid"))
    assert letta.calls == ["active_runs", "send", "active_runs", "landed", "in_context"]


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_letta.delivery.visit._CHANCE", 0.001)
    monkeypatch.setattr("otel_letta.delivery.visit._SETTLING", 0.001)


@pytest.mark.usefixtures("no_pauses")
def test_a_message_that_was_erased_from_the_context_is_sent_again_until_it_stays(
    lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    class Crowded(FakeTransport):
        def send(self, lane: Lane, batch: Sequence[Message], **options: Any) -> dict[str, Any]:
            answer = super().send(lane, batch, **options)
            self.forgotten = {"otid"} if len(self.requests) < 3 else set()
            return answer

    letta = Crowded()
    turns: list[int] = []
    attempt = Attempt()
    exchange_end(letta, lane, Message("end", "otid"), on_turn_used=lambda: turns.append(1), attempt=attempt)

    assert [m.content for _, sent in letta.requests for m in sent] == ["end"] * 3
    assert "erased from the agent's context" in caplog.text
    assert len(turns) == 3  # each costs the agent a turn
    assert not attempt.missing


@pytest.mark.usefixtures("no_pauses")
def test_what_is_erased_again_and_again_is_named_and_not_chased_for_ever(letta: FakeTransport, lane: Lane) -> None:
    letta.forgotten = {"otid"}
    attempt = Attempt()
    exchange_end(letta, lane, Message("end", "otid"), attempt=attempt)
    assert 2 < len(letta.requests) < 10
    assert attempt.missing == {"otid"}


def test_the_context_is_judged_only_when_the_agent_is_quiet(letta: FakeTransport, lane: Lane) -> None:
    """The context is written a moment before the run ends (measured)."""
    run = Run(f"run-{uuid.uuid4()}", 1.0)
    looks = 0

    class Slow(FakeTransport):
        def active_runs(self, lane: Lane, **_: object) -> list[Run]:
            nonlocal looks
            if not self.delivered:
                return []
            looks += 1
            if looks == 3:
                self.forgotten.clear()
            return [run] if looks < 3 else []

    slow = Slow()
    slow.forgotten = {"otid"}
    exchange_end(slow, lane, Message("end", "otid"))
    assert len(slow.requests) == 1 and looks == 4  # once more, since others were seen to send


class OneTurnEach(FakeTransport):
    """Our turn is seen ``unseen`` seconds after we found the agent idle; somebody else's is seen at the second look.

    The clock is the test's: a request takes ``unseen`` and ``turn``, everything else nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, unseen: float, turn: float) -> None:
        super().__init__()
        self.clock, self.unseen, self.turn = Clock(), unseen, turn
        self.looks: list[float] = []
        monkeypatch.setattr(visit.time, "monotonic", self.clock)
        self.ending = Passing(self.clock)
        self.answers = lambda batch: {"messages": [{"run_id": "run-ours"}]}

    def send(self, lane: Lane, batch: Sequence[Message], **options: Any) -> dict[str, Any]:
        self.clock.advance(self.unseen + self.turn)
        self.began = self.clock.now
        return super().send(lane, batch, **options)

    def active_runs(self, lane: Lane, *, lately: float | None = None, **_: object) -> list[Run]:
        if not self.delivered:
            return []
        self.looks.append(round(self.clock.now - self.began, 3))
        since = self.clock.now - self.began
        ours = [] if lately is None else [Run("run-ours", since + self.turn, since)]
        return [*ours, *([Run("run-theirs", 0.1)] if len(self.looks) == 2 else [])]


class Passing(Deadline):
    """Waits take no time but the test's; after the first one ``then`` is called."""

    def __init__(self, clock: Clock, then: Callable[[Passing], None] = lambda ending: None) -> None:
        super().__init__()
        self.clock, self.then = clock, then

    def wait(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        self.then(self)
        return self.passed


def test_a_turn_that_could_not_be_seen_yet_when_ours_was_over_is_waited_for(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender found the agent idle before ours was seen, and the server shows it only after ours has ended: it
    knows nothing of our end, and erases it."""
    letta = OneTurnEach(monkeypatch, unseen=0.3, turn=0.1)
    read = letta.in_context

    def in_context(*args: Any, **options: Any) -> set[str]:
        letta.forgotten = {"otid"} if len(letta.looks) == 3 else set()
        return read(*args, **options)

    monkeypatch.setattr(letta, "in_context", in_context)
    exchange_end(letta, lane, Message("end", "otid"), until=Passing(letta.clock))
    assert letta.looks[:3] == [0.0, 1.1, 1.1]  # five times 0.3 s after we found it idle
    assert [m.content for _, sent in letta.requests for m in sent] == ["end", "end"]


@pytest.mark.parametrize(("unseen", "turn", "looks"), [(0.03, 2.0, [0.0]), (0.015, 0.01, [0.0]), (8.0, 0.1, [0.0])])
def test_one_look_is_enough_where_turns_are_seen_soon_or_the_server_is_just_slow_to_answer(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, unseen: float, turn: float, looks: list[float]
) -> None:
    letta = OneTurnEach(monkeypatch, unseen, turn)
    exchange_end(letta, lane, Message("end", "otid"))
    assert letta.looks == looks
    assert len(letta.requests) == 1


@pytest.mark.parametrize("behind", [0.0, 3.0])
def test_a_turn_that_overlaps_ours_is_waited_for_also_where_the_server_s_clock_is_behind(
    lane: Lane, behind: float
) -> None:
    """A busy server's ``Date`` is seconds old, so all its runs seem that much younger."""
    looks = 0

    class Busy(FakeTransport):
        def active_runs(self, lane: Lane, *, lately: float | None = None, **_: object) -> list[Run]:
            nonlocal looks
            if not self.delivered:
                return []
            looks += 1
            if looks == 4:
                self.forgotten.clear()
            ours = [] if lately is None else [Run("run-ours", 0.5 - behind, 0.1 - behind)]
            return [*ours, *([Run("run-theirs", 0.3 - behind)] if looks < 4 else [])]

    busy = Busy()
    busy.answers = lambda batch: {"messages": [{"run_id": "run-ours"}]}
    busy.forgotten = {"otid"}
    exchange_end(busy, lane, Message("end", "otid"), busy_patience=20.0)
    assert len(busy.requests) == 1 and looks >= 4


@pytest.mark.parametrize(
    ("until", "ending", "waited"),
    [
        (Deadline(1_000.9), lambda ending: None, 0.0),  # a flush that ends before
        (NEVER, lambda ending: ending.bring_forward(ending.clock.now + 1.5), 0.75),  # the program ends: 0.25 + 0.45
    ],
)
def test_without_time_for_a_second_look_the_first_one_counts(
    lane: Lane,
    monkeypatch: pytest.MonkeyPatch,
    until: Deadline,
    ending: Callable[[Passing], None],
    waited: float,
) -> None:
    """Nobody else was ever seen: that there is no time is no reason to call the end lost, nor to spend it all."""
    letta = OneTurnEach(monkeypatch, unseen=0.3, turn=0.1)
    letta.ending = Passing(letta.clock, ending)
    attempt = Attempt()
    exchange_end(letta, lane, Message("end", "otid"), until=until, attempt=attempt)
    assert letta.looks == [0.0] and not attempt.missing
    assert round(letta.clock.now - letta.began, 3) == waited


def test_progress_is_not_looked_after(letta: FakeTransport, lane: Lane) -> None:
    letta.forgotten = {"x"}
    exchange(letta, lane, [Message("progress", "x")], until=NEVER, patience=1, busy_patience=1)
    assert letta.calls == ["active_runs", "send"]


def test_a_failing_look_afterwards_does_not_turn_a_delivery_into_a_failure(letta: FakeTransport, lane: Lane) -> None:
    class Shy(FakeTransport):
        def in_context(self, lane: Lane, message_ids: object, **_: object) -> set[str]:
            raise LettaServerError(status=500)

    shy = Shy()
    exchange_end(shy, lane, Message("end", "otid"))
    assert len(shy.delivered) == 1


def test_an_end_that_a_turn_may_still_erase_when_its_program_ends_is_not_called_delivered(lane: Lane) -> None:
    """Others send to the agent, and the newest of their turns cannot be seen yet."""
    ending = threading.Event()

    class Busy(FakeTransport):
        def in_context(self, lane: Lane, message_ids: Sequence[str], **options: Any) -> set[str]:
            ending.set()
            return super().in_context(lane, message_ids, **options)

    contention.note(lane)
    attempt = Attempt()
    exchange_end(Busy(), lane, Message("end", "otid"), until=Deadline(cancelled=ending.is_set), attempt=attempt)
    assert attempt.missing == {"otid"}


def test_an_end_erased_by_somebody_else_s_turn_is_in_the_next_prompt_after_all() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        ours = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        lane = ours.lane(None, None)
        end = Message("the end", "otid-end")

        class Racing(RestTransport):
            """A person's turn starts between the look and the request, and ends after it."""

            def send(self, lane: Lane, batch: Sequence[Message], **_: object) -> dict[str, Any]:
                if server.turns:
                    return super().send(lane, batch)
                server.turn_seconds = 0.4
                person = threading.Thread(target=lambda: ours.send(lane, messages("question")))
                person.start()
                assert server.wait_for(lambda: server.in_flight(agent) == 1)
                server.turn_seconds = 0.0
                answer = super().send(lane, batch)
                assert "the end" in " ".join(server.context(agent))
                person.join(5)
                assert "the end" not in " ".join(server.context(agent))
                return answer

        racing = Racing(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
        exchange(racing, lane, [end], until=NEVER, patience=5, busy_patience=5, must_stay={"otid-end"})
        racing.close(), ours.close()
        text = " ".join(server.context(agent))
        assert "question" in text and "the end" in text


# -- after silence ------------------------------------------------------------------------------------------------


def test_settle_says_which_messages_the_server_has(letta: FakeTransport, lane: Lane) -> None:
    letta.stored = {"a": "message-1"}
    assert settle(letta, lane, ["a", "b"], until=NEVER, busy_patience=1.0) == {"a"}


def test_settle_does_not_answer_while_the_turn_may_still_run(letta: FakeTransport, lane: Lane) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", 5.0)]
    with pytest.raises(LettaTimeoutError, match="still runs") as raised:
        settle(letta, lane, ["a"], until=NEVER, busy_patience=0.15)
    assert raised.value.may_have_landed and "landed" not in letta.calls
    # Nor does it get used to such a run.
    with pytest.raises(LettaTimeoutError):
        settle(letta, lane, ["a"], until=NEVER, busy_patience=0.15)


@pytest.mark.parametrize(
    ("ages", "others"),
    [((1.0,), False), ((None,), False), ((60.0,), True), ((1.0, 1.0), True)],
    ids=["our turn", "of unknown age", "an older one", "one more"],
)
def test_our_own_turn_that_goes_on_after_its_answer_got_lost_is_nobody_else_s(
    letta: FakeTransport, lane: Lane, ages: tuple[float | None, ...], others: bool
) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", age) for age in ages]
    with pytest.raises(LettaTimeoutError, match="still runs"):
        settle(letta, lane, ["a"], until=NEVER, busy_patience=0.01, age=2.0)
    assert contention.is_likely(lane) is others


def test_a_second_try_sends_only_what_the_server_does_not_have(letta: FakeTransport, lane: Lane) -> None:
    letta.stored = {"a": "message-1"}
    batch = [Message("first", "a"), Message("second", "b")]
    exchange(letta, lane, batch, until=NEVER, patience=1, busy_patience=1, check_landed_first=True)
    assert letta.texts() == [["second"]]


def test_a_second_try_sends_nothing_when_everything_landed_and_wakes_nobody(letta: FakeTransport, lane: Lane) -> None:
    letta.stored = {"a": "message-1"}
    turns: list[int] = []
    answer = exchange(
        letta,
        lane,
        [Message("first", "a")],
        until=NEVER,
        patience=1,
        busy_patience=1,
        check_landed_first=True,
        on_turn_used=lambda: turns.append(1),
    )
    assert (answer, letta.requests, turns) == ({}, [], [])


def test_a_refused_look_is_not_a_refused_message(letta: FakeTransport, lane: Lane) -> None:
    class Blind(FakeTransport):
        def landed(self, lane: Lane, otids: object, **_: object) -> dict[str, str]:
            raise LettaRequestError(status=422)

    with pytest.raises(LettaServerError) as raised:
        exchange(Blind(), lane, messages("x"), until=NEVER, patience=1, busy_patience=1, check_landed_first=True)
    assert raised.value.may_have_landed


# -- forks ---------------------------------------------------------------------------------------------------------


_FORK_WITH_LANE = """
import os, sys, threading
from otel_letta.delivery.gate import hold
from otel_letta.letta.transport import Lane
from otel_letta.runtime.deadline import Deadline
lane = Lane("http://letta.test", sys.argv[1])
inside, leave = threading.Event(), threading.Event()
def work():
    with hold(lane, Deadline(), 5):
        inside.set()
        leave.wait(60)
thread = threading.Thread(target=work)
thread.start()
inside.wait(60)
child = os.fork()
if child == 0:
    # The thread that holds the lane does not exist here, but the parent's file lock does: wait for it.
    print("child waits", flush=True)
    with hold(lane, Deadline(), 10):
        print("child holds", flush=True)
    os._exit(0)
sys.stdin.readline()
print("parent leaves", flush=True)
leave.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_thread_holds_a_lane_can_use_the_lane_after_the_parent() -> None:
    forker = python(_FORK_WITH_LANE, str(uuid.uuid4()))
    assert forker.stdout is not None and forker.stdin is not None
    assert forker.stdout.readline() == "child waits\n"
    output, complaints = forker.communicate("go\n", timeout=20)
    assert (forker.returncode, output.split("\n")[:2]) == (0, ["parent leaves", "child holds"]), complaints
