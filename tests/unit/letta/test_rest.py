"""How Letta's answers become results and errors. The rows are those of the measured table (Letta 0.16.8)."""

from __future__ import annotations

import functools
import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
import respx

from otel_letta import errors
from otel_letta.errors import LettaError
from otel_letta.letta.rest import RestTransport, _moment
from otel_letta.letta.transport import Block, Lane, Message, Run
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta

BASE = "https://letta.test"
AGENT = "agent-11111111-1111-4111-8111-111111111111"
CONVERSATION = "conv-22222222-2222-4222-8222-222222222222"
PASSWORD = "open sesame 1001"
HELLO = [Message("hello", "otid-1")]
MESSAGES = f"{BASE}/v1/agents/{AGENT}/messages"


def transport(base_url: str = BASE, agent_id: str = AGENT, **options: Any) -> RestTransport:
    options.setdefault("password", PASSWORD)
    return RestTransport(Settings.resolve(environ={}, base_url=base_url, agent_id=agent_id, **options))


@pytest.fixture
def letta() -> Iterator[RestTransport]:
    made = transport()
    yield made
    made.close()


@pytest.fixture
def http() -> Iterator[respx.MockRouter]:
    with respx.mock(assert_all_called=False) as router:
        yield router


def failure_of(response: httpx.Response | Exception, *, chat_id: str | None = None) -> LettaError:
    """What `send` raises when the server answers so."""
    letta = one_for_all()
    with respx.mock() as router:
        router.post(path__regex=".*").mock(side_effect=[response])
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, chat_id), HELLO)
    return raised.value


@functools.cache
def one_for_all() -> RestTransport:
    return transport()  # each loads the certificates of this machine, which takes its time


