"""Delivery as messages: in order, one request at a time and lane, and what each failure means for ends and progress."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from otel_letta import errors
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.leaving import give_up
from otel_letta.delivery.parcel import otid_of
from otel_letta.delivery.runs import contention
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew, Pool
from otel_letta.errors import LettaError
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.select import SelectingTransport
from otel_letta.letta.transport import Lane, Message, Run
from otel_letta.report import ProgressReport
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.fake_transport import (
    CONVERSATION,
    SERVER,
    Clock,
    FakeTransport,
    begin_closing,
    end,
    finish,
    flush,
    make_courier,
    nudge,
    progress,
)

BUSY_SERVER = errors.LettaServerError(status=503)
DOWN = errors.LettaConnectionError(hint="check LETTA_BASE_URL")
BAD = errors.LettaRequestError(status=400)
LLM_DOWN = errors.LettaModelError(status=500, detail="llm_error")
LLM_REFUSES = errors.LettaModelError(status=400, detail="llm_bad_request")
SILENCE = errors.LettaTimeoutError(may_have_landed=True)
UNAUTHORIZED = errors.LettaAuthenticationError(status=401, hint="check LETTA_AGENT_ID and LETTA_PASSWORD")


@pytest.fixture(autouse=True)
def longest_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff takes its ceiling, so that tests can tell when it is over."""
    monkeypatch.setattr("otel_letta.delivery.retry.random.uniform", lambda low, high: high)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def courier(letta: FakeTransport, clock: Clock) -> Iterator[Courier]:
    made = make_courier(letta, clock=clock)
    yield made
    finish(made)


def until(gate: threading.Event) -> Callable[[Lane, object], None]:
    """An agent whose turns last until the test opens the gate."""

    def turn(lane: Lane, messages: object) -> None:
        assert gate.wait(60)

    return turn


@contextlib.contextmanager
def under_way(letta: FakeTransport, courier: Courier, report: ProgressReport) -> Iterator[None]:
    """A request with this report lasts as long as the block."""
    gate = threading.Event()
    letta.on_send = until(gate)
    courier.put(report)
    letta.wait_for_requests(1)
    yield
    gate.set()


def finished(courier: Courier) -> None:
    """Nothing is in flight."""
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 60)


def contents(letta: FakeTransport) -> list[list[str]]:
    """Of each delivered request: the texts inside its blocks."""
    return [[inner(text) for text in request] for request in letta.texts()]


def inner(block: str) -> str:
    found = re.fullmatch(r"<task-progress[^>]*>(.*)</task-progress[\w-]*>", block, re.DOTALL)
    assert found, block
    return found[1]


# -- order and batches --------------------------------------------------------------------------------------------


def test_a_report_goes_out_at_once_as_a_message_of_role_user(letta: FakeTransport, courier: Courier) -> None:
    courier.put(progress("a"))
    letta.wait_for_delivered(1)
    ((lane, (message,)),) = letta.delivered
    assert lane == Lane(SERVER, "agent-1")
    assert message.content.startswith('<task-progress task="a"')


def test_what_waits_while_a_request_is_in_flight_goes_into_one_request_ends_first(
    letta: FakeTransport, courier: Courier
) -> None:
    with under_way(letta, courier, progress("a", 0.0)):
        for share in (0.3, 0.6):
            courier.put(progress("b", share))
        courier.put(end("c"))
        courier.put(end("a"))
    letta.wait_for_delivered(4)

    assert contents(letta) == [["a 0.0"], ["c over", "a over", "b 0.6"]]


def test_a_request_holds_20_reports_at_most(letta: FakeTransport, courier: Courier) -> None:
    with under_way(letta, courier, end("first")):
        for number in range(45):
            courier.put(end(f"t{number}"))
    letta.wait_for_delivered(46)

    assert [len(request) for request in letta.texts()] == [1, 20, 20, 5]


def test_a_request_holds_16_kb_at_most(letta: FakeTransport, courier: Courier) -> None:
    with under_way(letta, courier, end("first")):
        for number in range(30):
            courier.put(end(f"t{number}", "&" * 2_000))  # five bytes each in the block
    letta.wait_for_delivered(31)

    sizes = [sum(len(text.encode()) for text in request) for request in letta.texts()[1:]]
    assert max(sizes) <= 16_000 and len(sizes) < 31


def test_other_agents_reports_flow_while_one_agent_acts(letta: FakeTransport, courier: Courier) -> None:
    gate = threading.Event()
    slow = until(gate)
    letta.on_send = lambda lane, messages: slow(lane, messages) if lane.agent_id == "slow" else None
    courier.put(end("held", agent_id="slow"))
    letta.wait_for_requests(1)
    for number in range(3):
        courier.put(end(f"t{number}", agent_id=f"quick-{number}"))
    letta.wait_for_delivered(3)

    assert {lane.agent_id for lane, _ in letta.delivered} == {"quick-0", "quick-1", "quick-2"}
    assert courier.lanes()["slow at http://letta.test"]["in_flight"] == 1
    gate.set()
    letta.wait_for_delivered(4)


