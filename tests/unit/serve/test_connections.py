"""Connections: what httptools and uvicorn leave to us."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import Answer, Connection, request_of, serving, span_of
from tests.support.waiting import until

H2C = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAA\r\nUpgrade: h2c\r\n"
"""What Java's HttpClient sends with a request in the clear as long as nobody takes it up (measured: JDK 17.0.15)."""
WEB_SOCKET = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


@pytest.fixture(scope="module")
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server


@pytest.fixture(scope="module")
def agent(letta: InMemoryLetta) -> str:
    return letta.create_agent()


@pytest.fixture(scope="module")
def receiver(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent) as service:
        yield service


def request(body: bytes, more: str = "", *, method: str = "POST", chunked: bool = False) -> bytes:
    size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"{method} /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}{size}\r\n\r\n"
    if chunked:
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    return head.encode() + body


def answers(receiver: Service, *pieces: bytes, number: int = 1) -> list[Answer]:
    with Connection(receiver.options.port) as connection:
        for piece in pieces:
            assert connection.send(piece)
        return [connection.answer() for _ in range(number)]


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("offer", [H2C, WEB_SOCKET], ids=["HTTP/2", "WebSocket"])
def test_what_comes_with_an_offer_of_another_protocol_is_taken_and_the_connection_goes_on(
    receiver: Service, letta: InMemoryLetta, agent: str, offer: str, chunked: bool
) -> None:
    name = f"Task {len(offer)} {chunked}"
    body = request_of(span_of(name, len(offer) + chunked))
    sent = request(body, offer, chunked=chunked)
    head, end, rest = sent.partition(b"\r\n\r\n")

    for pieces in ([sent, request(b"{}")], [head + end, rest + request(b"{}")], [sent[:40], sent[40:], request(b"{}")]):
        assert [answer.status for answer in answers(receiver, *pieces, number=2)] == [200, 200]

    assert until(lambda: [r["task"] for r in letta.reports(agent) if r["status"] == "completed"].count(name) == 1)


def test_a_crowd_of_offers_in_one_piece_is_answered_one_by_one(receiver: Service) -> None:
    crowd = 300

    found = answers(receiver, request(b"{}", H2C) * crowd, number=crowd)

    assert [answer.status for answer in found] == [200] * crowd


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("CONNECT", 400)])
def test_an_offer_without_a_body_is_answered_and_no_tunnel_is_made(receiver: Service, method: str, status: int) -> None:
    (answer,) = answers(receiver, request(b"", WEB_SOCKET, method=method))

    assert answer.status == status
