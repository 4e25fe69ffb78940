"""The receiver of OpenHands' webhooks: what it tells, whom it listens to, and what it never keeps."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from otel_letta.cli.main import app as cli
from otel_letta.integrations.openhands import webhooks
from otel_letta.integrations.openhands.webhooks import OpenHandsWebhooks, is_loopback
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import recorded

SECRET = "sk-this-must-not-be-kept"
CONVERSATION = "21c1737601f44c0abf845dd2e515b4e5"
ASKED = {"kind": "MessageEvent", "source": "user", "id": "m", "llm_message": {"content": []}}


def status(value: str, event_id: str = "") -> dict[str, Any]:
    return {"kind": "ConversationStateUpdateEvent", "key": "execution_status", "value": value, "id": event_id}


async def _post(
    app: OpenHandsWebhooks,
    path: str,
    parts: list[bytes],
    *,
    method: str,
    client: str,
    headers: dict[str, str],
    root: str,
) -> int:
    scope = {
        "type": "http",
        "method": method,
        "path": root + path,
        "root_path": root,
        "client": (client, 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    messages = [
        {"type": "http.request", "body": part, "more_body": n < len(parts) - 1} for n, part in enumerate(parts)
    ] + [{"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return int(sent[0]["status"])


def post(
    app: OpenHandsWebhooks,
    path: str,
    body: object,
    *,
    method: str = "POST",
    client: str = "127.0.0.1",
    root: str = "",
    **headers: str,
) -> int:
    """One request, as an ASGI server hands it over; a list of bytes is a body in parts."""
    parts = body if isinstance(body, list) and body and isinstance(body[0], bytes) else [json.dumps(body).encode()]
    return asyncio.run(_post(app, path, parts, method=method, client=client, headers=headers, root=root))


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server


@pytest.fixture
def agent(letta: InMemoryLetta) -> str:
    return letta.create_agent()


@pytest.fixture
def settings(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages", "message_interval": 0}


@pytest.fixture
def app(settings: dict[str, Any]) -> Iterator[OpenHandsWebhooks]:
    made = OpenHandsWebhooks(**settings)
    yield made
    made.close()


def ends(app: OpenHandsWebhooks, letta: InMemoryLetta, agent: str) -> list[dict[str, Any]]:
    assert app.flush(10)
    return [report for report in letta.reports(agent) if report["status"] != "in_progress"]


# -- what is told ----------------------------------------------------------------------------------------------------


def test_what_a_real_server_posted(app: OpenHandsWebhooks, letta: InMemoryLetta, agent: str) -> None:
    for request in recorded("webhooks"):
        assert post(app, request["path"], request["body"]) == 200
    assert [
        (end["status"], end.get("error", "").partition(":")[0], end["result"]) for end in ends(app, letta, agent)
    ] == [
        ("completed", "", "hello.py prints hello 0, 1 and 2."),
        ("failed", "LLMServiceUnavailableError", None),
        ("failed", "MaxIterationsReached", None),
    ]
    assert {end["chat_id"] for end in ends(app, letta, agent)} == {"agent-1"}
    assert ends(app, letta, agent)[0]["task_id"] == "21c17376-01f4-4c0a-bf84-5dd2e515b4e5/1"


def test_a_batch_that_comes_again_is_heard_once(app: OpenHandsWebhooks, letta: InMemoryLetta, agent: str) -> None:
    for request in recorded("webhooks"):
        for _ in range(2):
            post(app, request["path"], request["body"])
    assert len(ends(app, letta, agent)) == 3


def test_tags_say_who_asked(settings: dict[str, Any], letta: InMemoryLetta, agent: str) -> None:
    app = OpenHandsWebhooks(chat_id="default", message_id="msg-0", **settings)
    tags = {"lettachat": "chat-123", "lettamessage": "msg-456", "lettaname": "Tidy up", "other": 5}
    post(app, "/conversations", {"id": CONVERSATION, "execution_status": "idle", "tags": tags})
    post(app, f"/events/{CONVERSATION}", [ASKED, status("running"), status("finished")])
    post(app, f"/events/{CONVERSATION[::-1]}", [ASKED, status("running"), status("finished")])
    told = [(end["chat_id"], end["message_id"], end["task"]) for end in ends(app, letta, agent)]
    assert told == [("chat-123", "msg-456", "Tidy up"), ("default", "msg-0", "OpenHands")]
    app.close()


def test_a_server_that_stops_tells_what_is_open(app: OpenHandsWebhooks, letta: InMemoryLetta, agent: str) -> None:
    post(app, f"/events/{CONVERSATION}", [ASKED, status("running")])
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [report["status"] for report in letta.reports(agent)][-1] == "failed"


def test_a_mounted_application_sees_its_own_paths(app: OpenHandsWebhooks) -> None:
    assert post(app, f"/events/{CONVERSATION}", [], root="/openhands") == 200


# -- what is never kept ----------------------------------------------------------------------------------------------


def test_full_state_is_neither_logged_nor_kept(app: OpenHandsWebhooks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for request in recorded("webhooks"):
        post(app, request["path"], request["body"])
    post(app, "/conversations", [b'{"id": "' + SECRET.encode()])
    app.flush(10)
    assert SECRET not in caplog.text
    gc.collect()
    kept = [thing for thing in gc.get_objects() if type(thing) is dict and thing.get("api_key") == SECRET]
    assert len(kept) == 0


# -- what comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/events/not-an-id", [], 404),
        ("/events/", [], 404),
        ("/events/../conversations", [], 404),
        ("/", [], 404),
        ("/conversations", [b"{"], 400),
        ("/conversations", [b"[" * 100_000 + b"]" * 100_000], 200),  # a model can make OpenHands send this
        ("/conversations", [b"[" + b"9" * 5_000 + b"]"], 200),
        ("/conversations", [b"\xff\xfe"], 400),
        ("/conversations", "text", 200),
        ("/conversations", {"id": {}, "tags": []}, 200),
        ("/conversations", {"id": CONVERSATION, "tags": ["x"], "execution_status": {}}, 200),
        (f"/events/{CONVERSATION}", {"kind": "MessageEvent"}, 200),
        (f"/events/{CONVERSATION}", [None, 5, [], {"kind": 5}, {"kind": "NoSuchEvent"}], 200),
    ],
)
def test_odd_requests_are_answered_and_told_to_nobody(
    app: OpenHandsWebhooks, path: str, body: object, answer: int
) -> None:
    assert post(app, path, body) == answer
    assert app.flush(10)
    assert app.stats()["reports"] == 0


def test_other_methods_are_refused(app: OpenHandsWebhooks) -> None:
    assert post(app, "/conversations", {}, method="GET") == 405


def test_a_body_that_is_too_long_is_read_and_forgotten(
    app: OpenHandsWebhooks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent-server sends what was refused again for ever, and nothing that came after it."""
    monkeypatch.setattr(webhooks, "MOST_BYTES", 100)
    monkeypatch.setattr(webhooks, "_MOST_DISCARDED", 1_000)
    event = json.dumps([ASKED]).encode()
    assert post(app, f"/events/{CONVERSATION}", [event, b" " * 100]) == 200
    assert post(app, f"/events/{CONVERSATION}", [event, b" " * 500, b" " * 500]) == 413
    assert "a webhook of more than 100 bytes is ignored" in caplog.text
    assert app.flush(10)
    assert app.stats()["reports"] == 0