def test_conversations_of_one_agent_are_lanes_of_their_own(letta: FakeTransport, courier: Courier) -> None:
    courier.put(end("a", chat_id=CONVERSATION))
    courier.put(end("b", chat_id="chat-7"))
    letta.wait_for_delivered(2)
    assert {lane.conversation_id for lane, _ in letta.delivered} == {CONVERSATION, None}


# -- refusals -----------------------------------------------------------------------------------------------------


def test_a_refused_request_is_halved_until_the_poisoned_report_stands_alone(
    letta: FakeTransport, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    letta.refuses = lambda content: BAD if "poison" in content else None
    with under_way(letta, courier, end("first")):
        for number in range(16):
            courier.put(end("poison" if number == 5 else f"t{number}"))
    letta.wait_for_delivered(16)
    finished(courier)

    texts = [text for request in contents(letta) for text in request]
    assert texts == ["first over", *(f"t{n} over" for n in range(16) if n != 5)]
    assert len(letta.requests) <= 1 + 2 * 5  # a logarithm, not 16 single tries
    assert courier.stats.snapshot()["dropped"] == {"end refused by Letta": 1}
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "'poison'" in line and "refused" in line


def test_several_poisoned_reports_are_all_found(letta: FakeTransport, courier: Courier) -> None:
    letta.refuses = lambda content: BAD if "poison" in content else None
    with under_way(letta, courier, end("first")):
        for number in range(8):
            courier.put(end(f"{'poison' if number % 3 == 0 else 'good'}{number}"))
    letta.wait_for_delivered(1 + 5)
    finished(courier)

    assert courier.stats.snapshot()["dropped"] == {"end refused by Letta": 3}


def test_a_report_that_only_the_llm_refuses_is_dropped_when_the_llm_takes_the_others(
    letta: FakeTransport, courier: Courier, clock: Clock
) -> None:
    letta.refuses = lambda content: LLM_REFUSES if "poison" in content else None
    courier.put(end("poison"))
    for attempt in range(8):
        letta.wait_for_requests(attempt + 1)
        finished(courier)
        if courier.stats.snapshot()["dropped"]:
            break
        courier.put(end(f"good{attempt}"))
        clock.advance(100)
        nudge(courier)

    assert courier.stats.snapshot()["dropped"] == {"end refused by Letta": 1}
    alone = [1 for _, messages in letta.requests if [inner(m.content) for m in messages] == ["poison over"]]
    assert len(alone) == 3  # it had more than one chance
    assert "good0 over" in [text for request in contents(letta) for text in request]


def test_ends_survive_an_llm_that_refuses_everything_for_a_while(
    letta: FakeTransport, courier: Courier, clock: Clock
) -> None:
    letta.always = LLM_REFUSES
    courier.put(end("a"))
    courier.put(end("b"))
    letta.wait_for(lambda: letta.requests != [])
    finished(courier)  # or the clock would move under a failure that is just being noted
    for _ in range(10):
        attempts = len(letta.requests)
        clock.advance(100)
        nudge(courier)
        letta.wait_for(lambda n=attempts: len(letta.requests) > n)  # type: ignore[misc]
        finished(courier)
    letta.always = None
    clock.advance(100)
    nudge(courier)
    letta.wait_for_delivered(2)
    assert courier.stats.snapshot()["dropped"] == {}


# -- retries ------------------------------------------------------------------------------------------------------


def test_retry_after_is_obeyed_when_it_is_longer(letta: FakeTransport, courier: Courier, clock: Clock) -> None:
    letta.failures = [errors.LettaRateLimitError(status=429, retry_after=30.0)]
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)

    clock.advance(29.9)
    assert flush(courier, 0.05) is False
    assert len(letta.requests) == 1
    clock.advance(0.2)
    nudge(courier)
    letta.wait_for_delivered(1)


@pytest.mark.parametrize("error", [BUSY_SERVER, DOWN, errors.LettaConflictError(status=409)])
def test_ends_and_the_newest_progress_are_sent_again(
    letta: FakeTransport, courier: Courier, clock: Clock, error: LettaError
) -> None:
    with under_way(letta, courier, end("first")):
        letta.failures = [error]
        courier.put(end("a"))
        courier.put(progress("b", 0.3))
    letta.wait_for_requests(2)
    finished(courier)
    courier.put(progress("b", 0.6))
    clock.advance(1.1)
    nudge(courier)
    letta.wait_for_delivered(3)

    assert contents(letta) == [["first over"], ["a over", "b 0.6"]]
    assert letta.requests[1][1][0].otid == letta.requests[2][1][0].otid


