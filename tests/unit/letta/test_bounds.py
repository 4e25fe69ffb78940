"""What a server may cost: bytes on the wire and unpacked, and time for the whole of a request."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator

import httpx
import pytest
import respx

from otel_letta import errors
from otel_letta.letta import bodies
from otel_letta.letta.rest import RestTransport
from otel_letta.testing import InMemoryLetta
from tests.support.fault_proxy import (
    BOMB,
    CHUNKS,
    DRIP_BODY,
    DRIP_HEAD,
    INTERIM,
    STALL,
    Fault,
    FaultProxy,
    page,
)
from tests.unit.letta.rest_support import AGENT, BASE, HELLO, MESSAGES, transport


@pytest.fixture
def proxy(letta: InMemoryLetta) -> Iterator[FaultProxy]:
    with FaultProxy(letta.base_url) as made:
        yield made


def client(proxy: FaultProxy, agent: str, **options: float) -> RestTransport:
    return transport(proxy.base_url, agent, **{"connect_timeout": 30.0, "read_timeout": 30.0, **options})


def failure(letta: RestTransport) -> errors.LettaError:
    """What a report meets. On a thread, so that one that is held for ever is a failure and no hanging test."""
    found: list[errors.LettaError] = []

    def send() -> None:
        with pytest.raises(errors.LettaError) as raised:
            letta.send(letta.lane(None, None), HELLO)
        found.append(raised.value)
        letta.close()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "the request is held for ever"
    return found[0]


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [STALL, DRIP_HEAD, DRIP_BODY, INTERIM], ids=str)
def test_an_answer_that_never_ends_is_given_up_when_its_time_is_over(
    proxy: FaultProxy, agent: str, fault: Fault
) -> None:
    with proxy.fault(fault):
        while not proxy.hits:  # on a busy machine the connection alone may take longer than that
            error = failure(client(proxy, agent, connect_timeout=0.2, read_timeout=0.2))
    assert isinstance(error, errors.LettaTimeoutError)
    assert error.may_have_landed


def test_a_request_that_nobody_reads_is_given_up_too(agent: str) -> None:
    never = threading.Event()
    unread = Fault("unread", lambda wire: never.wait(60) and None, reads_body=False)  # type: ignore[func-returns-value]
    with InMemoryLetta() as letta, FaultProxy(letta.base_url) as proxy, proxy.fault(unread):
        sender = client(proxy, agent, connect_timeout=0.2, read_timeout=0.2)
        body = [HELLO[0]._replace(content="x" * 20_000_000)]
        while not proxy.hits:
            with pytest.raises(errors.LettaConnectionError):
                sender.send(sender.lane(None, None), body)
        never.set()
        sender.close()


def test_one_request_s_deadline_is_not_the_next_one_s(proxy: FaultProxy, agent: str) -> None:
    sender = client(proxy, agent)
    with proxy.fault(DRIP_BODY), pytest.raises(errors.LettaConnectionError):
        sender.use(transport(proxy.base_url, agent, connect_timeout=0.2, read_timeout=0.2)._settings)
        sender.send(sender.lane(None, None), HELLO)
    sender.use(transport(proxy.base_url, agent, connect_timeout=60.0)._settings)
    assert sender.send(sender.lane(None, None), HELLO)["stop_reason"]
    sender.close()


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [CHUNKS, BOMB], ids=str)
def test_an_answer_without_end_is_read_up_to_a_bound(proxy: FaultProxy, agent: str, fault: Fault) -> None:
    with proxy.fault(fault):
        error = failure(client(proxy, agent))
    assert type(error) is errors.LettaServerError
    assert error.status == 200
    assert error.may_have_landed, "it was a success"
    assert "too long" in str(error)


def test_what_asks_a_strange_server_what_it_is_survives_a_bomb(proxy: FaultProxy, agent: str) -> None:
    from otel_letta.letta.flavour import recognise

    with proxy.fault(BOMB), pytest.raises(errors.LettaServerError, match="no Letta server"):
        recognise(transport(proxy.base_url, agent, read_timeout=30.0)._settings)


def test_of_a_refusal_only_the_beginning_is_read(http: respx.MockRouter) -> None:
    pieces = iter([b"<html>" + b"x" * 65_530, b"y" * 65_536, b"z" * 65_536])
    http.post(MESSAGES).mock(return_value=httpx.Response(503, content=pieces))
    letta = transport()
    with pytest.raises(errors.LettaServerError) as raised:
        letta.send(letta.lane(None, None), HELLO)
    assert raised.value.status == 503
    assert next(pieces, None) is not None, "more was read than is looked at"


def test_a_packed_answer_is_unpacked(http: respx.MockRouter) -> None:
    for encoding, body in (
        ("gzip", gzip.compress(b'{"id": "a"}')),
        ("deflate", zlib.compress(b'{"id": "a"}')),
        ("identity", b'{"id": "a"}'),
    ):
        http.get(f"{BASE}/v1/agents/{AGENT}").respond(200, content=body, headers={"Content-Encoding": encoding})
        assert transport().describe(AGENT) == {"id": "a"}
    sent = http.calls.last.request.headers["accept-encoding"]
    assert sent == bodies.ENCODINGS


@pytest.mark.parametrize(
    ("encoding", "body"), [("gzip", b"not gzip"), ("br", b"\x8b\x00\x80{}\x03"), ("gzip, gzip", b"x"), ("zstd", b"x")]
)
def test_one_that_is_packed_otherwise_may_have_landed(http: respx.MockRouter, encoding: str, body: bytes) -> None:
    answer = httpx.Response(200, content=iter([body]), headers={"Content-Encoding": encoding})
    http.post(MESSAGES).mock(return_value=answer)
    letta = transport()
    with pytest.raises(errors.LettaConnectionError) as raised:
        letta.send(letta.lane(None, None), HELLO)
    assert raised.value.may_have_landed


def test_a_gateway_s_page_is_no_answer_of_letta_s(proxy: FaultProxy, agent: str) -> None:
    with proxy.fault(page(504)):
        assert failure(client(proxy, agent)).may_have_landed
