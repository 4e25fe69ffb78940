"""An App Server's token is on the wire and nowhere else. The search is that of `tests.test_secrets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.sync.server import ServerConnection

from otel_letta import LettaError, LettaReporter
from otel_letta.letta.app_server import AppServerTransport
from otel_letta.letta.transport import Message
from otel_letta.settings import Settings
from tests.support.scripted_app_server import Frame, ScriptedAppServer, scripted_app_server
from tests.test_secrets import PASSWORDS, Sink, echoes, everywhere, sink  # noqa: F401 - a fixture among them

AGENT = "agent-local-1"


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
            sink.see_exception(error)
            failures.append(error)
    sink.see_object(letta)
    for session in letta._open:
        sink.see_object(session)
    return failures


@everywhere
def test_when_all_goes_well(sink: Sink, server: ScriptedAppServer) -> None:  # noqa: F811
    failures = use(server, sink)
    assert [type(error).__name__ for error in failures] == ["LettaConversationNotFoundError"]
    assert all(header and header.startswith("Bearer ") for header in server.handshakes)
    assert any("otel_letta.letta.websocket" in where for where, _ in sink.texts)


@everywhere
def test_when_a_session_is_open(sink: Sink, server: ScriptedAppServer) -> None:  # noqa: F811
    letta = transport(server, sink)
    with letta._session() as session:
        sink.see_object(session)
        sink.see("sockets", repr(session._socket) + repr(letta._open))


@everywhere
def test_when_it_is_wrong(sink: Sink, server: ScriptedAppServer) -> None:  # noqa: F811
    server.token = "another"
    assert {type(error).__name__ for error in use(server, sink)} == {"LettaAuthenticationError"}


@everywhere
@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_when_the_handshake_s_refusal_echoes_it(
    sink: Sink,  # noqa: F811
    server: ScriptedAppServer,
    status: int,
) -> None:
    latin = sink.password.encode().decode("latin-1")
    for body in (b"", sink.password.encode(), ("\u200b" * (2_000 - len(sink.password) // 2) + sink.password).encode()):
        server.refusal = status, f"Bearer {latin}", body
        letta = transport(server, sink)
        with pytest.raises(LettaError) as raised:
            letta.describe(AGENT)
        sink.see_exception(raised.value)
        half = sink.password[: len(sink.password) // 2]
        assert len(half) < 4 or half not in str(raised.value)


@everywhere
def test_when_the_server_s_words_echo_it(sink: Sink, server: ScriptedAppServer) -> None:  # noqa: F811
    words = [str(echo) for echo in echoes(sink.password) if isinstance(echo, (str, dict))]

    def refuse(connection: ServerConnection, frame: Frame) -> None:
        server.reply(connection, frame, success=False, type=sink.password, error=said)

    for said in words:
        server.on_input = lambda held: held.finish("error", said)  # noqa: B023 - called in this very round
        use(server, sink)
        server.on_input = lambda held: held.finish()
        server.accept = lambda frame: {"accepted": False, "error": said}  # noqa: B023
        use(server, sink)
        server.accept = lambda frame: {"accepted": True}
    for kind in ("agent_retrieve", "conversation_retrieve", "conversation_create", "conversation_messages_list",
                 "list_memory", "write_memory_file"):  # fmt: skip
        for said in words:
            server.answers = {kind: refuse}
            use(server, sink, conversation="Reports" if kind == "conversation_create" else None)
        server.conversations.clear()


@everywhere
def test_when_the_connection_ends_with_it(sink: Sink, server: ScriptedAppServer) -> None:  # noqa: F811
    server.answers["input"] = lambda connection, frame: connection.close(1011, f"Bearer {sink.password}"[:100])
    failures = use(server, sink)
    assert "LettaConnectionError" in {type(error).__name__ for error in failures}


@everywhere
@pytest.mark.parametrize("accident", [KeyboardInterrupt, RuntimeError, OSError])
def test_when_the_handshake_breaks_while_its_head_is_written(
    sink: Sink,  # noqa: F811
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
    sink.see_exception(raised.value)


@everywhere
def test_when_nobody_listens(sink: Sink) -> None:  # noqa: F811
    for url in ("ws://127.0.0.1:1", "wss://127.0.0.1:1", "ws://letta.invalid"):
        letta = AppServerTransport(
            Settings.resolve(environ={}, base_url=url, agent_id=AGENT, password=sink.password, connect_timeout=2.0)
        )
        with pytest.raises(LettaError) as raised:
            letta.describe(AGENT)
        sink.see_exception(raised.value)


@everywhere
def test_when_the_reporter_speaks_to_one(sink: Sink, server: ScriptedAppServer) -> None:  # noqa: F811
    options = {"base_url": server.url, "agent_id": AGENT, "password": sink.password, "server": "app-server"}
    with LettaReporter(**options) as reporter:
        sink.see_object(reporter)
        try:
            reporter.send_progress_report_sync("c", "m", "x", 1.0, "completed")
        except LettaError as error:
            sink.see_exception(error)
