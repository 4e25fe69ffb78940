"""Whether a request has gone out: on real sockets, since only the wire knows."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from otel_letta.errors import LettaConnectionError, LettaError, LettaServerError, LettaTimeoutError
from otel_letta.letta.transport import Message, Posting
from otel_letta.runtime.deadline import Deadline
from otel_letta.testing import InMemoryLetta
from tests.support.loopback import Handler, LoopbackServer
from tests.unit.letta.rest_support import transport
from tests.unit.letta.test_http import Recorder


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def address(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def failed(
    base_url: str, content: str = "hello", seconds: float = 30.0, kind: type[LettaError] = LettaConnectionError
) -> tuple[Posting, LettaError]:
    letta, posting = transport(base_url), Posting()
    with pytest.raises(kind) as raised:
        letta.send(letta.lane(None, None), [Message(content, "otid")], until=Deadline.after(seconds), posting=posting)
    letta.close()
    return posting, raised.value


def test_an_answered_request_has_gone_out() -> None:
    with InMemoryLetta() as server:
        letta, posting = transport(server.base_url, server.create_agent()), Posting()
        letta.send(letta.lane(None, None), [Message("hello", "otid")], posting=posting)
        letta.close()
    assert posting.sent and not posting.abandon()


def test_a_refused_connection_sent_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = address(gone)
    posting, error = failed(nobody)
    assert (posting.sent, error.may_have_landed) == (False, False)
    assert posting.abandon()


def test_a_name_that_is_not_found_sent_nothing() -> None:
    posting, error = failed("http://letta.invalid")
    assert (posting.sent, error.may_have_landed) == (False, False)


def test_a_proxy_that_does_not_reach_the_server_was_sent_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        posting, error = failed("https://letta.invalid")
    assert len(proxy.lines) == 1 and proxy.lines[0].startswith("CONNECT")
    assert (posting.sent, error.may_have_landed) == (False, False)


def test_silence_after_the_request_leaves_open_what_became_of_it(silent: socket.socket) -> None:
    # Long enough for a busy machine to make a client and send the request; the rest is silence.
    posting, error = failed(address(silent), seconds=5.0)
    assert isinstance(error, LettaTimeoutError)
    assert (posting.sent, error.may_have_landed) == (True, True)
    assert "the agent's turn may still be running" in str(error)


def test_a_request_that_the_server_does_not_read_to_its_end_has_not_landed(silent: socket.socket) -> None:
    posting, error = failed(address(silent), content="x" * 30_000_000, seconds=1.0)
    assert (posting.sent, error.may_have_landed) == (False, False)
    assert "may still be running" not in str(error)


def test_a_connection_that_breaks_after_the_request_may_have_brought_it(silent: socket.socket) -> None:
    def break_it() -> None:
        connection, _ = silent.accept()
        with connection:
            connection.recv(65_536)

    thread = threading.Thread(target=break_it)
    thread.start()
    posting, error = failed(address(silent))
    thread.join(30)
    assert (posting.sent, error.may_have_landed) == (True, True)


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b'{"messages": 5}', b"[]"])
def test_a_success_that_is_not_letta_s_leaves_open_what_became_of_the_request(body: bytes) -> None:
    """A proxy that answers in its place may have passed it on."""

    class Proxy(Handler):
        def do_POST(self) -> None:
            self.read()
            self.send(200, body)

    with LoopbackServer(Proxy) as proxy:
        posting, error = failed(proxy.url, kind=LettaServerError)
    assert (posting.sent, error.may_have_landed, error.foreign) == (True, True, True)


def test_what_was_abandoned_before_it_began_never_arrives() -> None:
    with InMemoryLetta() as server:
        letta, posting = transport(server.base_url, server.create_agent()), Posting()
        assert posting.abandon()
        with pytest.raises(LettaTimeoutError, match="before the report was sent"):
            letta.send(letta.lane(None, None), [Message("hello", "otid")], posting=posting)
        letta.close()
        assert not server.requests