def test_more_bodies_at_once_than_fit_are_told_to_come_again(
    app: OpenHandsWebhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_MOST_BODIES", 1)
    scope = {"type": "http", "method": "POST", "path": "/conversations", "client": ("127.0.0.1", 1), "headers": []}

    async def main() -> list[int]:
        rest = asyncio.Event()
        answers: list[int] = []

        async def slow() -> Any:
            await rest.wait()
            return {"type": "http.request", "body": b"{}"}

        async def quick() -> Any:
            return {"type": "http.request", "body": b"{}"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        first = asyncio.create_task(app(dict(scope), slow, send))
        await asyncio.sleep(0)
        await app(dict(scope), quick, send)
        rest.set()
        await first
        await app(dict(scope), quick, send)
        return answers

    assert asyncio.run(main()) == [503, 200, 200]


def test_a_sender_that_falls_silent_loses_its_place(app: OpenHandsWebhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_BODY_PATIENCE", 0.01)
    scope = {"type": "http", "method": "POST", "path": "/conversations", "client": ("127.0.0.1", 1), "headers": []}
    answers: list[int] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))
    assert answers == [408]
    assert app._bodies == 0


@pytest.mark.parametrize(("version", "closes"), [("1.1", True), ("2", False)])
def test_only_http_1_is_told_to_close_the_connection(app: OpenHandsWebhooks, version: str, closes: bool) -> None:
    """HTTP/2 forbids that header, and its servers fail on it."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": version, "method": "GET", "path": "/", "client": None, "headers": []}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 403
    assert (b"connection" in dict(sent[0]["headers"])) is closes


def test_a_websocket_is_refused(app: OpenHandsWebhooks) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket", "path": "/conversations", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close"}]


def test_a_request_that_breaks_off_is_none(app: OpenHandsWebhooks) -> None:
    async def main() -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/conversations", "client": ("127.0.0.1", 1), "headers": []}
        await app(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(main()) == 400


# -- who may speak ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "headers", "answer"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("192.0.2.1", {}, 403),
        ("", {}, 403),
        ("127.0.0.1", {"Origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"Origin": "null"}, 403),
        ("127.0.0.1", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.1"}, 403),
    ],
)
def test_without_a_token_only_programs_of_this_machine_are_heard(
    app: OpenHandsWebhooks, client: str, headers: dict[str, str], answer: int
) -> None:
    assert post(app, "/conversations", {}, client=client, **headers) == answer


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ("Bearer right", 200),
        ("Bearer wrong", 401),
        ("right", 401),
        ("bearer", 401),
        ("Bearer right ", 401),
        (None, 401),
    ],
)
def test_with_a_token_everybody_who_knows_it_is_heard(settings: dict[str, Any], sent: str | None, answer: int) -> None:
    app = OpenHandsWebhooks(token="right", **settings)
    headers = {} if sent is None else {"Authorization": sent}
    assert post(app, "/conversations", {}, client="192.0.2.1", **headers) == answer
    assert post(app, "/conversations", {}, client="127.0.0.1", **headers) == answer
    app.close()


def test_a_blank_token_opens_nothing(settings: dict[str, Any]) -> None:
    app = OpenHandsWebhooks(token=" \n", **settings)
    assert post(app, "/conversations", {}, client="192.0.2.1", Authorization="Bearer  \n") == 403
    app.close()


def test_the_line_break_of_a_token_file_is_no_part_of_it(settings: dict[str, Any]) -> None:
    app = OpenHandsWebhooks(token="right\n", **settings)
    assert post(app, "/conversations", {}, client="192.0.2.1", Authorization="Bearer right") == 200
    app.close()


def test_a_token_shows_nowhere(settings: dict[str, Any]) -> None:
    app = OpenHandsWebhooks(token="the-token-itself", **settings)
    assert "the-token-itself" not in repr(vars(app))
    app.close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_are_this_machine_s_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_command_refuses_to_listen_to_everybody_without_a_token() -> None:
    done = CliRunner().invoke(cli(), ["openhands-webhooks", "--host", "0.0.0.0"])
    assert done.exit_code == 2
    assert "set OTEL_LETTA_WEBHOOK_TOKEN" in done.output


def test_a_blank_token_is_none_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_WEBHOOK_TOKEN", " \n")
    assert CliRunner().invoke(cli(), ["openhands-webhooks", "--host", "0.0.0.0"]).exit_code == 2


def test_the_command_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(cli(), ["openhands-webhooks"])
    assert done.exit_code == 1
    assert "pip install 'otel-letta[webhooks]'" in done.output


def test_an_application_that_nobody_closes_has_delivered_at_the_end(letta: InMemoryLetta, agent: str) -> None:
    program = f"""
import asyncio, json
from otel_letta.integrations.openhands.webhooks import OpenHandsWebhooks
app = OpenHandsWebhooks(base_url={letta.base_url!r}, agent_id={agent!r})
body = json.dumps({[ASKED, status("finished")]!r}).encode()
scope = {{"type": "http", "method": "POST", "path": "/events/{CONVERSATION}", "client": ("127.0.0.1", 1)}}
async def receive(): return {{"type": "http.request", "body": body}}
async def send(message): pass
asyncio.run(app(scope, receive, send))
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
    assert [report["status"] for report in letta.reports(agent)] == ["completed"]
