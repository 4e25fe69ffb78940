"""The doorway of delivery: which reports go on the board, which as messages, and what flush and close answer."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from otel_letta import errors
from otel_letta.delivery.desk import Desk
from otel_letta.delivery.lane import LaneWorker
from otel_letta.delivery.parcel import Parcel
from otel_letta.delivery.stats import Stats
from otel_letta.letta.transport import Lane, Message, Run
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from tests.support.fake_transport import WithBlocks, end, progress, settings
from tests.support.waiting import until

BAD = errors.LettaRequestError(status=400)
UNAUTHORIZED = errors.LettaAuthenticationError(status=401, hint="check LETTA_AGENT_ID and LETTA_PASSWORD")


@pytest.fixture
def letta() -> WithBlocks:
    return WithBlocks()


@pytest.fixture
def make(letta: WithBlocks) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def desk(delivery: str = "auto", **options: Any) -> Desk:
        made.append(Desk(settings(delivery=delivery, **options), letta, Stats()))
        return made[-1]

    yield desk
    letta.on_send = lambda lane, messages: None
    for each in made:
        each.close(Deadline.after(0.0))


def soon() -> Deadline:
    return Deadline.after(60.0)


def sent(letta: WithBlocks) -> list[str]:
    return [text for request in letta.texts() for text in request]


# -- board or message ---------------------------------------------------------------------------------------------


def test_in_mode_auto_progress_goes_on_the_board_and_ends_go_as_messages_too(
    letta: WithBlocks, make: Callable[..., Desk]
) -> None:
    desk = make("auto")
    desk.put(progress("a", 0.5))
    desk.put(end("b"))
    assert desk.flush(soon())

    assert "50% a" in letta.boards["agent-1"] and "completed" in letta.boards["agent-1"]
    (text,) = sent(letta)
    assert 'task="b"' in text


def test_in_mode_auto_an_end_that_is_not_worth_a_turn_is_only_on_the_board(
    letta: WithBlocks, make: Callable[..., Desk]
) -> None:
    desk = make("auto")
    desk.put(end("a", wakes=False))
    assert desk.flush(soon())
    assert "completed" in letta.boards["agent-1"] and not sent(letta)


def test_in_mode_messages_there_is_no_board(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("messages")
    desk.put(progress("a", 0.5))
    desk.put(progress("quiet", 0.5, wakes=False))
    assert desk.flush(soon())
    assert len(sent(letta)) == 1 and not letta.boards and desk.stats()["boards"] == {}
    assert desk._stats.snapshot()["held"] == 1


def test_in_mode_board_nothing_wakes_the_agent(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("board")
    desk.put(progress("a", 0.5))
    desk.put(end("b"))
    assert desk.flush(soon())
    assert letta.boards and not letta.requests


def test_each_agent_has_a_board_of_its_own(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("board")
    desk.put(progress("a", 0.5))
    desk.put(progress("b", 0.5, agent_id="agent-2"))
    assert desk.flush(soon())
    assert set(letta.boards) == {"agent-1", "agent-2"} == set(desk.stats()["boards"])


def test_where_there_are_no_boards_open_tasks_and_later_reports_go_as_messages(
    letta: WithBlocks, make: Callable[..., Desk]
) -> None:
    letta.board_error = errors.LettaUnsupportedError()
    desk = make("auto")
    desk.put(progress("a", 0.5))
    assert desk.flush(soon())  # waits for what the board handed over
    desk.put(progress("b", 0.5))
    assert desk.flush(soon())
    assert [text.split('"')[1] for text in sent(letta)] == ["a", "b"]


def test_what_the_board_hands_over_at_once_is_sent(
    letta: WithBlocks, make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hands_over(self: Desk, report: ProgressReport) -> bool:
        with self._crew.lock:
            self._without_board([report])
        return True

    monkeypatch.setattr(Desk, "_put_on_board", hands_over)
    desk = make("auto")
    desk.put(progress("a", 0.5))
    assert desk.flush(soon())
    assert [text.split('"')[1] for text in sent(letta)] == ["a"]


# -- flush --------------------------------------------------------------------------------------------------------


def test_flush_says_false_when_an_end_was_given_up_meanwhile(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("messages")
    letta.on_send = lambda lane, messages: time.sleep(0.05)
    letta.refuses = lambda content: BAD
    desk.put(end("a"))
    assert desk.flush(soon()) is False


def test_a_parked_lane_does_not_keep_the_board_from_being_written(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("auto")
    # 403 may be about the one agent, or about what a report says. At a 401 nobody else would ask the server for now.
    letta.always = letta.probe_error = errors.LettaAuthenticationError(status=403)
    desk.put(end("a"))
    assert desk.flush(Deadline.after(30.0)) is False
    assert "completed" in letta.boards["agent-1"]


def test_a_board_that_is_parked_does_not_keep_messages_back(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("auto")
    letta.board_error = errors.LettaAuthenticationError(status=403)  # of a key that may not write memory
    desk.put(end("a"))
    assert desk.flush(Deadline.after(30.0)) is False
    assert len(sent(letta)) == 1


def test_flush_ends_when_its_caller_gives_up(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("messages")
    gate = threading.Event()

    def turn(lane: Lane, messages: Sequence[Message]) -> None:
        assert gate.wait(60)

    letta.on_send = turn
    desk.put(end("a"))
    letta.wait_for_requests(1)
    assert desk.flush(Deadline(cancelled=lambda: True)) is False
    gate.set()
    assert desk.flush(soon())


@pytest.mark.parametrize("closes", [False, True], ids=["flush", "close"])
def test_where_no_thread_can_be_started_whoever_waits_does_the_work(
    letta: WithBlocks, make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", none)
    desk = make("auto")
    desk.put(progress("a", 0.5))
    desk.put(end("b"))
    assert (desk.close if closes else desk.flush)(soon())
    assert len(sent(letta)) == 1 and "50% a" in letta.boards["agent-1"]


# -- close --------------------------------------------------------------------------------------------------------


def test_close_gives_up_progress_delivers_ends_and_closes_the_connections(
    letta: WithBlocks, make: Callable[..., Desk]
) -> None:
    desk = make("messages")
    letta.failures = [errors.LettaConnectionError()]
    desk.put(end("a"))
    letta.wait_for_requests(1)
    desk.put(progress("b", 0.5))
    assert desk.close(soon())
    assert len(sent(letta)) == 1 and letta.closed == 1
    assert desk._stats.snapshot()["dropped"] == {"in_progress at shutdown": 1}


def test_close_says_what_is_left_and_why(
    letta: WithBlocks, make: Callable[..., Desk], caplog: pytest.LogCaptureFixture
) -> None:
    desk = make("messages")
    letta.always = letta.probe_error = UNAUTHORIZED
    desk.put(end("a"))
    assert desk.close(Deadline.after(1.0)) is False
    (line,) = [r.getMessage() for r in caplog.records if "not delivered" in r.getMessage()]
    assert "1 task end(s)" in line and "Invalid credentials" in line
    assert logging.ERROR in {r.levelno for r in caplog.records}


def test_no_thread_outlives_a_closed_desk(letta: WithBlocks, make: Callable[..., Desk]) -> None:
    desk = make("auto")
    desk.put(progress("a", 0.5))
    desk.put(end("b"))
    assert desk.close(soon())
    with desk._crew.lock:
        assert desk._crew.settled.wait_for(lambda: not any(w.has_thread for w in desk._workers()), 60)


@pytest.mark.parametrize(
    ("mode", "wakes", "sent"),
    [("auto", True, 1), ("messages", True, 1), ("board", True, 0), ("auto", False, 0), ("messages", False, 0)],
)
def test_a_task_that_waits_for_a_person_wakes_the_agent(
    make: Callable[..., Desk], letta: WithBlocks, mode: str, wakes: bool, sent: int
) -> None:
    desk = make(mode)
    desk.put(dataclasses.replace(progress("a"), waiting=True, content="waits for a person", wakes=wakes))
    assert desk.flush(soon())
    assert len(letta.delivered) == sent


@pytest.mark.parametrize("chat", [None, "conv-22222222-2222-4222-8222-222222222222"])
@pytest.mark.parametrize("under_way", [True, False])
def test_that_a_task_waits_is_not_told_once_it_goes_on(
    make: Callable[..., Desk], letta: WithBlocks, chat: str | None, under_way: bool
) -> None:
    gate = threading.Event()

    def turn(lane: Lane, messages: Sequence[Message]) -> None:
        gate.wait(60.0)

    letta.always = errors.LettaConnectionError("nobody listens")
    letta.on_send = turn
    desk = make("auto")
    desk.put(progress("a", 0.3, "which?", chat_id=chat, waiting=True))
    letta.wait_for_requests(1)
    if not under_way:
        # The first write of the board: after it the server is known to answer, and what failed is sent again at once.
        assert until(lambda: letta.boards, 60.0)
        gate.set()
        assert until(lambda: desk._stats.snapshot()["retries"], 60.0)
    desk.put(progress("a", 0.4, "goes on", chat_id=chat))
    letta.always = None
    gate.set()
    assert desk.flush(soon())
    desk.put(end("a", chat_id=chat))
    assert desk.flush(soon())
    assert ['status="completed"' in told for told in sent(letta)] == [True], sent(letta)


def test_that_a_task_waits_is_not_told_if_it_goes_on_right_before_the_request(
    make: Callable[..., Desk], letta: WithBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make("auto")
    moved = LaneWorker._moved

    def goes_on(self: LaneWorker, parcels: list[Parcel]) -> bool:
        desk.put(progress("a", 0.4, "goes on"))
        return moved(self, parcels)

    monkeypatch.setattr(LaneWorker, "_moved", goes_on)
    desk.put(progress("a", 0.3, "which?", waiting=True))
    assert until(lambda: desk._stats.snapshot()["reports"] == 2, 60.0)
    assert desk.flush(soon())
    assert sent(letta) == []


@pytest.mark.parametrize("others", [0, 1])
def test_that_a_task_waits_is_not_told_if_it_goes_on_while_the_agent_is_busy(
    make: Callable[..., Desk], letta: WithBlocks, others: int
) -> None:
    letta.runs = [Run(f"run-{uuid.uuid4()}", 0.0)]
    desk = make("auto")
    with desk._crew.lock:  # they go out together
        for name in ["a", "b"][: 1 + others]:
            desk.put(progress(name, 0.3, "which?", waiting=True))
    assert until(lambda: letta.calls.count("active_runs") >= 2, 60.0)
    desk.put(progress("a", 0.4, "goes on"))
    letta.runs = []
    assert desk.flush(soon())
    assert ['task="b"' in told for told in sent(letta)] == [True] * others, sent(letta)
    (lane,) = desk.stats()["lanes"].values()
    assert (lane["waiting"], lane["in_flight"], lane["last_error"]) == (0, 0, None)
    desk.put(end("a"))
    assert desk.flush(soon())
    assert 'status="completed"' in sent(letta)[-1]


def test_that_a_task_waits_is_not_told_again_if_it_goes_on_before_that_is_seen_to_be_erased(
    make: Callable[..., Desk], letta: WithBlocks
) -> None:
    desk = make("auto")

    def erases_it(lane: Lane, messages: Sequence[Message]) -> None:
        letta.forgotten.update(message.otid for message in messages)
        desk.put(progress("a", 0.4, "goes on"))

    letta.on_send = erases_it
    desk.put(progress("a", 0.3, "which?", waiting=True))
    letta.wait_for_requests(1)
    assert desk.flush(soon())
    assert len(letta.requests) == 1


CONVERSATION = "conv-11111111-1111-4111-8111-111111111111"


@pytest.mark.parametrize("chat", [None, CONVERSATION])
@pytest.mark.parametrize("delivery", ["messages", "auto"])
def test_a_task_whose_end_is_worth_no_message_is_forgotten_all_the_same(
    make: Callable[..., Desk], delivery: str, chat: str | None
) -> None:
    desk = make(delivery)
    desk.put(progress("a", 0.5, chat_id=chat, waiting=True))  # somebody has to act, and is told so
    assert desk.flush(soon())
    desk.put(dataclasses.replace(end("a", chat_id=chat), wakes=False))
    assert desk.flush(soon())
    courier = desk._courier
    assert not courier._last_lane
    assert not any(lane.mailbox._paces for lane in courier._lanes.values())


def test_ends_for_ever_new_conversations_cost_a_bounded_number_of_lanes_while_the_server_is_away(
    make: Callable[..., Desk], letta: WithBlocks
) -> None:
    letta.always = errors.LettaConnectionError("nobody listens")
    desk = make("messages", max_pending_tasks=5)
    for number in range(50):
        desk.put(end(f"e{number}", chat_id=f"conv-11111111-1111-4111-8111-{number:012}"))
    with desk._crew.lock:
        # As many as wait, those under way before anybody knew that the server is away, and the agent's own.
        assert len(desk._courier._lanes) <= 5 + 16 + 1
    letta.always = None
    with desk._crew.lock:
        desk._crew.circuits.bring_forward(0.0)
        for worker in desk._courier.workers():
            worker.wake()
    desk.flush(soon())  # False: ends were given up
    lost, told = 0, 0
    for lane, messages in letta.delivered:
        for message in messages:
            counted = re.search(r'summary completed="(\d+)"', message.content)
            if counted is None:
                told += 1
            else:
                assert lane.conversation_id is None
                lost += int(counted[1])
    assert lost + told == 50
    assert lost >= 50 - 5 - 16  # those under way when there was no room are no part of the bound
