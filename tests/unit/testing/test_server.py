"""`InMemoryLetta` does what Letta 0.16.8 was measured to do, and what a test asks it to."""

from __future__ import annotations

import ast
import json
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from otel_letta.testing import InMemoryLetta, ReceivedMessage, faults
from tests.support.full_letta import FullLetta

PASSWORD = "open sesame"
UNKNOWN = "123e4567-e89b-42d3-8456-426614174000"


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with FullLetta() as server:
        yield server


@pytest.fixture
def agent(letta: InMemoryLetta) -> str:
    return letta.create_agent("assistant")


@pytest.fixture
def client(letta: InMemoryLetta) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=letta.base_url, timeout=10, trust_env=False) as http:
        yield http


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def say(client: httpx.Client, agent: str, *contents: Any, **body: Any) -> httpx.Response:
    messages = [user(content) for content in contents]
    return client.post(f"/v1/agents/{agent}/messages", json={"messages": messages, **body})


def listed(client: httpx.Client, agent: str, **params: Any) -> list[str]:
    rows = client.get(f"/v1/agents/{agent}/messages", params=params).json()
    return [row["content"] for row in rows if row["message_type"] != "system_message"]


def start_block(client: httpx.Client, agent: str, label: str = "task_progress", **fields: Any) -> str:
    block: str = client.post("/v1/blocks/", json={"label": label, "value": "", **fields}).json()["id"]
    client.patch(f"/v1/agents/{agent}/core-memory/blocks/attach/{block}").raise_for_status()
    return block


class TestAccess:
    @pytest.fixture(autouse=True)
    def password(self, letta: InMemoryLetta) -> None:
        letta.password = PASSWORD

    @pytest.mark.parametrize("path", ["/v1/health/", "/v1/health", "/v1/ready/"])
    def test_health_needs_no_password(self, client: httpx.Client, path: str) -> None:
        response = client.get(path)
        assert (response.status_code, response.json()) == (200, {"version": "0.16.8", "status": "ok"})

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": f"Bearer {PASSWORD}"},
            {"X-BARE-PASSWORD": f"password {PASSWORD}"},
            {"Authorization": "Bearer wrong", "X-BARE-PASSWORD": f"password {PASSWORD}"},
        ],
    )
    def test_the_right_password_opens(self, client: httpx.Client, headers: dict[str, str]) -> None:
        assert client.get("/v1/agents/", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"bearer {PASSWORD}"},
            {"Authorization": PASSWORD},
            {"X-BARE-PASSWORD": PASSWORD},
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/agents/", "/v1/agents", "/v1/nothing"])
    def test_anything_else_is_unauthorized(self, client: httpx.Client, headers: dict[str, str], path: str) -> None:
        response = client.get(path, headers=headers)
        assert (response.status_code, response.json()) == (401, {"detail": "Unauthorized"})
        assert "www-authenticate" not in response.headers

    def test_the_password_can_be_rotated(self, letta: InMemoryLetta, client: httpx.Client) -> None:
        letta.password = "new"
        assert client.get("/v1/agents/", headers={"Authorization": f"Bearer {PASSWORD}"}).status_code == 401
        assert client.get("/v1/agents/", headers={"Authorization": "Bearer new"}).status_code == 200

    def test_a_recorded_request_has_no_password(self, letta: InMemoryLetta, client: httpx.Client) -> None:
        client.get("/v1/agents/", headers={"Authorization": f"Bearer {PASSWORD}", "X-Other": "seen"})
        (request,) = letta.requests
        assert request.headers["authorization"] == "***"
        assert request.headers["x-other"] == "seen"
        assert PASSWORD not in repr(request)


class TestPaths:
    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("/v1/agents?limit=3", "/v1/agents/?limit=3"),
            ("/v1/blocks", "/v1/blocks/"),
            ("/v1/runs", "/v1/runs/"),
            ("/v1/conversations", "/v1/conversations/"),
            (f"/v1/agents/agent-{UNKNOWN}/", f"/v1/agents/agent-{UNKNOWN}"),
            (f"/v1/agents/agent-{UNKNOWN}/messages/", f"/v1/agents/agent-{UNKNOWN}/messages"),
        ],
    )
    def test_a_wrong_trailing_slash_is_redirected(self, client: httpx.Client, wrong: str, right: str) -> None:
        response = client.get(wrong)
        assert (response.status_code, response.headers["location"]) == (307, right)

    def test_unknown_paths_and_methods(self, client: httpx.Client) -> None:
        assert client.get("/v2/agents/").status_code == 404
        assert client.put("/v1/agents/").status_code == 405

    @pytest.mark.parametrize(
        ("path", "prefix"),
        [
            ("/v1/agents/{}", "agent"),
            ("/v1/agents/{}/messages", "agent"),
            ("/v1/agents/{}/core-memory/blocks", "agent"),
            ("/v1/conversations/{}", "conv"),
            ("/v1/blocks/{}", "block"),
            ("/v1/runs/{}", "run"),
        ],
    )
    def test_ids_are_refused_or_not_found(self, client: httpx.Client, path: str, prefix: str) -> None:
        missing = client.get(path.format(f"{prefix}-{UNKNOWN}"))
        assert missing.status_code == 404
        for malformed in ("mine", f"{prefix}-123e4567-e89b-12d3-8456-426614174000"):  # the second: uuid of version 1
            response = client.get(path.format(malformed))
            assert response.status_code == 422
            assert response.json()["detail"].startswith("[{'type': 'string_pattern_mismatch'")
            assert response.json()["examples"][0].startswith(f"{prefix}-")

    def test_an_unknown_agent_is_named(self, client: httpx.Client) -> None:
        response = say(client, f"agent-{UNKNOWN}", "hello")
        assert response.json() == {"detail": f"Agent with ID agent-{UNKNOWN} not found"}


