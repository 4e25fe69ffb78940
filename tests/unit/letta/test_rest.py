"""Letta's REST API: what is sent, and what answers mean for delivery."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import respx

from otel_letta import errors
from otel_letta.letta.answers import moment
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Block, Lane, Message, Run
from tests.unit.letta.rest_support import (
    AGENT,
    BASE,
    CONVERSATION,
    HELLO,
    MESSAGES,
    transport,
)


@pytest.fixture
def letta() -> Iterator[RestTransport]:
    made = transport()
    yield made
    made.close()


def test_looking_at_a_deleted_conversation_says_the_same(letta: RestTransport, http: respx.MockRouter) -> None:
    http.get(path__startswith="/v1/conversations/").respond(404, json={"detail": "Conversation not found with id='x'"})
    lane = letta.lane(None, CONVERSATION)
    for look in (lambda: letta.landed(lane, ["x"]), lambda: letta.in_context(lane, ["x"])):
        with pytest.raises(errors.LettaConversationNotFoundError):
            look()


# -- ages -------------------------------------------------------------------------------------------------------------


DATE = "Sun, 22 Nov 2026 12:00:00 GMT"


def runs_of(
    letta: RestTransport, http: respx.MockRouter, *rows: dict[str, Any], chat_id: str | None = None
) -> list[Run]:
    http.get(f"{BASE}/v1/runs/").respond(200, json=list(rows), headers={"Date": DATE})
    return letta.active_runs(letta.lane(None, chat_id))


@pytest.mark.parametrize(
    ("created", "age"),
    [
        ("2026-11-22T11:59:00Z", 60.0),
        ("2026-11-22T11:59:00.000000Z", 60.0),
        ("2026-11-22T11:59:00+00:00", 60.0),
        ("2026-11-22T12:59:00+01:00", 60.0),
        ("2026-11-22T11:59:00", 60.0),
        ("2026-11-22T11:59:00.5Z", 59.5),
        ("2026-11-22T11:59:00.123456789Z", 59.876544),
        ("yesterday", None),
        (None, None),
        (1234, None),
    ],
)
def test_a_run_s_age_is_by_the_server_s_clock_not_by_ours(
    letta: RestTransport, http: respx.MockRouter, created: Any, age: float | None
) -> None:
    (run,) = runs_of(letta, http, {"id": "run-1", "created_at": created, "conversation_id": None})
    assert run.age == (None if age is None else pytest.approx(age))


def test_times_are_read_on_python_3_10_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Strict:
        """`datetime` with the fromisoformat of 3.10: no Z, three or six digits of a fraction."""

        @staticmethod
        def fromisoformat(text: str) -> Any:
            import datetime
            import re

            seen.append(text)
            if not re.fullmatch(r"[-\d]{10}T[:\d]{8}(\.\d{3}|\.\d{6})?([+-]\d\d:\d\d)?", text):
                raise ValueError(text)
            return datetime.datetime.fromisoformat(text)

    monkeypatch.setattr("otel_letta.letta.answers.datetime", Strict)
    for text in ("2026-11-22T11:59:00Z", "2026-11-22T11:59:00.1Z", "2026-11-22T11:59:00.1234567+00:00"):
        assert moment(text) is not None
    assert len(seen) == 3


def test_a_conversation_s_own_runs_count_for_its_lane_only(letta: RestTransport, http: respx.MockRouter) -> None:
    rows = [
        {"id": "run-default", "created_at": None, "conversation_id": None},
        {"id": "run-conversation", "created_at": None, "conversation_id": CONVERSATION},
        # Stays `created` for ever, with no conversation in it (measured).
        {"id": "run-ghost", "conversation_id": None, "metadata": {"run_type": "send_conversation_message"}},
        "nonsense",
        {"conversation_id": None},
    ]
    assert [run.id for run in runs_of(letta, http, *rows)] == ["run-default"]  # type: ignore[arg-type]
    assert [run.id for run in runs_of(letta, http, *rows, chat_id=CONVERSATION)] == ["run-conversation"]  # type: ignore[arg-type]


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_several_messages_are_one_request_in_order(letta: RestTransport, http: respx.MockRouter) -> None:
    route = http.post(MESSAGES).respond(200, json={"messages": []})
    letta.send(letta.lane(None, None), [Message("1", "a"), Message("2", "b")])

    body = json.loads(route.calls.last.request.content)
    assert [message["content"] for message in body["messages"]] == ["1", "2"]
    assert "max_steps" not in body and "streaming" not in body


def test_max_steps_is_sent_when_it_is_set(http: respx.MockRouter) -> None:
    letta = transport(max_steps=1)
    route = http.post(MESSAGES).respond(200, json={"messages": []})
    letta.send(letta.lane(None, None), HELLO)
    assert json.loads(route.calls.last.request.content)["max_steps"] == 1


def test_a_conversation_s_message_goes_to_the_conversation_and_does_not_stream(
    letta: RestTransport, http: respx.MockRouter
) -> None:
    http.get(f"{BASE}/v1/conversations/{CONVERSATION}").respond(200, json={"agent_id": AGENT})
    route = http.post(f"{BASE}/v1/conversations/{CONVERSATION}/messages").respond(200, json={"messages": []})
    letta.send(letta.lane(None, CONVERSATION), HELLO)
    assert json.loads(route.calls.last.request.content)["streaming"] is False


@pytest.mark.parametrize(
    "chat_id", [None, "", "chat-123", "conv-foo", f"{CONVERSATION}\n", f"x{CONVERSATION}", "conv-"]
)
def test_other_chat_ids_are_only_told(letta: RestTransport, chat_id: str | None) -> None:
    assert letta.lane(None, chat_id) == Lane(BASE, AGENT, None)


def test_the_answer_comes_back_as_it_is(letta: RestTransport, http: respx.MockRouter) -> None:
    answer = {"messages": [{"content": "ack"}], "usage": {"step_count": 1}, "unheard_of": None}
    http.post(MESSAGES).respond(200, json=answer)
    assert letta.send(letta.lane(None, None), HELLO) == answer


# -- looks ------------------------------------------------------------------------------------------------------------


def test_messages_are_found_by_our_ids_among_the_newest(letta: RestTransport, http: respx.MockRouter) -> None:
    rows = [{"id": "message-1", "otid": "a"}, {"id": "message-2", "otid": None}, {"id": "message-3", "otid": ["odd"]}]
    route = http.get(MESSAGES).respond(200, json=rows)

    assert letta.landed(letta.lane(None, None), ["a", "b"]) == {"a": "message-1"}
    assert route.calls.last.request.url.params["order"] == "desc"


def test_a_server_that_does_not_show_the_context_is_believed(letta: RestTransport, http: respx.MockRouter) -> None:
    http.get(f"{BASE}/v1/agents/{AGENT}").respond(200, json={"id": AGENT})
    assert letta.in_context(letta.lane(None, None), ["message-1"]) == {"message-1"}


def test_only_what_is_in_the_context_counts(letta: RestTransport, http: respx.MockRouter) -> None:
    http.get(f"{BASE}/v1/agents/{AGENT}").respond(200, json={"message_ids": ["system", "message-1"]})
    rows = [{"id": identifier} for identifier in ("system", "message-1", "message-2")]
    http.get(MESSAGES).respond(200, json=rows)
    assert letta.in_context(letta.lane(None, None), ["message-1", "message-2"]) == {"message-1"}


# -- blocks -----------------------------------------------------------------------------------------------------------


BLOCKS = f"{BASE}/v1/agents/{AGENT}/core-memory/blocks"


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_the_blocks_route_has_no_board(
    letta: RestTransport, http: respx.MockRouter, status: int
) -> None:
    http.get(BLOCKS).respond(status, json={"detail": "Not Found"})
    http.get(f"{BASE}/v1/agents/{AGENT}").respond(200, json={})
    with pytest.raises(errors.LettaUnsupportedError):
        letta.blocks(AGENT)


def test_an_unknown_agent_is_not_taken_for_a_server_without_blocks(
    letta: RestTransport, http: respx.MockRouter
) -> None:
    http.get(BLOCKS).respond(404, json={"detail": f"Agent with ID {AGENT} not found"})
    with pytest.raises(errors.LettaAgentNotFoundError):
        letta.blocks(AGENT)


def test_an_address_without_letta_is_not_taken_for_a_server_without_blocks(
    letta: RestTransport, http: respx.MockRouter
) -> None:
    http.get(path__startswith="/").respond(404, html="<html>nothing here</html>")
    with pytest.raises(errors.LettaServerError, match="LETTA_BASE_URL"):
        letta.blocks(AGENT)


def test_a_server_that_lists_blocks_but_makes_none_has_no_board(letta: RestTransport, http: respx.MockRouter) -> None:
    http.post(f"{BASE}/v1/blocks/").respond(405, json={"detail": "Method Not Allowed"})
    with pytest.raises(errors.LettaUnsupportedError):
        letta.create_block(AGENT, "label", "", 100, "", {})


def test_a_block_that_could_not_be_attached_is_deleted_again(letta: RestTransport, http: respx.MockRouter) -> None:
    http.post(f"{BASE}/v1/blocks/").respond(200, json={"id": "block-1", "label": "label"})
    http.patch(f"{BLOCKS}/attach/block-1").respond(409, json={"detail": "duplicate key … [SQL: …]"})
    deleted = http.delete(f"{BASE}/v1/blocks/block-1").respond(200, json=None)

    with pytest.raises(errors.LettaConflictError, match="already has a block labelled 'label'"):
        letta.create_block(AGENT, "label", "", 100, "", {})
    assert deleted.called


def test_a_deleted_block_is_not_blamed_on_the_agent_id(letta: RestTransport, http: respx.MockRouter) -> None:
    http.patch(f"{BASE}/v1/blocks/block-1").respond(404, json={"detail": "Block not found with id='block-1'"})
    with pytest.raises(errors.LettaConflictError, match="was deleted") as raised:
        letta.write_block(Block("block-1", "label", "", 100), "value", {})
    assert raised.value.status == 404 and not raised.value.parks


@pytest.mark.parametrize("limit", [None, 0, -5, "many"])
def test_a_block_without_a_usable_limit_gets_a_careful_one(
    letta: RestTransport, http: respx.MockRouter, limit: Any
) -> None:
    http.get(BLOCKS).respond(200, json=[{"id": "block-1", "label": "x", "limit": limit, "metadata": None}])
    (block,) = letta.blocks(AGENT)
    assert block.limit == 2_000 and block.metadata == {}