def llm(kind: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": "An error occurred with the LLM request.", "detail": "…"}}


PYTHON_REPR = "[{'type': 'string_pattern_mismatch', 'loc': ('path', 'agent_id'), 'msg': 'String should match'}]"

Authentication, AgentNotFound, Model = (
    errors.LettaAuthenticationError, errors.LettaAgentNotFoundError, errors.LettaModelError
)  # fmt: skip
Server, Request, Conflict = errors.LettaServerError, errors.LettaRequestError, errors.LettaConflictError
RateLimit, Timeout = errors.LettaRateLimitError, errors.LettaTimeoutError

# status, body, class, parks, words of the message
TABLE: list[tuple[int, Any, type[LettaError], bool, list[str]]] = [
    (
        401,
        {"detail": "Unauthorized"},
        Authentication,
        True,
        ["Invalid credentials", "LETTA_AGENT_ID", "LETTA_PASSWORD"],
    ),
    (403, {"detail": "Forbidden"}, Authentication, True, ["Invalid credentials"]),
    (404, {"detail": f"Agent with ID {AGENT} not found"}, AgentNotFound, True, ["agent not found", "LETTA_AGENT_ID"]),
    (404, {"detail": "Agent not found"}, AgentNotFound, True, ["LETTA_AGENT_ID"]),
    (404, {"detail": "Not Found"}, Server, True, ["No Letta REST API", "LETTA_BASE_URL"]),
    (
        422,
        {"trace_id": "", "detail": PYTHON_REPR, "examples": ["agent-…"]},
        AgentNotFound,
        True,
        ["LETTA_AGENT_ID", "agent-<uuid4>"],
    ),
    (
        422,
        {"detail": "[{'type': 'missing', 'loc': ('body',), 'msg': 'Field required'}]"},
        Request,
        False,
        ["refused", "422"],
    ),
    (422, {"detail": "Messages must not be empty"}, Request, False, ["Messages must not be empty"]),
    (400, {"detail": "Message content is empty or invalid"}, Request, False, ["content is empty"]),
    (413, "too large", Request, False, ["413"]),
    (500, llm("llm_error"), Model, False, ["LLM", "your own settings are fine"]),
    (429, llm("llm_rate_limit"), Model, False, ["LLM", "llm_rate_limit"]),
    (401, llm("llm_authentication"), Model, True, ["LLM key", "your own settings are fine"]),
    (400, llm("llm_bad_request"), Model, False, ["LLM", "llm_bad_request"]),
    (402, llm("llm_insufficient_credits"), Model, True, ["credits"]),
    (504, llm("llm_timeout"), Model, False, ["LLM"]),
    (400, {"detail": "CONTEXT_WINDOW_EXCEEDED: 1 > 0"}, Model, True, ["context window is full", "compact or reset"]),
    (402, {"detail": "Payment required"}, Model, True, ["out of credits"]),
    (500, {"detail": "", "trace_id": ""}, Server, False, ["server error", "500"]),
    (500, {"detail": "An unknown error occurred"}, Server, False, ["An unknown error occurred"]),
    (503, {"detail": "overloaded"}, Server, False, ["503", "overloaded"]),
    (
        409,
        {"detail": "CONFLICT: Block with id 'x' was updated by another transaction."},
        Conflict,
        False,
        ["busy", "CONFLICT"],
    ),
    (
        409,
        {"detail": {"code": "PENDING_APPROVAL", "message": "wait"}},
        Conflict,
        True,
        ["waits for an approval", "approve or deny"],
    ),
    (429, {"detail": "slow down"}, RateLimit, False, ["rate", "slow down"]),
    (408, {"detail": "timed out"}, Timeout, False, ["408"]),
    (307, "", Server, True, ["redirects elsewhere", "LETTA_BASE_URL"]),
]


@pytest.mark.parametrize(("status", "body", "kind", "parks", "words"), TABLE)
def test_each_answer_becomes_the_error_that_says_what_is_wrong(
    status: int, body: Any, kind: type[LettaError], parks: bool, words: list[str]
) -> None:
    answer = httpx.Response(status, text=body) if isinstance(body, str) else httpx.Response(status, json=body)
    error = failure_of(answer)

    assert type(error) is kind
    assert (error.status, error.parks, error.may_have_landed) == (status, parks, status == 408)
    text = str(error)
    assert all(word in text for word in words), text
    assert not any(sign in text for sign in ("[{", "{'", '{"', "('", "'loc'")), f"a Python repr in {text!r}"
    assert PASSWORD not in text and PASSWORD not in repr(error)


@pytest.mark.parametrize(("status", "detail"), [(404, "Conversation not found with id='[...'"), (422, PYTHON_REPR)])
def test_an_unknown_conversation_is_not_an_unknown_agent(status: int, detail: str) -> None:
    error = failure_of(httpx.Response(status, json={"detail": detail}), chat_id=CONVERSATION)

    assert type(error) is errors.LettaConversationNotFoundError
    assert "LETTA_AGENT_ID" not in str(error) and "chat id" in str(error)


def test_looking_at_a_deleted_conversation_says_the_same(letta: RestTransport, http: respx.MockRouter) -> None:
    http.get(path__startswith="/v1/conversations/").respond(404, json={"detail": "Conversation not found with id='x'"})
    lane = letta.lane(None, CONVERSATION)
    for look in (lambda: letta.landed(lane, ["x"]), lambda: letta.in_context(lane, ["x"])):
        with pytest.raises(errors.LettaConversationNotFoundError):
            look()


def test_a_malformed_agent_id_is_named_even_when_the_run_list_notices_it_first(http: respx.MockRouter) -> None:
    letta = transport(agent_id="my-agent")
    http.get(f"{BASE}/v1/runs/").respond(422, json={"detail": PYTHON_REPR})
    with pytest.raises(errors.LettaAgentNotFoundError, match="LETTA_AGENT_ID"):
        letta.active_runs(letta.lane(None, None))


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    assert isinstance(failure_of(httpx.ConnectError("refused")), ConnectionError)
    assert isinstance(failure_of(httpx.ReadTimeout("slow")), TimeoutError)


# -- no answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "landed"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), False),
        (httpx.ConnectTimeout("timed out"), False),
        (httpx.ProxyError("407 Proxy Authentication Required"), False),
        (httpx.UnsupportedProtocol("no scheme"), False),
        (httpx.ReadTimeout("timed out"), True),
        (httpx.WriteTimeout("timed out"), True),
        (httpx.ReadError("reset"), True),
        (httpx.WriteError("broken pipe"), True),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), True),
    ],
)
def test_only_a_request_that_left_may_have_landed(cause: Exception, landed: bool) -> None:
    error = failure_of(cause)

    assert isinstance(error, errors.LettaConnectionError)
    assert error.may_have_landed is landed
    assert error.status is None and error.__cause__ is cause
    if not isinstance(error, errors.LettaTimeoutError):
        assert "Could not connect to Letta API" in str(error) and "LETTA_BASE_URL" in str(error)