def test_an_end_that_is_erased_again_and_again_is_kept_and_looked_for_before_it_is_sent_again(
    letta: FakeTransport, courier: Courier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.delivery.visit._CHANCE", 0.001)
    monkeypatch.setattr("otel_letta.delivery.visit._SETTLING", 0.001)
    letta.on_send = lambda lane, batch: letta.forgotten.update(message.otid for message in batch)
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    assert courier.stats.snapshot()["sent"] == 0

    sent = len(letta.requests)
    letta.forgotten.clear()  # it is there after all
    clock.advance(1.1)
    nudge(courier)
    assert flush(courier, 5) is True
    assert len(letta.requests) == sent
    assert courier.stats.snapshot()["sent"] == 1


def test_an_end_that_another_process_may_have_sent_is_looked_for_as_far_back_as_it_was_made(clock: Clock) -> None:
    class Asked(FakeTransport):
        def landed(self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, **options: Any) -> dict[str, str]:
            ages.append(age)
            return super().landed(lane, otids, **options)

    ages: list[float] = []
    letta = Asked()
    courier = make_courier(letta, clock=clock)
    report = end("a", timestamp=datetime.now(timezone.utc) - timedelta(hours=2))
    with courier.lock:
        courier.put_back(report, letta.lane(None, None), maybe_landed=True)
    letta.wait_for_delivered(1)
    assert ages[0] >= 7_200
    finish(courier)


@pytest.mark.parametrize("had_it", [True, False])
def test_an_end_whose_request_was_interrupted_is_sent_again_only_if_the_agent_does_not_have_it(
    letta: FakeTransport, courier: Courier, clock: Clock, monkeypatch: pytest.MonkeyPatch, had_it: bool
) -> None:
    """Ctrl-C while a flush sends on the thread of who called it."""

    def interrupted(lane: Lane, batch: Sequence[Message]) -> None:
        if had_it:
            letta.store(batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "_start_thread", lambda self: None)
    letta.on_send = interrupted
    courier.put(end("a"))
    with pytest.raises(KeyboardInterrupt):
        flush(courier, 5)
    letta.on_send = lambda lane, batch: None
    clock.advance(1.1)
    assert flush(courier, 5) is True
    assert len(letta.delivered) == (0 if had_it else 1)
    assert courier.stats.snapshot()["sent"] == 1


@pytest.mark.parametrize("error", [LLM_DOWN, SILENCE])
def test_progress_is_not_retried_where_a_try_is_dear_or_may_have_landed_but_ends_are(
    letta: FakeTransport, courier: Courier, clock: Clock, error: LettaError
) -> None:
    with under_way(letta, courier, end("first")):
        letta.failures = [error]
        courier.put(end("a"))
        courier.put(progress("b", 0.3))
    letta.wait_for_requests(2)
    finished(courier)
    clock.advance(2)
    nudge(courier)
    letta.wait_for_delivered(2)
    finished(courier)

    assert contents(letta) == [["first over"], ["a over"]]
    assert courier.stats.snapshot()["dropped"] == {"in_progress refused": 1}


@pytest.mark.parametrize("error", [LLM_DOWN, LLM_REFUSES, SILENCE], ids=str)
def test_a_question_is_sent_again_as_an_end_is(
    letta: FakeTransport, courier: Courier, clock: Clock, error: LettaError
) -> None:
    letta.failures = [error]
    courier.put(progress("a", 0.3, "which?", waiting=True))
    letta.wait_for_requests(1)
    finished(courier)
    clock.advance(2)
    nudge(courier)
    letta.wait_for_delivered(1)
    assert len({message.otid for _, messages in letta.requests for message in messages}) == 1
    assert courier.stats.snapshot()["dropped"] == {}


def test_that_nobody_saw_what_stayed_is_not_said_to_be_erased(
    letta: FakeTransport, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    contention.note(letta.lane("agent-1", None))  # so it is looked twice, and the program ends before that
    courier.put(end("a"))
    letta.wait_for(lambda: "in_context" in letta.calls)
    courier.crew.dismiss()
    finished(courier)
    assert "could not be seen whether reports stay" in caplog.text
    assert "erased" not in caplog.text
    assert courier.stats.snapshot()["sent"] == 0


def test_a_question_that_a_turn_at_the_same_time_erased_is_sent_again(letta: FakeTransport, clock: Clock) -> None:
    def forget_the_first(lane: Lane, messages: Sequence[Message]) -> None:
        letta.forgotten = {message.otid for message in messages} if len(letta.requests) == 1 else set()

    letta.on_send = forget_the_first
    courier = make_courier(letta, clock=clock)
    courier.put(progress("a", 0.3, "which?", waiting=True))
    assert flush(courier, 30)
    assert len(letta.requests) == 2
    finish(courier)


def test_a_bug_in_a_transport_loses_no_end(
    letta: FakeTransport, courier: Courier, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    bugs = [RuntimeError("bug")]

    def stumble(lane: Lane, messages: object) -> None:
        if bugs:
            raise bugs.pop()

    letta.on_send = stumble
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    clock.advance(2)
    nudge(courier)
    letta.wait_for_delivered(1)
    assert "unexpected error" in caplog.text


def test_the_error_line_says_what_to_fix_at_most_once_a_minute_for_each_cause(
    letta: FakeTransport, courier: Courier, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]

    def fail_with(error: LettaError) -> None:
        attempts = len(letta.requests)
        letta.failures = [error]
        clock.advance(9)
        courier.put(end(f"t{attempts}"))
        nudge(courier)
        letta.wait_for_requests(attempts + 1)
        finished(courier)

    def recover(seconds: float) -> None:
        attempts = len(letta.requests)
        letta.failures = []
        clock.advance(seconds)
        nudge(courier)
        letta.wait_for_requests(attempts + 1)  # or else it may not have begun
        finished(courier)

    for _ in range(3):
        fail_with(DOWN)
        recover(9)
    assert len(lines()) == 1 and "LETTA_BASE_URL" in lines()[0] and "ends are kept" in lines()[0]

    fail_with(BUSY_SERVER)
    assert len(lines()) == 2  # another cause
    recover(60)
    fail_with(DOWN)
    assert len(lines()) == 3 and "2 more like this" in lines()[2]


# -- after silence ------------------------------------------------------------------------------------------------


def test_after_a_timeout_an_end_that_landed_is_not_sent_again(letta: FakeTransport, courier: Courier) -> None:
    letta.failures = [SILENCE]
    letta.on_send = lambda lane, messages: letta.store(messages)
    courier.put(end("a"))
    letta.wait_for(lambda: "landed" in letta.calls)
    finished(courier)

    assert len(letta.requests) == 1
    assert flush(courier, 1)
    assert courier.stats.snapshot()["sent"] == 1 and courier.stats.snapshot()["dropped"] == {}


def test_after_a_timeout_a_question_that_landed_is_not_sent_again(letta: FakeTransport, courier: Courier) -> None:
    letta.failures = [SILENCE]
    letta.on_send = lambda lane, messages: letta.store(messages)
    courier.put(progress("a", 0.3, "which?", waiting=True))
    letta.wait_for(lambda: "landed" in letta.calls)
    finished(courier)
    assert len(letta.requests) == 1
    assert courier.stats.snapshot()["sent"] == 1 and courier.stats.snapshot()["dropped"] == {}


def test_after_a_timeout_an_end_that_did_not_land_is_sent_again_under_the_same_id(
    letta: FakeTransport, courier: Courier, clock: Clock
) -> None:
    letta.failures = [SILENCE]
    courier.put(end("a"))
    letta.wait_for(lambda: "landed" in letta.calls)
    finished(courier)
    clock.advance(2)
    nudge(courier)
    letta.wait_for_delivered(1)

    assert len({message.otid for _, messages in letta.requests for message in messages}) == 1


def test_an_end_of_which_nobody_could_say_whether_it_landed_is_looked_for_before_it_is_sent_again(
    letta: FakeTransport, clock: Clock
) -> None:
    courier = make_courier(letta, clock=clock, busy_timeout=0.05)
    running = [Run("run-of-ours", 1.0)]
    letta.failures = [SILENCE]

    def turn(lane: Lane, messages: Sequence[Message]) -> None:
        letta.runs = running  # it goes on after the time-out
        letta.store(messages)

    letta.on_send = turn
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    assert courier.lanes()["agent-1 at http://letta.test"]["waiting"] == 1

    letta.runs = []
    clock.advance(10)
    nudge(courier)
    assert flush(courier, 5) is True
    assert len(letta.requests) == 1 and courier.stats.snapshot()["sent"] == 1
    finish(courier)


def test_a_step_that_outlasts_the_read_timeout_is_told_once() -> None:
    with InMemoryLetta(turn_seconds=3.0) as server:  # longer than clocks may differ
        agent = server.create_agent()
        letta, courier = real_courier(server, agent, read_timeout=0.25)
        courier.put(end("a"))
        assert flush(courier, 60)
        finish(courier)
        letta.close()
        assert server.turns == 1
        assert [report["task_id"] for report in server.reports(agent)] == ["a"]
        assert not contention.is_likely(letta.lane(None, None)), "that turn was ours"


def test_an_answer_that_got_lost_does_not_double_the_report() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        server.drop_next(after_processing=True, path="/messages", method="POST")
        letta, courier = real_courier(server, agent)
        courier.put(end("a"))
        assert flush(courier, 10)
        finish(courier)
        letta.close()
        assert server.turns == 1 and len(server.reports(agent)) == 1


def test_a_request_that_got_lost_is_sent_again() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        server.drop_next(path="/messages", method="POST")
        letta, courier = real_courier(server, agent)
        courier.put(end("a"))
        assert flush(courier, 10)
        finish(courier)
        letta.close()
        assert server.turns == 1 and len(server.reports(agent)) == 1


def real_courier(server: InMemoryLetta, agent: str, **options: Any) -> tuple[RestTransport, Courier]:
    settings = Settings.resolve(base_url=server.base_url, agent_id=agent, delivery="messages", **options)
    letta = RestTransport(settings)
    return letta, Courier(letta, settings, Stats(), Crew())


# -- parked -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        UNAUTHORIZED,
        errors.LettaAgentNotFoundError(status=404),
        errors.LettaModelError(status=402, parks=True),
        errors.LettaModelError(status=401, parks=True),
        errors.LettaConflictError(status=409, parks=True),
    ],
)
def test_what_only_a_person_can_mend_parks_the_lane_and_is_probed_once_a_minute(
    letta: FakeTransport, courier: Courier, clock: Clock, error: LettaError
) -> None:
    letta.failures = [error]
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    (state,) = courier.lanes().values()
    assert state["parked"] and state["waiting"] == 1

    letta.probe_error = error
    for minute in range(3):
        clock.advance(59)
        assert flush(courier, 0.5) is False
        assert letta.calls.count("probe") == minute
        clock.advance(1.5)
        nudge(courier)
        letta.wait_for(lambda n=minute: letta.calls.count("probe") == n + 1)  # type: ignore[misc]
        finished(courier)
    assert len(letta.requests) == 1  # no turn was risked meanwhile

    letta.probe_error = None
    clock.advance(61)
    nudge(courier)
    letta.wait_for_delivered(1)
    finished(courier)
    (state,) = courier.lanes().values()
    assert (state["parked"], state["waiting"]) == (None, 0)


def test_a_parked_lane_holds_no_other(letta: FakeTransport, courier: Courier) -> None:
    letta.failures = [errors.LettaAgentNotFoundError(status=404)]
    courier.put(end("a", agent_id="parked"))
    letta.wait_for_requests(1)
    finished(courier)
    courier.put(end("b", agent_id="free"))
    letta.wait_for_delivered(1)


def test_the_parked_end_arrives_after_the_password_was_rotated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with InMemoryLetta(password="new") as server:
        agent = server.create_agent()
        monkeypatch.setenv("LETTA_PASSWORD", "old")
        letta, courier = real_courier(server, agent, probe_interval=0.05)
        courier.put(end("a"))
        assert server.wait_for(lambda: len(server.requests) >= 2)  # refused, and refused again
        assert not server.reports(agent)

        monkeypatch.setenv("LETTA_PASSWORD", "new")
        server.wait_for_messages(agent, 1)
        assert flush(courier, 5)
        finish(courier)
        letta.close()
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "Invalid credentials" in line and "LETTA_PASSWORD" in line and "parked" in line


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (402, "Payment required"),
        (403, "Forbidden"),
        (404, "Agent with ID agent-x not found"),
        (409, {"code": "PENDING_APPROVAL", "message": "waiting for approval"}),
    ],
)
def test_a_lane_that_a_real_answer_parked_goes_on_when_it_is_mended(status: int, detail: Any) -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        server.fail_next(status, {"detail": detail}, times=2, path="/messages", method="POST")
        letta, courier = real_courier(server, agent, probe_interval=0.05)
        courier.put(end("a"))
        server.wait_for_messages(agent, 1)
        flush(courier, 5)
        finish(courier)
        letta.close()
        assert [report["status"] for report in server.reports(agent)] == ["completed"]


