"""Half-open connections: they starve nobody, and they end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from otel_letta.cli import half_open
from otel_letta.cli.half_open import HalfOpenProtocol
from tests.support.waiting import until

reached = threading.Event()
"""Set when a request has reached the application."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    reached.set()
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def serving(most: int) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=HalfOpenProtocol, ws="none", lifespan="off", log_level="critical", limit_concurrency=most
    )
    server = uvicorn.Server(config)

    def run() -> None:
        asyncio.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        half_open._waiting.clear()  # its event loop is gone


@pytest.mark.parametrize("said", [b"", b"POST /events HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_many_of_them_starve_nobody(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(half_open, "MOST_WAITING", 8)
    with serving(most=16) as port, ExitStack() as stack:
        for _ in range(60):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            idle.sendall(said)
        assert (
            httpx.post(f"http://127.0.0.1:{port}/events", content=b"x", timeout=60, trust_env=False).status_code == 200
        )
        assert until(lambda: len(half_open._waiting) <= 8)


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET"]
)
def test_one_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(half_open, "PATIENCE", 0.05)
    with serving(most=16) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as idle:
        idle.sendall(said)
        with pytest.MonkeyPatch.context():
            received = b""
            try:
                while more := idle.recv(1_000):
                    received += more
            except ConnectionResetError:
                pass
    assert (b"200 OK" in received) == (b"\r\n\r\n" in said)
    assert until(lambda: not half_open._waiting)


def test_a_request_that_takes_its_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_open, "MOST_WAITING", 1)
    with (
        serving(most=16) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as slow,
        ExitStack() as stack,
    ):
        reached.clear()
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
        assert reached.wait(60)
        assert until(lambda: not half_open._waiting)
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        slow.sendall(b"2")
        assert b"200 OK" in slow.recv(1_000)
