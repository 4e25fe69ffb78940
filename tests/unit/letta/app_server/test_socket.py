"""One WebSocket: how it opens, what a request may wait for, and what breaks it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from otel_letta import errors
from otel_letta.errors import LettaError
from otel_letta.letta.app_server import socket as websocket
from otel_letta.letta.app_server.socket import Session
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from tests.support.scripted_app_server import Frame, ScriptedAppServer, scripted_app_server
from tests.support.stub_server import stub_server

AGENT = {"agent_id": "agent-local-1"}


@pytest.fixture
def server() -> Iterator[ScriptedAppServer]:
    with scripted_app_server() as made:
        made.agent()
        yield made


def settings(url: str, **options: Any) -> Settings:
    return Settings.resolve(environ={}, base_url=url, agent_id="agent-local-1", **options)


@pytest.fixture
def session(server: ScriptedAppServer) -> Iterator[Session]:
    with Session(settings(server.url, read_timeout=0.3)) as made:
        yield made


def failure(url: str, until: Deadline | None = None, **options: Any) -> LettaError:
    with pytest.raises(LettaError) as raised:
        Session(settings(url, **options), until)
    return raised.value


# -- opening -----------------------------------------------------------------------------------------------------------


def test_the_token_goes_into_the_authorization_header(server: ScriptedAppServer) -> None:
    server.token = "s3same"
    with Session(settings(server.url, password="s3same")) as session:
        assert session.request("agent_retrieve", AGENT)["success"] is True
    assert server.handshakes == ["Bearer s3same"]


def test_an_http_address_leads_to_the_websocket_too(server: ScriptedAppServer) -> None:
    with Session(settings(server.url.replace("ws://", "http://"))) as session:
        assert session.request("agent_list", {})["agents"]
    assert server.handshakes == [None]


@pytest.mark.parametrize(("password", "words"), [(None, "missing websocket bearer"), ("wrong", "invalid websocket")])
def test_a_token_that_is_missing_or_wrong(server: ScriptedAppServer, password: str | None, words: str) -> None:
    server.token = "s3same"
    error = failure(server.url, password=password)
    assert type(error) is errors.LettaAuthenticationError
    assert (error.status, error.parks, error.may_have_landed) == (401, True, False)
    assert words in str(error)
    assert "LETTA_PASSWORD" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "parks", "words"),
    [
        (404, b"", True, ["No App Server at this address", "LETTA_BASE_URL"]),
        (200, b"<html>hello", True, ["No App Server"]),
        (307, b"", True, ["No App Server"]),
        (426, b"Upgrade Required", True, ["No App Server", "Upgrade Required"]),
        (502, b"<html>\nbad gateway", False, ["502"]),
        (503, b"", False, ["Service Gone"]),
        (500, b"\xff\xfe\x00", False, ["500"]),
    ],
)
def test_a_handshake_that_is_refused(
    server: ScriptedAppServer, status: int, body: bytes, parks: bool, words: list[str]
) -> None:
    server.refusal = status, "Service Gone", body
    error = failure(server.url)
    assert type(error) is errors.LettaServerError
    assert (error.status, error.parks, error.may_have_landed) == (status, parks, False)
    assert all(word in str(error) for word in words)
    assert "\n" not in str(error)


def test_where_nobody_listens_the_error_says_so_and_keeps_the_cause() -> None:
    error = failure("ws://127.0.0.1:1")
    assert type(error) is errors.LettaConnectionError
    assert error.may_have_landed is False
    assert "LETTA_BASE_URL" in error.hint
    # By its kind the gate tells a server that is down from a network that is.
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.__cause__.__traceback__ is None


def test_what_answers_is_hardly_http() -> None:
    with stub_server(lambda path, token: (200, {"hello": "world"})) as stub:  # in HTTP/1.0
        error = failure(stub.url)
    assert type(error) is errors.LettaConnectionError
    assert "valid HTTP response" in str(error)


def test_a_server_that_never_answers_the_handshake_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        error = failure(f"ws://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.1)
    assert type(error) is errors.LettaTimeoutError
    assert error.may_have_landed is False
    assert time.monotonic() - began < 5.0


def test_opening_ends_when_somebody_waits_for_less() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        until = Deadline.after(0.05)
        error = failure(f"ws://127.0.0.1:{silent.getsockname()[1]}", until, connect_timeout=60.0)
    assert type(error) is errors.LettaTimeoutError
    assert time.monotonic() - began < 5.0


def test_certificates_are_loaded_once_for_all_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ssl.SSLContext] = []
    original = ssl.create_default_context

    def create(**options: Any) -> ssl.SSLContext:
        made.append(original(**options))
        return made[-1]

    monkeypatch.setattr(websocket, "_tls_contexts", {})
    monkeypatch.setattr(websocket.ssl, "create_default_context", create)
    for _ in range(2):
        assert type(failure("wss://127.0.0.1:1")) is errors.LettaConnectionError
    assert len(made) == 1


def test_certificates_that_cannot_be_loaded_are_an_error_in_our_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError(2, "no such file")

    monkeypatch.setattr(websocket, "_tls_contexts", {})
    monkeypatch.setattr(websocket.ssl, "create_default_context", broken)
    error = failure("wss://127.0.0.1:1")
    assert type(error) is errors.LettaConfigurationError
    assert "cannot be loaded: no such file" in str(error)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_found_among_other_frames(server: ScriptedAppServer, session: Session) -> None:
    server.noise = [
        "no JSON {",
        "[1, 2]",
        "7",
        "null",
        b"\xff\xfe",
        '{"type": "news"}',
        '{"request_id": "other"}',
        "[" * 90_000,
    ]
    seen: list[Frame] = []
    assert session.request("agent_retrieve", AGENT, meanwhile=seen.append)["agent"]["id"] == "agent-local-1"
    assert [frame.get("type") for frame in seen] == ["news", None, "update_device_status"]


def test_an_answer_of_several_megabytes_is_read(server: ScriptedAppServer, session: Session) -> None:
    server.agents["agent-local-1"]["system"] = "x" * 3_000_000
    assert len(session.request("agent_retrieve", AGENT)["agent"]["system"]) == 3_000_000


def test_a_frame_beyond_all_measure_breaks_the_connection_and_nothing_else(
    server: ScriptedAppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_LARGEST", 20_000)
    server.agents["agent-local-1"]["system"] = "x" * 30_000
    with Session(settings(server.url)) as session, pytest.raises(errors.LettaConnectionError) as raised:
        session.request("agent_retrieve", AGENT)
    assert not isinstance(raised.value, errors.LettaTimeoutError)


def test_parts_of_an_answer_have_a_bound_together(server: ScriptedAppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_LARGEST_ANSWER", 20_000)

    def long(connection: ServerConnection, frame: Frame) -> None:
        for _ in range(40):
            server.reply(connection, frame, entries=["x" * 1_000], done=False)

    server.answers["list_memory"] = long
    with Session(settings(server.url)) as session, pytest.raises(errors.LettaServerError, match="too long"):
        session.request("list_memory", AGENT, merge=lambda a, b: b)


def test_parts_of_an_answer_are_joined_until_the_last_one(server: ScriptedAppServer, session: Session) -> None:
    def in_parts(connection: ServerConnection, frame: Frame) -> None:
        for number in (1, 2, 3):
            server.reply(connection, frame, entries=[number], done=number == 3)

    server.answers["list_memory"] = in_parts
    joined = session.request("list_memory", AGENT, merge=lambda a, b: {**b, "entries": a["entries"] + b["entries"]})
    assert joined["entries"] == [1, 2, 3]


def flood(server: ScriptedAppServer) -> Callable[[ServerConnection, Frame], None]:
    def send(connection: ServerConnection, frame: Frame) -> None:
        while server.open == 1:
            connection.send('{"type": "news"}')

    return send


def silence(server: ScriptedAppServer) -> Callable[[ServerConnection, Frame], None]:
    return lambda connection, frame: None


def first_part_only(server: ScriptedAppServer) -> Callable[[ServerConnection, Frame], None]:
    return lambda connection, frame: server.reply(connection, frame, entries=[], done=False)


@pytest.mark.parametrize("fault", [silence, flood, first_part_only])
def test_no_answer_in_time(server: ScriptedAppServer, session: Session, fault: Callable[..., Any]) -> None:
    server.answers["list_memory"] = fault(server)
    began = time.monotonic()
    with pytest.raises(errors.LettaTimeoutError) as raised:
        session.request("list_memory", AGENT, merge=lambda a, b: b)
    assert time.monotonic() - began < 5.0
    assert "list_memory" in str(raised.value)
    assert raised.value.may_have_landed is False  # nothing was said to the agent


def test_a_request_ends_when_somebody_waits_for_less(server: ScriptedAppServer) -> None:
    server.answers["agent_list"] = silence(server)
    until = Deadline()
    with Session(settings(server.url, read_timeout=60.0), until) as session:
        began = time.monotonic()
        until.bring_forward(began + 0.05)
        with pytest.raises(errors.LettaTimeoutError):
            session.request("agent_list", {})
    assert time.monotonic() - began < 5.0


def test_nothing_to_receive_is_none_after_the_time(session: Session) -> None:
    assert session.receive(0.01) is None
    assert session.receive(-1.0) is None


@pytest.mark.parametrize("gave_input", [False, True])
@pytest.mark.parametrize("close", ["politely", "abruptly", "invalid text"])
def test_a_connection_that_breaks(server: ScriptedAppServer, session: Session, close: str, gave_input: bool) -> None:
    """Only who has given an input has to ask later what became of it."""

    def drop(connection: ServerConnection, frame: Frame) -> None:
        if close == "politely":
            connection.close(1011, "oops\nsecond line")
        elif close == "abruptly":
            connection.socket.shutdown(2)
        else:
            connection.send(b"\xff\xfe", text=True)

    server.answers["agent_list"] = drop
    server.answers["input"] = lambda connection, frame: None
    if gave_input:
        session.send("input", {})
    with pytest.raises(errors.LettaConnectionError) as raised:
        session.request("agent_list", {})
    assert type(raised.value) is errors.LettaConnectionError
    assert raised.value.may_have_landed is gave_input
    assert "\n" not in str(raised.value)
    with pytest.raises(errors.LettaConnectionError):
        session.send("agent_list", {})


def test_a_lone_surrogate_travels(server: ScriptedAppServer, session: Session) -> None:
    session.request("agent_retrieve", {"agent_id": "\ud800"})
    server.wait_for(lambda: server.of("agent_retrieve"))
    assert server.received[0]["agent_id"] == "\ud800"


def test_closing_says_goodbye_and_may_be_repeated(server: ScriptedAppServer) -> None:
    session = Session(settings(server.url))
    server.wait_for(lambda: server.open == 1)
    session.close()
    session.close()
    server.wait_for(lambda: server.open == 0)


def test_what_the_server_says_becomes_one_clean_line(server: ScriptedAppServer) -> None:
    with Session(settings(server.url, password="open-sesame-1001")) as session:
        assert session.words("it is open-sesame-1001\nsecond") == "it is [redacted]"
        assert session.words({"no": "text"}) == ""
        assert len(session.words("x" * 5_000)) <= 200