def test_a_read_timeout_names_the_setting_that_allows_more() -> None:
    error = failure_of(httpx.ReadTimeout("timed out"))

    assert isinstance(error, errors.LettaTimeoutError)
    assert "did not answer within 600 s" in str(error) and "OTEL_LETTA_READ_TIMEOUT" in str(error)


@pytest.mark.parametrize(("status", "landed"), [(502, True), (504, True), (503, False), (500, False)])
def test_a_gateway_that_gave_up_leaves_open_whether_the_message_landed(status: int, landed: bool) -> None:
    page = httpx.Response(status, html="<html><h1>Bad Gateway</h1></html>")
    assert failure_of(page).may_have_landed is landed


def test_letta_s_own_errors_leave_nothing_behind_even_with_a_gateway_s_status() -> None:
    assert failure_of(httpx.Response(504, json=llm("llm_timeout"))).may_have_landed is False
    assert failure_of(httpx.Response(502, json={"detail": "LLM provider error"})).may_have_landed is False


# -- answers that are not Letta's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 403, 404, 500, 502])
def test_no_html_reaches_a_message(status: int) -> None:
    text = str(failure_of(httpx.Response(status, html="<!DOCTYPE html><html><body>Welcome to nginx</body></html>")))
    assert "<" not in text.replace("agent-<uuid4>", "") and "nginx" not in text


@pytest.mark.parametrize("payload", [b"<html>portal</html>", b"", b"\xff\xfe", b"[" * 100_000, b'"text"', b"null"])
def test_a_200_that_is_no_json_object_means_that_the_address_is_wrong(payload: bytes) -> None:
    error = failure_of(httpx.Response(200, content=payload))

    assert type(error) is errors.LettaServerError and error.parks
    assert "not a Letta REST API" in str(error) and "LETTA_BASE_URL" in str(error)


@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"detail": ["x"]}', b'{"error": "text"}', b'{"detail": null}'])
def test_strange_error_bodies_are_survived(payload: bytes) -> None:
    assert type(failure_of(httpx.Response(500, content=payload))) is errors.LettaServerError


def test_a_redirect_is_not_followed_with_the_password_and_says_where_it_points() -> None:
    answer = httpx.Response(307, headers={"Location": "https://elsewhere.test/v1/agents/?token=abc"})
    text = str(failure_of(answer))
    assert "https://elsewhere.test/v1/agents/" in text and "abc" not in text


def test_raw_sql_stays_out_of_messages() -> None:
    detail = "duplicate key value violates unique constraint DETAIL: Key already exists. [SQL: INSERT INTO …]"
    assert "SQL" not in str(failure_of(httpx.Response(409, json={"detail": detail})))


# -- Retry-After --------------------------------------------------------------------------------------------------

DATE = "Sun, 22 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        (" 2.5 ", 2.5),
        ("-3", 0.0),
        ("999999", 3600.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30.0),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2026 07:28:00 +999999999", None),
    ],
)
@pytest.mark.parametrize("status", [409, 429, 503])
def test_retry_after_is_read_in_both_forms_by_the_servers_clock(
    header: str, seconds: float | None, status: int
) -> None:
    answer = httpx.Response(status, json={"detail": "x"}, headers={"Retry-After": header, "Date": DATE})
    assert failure_of(answer).retry_after == seconds


# -- ages ---------------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr("otel_letta.letta.rest.datetime", Strict)
    for text in ("2026-11-22T11:59:00Z", "2026-11-22T11:59:00.1Z", "2026-11-22T11:59:00.1234567+00:00"):
        assert _moment(text) is not None
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


# -- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://host.test", "https://host.test/v1/agents/{}/messages"),
        ("https://host.test/", "https://host.test/v1/agents/{}/messages"),
        ("https://host.test/letta/", "https://host.test/letta/v1/agents/{}/messages"),
        ("https://host.test/v1", "https://host.test/v1/agents/{}/messages"),
        ("http://[::1]:8283", "http://[::1]:8283/v1/agents/{}/messages"),
        ("http://127.0.0.1:8283/a/b", "http://127.0.0.1:8283/a/b/v1/agents/{}/messages"),
    ],
)
def test_requests_go_below_the_configured_address(http: respx.MockRouter, base_url: str, url: str) -> None:
    letta = transport(base_url)
    route = http.post(url.format(AGENT)).respond(200, json={})
    letta.send(letta.lane(None, None), HELLO)

    assert route.called
    assert str(route.calls.last.request.url) == url.format(AGENT)


