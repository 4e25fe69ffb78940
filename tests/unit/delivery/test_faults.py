"""What goes wrong between us and Letta, and what becomes of the ends: each in the agent's context once, whatever it is.

The tables read: fault → what the agent has, what it cost, what is said.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from otel_letta import errors
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.gate import hold
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Lane, Posting, Run
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.fake_transport import (
    SERVER,
    Clock,
    FakeTransport,
    end,
    finish,
    flush,
    make_courier,
    nudge,
)
from tests.support.waiting import until

PAGE = "<html><body>A proxy's page</body></html>"
ANSWERS: list[tuple[int, Any]] = [
    (200, PAGE),
    (200, {"ok": True}),
    (204, ""),
    (307, ""),
    (400, PAGE),
    (401, PAGE),
    (403, PAGE),
    (403, {"message": "Forbidden"}),
    (404, PAGE),
    (408, PAGE),
    (413, PAGE),
    (422, {"error": "unprocessable"}),
    (429, PAGE),
    (500, PAGE),
    (502, PAGE),
    (503, PAGE),
    (504, PAGE),
    (520, PAGE),
    (524, PAGE),
]


@pytest.fixture
def courier_of(server: InMemoryLetta, request: pytest.FixtureRequest) -> Callable[..., tuple[Courier, str]]:
    def make(**options: Any) -> tuple[Courier, str]:
        agent = server.create_agent()
        options = {"probe_interval": 0.05, "delivery": "messages", **options}
        settings = Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent, server="rest", **options)
        courier = Courier(RestTransport(settings), settings, Stats(), Crew())
        request.addfinalizer(courier.transport.close)
        request.addfinalizer(lambda: finish(courier))
        return courier, agent

    return make


def posts(server: InMemoryLetta) -> int:
    return sum(request.method == "POST" for request in server.requests)


def in_context(server: InMemoryLetta, agent: str, *tasks: str) -> list[int]:
    """How often the agent's next prompt holds each task's end."""
    text = "\n".join(server.context(agent))
    return [text.count(f'task_id="{task}"') for task in tasks]


# -- answers that are not Letta's -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ran", [True, False], ids=["the turn ran", "the turn did not run"])
@pytest.mark.parametrize(("status", "body"), ANSWERS)
def test_each_end_arrives_once_whatever_a_proxy_answers(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]], status: int, body: Any, ran: bool
) -> None:
    courier, agent = courier_of()
    server.fail_next(status, body, times=2, method="POST", path="/messages", after_processing=ran)
    courier.put(end("a"))
    courier.put(end("b"))
    assert server.wait_for(lambda: min(in_context(server, agent, "a", "b")) > 0, 60)
    assert flush(courier, 60)

    assert in_context(server, agent, "a", "b") == [1, 1]
    counted = courier.stats.snapshot()
    assert (counted["sent"], counted["dropped"]) == (2, {})
    assert counted["requests"] == posts(server)  # each may have cost a turn


@pytest.mark.usefixtures("impatient")
def test_a_turn_behind_a_proxy_that_gave_up_is_waited_for(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    courier, agent = courier_of()
    original = courier.transport.send
    turns: list[threading.Thread] = []

    def through_a_proxy(lane: Lane, messages: Any, **options: Any) -> dict[str, Any]:
        if turns:
            return original(lane, messages, **options)
        turns.append(threading.Thread(target=lambda: original(lane, messages)))
        turns[0].start()
        assert server.wait_for(lambda: server.in_flight(agent) == 1, 30)
        raise errors.LettaServerError(status=524, foreign=True, may_have_landed=True)

    monkeypatch.setattr(courier.transport, "send", through_a_proxy)
    with server.hold(agent, turns=1):
        courier.put(end("a"))
        assert server.wait_for(lambda: sum("/runs/" in request.path for request in server.requests) > 4, 30)
        assert posts(server) == 1  # nothing into a running turn
    turns[0].join(30)
    assert flush(courier, 60)
    assert in_context(server, agent, "a") == [1]
    assert posts(server) == 1


@pytest.mark.usefixtures("impatient")
def test_posts_that_may_have_cost_a_turn_use_up_the_wake_budget(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]]
) -> None:
    courier, agent = courier_of(wake_budget=3)
    server.fail_next(524, PAGE, times=None, method="POST", path="/messages")
    courier.put(end("a"))
    assert server.wait_for(lambda: posts(server) == 3, 60)
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 30)
        assert courier.budget_free_at(agent, courier.clock()) > courier.clock() + 3_000
    assert posts(server) == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [400, 403, 406, 413, 422])
def test_a_report_that_a_proxy_does_not_let_pass_is_kept_and_holds_no_other(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]], status: int
) -> None:
    courier, agent = courier_of()
    server.refuse(lambda content: "poison" in content, status, PAGE)
    with courier.lock:  # in one request
        for task in ("a", "b", "poison", "c", "d"):
            courier.put(end(task))
    assert server.wait_for(lambda: in_context(server, agent, "a", "b", "c", "d") == [1, 1, 1, 1], 60)
    assert courier.stats.snapshot()["dropped"] == {}

    server.recover()
    assert server.wait_for(lambda: in_context(server, agent, "poison") == [1], 60)


def test_letta_s_own_refusal_is_about_the_report_and_drops_it(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]]
) -> None:
    courier, agent = courier_of()
    server.refuse(lambda content: "poison" in content, 422, {"detail": "no"})
    for task in ("a", "poison", "b"):
        courier.put(end(task))
    assert not flush(courier, 60) or courier.stats.lost_ends == 1
    assert in_context(server, agent, "a", "b", "poison") == [1, 1, 0]


@pytest.mark.usefixtures("impatient")
def test_a_compaction_by_the_turn_itself_sends_nothing_twice(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]]
) -> None:
    courier, agent = courier_of()
    server.compact(agent, in_next_turn=True)
    courier.put(end("a"))
    assert flush(courier, 60)
    assert (posts(server), server.turns) == (1, 1)


# -- a server that is away ----------------------------------------------------------------------------------------


AWAY = {
    "refused": errors.LettaConnectionError(hint="check LETTA_BASE_URL"),
    "a gateway without it": errors.LettaServerError(status=502, foreign=True),
    "a wrong password": errors.LettaAuthenticationError(status=401),
    "a wrong address": errors.LettaServerError(status=404, parks=True, foreign=True),
}


@pytest.mark.parametrize("cause", AWAY)
def test_of_many_lanes_one_asks_and_one_line_is_written(
    letta: FakeTransport, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    clock = Clock()
    courier = make_courier(letta, clock=clock)
    letta.always = letta.probe_error = AWAY[cause]
    conversations = [f"conv-11111111-1111-4111-8111-{number:012}" for number in range(40)]
    with courier.lock:
        for chat in conversations:
            courier.put(end(chat, chat_id=chat))
    letta.wait_for_requests(1)

    def tries() -> int:
        return len(letta.requests) + letta.calls.count("probe")

    def settled() -> None:
        with courier.lock:
            assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 30)

    settled()
    first = tries()
    assert first <= 16  # those whose requests had begun before the first one failed
    clock.advance(61)
    nudge(courier)
    letta.wait_for(lambda: tries() > first, 30)
    settled()
    assert tries() == first + 1
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) <= 2, [line.getMessage() for line in lines]

    letta.always = letta.probe_error = None
    clock.advance(61)
    nudge(courier)
    letta.wait_for_delivered(40)
    finish(courier)


def test_the_first_success_sends_all_lanes_on_their_way(letta: FakeTransport) -> None:
    clock = Clock()
    courier = make_courier(letta, clock=clock)
    letta.failures = [AWAY["refused"]]
    courier.put(end("a", agent_id="agent-a"))
    letta.wait_for_requests(1)
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 30)
    for name in "bcd":
        courier.put(end(name, agent_id=f"agent-{name}"))
    clock.advance(5)
    nudge(courier)
    letta.wait_for_delivered(4)
    finish(courier)


# -- what is said at the end --------------------------------------------------------------------------------------


def lines_about(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def close(courier: Courier, seconds: float = 0.2) -> bool:
    courier.begin_closing(Deadline.after(seconds))
    delivered = flush(courier, seconds)
    finish(courier)
    return delivered


def in_somebody_s_turn(letta: FakeTransport, lane: Lane) -> Callable[[], None]:
    letta.runs = [Run("run-of-a-person", 1.0)]
    return letta.runs.clear


def behind_another_process(letta: FakeTransport, lane: Lane) -> Callable[[], None]:
    from otel_letta.runtime.locks import HostLock

    lock = HostLock(f"lane {lane.server} {lane.agent_id} ")
    assert lock.try_acquire()
    return lock.release


def behind_another_report(letta: FakeTransport, lane: Lane) -> Callable[[], None]:
    held, leave = threading.Event(), threading.Event()

    def holder() -> None:
        with hold(lane, Deadline(), 60.0):
            held.set()
            assert leave.wait(60)

    threading.Thread(target=holder, daemon=True).start()
    assert held.wait(30)
    return leave.set


def without_a_connection(letta: FakeTransport, lane: Lane) -> Callable[[], None]:
    connected = threading.Event()
    original = letta.send

    def send(lane: Lane, messages: Any, *, until: Any = None, posting: Posting | None = None) -> dict[str, Any]:
        letta._note("connecting")
        assert connected.wait(60)
        return original(lane, messages, until=until, posting=posting)

    letta.send = send  # type: ignore[method-assign]
    return connected.set


UNSENT = [
    (in_somebody_s_turn, "active_runs", "a turn that somebody else started"),
    (behind_another_process, "", "another process on this host"),
    (behind_another_report, "", "another report to the agent"),
    (without_a_connection, "connecting", "no connection to the server yet"),
]


@pytest.mark.parametrize(("obstacle", "reached", "cause"), UNSENT)
def test_what_was_never_sent_is_lost_with_its_real_cause_and_is_not_sent_later(
    letta: FakeTransport,
    caplog: pytest.LogCaptureFixture,
    obstacle: Callable[[FakeTransport, Lane], Callable[[], None]],
    reached: str,
    cause: str,
) -> None:
    courier = make_courier(letta, agent_id="agent-unsent")
    lane = Lane(SERVER, "agent-unsent")
    remove = obstacle(letta, lane)
    courier.put(end("a", agent_id="agent-unsent"))
    courier.put(end("b", agent_id="agent-unsent"))
    if reached:
        letta.wait_for(lambda: reached in letta.calls, 30)
    else:
        with courier.lock:
            (worker,) = courier._lanes.values()
        assert until(lambda: worker.busy)
    assert not close(courier)
    assert sum(courier.stats.snapshot()["dropped"].values()) == 2
    (line,) = lines_about(caplog, "not delivered before shutdown")
    assert "2 task end(s)" in line and cause in line
    assert not lines_about(caplog, "it has them")
    remove()
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 60)
    assert not letta.delivered
    assert courier.stats.snapshot()["requests"] == 0


def test_what_was_sent_and_not_answered_is_unconfirmed_and_counted_as_a_turn(
    letta: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()
    letta.on_send = lambda lane, messages: answered.wait(60) and None
    courier = make_courier(letta)
    courier.put(end("a"))
    letta.wait_for_requests(1)
    assert not close(courier)
    assert len(lines_about(caplog, "it has them, unconfirmed")) == 1
    assert courier.stats.snapshot()["dropped"] == {}
    assert courier.stats.snapshot()["requests"] == 1
    answered.set()
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 60)
    assert courier.stats.snapshot()["requests"] == 1


def test_ends_that_became_a_count_are_not_counted_twice(letta: FakeTransport) -> None:
    letta.always = AWAY["refused"]
    courier = make_courier(letta, max_pending_tasks=5)
    with courier.lock:
        for number in range(12):
            courier.put(end(f"t{number}"))
    letta.wait_for_requests(1)
    close(courier)
    assert courier.stats.lost_ends == 12
    finish(courier)
    assert courier.stats.lost_ends == 12


def test_a_real_connection_that_is_made_too_late_sends_nothing(
    server: InMemoryLetta, courier_of: Callable[..., tuple[Courier, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    connecting, connected = threading.Event(), threading.Event()
    original = socket.create_connection

    def slow(*arguments: Any, **keywords: Any) -> socket.socket:
        connecting.set()
        assert connected.wait(60)
        return original(*arguments, **keywords)

    courier, _ = courier_of()
    monkeypatch.setattr(courier.transport, "active_runs", lambda lane, **_: [])  # needs no connection
    monkeypatch.setattr("httpcore._backends.sync.socket.create_connection", slow)
    courier.put(end("a"))
    assert connecting.wait(30)
    assert not close(courier)
    assert courier.stats.snapshot()["dropped"] == {"end not delivered before shutdown": 1}
    connected.set()
    with courier.lock:
        assert courier.crew.settled.wait_for(lambda: not any(w.busy for w in courier._lanes.values()), 60)
    assert posts(server) == 0


# -- bounds -------------------------------------------------------------------------------------------------------


def test_any_number_of_conversations_shares_a_few_threads_and_leaves_nothing_behind(
    letta: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    letta.agent_id = "agent-of-many"
    released = threading.Event()
    running: set[int] = set()

    def turn(lane: Lane, messages: Any) -> None:
        running.add(threading.get_ident())
        assert released.wait(60)

    letta.on_send = turn
    courier = make_courier(letta, agent_id="agent-of-many", wake_budget=10_000)
    before = threading.active_count()
    chats = [f"conv-11111111-1111-4111-8111-{number:012}" for number in range(600)]
    for chat in chats:
        courier.put(end(chat, chat_id=chat))
    letta.wait_for_requests(16)
    assert threading.active_count() - before <= 16
    released.set()
    letta.wait_for_delivered(600)
    assert flush(courier, 60)
    assert len(running) <= 16
    with courier.lock:  # a program that talks in ever new conversations does not remember each of them
        assert courier.crew.settled.wait_for(lambda: not courier._lanes, 30)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    finish(courier)


def test_conversations_that_do_not_exist_are_one_line(letta: FakeTransport, caplog: pytest.LogCaptureFixture) -> None:
    def turn(lane: Lane, messages: Any) -> None:
        if lane.conversation_id:
            raise errors.LettaConversationNotFoundError(status=404)

    letta.on_send = turn
    courier = make_courier(letta)
    for number in range(50):
        courier.put(end(f"t{number}", chat_id=f"conv-11111111-1111-4111-8111-{number:012}"))
    letta.wait_for_delivered(50)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    finish(courier)


def test_boards_and_the_outbox_wait_behind_no_turns() -> None:
    crew = Crew()
    assert len({id(pool) for pool in (crew.lanes, crew.boards, crew.disk)}) == 3


def test_many_lanes_that_are_lost_at_the_end_are_one_line(
    letta: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    letta.always = letta.probe_error = AWAY["refused"]
    courier = make_courier(letta)
    with courier.lock:
        for number in range(100):
            courier.put(end(f"t{number}", chat_id=f"conv-11111111-1111-4111-8111-{number:012}"))
    letta.wait_for_requests(1)
    assert not close(courier)
    assert courier.stats.lost_ends == 100
    (line,) = lines_about(caplog, "not delivered before shutdown")
    assert "100 task end(s)" in line and "100 conversations" in line
