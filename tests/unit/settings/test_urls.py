"""Addresses of servers, and of pages that show a trace."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import CLOUD_BASE_URL, DEFAULT_BASE_URL, http_url, websocket_url
from tests.support.settings import PASSWORD, complaint, resolve


class TestBaseUrl:
    @pytest.mark.parametrize(
        ("given_url", "normal"),
        [
            ("https://letta.example", "https://letta.example"),
            ("https://letta.example/", "https://letta.example"),
            ("https://letta.example///", "https://letta.example"),
            ("HTTPS://Letta.Example", "https://letta.example"),
            ("https://letta.example:443", "https://letta.example"),
            ("http://letta.example:80/", "http://letta.example"),
            ("http://letta.example:443", "http://letta.example:443"),
            ("https://letta.example:", "https://letta.example"),
            ("https://letta.example:08283", "https://letta.example:8283"),
            ("https://letta.example/v1", "https://letta.example"),
            ("https://letta.example/v1/", "https://letta.example"),
            ("https://letta.example/letta", "https://letta.example/letta"),
            ("https://letta.example/Letta/v1/", "https://letta.example/Letta"),
            ("https://letta.example/my-v1", "https://letta.example/my-v1"),
            ("http://[::1]:8283", "http://[::1]:8283"),
            ("http://[0:0:0:0:0:0:0:1]:8283/", "http://[::1]:8283"),
            ("http://[2001:DB8::A]", "http://[2001:db8::a]"),
            ("http://letta_server:8283", "http://letta_server:8283"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("https://letta.example/v1/v1", "https://letta.example"),
            ("https://letta.example/ws", "https://letta.example/ws"),
            ("ws://127.0.0.1:4500/ws", "ws://127.0.0.1:4500"),
            ("ws://127.0.0.1:4500", "ws://127.0.0.1:4500"),
            ("WS://Letta.Example:80/ws/", "ws://letta.example"),
            ("wss://letta.example:443/ws", "wss://letta.example"),
            ("wss://letta.example:80", "wss://letta.example:80"),
            ("wss://letta.example/agents/ws", "wss://letta.example/agents"),
            ("wss://letta.example/my-ws", "wss://letta.example/my-ws"),
            ("wss://letta.example/v1", "wss://letta.example"),
        ],
    )
    def test_one_server_has_one_spelling(self, given_url: str, normal: str) -> None:
        assert resolve(base_url=given_url).base_url == normal
        assert resolve(base_url=normal).base_url == normal

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ("letta.example", "https://"),
            ("localhost:8283", "https://"),
            ("//letta.example", "https://"),
            ("https:/letta.example", "https://"),
            ("ws:/letta.example", "https://"),
            ("ws://", "no host"),
            ("wss://letta.example/ws?token=x", "query"),
            ("wsss://letta.example", "only http, https, ws and wss"),
            ("ftp://letta.example", "only http, https, ws and wss"),
            ("https://", "no host"),
            ("https:///path", "no host"),
            ("https://:8283", "no host"),
            ("https://letta.example?x=1", "query"),
            ("https://letta.example/#top", "fragment"),
            ("https://letta.example:0", "port"),
            ("https://letta.example:65536", "port"),
            ("https://letta.example:-1", "port"),
            ("https://letta.example:１", "port"),
            ("http://::1:8283", "[brackets]"),
            ("http://[::1", "[brackets]"),
            ("http://[::1]8283", "[brackets]"),
            ("http://[::g]", "IPv6"),
            ("http://[fe80::1%25eth0]", "IPv6"),
            ("https://bücher.example", "xn--"),
            ("https://a..b", "host name"),
            ("https://-a.example", "host name"),
            ("https://a\\b", "host name"),
            ("https://{host}", "host name"),
            ("https://letta.example/a\\b", "path"),
            ("https://letta.example/é", "path"),
            (" https://letta.example", "whitespace"),
            ("https://letta.example\n", "whitespace"),
            ("https://let ta.example", "whitespace"),
            ("https://letta.example/\x00", "control"),
            ("https://letta\u3000.example", "whitespace"),
            ("https://letta\ud800.example", "control"),
        ],
    )
    def test_what_is_no_address_is_refused_with_its_reason(self, bad: str, reason: str) -> None:
        assert reason in complaint(base_url=bad)

    @pytest.mark.parametrize(
        ("url", "http", "websocket"),
        [
            ("ws://letta.example:4500/ws", "http://letta.example:4500", "ws://letta.example:4500/ws"),
            ("http://letta.example:4500", "http://letta.example:4500", "ws://letta.example:4500/ws"),
            ("wss://letta.example/a", "https://letta.example/a", "wss://letta.example/a/ws"),
            ("https://letta.example/a/v1", "https://letta.example/a", "wss://letta.example/a/ws"),
            ("ws://[::1]:80", "http://[::1]", "ws://[::1]/ws"),
        ],
    )
    def test_a_server_has_an_address_for_each_protocol(self, url: str, http: str, websocket: str) -> None:
        found = resolve(base_url=url).base_url
        assert (http_url(found), websocket_url(found)) == (http, websocket)

    @pytest.mark.parametrize("value", [7, b"https://bob:hunter2@x.example", ["https://bob:hunter2@x.example"]])
    def test_what_is_no_text_is_refused_and_not_shown(self, value: object) -> None:
        assert "hunter2" not in complaint(base_url=value)

    @pytest.mark.parametrize(
        "bad",
        [
            "https://bob:hunter2@letta.example",
            "https://hunter2@letta.example",
            "https://:hunter2@letta.example/",
            "bob:hunter2@letta.example",
            "//bob:hunter2@letta.example",
            "https:bob:hunter2@letta.example",
            "https://bob:hunter2＠letta.example",
            "https://bob:hun/ter2hunter2@letta.example",
            "https://bob:hun?hunter2@letta.example",
            "https://bob:hun#hunter2@letta.example",
            "https://bob:hunter2%40letta.example",
            "https://bob:hunter2",
            "bob:hunter2",
            "https://bob:hunter2/letta.example",
            "ws://bob:hunter2@letta.example",
            "ftp://bob:hunter2@letta.example",
            "https://[bob:hunter2@letta.example",
            "https://bob:hunter2@[::1",
            "https://bob:hunter2@letta.example:99999",
            "https://bob:hunter2@let ta.example\n",
            "https://bob:hunter2\\@letta.example",
            "https://letta.example?token=hunter2",
            "https://letta.example/#hunter2",
        ],
    )
    def test_a_password_in_a_url_is_never_shown(self, bad: str) -> None:
        for message in (complaint(base_url=bad), complaint({"LETTA_BASE_URL": bad})):
            assert "hunter2" not in message
            assert "bob" not in message
            assert "LETTA_BASE_URL" in message

    def test_a_password_in_a_url_is_sent_to_its_variable(self) -> None:
        assert "put the password in LETTA_PASSWORD" in complaint(base_url="https://bob:hunter2@letta.example")

    def test_a_password_in_a_trace_link_is_refused_and_not_shown(self) -> None:
        assert "hunter2" not in complaint(trace_link="https://bob:hunter2@j.example/{trace_id}")

    def test_an_ordinary_wrong_url_is_shown(self) -> None:
        assert "'letta.example:8283'" in complaint(base_url="letta.example:8283")

    @given(text=st.from_regex(r"(?i)(https?|wss?)://[a-z0-9:@\\[\].%_-]{1,20}(/[ -~]{0,10})?", fullmatch=True))
    def test_what_is_accepted_means_the_same_to_the_http_library(self, text: str) -> None:
        try:
            url = resolve(base_url=text).base_url
        except LettaConfigurationError:
            return
        parsed = httpx.URL(url)
        assert parsed.host == urlsplit(url).hostname
        assert (parsed.userinfo, parsed.query, parsed.fragment) == (b"", b"", "")
        assert resolve(base_url=url).base_url == url

    @given(user=st.text(min_size=1), rest=st.text())
    def test_no_text_before_an_at_sign_is_shown(self, user: str, rest: str) -> None:
        marked = f"7c9e{user}6679"
        assert marked not in complaint(base_url=f"https://{marked}@{rest}")
        assert "7c9e" not in complaint(base_url=f"https://{marked}@{rest}")

    @pytest.mark.parametrize(
        ("keywords", "expected"),
        [
            ({}, DEFAULT_BASE_URL),
            ({"password": PASSWORD}, DEFAULT_BASE_URL),
            ({"api_key": "key"}, CLOUD_BASE_URL),
            ({"api_key": "key", "password": PASSWORD}, DEFAULT_BASE_URL),
            ({"api_key": "key", "base_url": "https://own.example"}, "https://own.example"),
        ],
    )
    def test_without_a_url_the_secret_decides(self, keywords: dict[str, str], expected: str) -> None:
        assert resolve(**keywords).base_url == expected

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("localhost", True),
            ("LOCALHOST", True),
            ("letta.localhost", True),
            ("127.0.0.1", True),
            ("127.8.8.8", True),
            ("[::1]", True),
            ("[::ffff:127.0.0.1]", True),
            ("localhost.example", False),
            ("0.0.0.0", False),
            ("192.168.1.1", False),
            ("[2001:db8::1]", False),
        ],
    )
    def test_loopback_is_known_by_the_form_of_the_address(self, host: str, loopback: bool) -> None:
        assert resolve(base_url=f"http://{host}:8283").is_loopback is loopback
