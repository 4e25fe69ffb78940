"""Clients for threads: no two requests have the same one at once."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from otel_letta.letta.clients import Clients
from otel_letta.letta.http import HttpClient
from otel_letta.otel.heartbeats import LettaHeartbeatProcessor
from tests.support.fake_transport import settings
from tests.support.loopback import Handler, LoopbackServer

AT_ONCE = 6


def test_a_client_is_lent_to_one_at_a_time_and_the_last_one_goes_first() -> None:
    clients = Clients(httpx.Client)
    with clients.one() as first:
        with clients.one() as second:
            assert second is not first
        with clients.one() as third:
            assert third is second
    with clients.one() as fourth:
        assert fourth is first
    clients.use(httpx.Client)


def test_new_ones_are_made_after_a_change_and_the_old_ones_close_when_nobody_uses_them() -> None:
    clients = Clients(httpx.Client)
    with clients.one() as busy:
        with clients.one() as idle:
            pass
        clients.use(httpx.Client)
        assert (idle.is_closed, busy.is_closed) == (True, False)
        with clients.one() as new:
            assert new not in (idle, busy)
    assert busy.is_closed
    assert not new.is_closed
    clients.use(httpx.Client)
    assert new.is_closed


def test_few_clients_stay_open_after_many_requests_at_once() -> None:
    made: list[httpx.Client] = []

    def make() -> httpx.Client:
        made.append(httpx.Client())
        return made[-1]

    clients = Clients(make)

    def many(depth: int) -> None:
        with clients.one():
            if depth:
                many(depth - 1)

    many(30)
    assert len(made) == 31
    assert sum(not client.is_closed for client in made) == 8
    clients.use(httpx.Client)
    assert all(client.is_closed for client in made)


def test_a_client_whose_request_failed_is_lent_again() -> None:
    clients = Clients(httpx.Client)
    with pytest.raises(ZeroDivisionError), clients.one() as first:
        raise ZeroDivisionError
    with clients.one() as second:
        assert second is first
    clients.use(httpx.Client)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_clients_of_its_own_and_closes_none_of_its_parent() -> None:
    clients = Clients(httpx.Client)
    with clients.one() as parents:
        pass
    child = os.fork()
    if not child:
        code = 1
        try:
            with clients.one() as own:
                code = 0 if own is not parents and not parents.is_closed else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with clients.one() as again:
        assert again is parents
    clients.use(httpx.Client)


# -- who uses them -----------------------------------------------------------------------------------------------------


class Together(Handler):
    """Answers when all requests are there, so that they are under way at the same time."""

    everybody: threading.Barrier

    def do_GET(self) -> None:
        self.everybody.wait(30)
        self.send(200, {})


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Client]:
    """The clients by which somebody sent while another request of theirs was under way."""
    found: list[httpx.Client] = []
    busy: set[int] = set()
    lock = threading.Lock()
    send = httpx.Client.send

    def watched(client: httpx.Client, *arguments: Any, **options: Any) -> httpx.Response:
        with lock:
            if id(client) in busy:
                found.append(client)
            busy.add(id(client))
        try:
            return send(client, *arguments, **options)
        finally:
            with lock:
                busy.discard(id(client))

    monkeypatch.setattr(httpx.Client, "send", watched)
    return found


@contextlib.contextmanager
def _by_http(url: str) -> Iterator[Callable[[], int]]:
    client = HttpClient(settings(base_url=url), logging.getLogger(__name__))
    yield lambda: client.request("GET", "/").status_code
    client.close()


@contextlib.contextmanager
def _by_heartbeats(url: str) -> Iterator[Callable[[], int]]:
    processor = LettaHeartbeatProcessor(url)

    def ask() -> int:
        with processor._http() as client:
            return int(client.get(url).status_code)

    yield ask
    processor.shutdown()


@pytest.mark.parametrize("way", [_by_http, _by_heartbeats])
def test_requests_at_the_same_time_share_no_client(
    way: Callable[[str], AbstractContextManager[Callable[[], int]]], shared: list[httpx.Client]
) -> None:
    Together.everybody = threading.Barrier(AT_ONCE)
    with LoopbackServer(Together) as server, way(server.url) as ask, ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(2):  # the second time with clients that are there
            assert [future.result(30) for future in [pool.submit(ask) for _ in range(AT_ONCE)]] == [200] * AT_ONCE
    assert shared == []
