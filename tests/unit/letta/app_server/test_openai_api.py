"""The App Server's OpenAI-compatible API: keys, what is sent again and what is not, and the words of its errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import respx

from otel_letta import errors
from otel_letta.delivery.gate import exchange, settle
from otel_letta.errors import LettaError
from otel_letta.letta.app_server import openai_api
from otel_letta.letta.app_server.openai_api import AppServerHttpTransport
from otel_letta.letta.flavour import Flavour, ServerInfo
from otel_letta.letta.transport import Block, Message
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings

BASE = "http://letta.test:4500"
AGENT = "agent-local-1"
ONE, TWO, END = Message("report one", "otid-1"), Message("report two", "otid-2"), Message("the end", "otid-3")
ANSWER = {"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": "ok"}}], "usage": {}}


def settings(**options: Any) -> Settings:
    return Settings.resolve(environ={}, **{"base_url": BASE, "agent_id": AGENT, **options})


@pytest.fixture
def letta() -> Iterator[AppServerHttpTransport]:
    made = AppServerHttpTransport(settings())
    yield made
    made.close()


@pytest.fixture
def chat() -> Iterator[respx.Route]:
    with respx.mock(assert_all_called=False) as router:
        router.get("/v1/models").respond(200, json={"data": [{"id": AGENT}, {"id": 7}, 8, {"id": "agent-local-2"}]})
        yield router.post(f"{BASE}/v1/chat/completions").respond(200, json=ANSWER)


def send(letta: AppServerHttpTransport, *messages: Message) -> dict[str, Any]:
    return letta.send(letta.lane(None, None), messages)


def failure(letta: AppServerHttpTransport, *messages: Message) -> LettaError:
    with pytest.raises(LettaError) as raised:
        send(letta, *(messages or [ONE]))
    return raised.value


def texts(chat: respx.Route) -> list[str]:
    return [json.loads(call.request.content)["messages"][0]["content"] for call in chat.calls]


def keys(chat: respx.Route, header: str = "Idempotency-Key") -> list[str]:
    return [call.request.headers[header] for call in chat.calls]


def error(message: str, status: int) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "x"}})


# -- requests ----------------------------------------------------------------------------------------------------------


def test_all_reports_share_one_message(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    """With a chat key the server delivers the last user message only."""
    assert send(letta, ONE, TWO) == ANSWER
    body = json.loads(chat.calls.last.request.content)
    assert body == {"model": AGENT, "messages": [{"role": "user", "content": "report one\n\nreport two"}]}


def test_the_chat_key_is_one_for_each_agent_and_host_or_title(
    chat: respx.Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(host: str, **options: Any) -> str:
        monkeypatch.setattr(openai_api.socket, "gethostname", lambda: host)
        made = AppServerHttpTransport(settings(**options))
        send(made, ONE)
        made.close()
        return keys(chat, "X-Letta-Chat-Key")[-1]

    assert key("a") == key("a")
    assert (
        len({key("a"), key("b"), key("a", agent_id="agent-local-2"), key("a", conversation="Berichte für Köln")}) == 4
    )
    assert key("a", conversation="Reports") == key("b", conversation="Reports")


def test_the_idempotency_key_is_that_of_the_messages(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    other = AppServerHttpTransport(settings())
    for transport, messages in ((letta, [ONE]), (other, [ONE]), (letta, [TWO]), (letta, [ONE, TWO])):
        send(transport, *messages)
    other.close()
    first, again, *others = keys(chat)
    assert first == again
    assert len({first, *others}) == 3


def test_a_chat_id_does_not_make_another_lane(letta: AppServerHttpTransport) -> None:
    """An existing conversation cannot be named here, so no gate but the agent's keeps a new key's requests apart."""
    assert letta.lane(None, "local-conv-1") == letta.lane(AGENT, None)
    assert letta.lane(AGENT, None).server == BASE


def test_the_first_request_goes_alone(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    """Two at once with a new key would make two conversations."""
    inside, together = [], []
    lock = threading.Lock()
    started = threading.Barrier(4)

    def turn(request: httpx.Request) -> httpx.Response:
        with lock:
            inside.append(request)
            together.append(len(inside))
        threading.Event().wait(0.02)
        with lock:
            inside.remove(request)
        return httpx.Response(200, json=ANSWER)

    chat.side_effect = turn

    def work(number: int) -> None:
        started.wait(60)
        messages = [Message(f"n{number}", f"o{number}")]
        exchange(letta, letta.lane(None, None), messages, until=Deadline(), patience=10, busy_patience=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert together == [1, 1, 1, 1]


# -- silence and failures ----------------------------------------------------------------------------------------------


def test_after_silence_the_same_request_joins_the_turn(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    chat.side_effect = [httpx.ReadTimeout("slow"), *(httpx.Response(200, json=ANSWER) for _ in range(3))]
    assert failure(letta, ONE, TWO).may_have_landed is True
    lane = letta.lane(None, None)
    assert letta.landed(lane, ["otid-1", "otid-2"]) == {}  # nobody can tell
    messages = [ONE, TWO, END]
    exchange(letta, lane, messages, until=Deadline(), patience=5, busy_patience=1, check_landed_first=True)
    assert texts(chat) == ["report one\n\nreport two", "report one\n\nreport two", "the end"]
    first, again, new = keys(chat)
    assert first == again != new
    send(letta, ONE)  # and it is settled now
    assert texts(chat)[-1] == "report one"


def test_an_end_that_is_sent_again_without_its_progress_still_joins(
    letta: AppServerHttpTransport, chat: respx.Route
) -> None:
    """Delivery drops progress after silence. A request for the rest alone would be another turn with the same end."""
    chat.side_effect = [httpx.ReadTimeout("slow"), httpx.Response(200, json=ANSWER)]
    failure(letta, ONE, END)
    send(letta, END)
    first, again = keys(chat)
    assert first == again
    assert texts(chat) == ["report one\n\nthe end"] * 2


def test_a_turn_whose_llm_failed_has_delivered_and_is_not_tried_again(
    letta: AppServerHttpTransport, chat: respx.Route
) -> None:
    """The server tried sixteen times by then, and the message stands in the conversation."""
    chat.side_effect = [error('{"llm_error": 1}', 500)]
    raised = failure(letta, ONE, TWO)
    assert type(raised) is errors.LettaModelError
    assert (raised.status, raised.may_have_landed, raised.parks) == (500, True, False)
    lane = letta.lane(None, None)
    stored = settle(letta, lane, ["otid-1", "otid-2", "otid-3"], until=Deadline(), busy_patience=1.0)
    assert stored == {"otid-1", "otid-2"}
    exchange(letta, lane, [ONE, TWO], until=Deadline(), patience=5, busy_patience=1, check_landed_first=True)
    assert len(chat.calls) == 1


def test_a_500_after_silence_settles_that_request(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    chat.side_effect = [httpx.ReadTimeout("slow"), error("llm", 500), httpx.Response(200, json=ANSWER)]
    failure(letta, ONE)
    failure(letta, ONE)
    assert letta.landed(letta.lane(None, None), ["otid-1"]) == {"otid-1": "otid-1"}
    send(letta, TWO)
    assert texts(chat) == ["report one", "report one", "report two"]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>hello"),
        httpx.Response(200, text=""),
        httpx.Response(200, json=[1]),
        httpx.Response(200, text="[" * 90_000),
        httpx.Response(204),
    ],
)
def test_an_answer_that_is_none_is_not_taken_for_delivery(
    letta: AppServerHttpTransport, chat: respx.Route, answer: httpx.Response
) -> None:
    chat.side_effect = [answer, httpx.Response(200, json=ANSWER)]
    raised = failure(letta)
    assert type(raised) is errors.LettaServerError
    assert raised.may_have_landed is True
    send(letta, ONE)
    assert len(set(keys(chat))) == 1


CHAT_TABLE: list[tuple[httpx.Response, type[LettaError], bool, bool, list[str]]] = [
    (
        error("missing websocket bearer token", 401),
        errors.LettaAuthenticationError,
        True,
        False,
        ["Invalid credentials", "missing websocket bearer token", "LETTA_PASSWORD"],
    ),
    (error("Origin not allowed", 403), errors.LettaAuthenticationError, True, False, ["Origin not allowed"]),
    (
        error("The model 'agent-x' does not exist", 404),
        errors.LettaAgentNotFoundError,
        True,
        False,
        ["agent not found", "LETTA_AGENT_ID"],
    ),
    (httpx.Response(404), errors.LettaServerError, True, True, ["--openai-api", "OTEL_LETTA_SERVER=app-server"]),
    (error("missing model", 400), errors.LettaRequestError, False, False, ["refused", "missing model"]),
    (error("too large", 413), errors.LettaRequestError, False, False, ["413"]),
    (httpx.Response(413, text="too large"), errors.LettaServerError, False, True, ["413"]),
    (httpx.Response(307, headers={"Location": "https://e.test/"}), errors.LettaServerError, True, True, ["redirects"]),
    (httpx.Response(500, text="<html>"), errors.LettaServerError, False, True, ["500"]),
    (httpx.Response(502, text="<html>"), errors.LettaServerError, False, True, ["502"]),
    (httpx.Response(503, json={"error": "starting"}), errors.LettaServerError, False, True, ["503"]),
    (httpx.Response(503, text="<html>"), errors.LettaServerError, False, True, ["503"]),
    (httpx.Response(429), errors.LettaRateLimitError, False, True, ["rate"]),
]


@pytest.mark.parametrize(("answer", "kind", "parks", "may_have_landed", "words"), CHAT_TABLE)
def test_each_answer_becomes_the_error_that_says_what_is_wrong(
    letta: AppServerHttpTransport,
    chat: respx.Route,
    answer: httpx.Response,
    kind: type[LettaError],
    parks: bool,
    may_have_landed: bool,
    words: list[str],
) -> None:
    chat.side_effect = [answer]
    raised = failure(letta)
    assert type(raised) is kind
    assert (raised.status, raised.parks, raised.may_have_landed) == (answer.status_code, parks, may_have_landed)
    assert all(word in str(raised) for word in words), str(raised)


@pytest.mark.parametrize("body", ['{"error": 7}', "[]", "null", '{"error": {"message": {}}}', "[" * 90_000])
def test_odd_error_bodies_are_errors_all_the_same(letta: AppServerHttpTransport, chat: respx.Route, body: str) -> None:
    for status, kind in ((401, errors.LettaAuthenticationError), (400, errors.LettaServerError)):
        chat.side_effect = [httpx.Response(status, text=body)]
        assert type(failure(letta)) is kind


def test_not_even_a_half_of_the_token_is_left_where_a_long_text_is_cut(chat: respx.Route) -> None:
    letta = AppServerHttpTransport(settings(password="open-sesame-1001"))
    for length in (2_000, 200):
        for filler in ("\u200b", "x"):
            chat.side_effect = [error(filler * (length - 8) + "open-sesame-1001", 400)]
            assert "open" not in str(failure(letta))
    letta.close()


def test_what_is_remembered_has_an_end(
    letta: AppServerHttpTransport, chat: respx.Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letta._unsettled, "_most", 3)
    monkeypatch.setattr(letta._taken, "_most", 3)
    for failing in (httpx.ReadTimeout("slow"), error("llm", 500)):
        chat.side_effect = failing if isinstance(failing, Exception) else lambda request: error("llm", 500)
        for number in range(5):
            failure(letta, Message("x", f"{type(failing)} {number}"))
    assert len(letta._unsettled) == len(letta._taken) == 3


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_agents_are_the_models_of_the_server(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    assert letta.agents(9) == [{"id": AGENT}, {"id": "agent-local-2"}]
    assert letta.agents(1) == [{"id": AGENT}]
    assert letta.describe("anyone") == {"id": "anyone"}
    letta.probe(letta.lane(None, None))
    assert not chat.called  # none of this costs a turn


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error("invalid websocket bearer token", 401), errors.LettaAuthenticationError),
        (httpx.Response(404), errors.LettaServerError),
        (httpx.Response(302, headers={"Location": "/"}), errors.LettaServerError),
        (error("oops", 500), errors.LettaServerError),
        (httpx.ConnectError("refused"), errors.LettaConnectionError),
    ],
)
def test_the_probe_says_what_is_wrong(
    letta: AppServerHttpTransport, answer: httpx.Response | Exception, kind: type[LettaError]
) -> None:
    with respx.mock() as router:
        router.get(f"{BASE}/v1/models").mock(side_effect=[answer])
        with pytest.raises(LettaError) as raised:
            letta.probe(letta.lane(None, None))
    assert type(raised.value) is kind  # no 500 of this route is the LLM's
    assert raised.value.may_have_landed is False


def test_a_server_without_this_api_is_refused_at_once() -> None:
    info = ServerInfo(Flavour.APP_SERVER, openai_api=False)
    with pytest.raises(errors.LettaUnsupportedError, match="--openai-api") as raised:
        AppServerHttpTransport(settings(), info)
    assert raised.value.parks


def test_there_is_no_board(letta: AppServerHttpTransport) -> None:
    block = Block("a/b", "b", "", 9)
    for call in (
        lambda: letta.blocks(AGENT),
        lambda: letta.create_block(AGENT, "b", "", 9, "", {}),
        lambda: letta.write_block(block, "", {}),
    ):
        with pytest.raises(errors.LettaUnsupportedError, match="no board"):
            call()


def test_it_can_leave_at_any_time(letta: AppServerHttpTransport, chat: respx.Route) -> None:
    began = time.monotonic()
    letta.ending.bring_forward(began + 60.0)
    letta.close(until=letta.ending)
    assert time.monotonic() - began < 5.0
    assert letta.active_runs(letta.lane(None, None)) == []
    assert letta.in_context(letta.lane(None, None), ["a"]) == {"a"}


def test_new_settings_are_used(
    letta: AppServerHttpTransport, chat: respx.Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    letta.reload()
    assert letta.lane(None, None).agent_id == AGENT
    monkeypatch.setattr(Settings, "refresh", lambda self: settings(agent_id="agent-local-2", password="new"))
    letta.reload()
    send(letta, ONE)
    assert json.loads(chat.calls.last.request.content)["model"] == "agent-local-2"
    assert chat.calls.last.request.headers["Authorization"] == "Bearer new"