@pytest.mark.parametrize(
    "agent", ["a/b", "..", ".", "../../v1/health/", "a?b=c", "a#b", "a b", "a%2Fb", "агент", "a;b"]
)
def test_an_agent_id_of_any_form_stays_one_segment_of_the_path(agent: str) -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(200, json={})

    letta = transport(agent_id=agent)
    with respx.mock() as router:
        router.route().mock(side_effect=answer)
        letta.send(letta.lane(None, None), HELLO)
        letta.probe(letta.lane(None, None))
    for path in seen:
        head, _, tail = path.partition(b"/v1/agents/")
        assert head == b"" and tail.removesuffix(b"/messages").count(b"/") == 0
        assert b"?" not in tail and b"#" not in tail and tail.removesuffix(b"/messages") not in (b".", b"..", b"")


def test_ipv6_works_on_a_real_socket() -> None:
    with Recorder("::1") as server:
        letta = transport(f"http://[::1]:{server.port}")
        letta.probe(letta.lane(None, None))
        letta.close()
    assert server.lines == [f"GET /v1/agents/{AGENT} HTTP/1.1"]


class Recorder:
    """A server on loopback that answers 200 ``{}`` to everything and writes down the request lines."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        lines = self.lines = []  # type: list[str]
        bodies = self.bodies = []  # type: list[bytes]
        headers = self.headers = []  # type: list[dict[str, str]]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines.append(self.requestline)
                headers.append(dict(self.headers))
                bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET  # noqa: N815

            def do_CONNECT(self) -> None:
                lines.append(self.requestline)
                headers.append(dict(self.headers))
                self.send_error(502)

            def log_message(self, *_: object) -> None:
                pass

        class Server(HTTPServer):
            address_family = 10 if ":" in host and sys.platform == "linux" else 2

        self.server = Server((host, 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Recorder:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_https_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        letta = transport("https://letta.invalid")
        with pytest.raises(errors.LettaConnectionError) as raised:
            letta.probe(letta.lane(None, None))
        letta.close()
    assert proxy.lines == ["CONNECT letta.invalid:443 HTTP/1.1"]
    assert raised.value.may_have_landed is False
    assert "Authorization" not in proxy.headers[0]  # the password is for the server, inside the tunnel


def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder() as proxy, InMemoryLetta() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        letta = transport(server.base_url, server.create_agent())
        letta.probe(letta.lane(None, None))
        letta.close()
    assert proxy.lines == []


# -- what is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["nul \0 byte", "lone \ud800 surrogate", "\udfff", "emoji 🎉 ünï", "\x1b[31m", "x" * 1_000_000]
)
def test_any_text_travels_as_ascii_json_and_arrives_unchanged(content: str) -> None:
    with Recorder() as server:
        letta = transport(f"http://127.0.0.1:{server.port}")
        letta.send(letta.lane(None, None), [Message(content, "otid")])
        letta.close()
    assert server.bodies[0].isascii()
    assert json.loads(server.bodies[0]) == {"messages": [{"role": "user", "content": content, "otid": "otid"}]}
    assert server.headers[0]["Content-Type"] == "application/json"


def test_several_messages_are_one_request_in_order(letta: RestTransport, http: respx.MockRouter) -> None:
    route = http.post(MESSAGES).respond(200, json={"messages": []})
    letta.send(letta.lane(None, None), [Message("1", "a"), Message("2", "b")])

    body = json.loads(route.calls.last.request.content)
    assert [message["content"] for message in body["messages"]] == ["1", "2"]
    assert "max_steps" not in body and "streaming" not in body


def test_max_steps_is_sent_when_it_is_set(http: respx.MockRouter) -> None:
    letta = transport(max_steps=1)
    route = http.post(MESSAGES).respond(200, json={})
    letta.send(letta.lane(None, None), HELLO)
    assert json.loads(route.calls.last.request.content)["max_steps"] == 1


def test_a_conversation_s_message_goes_to_the_conversation_and_does_not_stream(
    letta: RestTransport, http: respx.MockRouter
) -> None:
    route = http.post(f"{BASE}/v1/conversations/{CONVERSATION}/messages").respond(200, json={})
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


@pytest.mark.parametrize(
    ("password", "header"),
    [
        ("plain", b"Bearer plain"),
        # Letta reads header bytes as Latin-1 and compares characters, so this is what it accepts.
        ("Grüße-aus-Köln", "Bearer Grüße-aus-Köln".encode("latin-1")),
        ("пароль", "Bearer пароль".encode()),
        (None, None),
    ],
)
def test_the_password_is_sent_as_a_bearer_token(
    http: respx.MockRouter, password: str | None, header: bytes | None
) -> None:
    letta = transport(password=password)
    route = http.post(MESSAGES).respond(200, json={})
    letta.send(letta.lane(None, None), HELLO)
    headers = {name.lower(): value for name, value in route.calls.last.request.headers.raw}
    assert headers.get(b"authorization") == header


def test_a_non_ascii_password_is_accepted_by_a_server_that_reads_headers_as_latin_1() -> None:
    with InMemoryLetta(password="Grüße") as server:
        letta = transport(server.base_url, server.create_agent(), password="Grüße")
        letta.probe(letta.lane(None, None))
        letta.close()


# -- looks --------------------------------------------------------------------------------------------------------


def test_messages_are_found_by_our_ids_among_the_newest(letta: RestTransport, http: respx.MockRouter) -> None:
    rows = [{"id": "message-1", "otid": "a"}, {"id": "message-2", "otid": None}, {"id": "message-3", "otid": ["odd"]}]
    route = http.get(MESSAGES).respond(200, json=rows)

    assert letta.landed(letta.lane(None, None), ["a", "b"]) == {"a": "message-1"}
    assert route.calls.last.request.url.params["order"] == "desc"


def test_a_server_that_does_not_show_the_context_is_believed(letta: RestTransport, http: respx.MockRouter) -> None:
    http.get(f"{BASE}/v1/agents/{AGENT}").respond(200, json={"id": AGENT})
    assert letta.in_context(letta.lane(None, None), ["message-1"]) == {"message-1"}


def test_only_what_is_in_the_context_counts(letta: RestTransport, http: respx.MockRouter) -> None:
    http.get(f"{BASE}/v1/agents/{AGENT}").respond(200, json={"message_ids": ["message-1"]})
    assert letta.in_context(letta.lane(None, None), ["message-1", "message-2"]) == {"message-1"}


# -- blocks -------------------------------------------------------------------------------------------------------

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


# -- life ---------------------------------------------------------------------------------------------------------


def test_reload_takes_a_rotated_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with InMemoryLetta(password="old") as server:
        agent = server.create_agent()
        monkeypatch.setenv("LETTA_PASSWORD", "old")
        letta = RestTransport(Settings.resolve(base_url=server.base_url, agent_id=agent))
        lane = letta.lane(None, None)
        letta.probe(lane)
        server.password = "new"
        with pytest.raises(errors.LettaAuthenticationError):
            letta.probe(lane)

        monkeypatch.setenv("LETTA_PASSWORD", "new")
        letta.reload()
        letta.probe(lane)
        letta.close()


def test_reload_does_not_break_the_request_that_another_lane_is_waiting_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        monkeypatch.setenv("LETTA_PASSWORD", "old")
        letta = RestTransport(Settings.resolve(base_url=server.base_url, agent_id=agent))
        answers: list[dict[str, Any]] = []
        with server.hold() as release:
            thread = threading.Thread(target=lambda: answers.append(letta.send(letta.lane(None, None), HELLO)))
            thread.start()
            assert server.wait_for(lambda: server.turns == 1)
            monkeypatch.setenv("LETTA_PASSWORD", "new")
            letta.reload()
            letta.probe(letta.lane(None, None))
            release()
            thread.join(5)
        letta.close()
    assert len(answers) == 1


def test_a_closed_transport_opens_new_connections_when_it_is_used_again() -> None:
    with InMemoryLetta() as server:
        letta = transport(server.base_url, server.create_agent())
        letta.probe(letta.lane(None, None))
        letta.close()
        letta.close()
        letta.probe(letta.lane(None, None))
        letta.close()


def test_each_request_and_answer_is_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    with InMemoryLetta() as server:
        letta = transport(server.base_url, server.create_agent())
        with caplog.at_level(logging.DEBUG, "otel_letta"):
            letta.send(letta.lane(None, None), HELLO)
            server.fail_next(503)
            with pytest.raises(LettaError):
                letta.probe(letta.lane(None, None))
            server.drop_next()
            with pytest.raises(LettaError):
                letta.probe(letta.lane(None, None))
        letta.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "otel_letta.letta.rest"]
    assert len(lines) == 3
    for line, words in zip(
        lines, (["POST", "-> 200 in", "bytes sent", "received"], ["GET", "-> 503 in"], ["no answer after"]), strict=True
    ):
        assert "/v1/agents/agent-" in line and all(word in line for word in words)
