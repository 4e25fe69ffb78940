"""Requests: where they go, with which token, and how connections end."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import httpx
import pytest
import respx

from otel_letta import errors
from otel_letta.errors import LettaError
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Message
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.loopback import Handler, LoopbackServer
from tests.unit.letta.rest_support import (
    AGENT,
    HELLO,
    MESSAGES,
    transport,
)

# -- addresses --------------------------------------------------------------------------------------------------------


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
    route = http.post(url.format(AGENT)).respond(200, json={"messages": []})
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
        return httpx.Response(200, json={"messages": []})

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
    """A server on loopback that answers 200 and no messages to everything and writes down the request lines."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        lines = self.lines = []  # type: list[str]
        bodies = self.bodies = []  # type: list[bytes]
        headers = self.headers = []  # type: list[dict[str, str]]

        class Recording(Handler):
            def do_GET(self) -> None:
                lines.append(self.requestline)
                headers.append(dict(self.headers))
                bodies.append(self.read())
                self.send(200, {"messages": []})

            do_POST = do_GET  # noqa: N815

            def do_CONNECT(self) -> None:
                lines.append(self.requestline)
                headers.append(dict(self.headers))
                self.send_error(502)

        self.server = LoopbackServer(Recording, host=host)
        self.port = self.server.server_port

    def __enter__(self) -> Recorder:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()


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
    route = http.post(MESSAGES).respond(200, json={"messages": []})
    letta.send(letta.lane(None, None), HELLO)
    headers = {name.lower(): value for name, value in route.calls.last.request.headers.raw}
    assert headers.get(b"authorization") == header


def test_a_non_ascii_password_is_accepted_by_a_server_that_reads_headers_as_latin_1() -> None:
    with InMemoryLetta(password="Grüße") as server:
        letta = transport(server.base_url, server.create_agent(), password="Grüße")
        letta.probe(letta.lane(None, None))
        letta.close()


# -- life -------------------------------------------------------------------------------------------------------------


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
