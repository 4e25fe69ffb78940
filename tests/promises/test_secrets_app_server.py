"""An App Server's token is on the wire and nowhere else. The search is that of `tests.promises.test_secrets`."""

# ruff: noqa: F811 - the fixture that is imported, and the arguments of its name

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.sync.server import ServerConnection

from otel_letta import LettaError, LettaReporter
from otel_letta.letta.app_server import following, sending
from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.transport import Message
from otel_letta.settings import Settings
from tests.promises.test_secrets import Sink, echoes, sink  # noqa: F401 - a fixture among them
from tests.support.scripted_app_server import Frame, ScriptedAppServer, scripted_app_server

AGENT = "agent-local-1"
TOKENS = ["open-sesame-1001", "Grüße-aus-Köln", "p%a/s'w\"o<r>d&=1", "k3y"]

everywhere = pytest.mark.parametrize("password", TOKENS)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_STEP", 0.01)
    monkeypatch.setattr(following, "_SILENCE", 0.02)
    monkeypatch.setattr(sending, "_SHARED_RUN_PATIENCE", 0.0)


def see(sink: Sink, error: BaseException) -> None:
    """Without the frames of this file, which know the token."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sink.see_exception(error.with_traceback(trace))


@pytest.fixture
def server() -> Iterator[ScriptedAppServer]:
    with scripted_app_server() as made:
        made.agent(AGENT)
        yield made


def transport(server: ScriptedAppServer, sink: Sink, **options: Any) -> AppServerTransport:
    keywords = {"base_url": server.url, "agent_id": AGENT, "password": sink.password, "read_timeout": 2.0, **options}
    return AppServerTransport(Settings.resolve(environ={}, **keywords))


def use(server: ScriptedAppServer, sink: Sink, **options: Any) -> list[LettaError]:
    """All that delivery asks of a transport, and what it raises."""
    letta = transport(server, sink, **options)
    lane = letta.lane(None, None)
    failures = []
    for call in (
        lambda: letta.send(lane, [Message("x", "otid-1")]),
        lambda: letta.send(letta.lane(None, "local-conv-1"), [Message("x", "otid-1")]),
        lambda: letta.landed(lane, ["otid-1"]),
        lambda: letta.active_runs(lane),
        lambda: letta.describe(AGENT),
        lambda: letta.agents(3),
        lambda: letta.blocks(AGENT),
        lambda: letta.create_block(AGENT, "b", "v", 10, "d", {}),
    ):
        try:
            call()
        except LettaError as error:
            see(sink, error)
            failures.append(error)
    sink.see_object(letta)
    for session in letta._sessions._open:
        sink.see_object(session)
    return failures


@everywhere
def test_when_all_goes_well(sink: Sink, server: ScriptedAppServer) -> None:
    failures = use(server, sink)
    assert [type(error).__name__ for error in failures] == ["LettaConversationNotFoundError"]
    assert all(header and header.startswith("Bearer ") for header in server.handshakes)
    assert any("otel_letta.letta.app_server.socket" in where for where, _ in sink.texts)


@everywhere
def test_when_a_session_is_open(sink: Sink, server: ScriptedAppServer) -> None:
    letta = transport(server, sink)
    with letta._session() as session:
        sink.see_object(session)
        sink.see("sockets", repr(session._socket) + repr(letta._sessions._open))


@everywhere
def test_when_it_is_wrong(sink: Sink, server: ScriptedAppServer) -> None:
    server.token = "another"
    assert {type(error).__name__ for error in use(server, sink)} == {"LettaAuthenticationError"}


@everywhere
@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_when_the_handshake_s_refusal_echoes_it(
    sink: Sink,
    server: ScriptedAppServer,
    status: int,
) -> None:
    latin = sink.password.encode().decode("latin-1")
    for body in (b"", sink.password.encode(), ("\u200b" * (2_000 - len(sink.password) // 2) + sink.password).encode()):
        server.refusal = status, f"Bearer {latin}", body
        letta = transport(server, sink)
        with pytest.raises(LettaError) as raised:
            letta.describe(AGENT)
        see(sink, raised.value)
        half = sink.password[: len(sink.password) // 2]
        assert len(half) < 4 or half not in str(raised.value)


@pytest.mark.parametrize("password", TOKENS[:2])
@pytest.mark.parametrize("where", ["turn", "acceptance", "agent_retrieve", "conversation_create", "list_memory",
                                   "conversation_messages_list", "write_memory_file"])  # fmt: skip
def test_when_the_server_s_words_echo_it(sink: Sink, server: ScriptedAppServer, where: str) -> None:
    def echo(said: str) -> None:
        def refuse(connection: ServerConnection, frame: Frame) -> None:
            server.reply(connection, frame, success=False, type=sink.password, error=said)

        if where == "turn":
            server.on_input = lambda held: held.finish("error", said)
        elif where == "acceptance":
            server.accept = lambda frame: {"accepted": False, "error": said}
        else:
            server.answers = {where: refuse}
        server.ledger.clear()
        assert use(server, sink, conversation="Reports")

    for said in echoes(sink.password):
        if isinstance(said, (str, dict)):
            echo(said if isinstance(said, str) else json.dumps({"error": said}))


@everywhere
def test_when_the_connection_ends_with_it(sink: Sink, server: ScriptedAppServer) -> None:
    server.answers["input"] = lambda connection, frame: connection.close(1011, f"Bearer {sink.password}"[:100])
    failures = use(server, sink)
    assert "LettaConnectionError" in {type(error).__name__ for error in failures}


@pytest.mark.parametrize("password", TOKENS[:1])
@pytest.mark.parametrize("accident", [KeyboardInterrupt, RuntimeError, OSError])
def test_when_the_handshake_breaks_while_its_head_is_written(
    sink: Sink,
    server: ScriptedAppServer,
    monkeypatch: pytest.MonkeyPatch,
    accident: type[BaseException],
) -> None:
    """At that moment, local variables of websockets hold the headers."""

    def interrupted(self: ClientProtocol, request: Any) -> None:
        head = str(request.headers)
        raise accident(head)

    letta = transport(server, sink)
    monkeypatch.setattr(ClientProtocol, "send_request", interrupted)
    with pytest.raises((KeyboardInterrupt, LettaError)) as raised:
        letta.describe(AGENT)
    monkeypatch.undo()
    if accident is KeyboardInterrupt:
        raised.value.args = ()  # its words are this test's own
    see(sink, raised.value)


@everywhere
def test_when_nobody_listens(sink: Sink) -> None:
    for url in ("ws://127.0.0.1:1", "wss://127.0.0.1:1", "ws://letta.invalid"):
        letta = AppServerTransport(
            Settings.resolve(environ={}, base_url=url, agent_id=AGENT, password=sink.password, connect_timeout=2.0)
        )
        with pytest.raises(LettaError) as raised:
            letta.describe(AGENT)
        see(sink, raised.value)


@everywhere
def test_when_the_reporter_speaks_to_one(sink: Sink, server: ScriptedAppServer) -> None:
    options = {"base_url": server.url, "agent_id": AGENT, "password": sink.password, "server": "app-server"}
    with LettaReporter(**options) as reporter:
        sink.see_object(reporter)
        try:
            reporter.send_progress_report_sync("c", "m", "x", 1.0, "completed")
        except LettaError as error:
            see(sink, error)


def test_a_token_that_no_header_can_hold_is_told_nowhere(server: ScriptedAppServer) -> None:
    letta = AppServerTransport(
        Settings.resolve(environ={}, base_url=server.url, agent_id=AGENT, password="пароль-сезам")
    )
    said = ""
    try:
        letta.describe(AGENT)
    except LettaError as error:  # websockets 15 sends it as UTF-8, later ones refuse it
        said = str(error)
    assert "сезам" not in said
