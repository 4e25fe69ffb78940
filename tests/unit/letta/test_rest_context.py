"""What a REST server has of our messages: however far back, and whatever became of the agent's context since."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import httpx
import pytest
import respx

from otel_letta.letta.history import answers_in
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Lane, Message
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.unit.letta.rest_support import MESSAGES, transport

OURS = "otid-ours"


@pytest.fixture
def server() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as made:
        yield made


@pytest.fixture(params=["agent", "conversation"])
def lane_of(request: pytest.FixtureRequest, server: InMemoryLetta) -> tuple[RestTransport, Lane]:
    agent = server.create_agent()
    letta = RestTransport(Settings.resolve(environ={}, base_url=server.base_url, agent_id=agent))
    request.addfinalizer(letta.close)
    conversation = server.create_conversation(agent) if request.param == "conversation" else None
    return letta, letta.lane(None, conversation)


def send(letta: RestTransport, lane: Lane, otid: str = "") -> None:
    letta.send(lane, [Message("text", otid or str(uuid.uuid4()))])


def test_a_message_that_is_nowhere_any_more_is_not_in_the_context(lane_of: tuple[RestTransport, Lane]) -> None:
    letta, lane = lane_of
    send(letta, lane, OURS)
    assert letta.in_context(lane, ["message-deleted"]) == set()


# -- however far back ---------------------------------------------------------------------------------------------


def test_a_message_is_found_behind_hundreds_of_others(lane_of: tuple[RestTransport, Lane]) -> None:
    letta, lane = lane_of
    send(letta, lane, OURS)
    for _ in range(6):
        letta.send(lane, [Message("text", str(uuid.uuid4())) for _ in range(40)])
    assert list(letta.landed(lane, [OURS, "never sent"], age=0.0)) == [OURS]


def page(first: int, number: int, age: timedelta) -> httpx.Response:
    """A page of the listing; the newest messages have the highest numbers."""
    date = (datetime.now(timezone.utc) - age).isoformat()
    return httpx.Response(200, json=[{"id": f"message-{n}", "otid": None, "date": date} for n in range(first, number)])


def test_the_search_ends_at_the_time_of_the_request(http: respx.MockRouter) -> None:
    letta = transport()
    pages = [page(200, 300, timedelta(0)), page(100, 200, timedelta(minutes=9)), page(0, 100, timedelta(hours=1))]
    route = http.get(MESSAGES).mock(side_effect=pages)

    assert letta.landed(letta.lane(None, None), [OURS], age=300.0) == {}
    assert [dict(call.request.url.params).get("before") for call in route.calls] == [None, "message-200"]


def test_a_server_that_cannot_page_is_not_asked_for_ever(http: respx.MockRouter) -> None:
    letta = transport()
    route = http.get(MESSAGES).mock(side_effect=lambda request: page(0, 100, timedelta(0)))
    assert letta.landed(letta.lane(None, None), [OURS], age=1e9) == {}
    assert route.call_count == 2


def test_of_a_message_that_was_sent_again_the_newest_counts(lane_of: tuple[RestTransport, Lane]) -> None:
    letta, lane = lane_of
    send(letta, lane, OURS)
    first = letta.landed(lane, [OURS])[OURS]
    for _ in range(60):
        send(letta, lane)
    send(letta, lane, OURS)
    assert letta.landed(lane, [OURS], age=600.0)[OURS] != first


# -- whatever became of the context -------------------------------------------------------------------------------


def has(letta: RestTransport, lane: Lane) -> bool:
    """Whether the agent has our message, as delivery asks it."""
    stored = letta.landed(lane, [OURS])
    return letta.in_context(lane, list(stored.values())) == set(stored.values())


def compacted(server: InMemoryLetta, letta: RestTransport, lane: Lane) -> None:
    send(letta, lane, OURS)
    server.compact(lane.agent_id, lane.conversation_id)


def compacted_by_its_own_turn(server: InMemoryLetta, letta: RestTransport, lane: Lane) -> None:
    server.compact(lane.agent_id, lane.conversation_id, in_next_turn=True)
    send(letta, lane, OURS)


def compacted_by_a_later_turn(server: InMemoryLetta, letta: RestTransport, lane: Lane) -> None:
    send(letta, lane, OURS)
    pass_time(server, lane)
    server.compact(lane.agent_id, lane.conversation_id, in_next_turn=True)
    send(letta, lane)


def compacted_and_talked_to(server: InMemoryLetta, letta: RestTransport, lane: Lane) -> None:
    compacted(server, letta, lane)
    send(letta, lane)


def reset(server: InMemoryLetta, letta: RestTransport, lane: Lane) -> None:
    send(letta, lane, OURS)
    server.reset(lane.agent_id, lane.conversation_id)


def reset_and_talked_to(server: InMemoryLetta, letta: RestTransport, lane: Lane) -> None:
    reset(server, letta, lane)
    pass_time(server, lane)
    send(letta, lane)


def pass_time(server: InMemoryLetta, lane: Lane, seconds: int = 10, otid: str | None = None) -> None:
    """Let what is stored so far, or the turn of that message alone, be so much older."""
    with server._world.changed:
        history = server._world.known_agent(lane.agent_id).history
        runs = {message.run_id for message in history if otid in (None, message.otid)}
        for message in history:
            if message.run_id in runs:
                message.date = (datetime.fromisoformat(message.date) - timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    "happens",
    [
        compacted,
        compacted_by_its_own_turn,
        compacted_by_a_later_turn,
        compacted_and_talked_to,
        reset,
        reset_and_talked_to,
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_what_a_compaction_or_a_reset_put_away_was_delivered(
    server: InMemoryLetta,
    lane_of: tuple[RestTransport, Lane],
    happens: Callable[[InMemoryLetta, RestTransport, Lane], None],
    before: int,
) -> None:
    letta, lane = lane_of
    for _ in range(before):
        send(letta, lane)
    happens(server, letta, lane)
    assert has(letta, lane)


@pytest.mark.parametrize("later", [0, 3])
@pytest.mark.parametrize("before", ["nothing", "messages", "a summary"])
def test_what_a_turn_at_the_same_time_erased_was_not(
    server: InMemoryLetta, lane_of: tuple[RestTransport, Lane], before: str, later: int
) -> None:
    """Also where that read the context in time, but made its messages when ours had ended."""
    letta, lane = lane_of
    if before != "nothing":
        send(letta, lane)
    if before == "a summary":
        server.compact(lane.agent_id, lane.conversation_id)
    with server.hold(turns=1):
        other = threading.Thread(target=lambda: send(letta, lane))
        other.start()
        assert server.wait_for(lambda: server.in_flight(lane.agent_id) == 1, 30)
        send(letta, lane, OURS)
    other.join(30)
    pass_time(server, lane, later, OURS)
    assert not has(letta, lane)


def test_nor_what_it_erased_before_it_compacted(server: InMemoryLetta, lane_of: tuple[RestTransport, Lane]) -> None:
    letta, lane = lane_of
    with server.hold(turns=1):
        other = threading.Thread(target=lambda: send(letta, lane))
        other.start()
        assert server.wait_for(lambda: server.in_flight(lane.agent_id) == 1, 30)
        send(letta, lane, OURS)
        server.compact(lane.agent_id, lane.conversation_id, in_next_turn=True)
    other.join(30)
    assert not has(letta, lane)


# -- answers that are stored ------------------------------------------------------------------------------------------


def test_a_stored_answer_is_the_one_of_the_messages_own_turn(
    lane_of: tuple[RestTransport, Lane], server: InMemoryLetta
) -> None:
    letta, lane = lane_of
    server.answer_next("before")
    server.answer_next("ours", calls=[("send_mail", {})])
    send(letta, lane)
    letta.send(lane, [Message("text", OURS), Message("text", "otid-too")])
    for _ in range(3):
        letta.send(lane, [Message("text", str(uuid.uuid4())) for _ in range(40)])

    found = letta.stored_answers(lane, [OURS, "otid-too", "never sent"], age=0.0)

    assert set(found) == {OURS, "otid-too"}
    assert found[OURS] is found["otid-too"]
    answer = letta.answer(lane, found[OURS])
    assert (answer.text, answer.tools) == ("ours", ("send_mail",))
    assert answer.run_id is not None


def test_no_answer_is_taken_from_another_turn() -> None:
    rows = [  # the newest first
        {"message_type": "assistant_message", "run_id": "run-2", "content": "theirs"},
        {"message_type": "user_message", "run_id": "run-2", "otid": "theirs"},
        {"message_type": "user_message", "run_id": "run-1", "otid": "unanswered"},
        {"message_type": "user_message", "run_id": None, "otid": "without a run"},
    ]
    assert answers_in(iter(rows), ["unanswered", "without a run"]) == {}