def test_ends_for_a_wrong_agent_id_go_to_the_right_one_once_the_setting_is_mended(
    letta: FakeTransport, courier: Courier, clock: Clock
) -> None:
    letta.agent_id = "typo"
    letta.failures = [errors.LettaAgentNotFoundError(status=404)]
    for number in range(25):
        courier.put(end(f"t{number}"))
    letta.wait_for_requests(1)
    finished(courier)

    def mend() -> None:
        letta.agent_id = "agent-1"

    letta.on_reload = mend
    clock.advance(61)
    nudge(courier)
    letta.wait_for_delivered(25)
    assert {lane.agent_id for lane, _ in letta.delivered} == {"agent-1"}
    texts = [text for request in contents(letta) for text in request]
    assert texts == [f"t{number} over" for number in range(25)]


def test_ends_for_a_server_that_moved_go_to_the_new_address_once_the_setting_is_mended(
    letta: FakeTransport, courier: Courier, clock: Clock
) -> None:
    letta.failures = [errors.LettaAuthenticationError(status=401)]
    courier.put(end("a", chat_id=CONVERSATION))
    letta.wait_for_requests(1)
    finished(courier)

    def mend() -> None:
        letta.server = "http://new.test"

    letta.on_reload = mend
    clock.advance(61)
    nudge(courier)
    letta.wait_for_delivered(1)
    ((lane, (message,)),) = letta.delivered
    assert lane == Lane("http://new.test", "agent-1", CONVERSATION)
    assert message.otid != letta.requests[0][1][0].otid  # an end's id names its server