class TestAgents:
    def test_an_agent_starts_with_a_system_message(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        state = client.get(f"/v1/agents/{agent}").json()
        assert (state["id"], state["name"], state["memory"]["blocks"]) == (agent, "assistant", [])
        assert len(state["message_ids"]) == 1
        assert len(letta.context(agent)) == 1

    def test_agents_are_created_and_listed_over_http(self, letta: InMemoryLetta, client: httpx.Client) -> None:
        body = {"name": "second", "memory_blocks": [{"label": "human", "value": "Ada"}]}
        created = client.post("/v1/agents/", json=body).json()
        assert [state["id"] for state in client.get("/v1/agents/").json()] == [created["id"]]
        assert client.get("/v1/agents/", params={"name": "other"}).json() == []
        assert letta.board(created["id"], "human") == "Ada"

    def test_an_id_can_be_chosen_if_letta_could_have(self, letta: InMemoryLetta) -> None:
        assert letta.create_agent(agent_id=f"agent-{UNKNOWN}") == f"agent-{UNKNOWN}"
        with pytest.raises(ValueError, match="exists already"):
            letta.create_agent(agent_id=f"agent-{UNKNOWN}")
        with pytest.raises(ValueError, match="not an id"):
            letta.create_agent(agent_id="mine")

    def test_asking_about_an_agent_that_is_not_there_is_a_mistake(self, letta: InMemoryLetta, agent: str) -> None:
        with pytest.raises(LookupError, match="no agent"):
            letta.messages("agent-x")
        with pytest.raises(LookupError, match="no conversation"):
            letta.context(agent, "conv-x")


class TestMessages:
    def test_one_turn(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        response = say(client, agent, "hello")
        body = response.json()
        assert response.status_code == 200
        (reply,) = body["messages"]
        assert (reply["message_type"], reply["content"]) == ("assistant_message", "ack 1")
        assert body["stop_reason"] == {"message_type": "stop_reason", "stop_reason": "end_turn"}
        assert body["usage"]["step_count"] == 1
        assert letta.context(agent)[1:] == ["hello", "ack 1"]
        assert letta.turns == 1

    def test_several_messages_cost_one_turn_and_keep_their_order(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        messages = [
            user("one", otid="report-42", name="reporter", unknown_field=1),
            {"role": "system", "content": "two"},
            {"role": "assistant", "content": [{"type": "text", "text": "th"}, {"type": "text", "text": "ree"}]},
        ]
        client.post(f"/v1/agents/{agent}/messages", json={"messages": messages}).raise_for_status()
        assert letta.turns == 1
        assert letta.prompts(agent)[0][1:] == ["one", "two", "three"]
        assert letta.messages(agent) == [
            ReceivedMessage("user", "one", "report-42", None),
            ReceivedMessage("system", "two", None, None),
            ReceivedMessage("assistant", "three", None, None),
        ]

    def test_a_stored_message_is_listed_as_it_was_sent(self, agent: str, client: httpx.Client) -> None:
        message = user([{"type": "text", "text": "hello"}], otid="free text", name="reporter", sender_id="agent-1")
        client.post(f"/v1/agents/{agent}/messages", json={"messages": [message]}).raise_for_status()
        rows = client.get(f"/v1/agents/{agent}/messages").json()
        row = next(row for row in rows if row["message_type"] == "user_message")
        assert (row["otid"], row["name"], row["sender_id"]) == ("free text", "reporter", "agent-1")
        assert row["content"] == "hello"
        assert datetime.fromisoformat(row["date"]).tzinfo is not None
        run = client.get(f"/v1/runs/{row['run_id']}").json()
        assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
        assert row["id"] in client.get(f"/v1/agents/{agent}").json()["message_ids"]

    def test_input_is_another_way_to_say_one_message(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        assert client.post(f"/v1/agents/{agent}/messages", json={"input": "hello"}).status_code == 200
        assert [message.content for message in letta.messages(agent)] == ["hello"]

    @pytest.mark.parametrize("content", ["nul \0 inside", "lone \ud800 surrogate", "x" * 300_000])
    def test_odd_contents_are_kept(self, letta: InMemoryLetta, agent: str, client: httpx.Client, content: str) -> None:
        body = json.dumps({"messages": [user(content)]}).encode("ascii")
        assert client.post(f"/v1/agents/{agent}/messages", content=body).status_code == 200
        assert letta.messages(agent)[0].content == content
        assert listed(client, agent)[0] == content

    def test_max_steps_zero_keeps_nothing(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        assert say(client, agent, "hello", max_steps=0).status_code == 200
        assert (letta.turns, letta.messages(agent), letta.prompts(agent)) == (0, [], [])
        assert say(client, agent, "hello", max_steps=1).status_code == 200
        assert len(letta.messages(agent)) == 1

    @pytest.mark.parametrize(
        ("body", "status", "detail"),
        [
            ({"messages": []}, 422, "Messages must not be empty"),
            ({"messages": [user("")]}, 400, "Message content is empty or invalid"),
            ({"messages": [user("good"), user([])]}, 400, "Message content is empty or invalid"),
            ({"messages": [user(None)]}, 422, "[{"),
            ({"messages": [user(7)]}, 422, "[{"),
            ({"messages": [user([{"type": "image"}])]}, 422, "[{"),
            ({"messages": [{"role": "tool", "content": "x"}]}, 422, "[{"),
            ({"messages": [user("x", otid=5)]}, 422, "[{"),
            ({"messages": "x"}, 422, "[{"),
            ({"messages": [user("x")], "input": "x"}, 422, "[{"),
            ({"messages": [user("x")], "max_steps": "many"}, 422, "[{"),
            ({"messages": [user("x")], "streaming": True}, 422, "streaming=true is only supported"),
            ({}, 422, "[{"),
            ([], 422, "[{"),
        ],
    )
    def test_bad_requests_are_refused_before_any_turn(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, body: Any, status: int, detail: str
    ) -> None:
        response = client.post(f"/v1/agents/{agent}/messages", json=body)
        assert response.status_code == status
        assert response.json()["detail"].startswith(detail)
        assert (letta.turns, letta.messages(agent)) == (0, [])

    @pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
    def test_a_body_that_is_no_json_is_refused(self, agent: str, client: httpx.Client, raw: bytes) -> None:
        response = client.post(f"/v1/agents/{agent}/messages", content=raw)
        assert response.status_code == 422

    def test_the_default_page_is_the_newest_listed_oldest_first(self, agent: str, client: httpx.Client) -> None:
        for number in range(5):
            say(client, agent, f"m{number}")
        page = client.get(f"/v1/agents/{agent}/messages", params={"limit": 4}).json()
        assert [row["content"] for row in page] == ["m3", "ack 4", "m4", "ack 5"]
        # The trap: to follow the page's last row finds nothing more.
        assert listed(client, agent, limit=4, after=page[-1]["id"]) == []
        assert listed(client, agent, limit=2, before=page[0]["id"]) == ["m2", "ack 3"]

    def test_ascending_pages_reach_everything(self, agent: str, client: httpx.Client) -> None:
        for number in range(5):
            say(client, agent, f"m{number}")
        seen: list[str] = []
        params: dict[str, Any] = {"order": "asc", "limit": 3}
        while page := client.get(f"/v1/agents/{agent}/messages", params=params).json():
            seen += [row["content"] for row in page if row["message_type"] == "user_message"]
            params["after"] = page[-1]["id"]
        assert seen == ["m0", "m1", "m2", "m3", "m4"]

    def test_a_turn_takes_its_time(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        letta.turn_seconds = 0.05
        assert say(client, agent, "hello").elapsed.total_seconds() >= 0.05


class TestConcurrency:
    def both(
        self, letta: InMemoryLetta, agent: str, pool: ThreadPoolExecutor, send: Callable[[str], httpx.Response]
    ) -> list[Future[httpx.Response]]:
        with letta.hold():
            futures = [pool.submit(send, "one")]
            assert letta.wait_for(lambda: letta.in_flight(agent) == 1)
            futures.append(pool.submit(send, "two"))
            assert letta.wait_for(lambda: letta.in_flight(agent) == 2)
        return futures

    def test_two_at_once_both_succeed_and_one_is_lost_from_the_context(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, pool: ThreadPoolExecutor
    ) -> None:
        say(client, agent, "before")
        futures = self.both(letta, agent, pool, lambda content: say(client, agent, content))
        assert [future.result().status_code for future in futures] == [200, 200]
        assert {message.content for message in letta.messages(agent)} == {"before", "one", "two"}
        context = letta.context(agent)[1:]
        assert context[:2] == ["before", "ack 1"]
        assert len({"one", "two"} & set(context)) == 1
        assert letta.in_flight_max(agent) == 2
        assert letta.in_flight(agent) == 0
        # The agent's list of messages in context tells which one it was.
        in_context = set(client.get(f"/v1/agents/{agent}").json()["message_ids"])
        rows = client.get(f"/v1/agents/{agent}/messages").json()
        assert [row["content"] for row in rows if row["id"] in in_context][1:] == context

    def test_one_after_the_other_both_stay(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        say(client, agent, "one")
        say(client, agent, "two")
        assert letta.context(agent)[1:] == ["one", "ack 1", "two", "ack 2"]
        assert letta.in_flight_max(agent) == 1

    def test_conversations_of_one_agent_do_not_disturb_each_other(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, pool: ThreadPoolExecutor
    ) -> None:
        ids = {content: letta.create_conversation(agent) for content in ("one", "two")}

        def send(content: str) -> httpx.Response:
            body = {"messages": [user(content)], "streaming": False}
            return client.post(f"/v1/conversations/{ids[content]}/messages", json=body)

        futures = self.both(letta, agent, pool, send)
        assert [future.result().status_code for future in futures] == [200, 200]
        for content, conversation in ids.items():
            assert letta.context(agent, conversation)[1] == content
        assert len(letta.context(agent)) == 1

    def test_a_running_turn_is_an_active_run(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, pool: ThreadPoolExecutor
    ) -> None:
        active = {"agent_id": agent, "active": "true"}
        with letta.hold():
            future = pool.submit(say, client, agent, "hello")
            assert letta.wait_for(lambda: letta.in_flight(agent) == 1)
            (run,) = client.get("/v1/runs/", params=active).json()
            assert (run["status"], run["agent_id"], run["conversation_id"]) == ("created", agent, None)
            created = datetime.fromisoformat(run["created_at"].replace("Z", "+00:00"))
            assert abs((datetime.now(timezone.utc) - created).total_seconds()) < 60
            assert letta.messages(agent) == []  # stored at the end only
            assert client.get("/v1/runs/", params={**active, "agent_id": f"agent-{UNKNOWN}"}).json() == []
        future.result()
        assert client.get("/v1/runs/", params=active).json() == []
        assert [run["status"] for run in client.get("/v1/runs/", params={"agent_id": agent}).json()] == ["completed"]

    def test_a_client_that_gives_up_does_not_stop_its_turn(
        self, letta: InMemoryLetta, agent: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with (
            letta.hold(),
            httpx.Client(base_url=letta.base_url, timeout=httpx.Timeout(10, read=0.1), trust_env=False) as client,
            pytest.raises(httpx.ReadTimeout),
        ):
            say(client, agent, "hello")
        assert letta.wait_for_messages(agent, 1)[0].content == "hello"
        letta.close()
        assert capfd.readouterr() == ("", "")

    def test_hold_can_be_for_one_agent_and_be_released_early(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, pool: ThreadPoolExecutor
    ) -> None:
        other = letta.create_agent("other")
        with letta.hold(agent) as release:
            future = pool.submit(say, client, agent, "held")
            assert letta.wait_for(lambda: letta.in_flight(agent) == 1)
            assert say(client, other, "free").status_code == 200
            assert not future.done()
            release()
            assert future.result(5).status_code == 200

    def test_a_hold_has_a_limit(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(faults, "HOLD_LIMIT", 0.05)
        with letta.hold():
            response = say(client, agent, "hello")
        assert (response.status_code, response.json()["error"]["type"]) == (504, "llm_timeout")

    def test_many_clients_at_once(self, letta: InMemoryLetta, agent: str, pool: ThreadPoolExecutor) -> None:
        def work(number: int) -> None:
            with httpx.Client(base_url=letta.base_url, timeout=30, trust_env=False) as client:
                for step in range(5):
                    say(client, agent, f"{number}.{step}").raise_for_status()

        for future in [pool.submit(work, number) for number in range(8)]:
            future.result()
        assert len(letta.messages(agent)) == letta.turns == 40
        assert len(letta.requests) == 40


class TestConversations:
    def test_a_conversation_has_its_own_history_and_the_agents_blocks(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        start_block(client, agent, value="3/10 done")
        body = {"summary": "weekly", "id": "conv-mine"}
        created = client.post("/v1/conversations/", params={"agent_id": agent}, json=body).json()
        conversation = created["id"]
        assert conversation != "conv-mine"
        message = {"messages": [user("in here", otid="o1")], "streaming": False}
        answer = client.post(f"/v1/conversations/{conversation}/messages", json=message).json()
        assert answer["messages"][0]["content"] == "ack 1"
        say(client, agent, "out there")

        assert letta.context(agent, conversation)[1:] == ["in here", "ack 1"]
        assert letta.context(agent)[1:] == ["out there", "ack 2"]
        assert "3/10 done" in letta.prompts(agent)[0][0]
        assert [m.conversation_id for m in letta.messages(agent)] == [conversation, None]
        rows = client.get(f"/v1/conversations/{conversation}/messages").json()
        assert [row["content"] for row in rows if row["message_type"] == "user_message"] == ["in here"]
        assert "in here" in listed(client, agent)
        state = client.get(f"/v1/conversations/{conversation}").json()
        assert (state["agent_id"], state["summary"]) == (agent, "weekly")
        assert state["in_context_message_ids"] == [row["id"] for row in rows]

    def test_agent_id_is_a_query_parameter(self, agent: str, client: httpx.Client) -> None:
        assert client.post("/v1/conversations/", json={"agent_id": agent}).status_code == 422
        assert client.post("/v1/conversations/", params={"agent_id": f"agent-{UNKNOWN}"}).status_code == 404
        assert client.post("/v1/conversations/", params={"agent_id": "mine"}).status_code == 422
        assert client.post("/v1/conversations/", params={"agent_id": agent}).status_code == 200
        assert len(client.get("/v1/conversations/", params={"agent_id": agent}).json()) == 1

    def test_the_run_of_a_message_that_was_not_streamed_never_ends(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        conversation = letta.create_conversation(agent)
        client.post(
            f"/v1/conversations/{conversation}/messages", json={"messages": [user("x")], "streaming": False}
        ).raise_for_status()
        (run,) = client.get("/v1/runs/", params={"agent_id": agent, "active": "true"}).json()
        assert (run["status"], run["conversation_id"]) == ("created", None)

    def test_it_streams_unless_told_not_to(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        conversation = letta.create_conversation(agent)
        response = client.post(f"/v1/conversations/{conversation}/messages", json={"messages": [user("x")]})
        assert response.headers["content-type"] == "text/event-stream"
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        assert [json.loads(event)["message_type"] for event in events[:-1]] == [
            "assistant_message",
            "stop_reason",
            "usage_statistics",
        ]
        assert events[-1] == "[DONE]"
        assert client.get("/v1/runs/", params={"agent_id": agent, "active": "true"}).json() == []

    def test_a_failure_inside_a_stream_is_a_200(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        letta.model_failure("500")
        conversation = letta.create_conversation(agent)
        response = client.post(f"/v1/conversations/{conversation}/messages", json={"messages": [user("x")]})
        assert response.status_code == 200
        assert "event: error" in response.text
        assert letta.messages(agent) == []


class TestBlocks:
    def test_a_patch_is_seen_by_the_next_turn_and_costs_none(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        block = start_block(client, agent, limit=2000, description="live", read_only=True, metadata={"v": 1})
        path = f"/v1/agents/{agent}/core-memory/blocks/task_progress"
        answer = client.patch(path, json={"value": "<b>& 3/10", "metadata": {"v": 2}})
        assert answer.status_code == 200
        body = answer.json()
        assert (body["id"], body["value"], body["limit"]) == (block, "<b>& 3/10", 2000)
        assert (body["read_only"], body["description"], body["metadata"]) == (True, "live", {"v": 2})
        assert client.get(path).json() == body == client.get(f"/v1/blocks/{block}").json()
        assert letta.turns == 0
        assert letta.board(agent) == "<b>& 3/10"
        say(client, agent, "hello")
        assert "<b>& 3/10" in letta.prompts(agent)[0][0]

    def test_a_block_reaches_every_agent_that_has_it(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        other = letta.create_agent("other")
        block = start_block(client, agent)
        client.patch(f"/v1/agents/{other}/core-memory/blocks/attach/{block}").raise_for_status()
        client.patch(f"/v1/blocks/{block}", json={"value": "shared"}).raise_for_status()
        assert letta.board(agent) == letta.board(other) == "shared"
        assert client.delete(f"/v1/blocks/{block}").status_code == 200
        assert letta.board(agent) is letta.board(other) is None
        assert client.get(f"/v1/blocks/{block}").status_code == 404

    def test_limits_do_not_hold_and_nul_vanishes(self, agent: str, client: httpx.Client) -> None:
        start_block(client, agent, limit=5)
        path = f"/v1/agents/{agent}/core-memory/blocks/task_progress"
        assert client.patch(path, json={"value": "far\0 too long"}).json()["value"] == "far too long"
        assert client.patch(path, json={"value": None}).json()["value"] == ""
        assert client.post("/v1/blocks/", json={"label": "x", "value": "xx", "limit": 1}).status_code == 200
        assert client.post("/v1/blocks/", json={"label": "x", "value": ""}).json()["limit"] == 100_000

    def test_attaching_is_idempotent_but_a_label_is_unique(self, agent: str, client: httpx.Client) -> None:
        base = f"/v1/agents/{agent}/core-memory/blocks"
        block = start_block(client, agent)
        assert client.patch(f"{base}/attach/{block}").status_code == 200
        assert [row["id"] for row in client.get(base).json()] == [block]
        twin = client.post("/v1/blocks/", json={"label": "task_progress", "value": ""}).json()["id"]
        conflict = client.patch(f"{base}/attach/{twin}")
        assert conflict.status_code == 409
        assert "unique constraint" in conflict.json()["detail"]
        assert client.patch(f"{base}/attach/block-{UNKNOWN}").status_code == 404
        assert client.patch(f"{base}/detach/{block}").json()["memory"]["blocks"] == []
        assert client.patch(f"{base}/attach/{twin}").status_code == 200
        assert len(client.get("/v1/blocks/", params={"label": "task_progress"}).json()) == 2

    def test_a_missing_label_is_not_created(self, agent: str, client: httpx.Client) -> None:
        response = client.patch(f"/v1/agents/{agent}/core-memory/blocks/nolabel", json={"value": "x"})
        assert response.status_code == 404
        assert response.json() == {"detail": f"No block with label 'nolabel' found for agent '{agent}'"}

    @pytest.mark.parametrize("body", [{}, {"label": "x"}, {"value": "x"}, {"label": "x", "value": "", "limit": True}])
    def test_bad_blocks_are_refused(self, client: httpx.Client, body: dict[str, Any]) -> None:
        assert client.post("/v1/blocks/", json=body).status_code == 422


class TestFaults:
    def test_fail_next_answers_instead_of_the_server(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        letta.fail_next(503, {"detail": "overload"}, headers={"Retry-After": "7"}, times=2)
        letta.fail_next(502, "<html>", headers={"Content-Type": "text/html"})
        for _ in range(2):
            response = say(client, agent, "hello")
            assert (response.status_code, response.json()) == (503, {"detail": "overload"})
            assert response.headers["retry-after"] == "7"
        response = say(client, agent, "hello")
        assert (response.status_code, response.text, response.headers["content-type"]) == (502, "<html>", "text/html")
        assert say(client, agent, "hello").status_code == 200
        assert letta.turns == len(letta.messages(agent)) == 1
        assert len(letta.requests) == 4

    def test_fail_next_can_choose_its_requests(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        letta.fail_next(409, method="PATCH", path=r"/blocks/", times=None)
        assert client.get("/v1/blocks/").status_code == 200
        for _ in range(3):
            assert client.patch(f"/v1/blocks/block-{UNKNOWN}", json={}).status_code == 409
        letta.recover()
        assert client.patch(f"/v1/blocks/block-{UNKNOWN}", json={}).status_code == 404

    @pytest.mark.parametrize("status", [204, 401, 307, 599])
    def test_any_status_can_be_scripted(self, letta: InMemoryLetta, client: httpx.Client, status: int) -> None:
        letta.fail_next(status)
        assert client.get("/v1/health/").status_code == status
        assert client.get("/v1/health/").status_code == 200  # on the same connection: nothing is left over

    def test_never_is_no_number_of_times(self, letta: InMemoryLetta) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            letta.fail_next(500, times=0)
        with pytest.raises(ValueError, match="at least 1"):
            letta.model_failure(times=0)
        with pytest.raises(ValueError, match="unknown failure"):
            letta.model_failure("418")  # type: ignore[arg-type]

    @pytest.mark.parametrize("lands", [False, True])
    def test_a_dropped_message_may_have_landed(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, lands: bool
    ) -> None:
        letta.drop_next(after_processing=lands, path="/messages")
        assert client.get("/v1/health/").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            say(client, agent, "hello")
        assert [message.content for message in letta.messages(agent)] == (["hello"] if lands else [])
        assert say(client, agent, "again").status_code == 200

    def test_poison_spoils_its_whole_request(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        letta.refuse(lambda content: "poison" in content)
        letta.refuse(lambda content: len(content) > 100, 413, {"detail": "too large"})
        assert say(client, agent, "good", "poison pill").status_code == 400
        assert say(client, agent, "x" * 101).status_code == 413
        assert say(client, agent, "good").status_code == 200
        assert [message.content for message in letta.messages(agent)] == ["good"]
        assert letta.turns == 1

    @pytest.mark.parametrize(
        ("kind", "status", "error"),
        [
            ("500", 500, "llm_error"),
            ("429", 429, "llm_rate_limit"),
            ("401", 401, "llm_authentication"),
            ("400", 400, "llm_bad_request"),
            ("402", 402, "llm_insufficient_credits"),
            ("504", 504, "llm_timeout"),
            ("context", 400, None),
        ],
    )
    def test_a_model_that_fails_costs_a_turn_and_leaves_nothing(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, kind: Any, status: int, error: str | None
    ) -> None:
        letta.model_failure(kind, times=1)
        response = say(client, agent, "hello")
        assert response.status_code == status
        assert "retry-after" not in response.headers
        if error is None:
            assert response.json()["detail"].startswith("CONTEXT_WINDOW_EXCEEDED")
        else:
            assert response.json()["error"]["type"] == error
        assert (letta.turns, letta.messages(agent), len(letta.context(agent))) == (1, [], 1)
        assert [run["status"] for run in client.get("/v1/runs/").json()] == ["failed"]
        assert say(client, agent, "hello").status_code == 200

    def test_a_model_fails_until_it_recovers(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        letta.model_failure()
        assert [say(client, agent, "x").status_code for _ in range(3)] == [500, 500, 500]
        letta.recover()
        assert say(client, agent, "x").status_code == 200

    def test_stop_and_resume_listening(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        url = letta.base_url
        say(client, agent, "before")
        letta.stop_listening()
        letta.stop_listening()
        with pytest.raises(httpx.TransportError):
            say(client, agent, "lost")  # the pooled connection is cut, too
        with pytest.raises(httpx.ConnectError):
            say(client, agent, "lost")
        letta.resume_listening()
        letta.resume_listening()
        assert letta.base_url == url
        assert say(client, agent, "after").status_code == 200
        assert letta.context(agent)[1:] == ["before", "ack 1", "after", "ack 2"]

    def test_a_turn_survives_the_network(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client, pool: ThreadPoolExecutor
    ) -> None:
        with letta.hold():
            future = pool.submit(say, client, agent, "hello")
            assert letta.wait_for(lambda: letta.in_flight(agent) == 1)
            letta.stop_listening()
            with pytest.raises(httpx.TransportError):
                future.result(5)
        assert letta.wait_for_messages(agent, 1)


class TestObservation:
    def test_requests_are_recorded_as_they_came(self, letta: InMemoryLetta, client: httpx.Client) -> None:
        client.get("/v1/runs/", params={"agent_id": "a b", "active": "true"})
        client.post("/v1/blocks/", json={"label": "x", "value": "y"})
        client.post("/v1/blocks/", content=b"\xffraw")
        first, second, third = letta.requests
        assert (first.method, first.path, first.body) == ("GET", "/v1/runs/", None)
        assert first.query == {"agent_id": "a b", "active": "true"}
        assert second.body == {"label": "x", "value": "y"}
        assert third.body == "\ufffdraw"
        assert first.time <= second.time <= third.time

    def test_waiting_says_whether_it_came(self, letta: InMemoryLetta, agent: str) -> None:
        assert letta.wait_for(lambda: letta.turns == 0)
        assert not letta.wait_for(lambda: letta.turns == 1, timeout=0.01)
        with pytest.raises(TimeoutError, match="0 of 2 messages"):
            letta.wait_for_messages(agent, 2, timeout=0.01)

    def test_reports_are_read_out_of_messages(self, letta: InMemoryLetta, agent: str, client: httpx.Client) -> None:
        first = (
            '<task-progress task="Refactor &quot;a&gt;b&quot;" task_id="t1" chat_id="chat-123" status="completed" '
            "progress='100%'>done &lt;b&gt; &amp; more<result>42 &amp; up</result></task-progress>"
        )
        second = '<task-progress task="Zwei" status="in_progress">läuft\n</task-progress>'
        say(client, agent, f"Progress of tasks:\n{first}\n\n{second}\nNo reply is needed.", "<task-progress/>")
        assert letta.reports(agent) == [
            {
                "task": 'Refactor "a>b"',
                "task_id": "t1",
                "chat_id": "chat-123",
                "status": "completed",
                "progress": "100%",
                "content": "done <b> & more",
                "result": "42 & up",
            },
            {"task": "Zwei", "status": "in_progress", "content": "läuft", "result": None},
            {"content": "", "result": None},
        ]

    def test_a_report_that_is_not_well_formed_is_an_error(
        self, letta: InMemoryLetta, agent: str, client: httpx.Client
    ) -> None:
        say(client, agent, "<task-progress>a & b</task-progress>")
        with pytest.raises(ElementTree.ParseError):
            letta.reports(agent)

    def test_no_board_is_none(self, letta: InMemoryLetta, agent: str) -> None:
        assert letta.board(agent) is None


class TestLifecycle:
    def test_it_needs_a_start(self) -> None:
        with pytest.raises(RuntimeError, match="start"):
            _ = InMemoryLetta().base_url

    def test_start_and_close_may_be_called_twice(self) -> None:
        letta = InMemoryLetta()
        letta.start()
        letta.start()
        agent = letta.create_agent()
        assert httpx.get(f"{letta.base_url}/v1/agents/{agent}", trust_env=False).status_code == 200
        letta.close()
        letta.close()
        with pytest.raises(httpx.ConnectError):
            httpx.get(letta.base_url, trust_env=False)
        assert letta.messages(agent) == []

    def test_close_abandons_what_is_running_and_leaves_no_thread(self, pool: ThreadPoolExecutor) -> None:
        before = set(threading.enumerate())
        with InMemoryLetta(turn_seconds=60) as letta:
            agent = letta.create_agent()
            url = f"{letta.base_url}/v1/agents/{agent}/messages"
            future = pool.submit(httpx.post, url, json={"messages": [user("x")]}, timeout=30, trust_env=False)
            assert letta.wait_for(lambda: letta.in_flight(agent) == 1)
        with pytest.raises(httpx.TransportError):
            future.result(5)
        assert letta.messages(agent) == []
        ours = [t for t in threading.enumerate() if t not in before and not t.name.startswith("ThreadPoolExecutor")]
        for thread in ours:
            thread.join(5)
        assert not any(thread.is_alive() for thread in ours)

    @pytest.mark.parametrize(
        "raw",
        [
            b"nonsense\r\n\r\n",
            b"POST /v1/blocks/ HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf",
            b"POST /v1/blocks/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/blocks/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"GET http://[/ HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /v1/hea",
            b"",
        ],
    )
    def test_broken_clients_leave_no_trace(
        self, letta: InMemoryLetta, client: httpx.Client, raw: bytes, capfd: pytest.CaptureFixture[str]
    ) -> None:
        address = ("127.0.0.1", int(letta.base_url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        assert letta.requests == []
        assert client.get("/v1/health/").status_code == 200
        letta.close()
        assert capfd.readouterr() == ("", "")

    def test_one_connection_serves_many_requests(self, letta: InMemoryLetta) -> None:
        address = ("127.0.0.1", int(letta.base_url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=5) as connection, connection.makefile("rb") as answers:
            for _ in range(3):
                connection.sendall(b"GET /v1/health/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    length = int(value) if name == b"Content-Length" else length
                assert json.loads(answers.read(length))["status"] == "ok"


def test_lettas_own_client_is_content() -> None:
    import letta_client

    with FullLetta(PASSWORD) as letta:
        agent = letta.create_agent("assistant")
        otid = str(uuid.uuid4())
        with letta_client.Letta(base_url=letta.base_url, api_key=PASSWORD, max_retries=0) as client:
            assert client.health().version == "0.16.8"
            assert client.agents.retrieve(agent).name == "assistant"
            answer = client.agents.messages.create(agent, messages=[user("hello", otid=otid)])
            assert answer.messages[0].content == "ack 1"
            rows = client.agents.messages.list(agent, limit=10).items
            assert [row.otid for row in rows if row.message_type == "user_message"] == [otid]
            block = client.blocks.create(label="task_progress", value="0/10", read_only=True)
            client.agents.blocks.attach(block.id, agent_id=agent)
            assert client.agents.blocks.update("task_progress", agent_id=agent, value="3/10").value == "3/10"
            assert client.runs.list(agent_id=agent, active=True).items == []
            conversation = client.conversations.create(agent_id=agent)
            assert len(client.conversations.retrieve(conversation.id).in_context_message_ids) == 1
            with pytest.raises(letta_client.NotFoundError):
                client.agents.retrieve(f"agent-{UNKNOWN}")
        assert letta.board(agent) == "3/10"


def test_it_needs_nothing_but_the_standard_library() -> None:
    package = Path(faults.__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in package.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in imported if not name.startswith("otel_letta.testing.")} == {
        "otel_letta.runtime.imports",  # for the package's names
        "otel_letta.testing",
        "pytest",  # the plugin, which pytest loads
    }


# what agents answer


def test_an_agent_answers_what_the_test_wants(letta: InMemoryLetta, client: httpx.Client, agent: str) -> None:
    other = letta.create_agent()
    letta.answer_next("for the other", agent_id=other)
    letta.answer_next("first", calls=[("send_mail", {"to": "ops"})], reasoning="Hm.")
    letta.answer_next(calls=[("sleep", {})])

    def turn(agent_id: str) -> list[dict[str, Any]]:
        answer = say(client, agent_id, "hello").json()
        assert len({row["run_id"] for row in answer["messages"]}) == 1
        return list(answer["messages"])

    first = turn(agent)
    assert [row["message_type"] for row in first] == [
        "reasoning_message",
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
    ]
    assert first[0]["reasoning"] == "Hm."
    assert first[1]["tool_call"]["name"] == "send_mail"
    assert json.loads(first[1]["tool_call"]["arguments"]) == {"to": "ops"}
    assert first[2]["tool_call_id"] == first[1]["tool_calls"][0]["tool_call_id"]
    assert first[3]["content"] == "first"
    assert [row["message_type"] for row in turn(agent)] == ["tool_call_message", "tool_return_message"]
    assert turn(agent)[0]["content"].startswith("ack")
    assert turn(other)[0]["content"] == "for the other"
    with pytest.raises(ValueError, match="at least 1"):
        letta.answer_next("never", times=0)
