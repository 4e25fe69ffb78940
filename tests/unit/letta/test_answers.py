"""How Letta's answers become errors. The rows are those of the measured table (Letta 0.16.8)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import respx

from otel_letta import errors
from otel_letta.errors import LettaError
from tests.unit.letta.rest_support import (
    AGENT,
    BASE,
    CONVERSATION,
    PASSWORD,
    failure_of,
    transport,
)


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
    (413, {"detail": "too large"}, Request, False, ["413"]),
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
    (405, {"detail": "Method Not Allowed"}, Server, False, ["405"]),
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


def test_a_malformed_agent_id_is_named_even_when_the_run_list_notices_it_first(http: respx.MockRouter) -> None:
    letta = transport(agent_id="my-agent")
    http.get(f"{BASE}/v1/runs/").respond(422, json={"detail": PYTHON_REPR})
    with pytest.raises(errors.LettaAgentNotFoundError, match="LETTA_AGENT_ID"):
        letta.active_runs(letta.lane(None, None))


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    assert isinstance(failure_of(httpx.ConnectError("refused")), ConnectionError)
    assert isinstance(failure_of(httpx.ReadTimeout("slow")), TimeoutError)


# -- no answer --------------------------------------------------------------------------------------------------------


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


NOT_LETTAS: list[tuple[httpx.Response, type[LettaError], bool]] = [
    *(
        (httpx.Response(status, html="<html><h1>Some page</h1></html>"), kind, parks)
        for status, kind, parks in [
            (302, Server, True),
            (307, Server, True),
            (400, Server, False),
            (401, Authentication, True),
            (402, Server, True),
            (403, Authentication, True),
            (404, Server, True),
            (408, Timeout, False),
            (409, Conflict, False),
            (413, Server, False),
            (418, Server, False),
            (422, Server, False),
            (429, RateLimit, False),
            (500, Server, False),
            (502, Server, False),
            (503, Server, False),
            (504, Server, False),
            (520, Server, False),
            (524, Server, False),
        ]
    ),
    (httpx.Response(422, json={"error": "invalid"}), Server, False),
    (httpx.Response(400, json={"error": {"message": "blocked by the firewall"}}), Server, False),
    (httpx.Response(403, json={"message": "Forbidden"}), Authentication, True),
    (httpx.Response(429, json={"title": "Rate limited", "status": 429, "detail": "slow down"}), RateLimit, False),
    (httpx.Response(500, json=[]), Server, False),
    (httpx.Response(200, html="<html>log in</html>"), Server, True),
    (httpx.Response(200, json={"ok": True}), Server, True),
    (httpx.Response(200, json={"messages": "none"}), Server, True),
    (httpx.Response(202, json={"queued": 1}), Server, True),
    (httpx.Response(204), Server, True),
]


@pytest.mark.parametrize(
    ("answer", "kind", "parks"), NOT_LETTAS, ids=lambda value: str(getattr(value, "status_code", ""))
)
def test_what_is_not_letta_s_own_json_says_nothing_about_the_turn(
    answer: httpx.Response, kind: type[LettaError], parks: bool
) -> None:
    error = failure_of(answer)
    assert (type(error), error.parks) == (kind, parks)
    assert (error.foreign, error.may_have_landed) == (True, True)


def test_a_proxy_s_page_for_a_check_leaves_nothing_behind(http: respx.MockRouter) -> None:
    letta = transport()
    http.get(f"{BASE}/v1/runs/").respond(524, html="<html>")
    with pytest.raises(LettaError) as raised:
        letta.active_runs(letta.lane(None, None))
    assert (raised.value.foreign, raised.value.may_have_landed) == (True, False)


def test_letta_s_own_errors_leave_nothing_behind_even_with_a_gateway_s_status() -> None:
    assert failure_of(httpx.Response(504, json=llm("llm_timeout"))).may_have_landed is False
    assert failure_of(httpx.Response(502, json={"detail": "LLM provider error"})).may_have_landed is False


# -- answers that are not Letta's -------------------------------------------------------------------------------------


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


# -- Retry-After ------------------------------------------------------------------------------------------------------


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