@pytest.fixture
def two_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[InMemoryLetta, InMemoryLetta, str]]:
    """A server that the settings name, another that knows the same agent, and the agent."""
    with InMemoryLetta() as old, InMemoryLetta() as new:
        agent = old.create_agent()
        new.create_agent(agent_id=agent)
        monkeypatch.setenv("LETTA_BASE_URL", old.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", agent)
        yield old, new, agent


def courier_of_environment(**options: Any) -> Courier:
    settings = Settings.resolve(delivery="messages", server="rest", **options)
    return Courier(SelectingTransport(settings), settings, Stats(), Crew())


def test_parked_ends_go_to_the_lane_of_the_server_that_the_settings_name_now(
    two_servers: tuple[InMemoryLetta, InMemoryLetta, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, agent = two_servers
    old.fail_next(402, times=99, path="/messages", method="POST")
    courier = courier_of_environment(probe_interval=0.05)
    report = end("a")
    courier.put(report)
    assert old.wait_for(lambda: len(old.requests) >= 2)
    monkeypatch.setenv("LETTA_BASE_URL", new.base_url)
    new.wait_for_messages(agent, 1)
    assert flush(courier, 5)
    later = end("b")
    courier.put(later)
    assert flush(courier, 5)
    finish(courier)
    assert not old.reports(agent)
    # As from a process that has never known the old server.
    lane = Lane(new.base_url, agent)
    assert set(courier.transport.landed(lane, [otid_of(r, lane) for r in (report, later)])) == {
        otid_of(r, lane) for r in (report, later)
    }
    assert courier.lanes()[str(lane)]["waiting"] == 0
    courier.transport.close()


def test_what_waits_for_another_try_follows_the_settings_that_another_lane_had_read_again(
    two_servers: tuple[InMemoryLetta, InMemoryLetta, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, agent = two_servers
    old.fail_next(503, path="/messages", method="POST")
    courier = courier_of_environment()
    courier.put(end("a"))
    assert old.wait_for(lambda: any(request.method == "POST" for request in old.requests))
    monkeypatch.setenv("LETTA_BASE_URL", new.base_url)
    courier.transport.reload()
    new.wait_for_messages(agent, 1)
    assert flush(courier, 5)
    finish(courier)
    assert not old.reports(agent) and len(new.reports(agent)) == 1


# -- conversations ------------------------------------------------------------------------------------------------


def test_an_unknown_conversation_s_reports_go_to_the_agent_s_default_one(
    letta: FakeTransport, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def refuse(lane: Lane, messages: object) -> None:
        assert gate.wait(60)
        if lane.conversation_id:
            raise errors.LettaConversationNotFoundError(status=404)

    letta.on_send = refuse
    courier.put(progress("a", 0.0, chat_id=CONVERSATION))
    letta.wait_for_requests(1)
    for number in range(25):
        courier.put(end(f"t{number}", chat_id=CONVERSATION))
    gate.set()
    letta.wait_for_delivered(26)
    courier.put(end("later", chat_id=CONVERSATION))
    letta.wait_for_delivered(27)
    finished(courier)

    assert {lane.conversation_id for lane, _ in letta.delivered} == {None}
    assert len([1 for lane, _ in letta.requests if lane.conversation_id]) == 1  # it is not asked for again
    assert caplog.text.count("does not exist") == 1
    assert courier.stats.snapshot()["dropped"] == {}


def test_a_count_of_lost_ends_survives_the_move_to_the_default_conversation(letta: FakeTransport, clock: Clock) -> None:
    courier = make_courier(letta, clock=clock, max_pending_tasks=2)
    gate = threading.Event()

    def refuse(lane: Lane, messages: object) -> None:
        assert gate.wait(60)
        if lane.conversation_id:
            raise errors.LettaConversationNotFoundError(status=404)

    letta.on_send = refuse
    courier.put(end("first", chat_id=CONVERSATION))
    letta.wait_for_requests(1)
    for number in range(4):
        courier.put(end(f"t{number}", chat_id=CONVERSATION))
    gate.set()
    letta.wait_for(lambda: any("3 more tasks ended" in text for request in letta.texts() for text in request))
    finish(courier)


def test_a_real_conversation_gets_its_reports() -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        conversation = server.create_conversation(agent)
        letta, courier = real_courier(server, agent, busy_timeout=0.3)
        courier.put(end("a", chat_id=conversation))
        courier.put(end("b", chat_id="conv-99999999-9999-4999-8999-999999999999"))
        assert flush(courier, 10)
        finish(courier)
        letta.close()
        where = {re.findall('task="(.)"', m.content)[0]: m.conversation_id for m in server.messages(agent)}
        assert where == {"a": conversation, "b": None}


# -- bounds and budget --------------------------------------------------------------------------------------------


def test_past_the_limit_ends_become_a_count_and_the_log_says_so(
    letta: FakeTransport, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    courier = make_courier(letta, clock=clock, max_pending_tasks=3)
    letta.failures = [DOWN]
    courier.put(end("first"))
    letta.wait_for_requests(1)
    finished(courier)
    for number in range(6):
        courier.put(end(f"t{number}", failed=number == 0))
    assert "only counted" in caplog.text and "OTEL_LETTA_MAX_PENDING_TASKS" in caplog.text
    clock.advance(2)
    nudge(courier)
    letta.wait_for_delivered(4)
    finish(courier)

    (request,) = letta.texts()
    assert 'completed="3" failed="1"' in request[0]
    assert [inner(text) for text in request[1:]] == ["t3 over", "t4 over", "t5 over"]
    assert courier.stats.snapshot()["dropped"] == {"end collapsed into a count": 4}


def test_over_the_wake_budget_ends_wait_and_go_together(letta: FakeTransport, clock: Clock) -> None:
    courier = make_courier(letta, clock=clock, wake_budget=2)
    for number in range(2):
        courier.put(end(f"t{number}"))
        letta.wait_for_delivered(number + 1)
        finished(courier)
    for number in range(2, 7):
        courier.put(end(f"t{number}"))
    assert flush(courier, 10) is False  # says the truth, and at once: waiting could not help
    clock.advance(3_590)
    nudge(courier)
    finished(courier)
    assert len(letta.requests) == 2

    clock.advance(20)
    nudge(courier)
    letta.wait_for_delivered(7)
    assert contents(letta)[2] == [f"t{number} over" for number in range(2, 7)]
    finish(courier)


def test_each_agent_has_a_budget_of_its_own(letta: FakeTransport, clock: Clock) -> None:
    courier = make_courier(letta, clock=clock, wake_budget=1)
    courier.put(end("a", agent_id="one"))
    courier.put(end("b", agent_id="two"))
    letta.wait_for_delivered(2)
    finish(courier)


@pytest.mark.parametrize(
    ("error", "counts"), [(DOWN, False), (BUSY_SERVER, False), (UNAUTHORIZED, False), (LLM_DOWN, True)]
)
def test_only_what_cost_the_agent_a_turn_counts_against_the_budget(
    letta: FakeTransport, clock: Clock, error: LettaError, counts: bool
) -> None:
    courier = make_courier(letta, clock=clock, wake_budget=1)
    letta.failures = [error]
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    clock.advance(100)
    nudge(courier)
    finished(courier)
    if not counts:
        letta.wait_for_delivered(1)
    else:
        assert flush(courier, 1) is False and len(letta.requests) == 1
    finish(courier)


# -- pacing, end to end -------------------------------------------------------------------------------------------


def test_a_30_minute_task_with_1_000_updates_costs_five_turns(
    letta: FakeTransport, courier: Courier, clock: Clock
) -> None:
    for number in range(1_000):
        courier.put(progress("a", number / 1_000))
        assert flush(courier, 5)
        clock.advance(1.8)
    courier.put(end("a"))
    assert flush(courier, 5)

    shares = [re.findall('progress="(.*?)%"', text)[0] for request in letta.texts() for text in request]
    assert shares == ["0", "25", "50", "75", "100"]
    numbers = courier.stats.snapshot()
    assert (numbers["sent"], numbers["requests"]) == (5, 5)
    assert numbers["conflated"] + numbers["held"] >= 990


# -- flush and shutdown -------------------------------------------------------------------------------------------


def test_flush_waits_for_what_is_in_flight(letta: FakeTransport) -> None:
    courier = make_courier(letta)
    with under_way(letta, courier, end("a")):
        assert flush(courier, 0.05) is False
    assert flush(courier, 5) is True
    finish(courier)


def test_flush_does_not_wait_for_progress_that_is_held(letta: FakeTransport, courier: Courier) -> None:
    courier.put(progress("a", 0.0))
    letta.wait_for_delivered(1)
    courier.put(progress("a", 0.1))
    assert flush(courier, 5) is True


def test_flush_returns_early_when_waiting_could_not_help(letta: FakeTransport, courier: Courier) -> None:
    letta.failures = [UNAUTHORIZED]
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    began = time.monotonic()
    assert flush(courier, 30) is False
    assert time.monotonic() - began < 5


def test_a_second_report_is_not_late_because_the_first_was_held(letta: FakeTransport, courier: Courier) -> None:
    courier.put(progress("a", 0.0))
    letta.wait_for_delivered(1)
    courier.put(progress("a", 0.1))
    courier.put(progress("b", 0.0))
    letta.wait_for_delivered(2)


def test_shutdown_interrupts_backoff_and_tries_at_once(letta: FakeTransport) -> None:
    courier = make_courier(letta)
    letta.failures = [errors.LettaRateLimitError(status=429, retry_after=1_000)]
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    begin_closing(courier)
    assert flush(courier, 5) is True
    finish(courier)
    assert len(letta.delivered) == 1


def test_shutdown_gives_up_progress_and_keeps_trying_ends(letta: FakeTransport, courier: Courier) -> None:
    letta.failures = [DOWN]
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    courier.put(progress("b"))
    begin_closing(courier)
    assert flush(courier, 5) is True
    assert contents(letta) == [["a over"]]
    assert courier.stats.snapshot()["dropped"] == {"in_progress at shutdown": 1}


def test_an_end_that_was_answered_and_is_not_in_the_context_is_lost_and_not_unconfirmed(clock: Clock) -> None:
    class Erasing(FakeTransport):
        """Another turn takes the end out of the context, and a further one runs when it is to be sent again."""

        def in_context(self, lane: Lane, message_ids: Sequence[str], **options: Any) -> set[str]:
            self.runs = [Run("another", None)]
            self._note("in_context")
            return set()

    letta = Erasing()
    courier = make_courier(letta, clock=clock)
    courier.put(end("a"))
    letta.wait_for(lambda: letta.calls[-2:] == ["in_context", "active_runs"])
    with courier.lock:
        (worker,) = courier._lanes.values()
        fate = give_up(worker)
    assert (fate.lost, fate.unconfirmed) == (1, 0)
    finish(courier)


def test_shutdown_says_what_is_left_and_why(letta: FakeTransport, caplog: pytest.LogCaptureFixture) -> None:
    courier = make_courier(letta)
    letta.always = UNAUTHORIZED
    letta.probe_error = UNAUTHORIZED
    courier.put(end("a"))
    letta.wait_for_requests(1)
    finished(courier)
    begin_closing(courier)
    assert flush(courier, 1) is False
    finish(courier)

    line = caplog.records[-1].getMessage()
    assert "1 task end(s) not delivered before shutdown" in line and "Invalid credentials" in line
    assert courier.stats.snapshot()["dropped"] == {"end not delivered before shutdown": 1}
    assert letta.closed


def test_shutdown_does_not_call_lost_what_the_agent_is_still_answering(
    letta: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    courier = make_courier(letta)
    gate = threading.Event()
    letta.on_send = until(gate)
    courier.put(end("a"))
    letta.wait_for_requests(1)
    begin_closing(courier)
    assert flush(courier, 0.05) is False
    finish(courier)

    assert "still answering 1 report(s)" in caplog.text and "not delivered" not in caplog.text
    assert not letta.closed  # its connection is in use
    gate.set()
    letta.wait_for(lambda: letta.closed == 1)


# -- statistics ---------------------------------------------------------------------------------------------------


def test_statistics_say_what_was_sent_conflated_dropped_and_parked(letta: FakeTransport, courier: Courier) -> None:
    with under_way(letta, courier, end("a")):
        for share in (0.0, 0.1, 0.2):
            courier.put(progress("b", share))
    letta.wait_for_delivered(2)
    courier.put(progress("b", 0.21))
    finished(courier)
    letta.failures = [UNAUTHORIZED]
    courier.put(end("c"))
    letta.wait_for_requests(3)
    finished(courier)

    assert courier.stats.snapshot() == {
        "reports": 0,
        "sent": 2,
        "requests": 2,
        "board_writes": 0,
        "conflated": 2,
        "held": 1,
        "retries": 1,
        "answers": 0,
        "answers_dropped": 0,
        "answers_failed": 0,
        "dropped": {},
    }
    ((name, lane),) = courier.lanes().items()
    assert name == "agent-1 at http://letta.test"
    assert (lane["waiting"], lane["in_flight"]) == (2, 0)
    assert "Invalid credentials" in str(lane["parked"]) and "LETTA_PASSWORD" in str(lane["last_error"])


def test_each_report_has_a_debug_line_that_says_what_became_of_it(
    letta: FakeTransport, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "otel_letta"):
        courier.put(progress("a", 0.0, sequence=1))
        letta.wait_for_delivered(1)
        finished(courier)
        courier.put(progress("a", 0.1, sequence=2))
        courier.put(progress("a", 0.2, sequence=3))
    lines = [r.getMessage() for r in caplog.records]
    for words in (
        "a #1 (in_progress) is due",
        "a #1 (in_progress) sent",
        "a #2 held: nothing worth a turn",
        "of a replaced: #3 came",
    ):
        assert any(words in line for line in lines), (words, lines)


def test_no_thread_is_left_without_work(
    letta: FakeTransport, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.delivery.worker._IDLE_SECONDS", 0.02)
    courier.put(end("a"))
    letta.wait_for_delivered(1)
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not courier.crew.lanes.has_thread, 30)
    courier.put(end("b"))
    letta.wait_for_delivered(2)


def test_requests_are_made_under_the_key_that_keeps_instrumentation_away(
    letta: FakeTransport, courier: Courier
) -> None:
    from opentelemetry import context

    seen: list[object] = []
    letta.on_send = lambda lane, messages: seen.append(context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY))
    courier.put(end("a"))
    letta.wait_for_delivered(1)
    assert seen == [True]


def test_a_lane_survives_the_death_of_its_thread(
    letta: FakeTransport, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    broken: list[Callable[..., Any]] = [lambda self, report: 1 / 0]
    original = type(courier._worker(Lane(SERVER, "agent-1")))._weigh
    monkeypatch.setattr(
        "otel_letta.delivery.lane.LaneWorker._weigh",
        lambda self, report: broken.pop()(self, report) if broken else original(self, report),
    )
    courier.put(end("a"))
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not courier.crew.lanes.has_thread, 30)
    courier.put(end("b"))
    letta.wait_for_delivered(2)


def test_a_message_is_never_sent_by_two_threads_at_once() -> None:
    with InMemoryLetta(turn_seconds=0.02) as server:
        agent = server.create_agent()
        letta, courier = real_courier(server, agent)

        def work(thread: int) -> None:
            for number in range(10):
                courier.put(end(f"{thread}-{number}"))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert flush(courier, 20)
        finish(courier)
        letta.close()
        assert server.in_flight_max(agent) == 1
        tasks = [report["task_id"] for report in server.reports(agent)]
        assert len(tasks) == len(set(tasks)) == 40
        for thread in range(4):
            mine = [task for task in tasks if task.startswith(f"{thread}-")]
            assert mine == [f"{thread}-{n}" for n in range(10)]
        assert courier.stats.snapshot()["requests"] == server.turns < 40


def test_fakes_are_told_apart_from_messages() -> None:
    """Guards the helper above: a block that is none must not pass."""
    with pytest.raises(AssertionError):
        inner(Message("plain text", "x").content)
