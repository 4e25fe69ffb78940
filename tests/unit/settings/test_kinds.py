"""Values that are accepted, and values that are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import VARIABLES, Delivery, Secret, ServerKind, Variable
from tests.support.settings import BY_NAME, PASSWORD, complaint, resolve

NUMBERS = [variable for variable in VARIABLES if variable.unit]


class TestBadValues:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("board_interval", -1),
            ("board_interval", float("nan")),
            ("board_interval", float("inf")),
            ("board_interval", True),
            ("board_interval", "1_0"),
            ("board_interval", "１５"),
            ("board_interval", "15s"),
            ("board_interval", "1e400"),
            ("board_interval", 1e300),
            ("board_interval", 10**400),
            ("board_interval", []),
            ("poll_interval", 0.001),
            ("poll_interval", 61),
            ("connect_timeout", 0),
            ("read_timeout", "0"),
            ("busy_timeout", -0.0),
            ("shutdown_timeout", 0.0),
            ("wake_budget", 0),
            ("wake_budget", 1.5),
            ("wake_budget", 60.0),
            ("wake_budget", False),
            ("max_pending_tasks", 0),
            ("max_pending_tasks", "9" * 5000),
            ("content_cap", 99),
            ("content_cap", 10_001),
            ("max_steps", 0),
            ("max_steps", "-1"),
            ("delivery", "pigeon"),
            ("delivery", 1),
            ("board_label", ""),
            ("board_label", "a b"),
            ("board_label", "ä"),
            ("board_label", "x" * 51),
            ("board_label", "x\ny"),
            ("agent_id", ""),
            ("agent_id", "  "),
            ("agent_id", "a\nb"),
            ("agent_id", "a\x00b"),
            ("agent_id", "a\udcffb"),
            ("agent_id", "x" * 201),
            ("agent_id", 7),
            ("agent_allow_list", ["ok", ""]),
            ("agent_allow_list", ["ok", 7]),
            ("agent_allow_list", "ok,b\x07d"),
            ("agent_allow_list", 7),
            ("trace_link", "https://jaeger.example/trace"),
            ("trace_link", "ftp://jaeger.example/{trace_id}"),
            ("trace_link", "/trace/{trace_id}"),
            ("trace_link", "https://j.example/{trace_id}/{service}"),
            ("trace_link", "https://j.example/{trace_id!r}/{trace_id}"),
            ("trace_link", "https://j.example/{{trace_id}}"),
            ("trace_link", "https://j.example/{trace_id}/{"),
            ("trace_link", "https://j.example/{trace_id} x"),
            ("trace_link", "https:///{trace_id}"),
            ("trace_link", "https://[bad/{trace_id}"),
            ("password", "a\nb"),
            ("password", "a\udcffb"),
            ("password", b"bytes"),
            ("api_key", "a\x00b"),
            ("api_key", 7),
        ],
    )
    def test_is_refused(self, name: str, value: object) -> None:
        message = complaint(**{name: value})
        assert message.startswith(f"{BY_NAME[name].env} (keyword {name}) cannot be ")
        assert BY_NAME[name].allowed in message

    @pytest.mark.parametrize("variable", NUMBERS, ids=lambda v: v.env)
    @given(text=st.text() | st.floats().map(repr) | st.integers().map(str))
    @example(text="nan")
    @example(text="-1")
    @example(text="1e999")
    @example(text="\x00")
    @example(text="0" * 200)
    def test_any_text_for_a_number_is_a_number_or_one_line(self, variable: Variable, text: str) -> None:
        try:
            value = getattr(resolve({variable.env: text}), variable.name)
        except LettaConfigurationError as error:
            message = str(error)
            assert variable.env in message
            assert message.isprintable()
            assert len(message) < 250
        else:
            assert value is None or (type(value) in (int, float) and 0 <= value <= 2_592_000)

    @given(text=st.text())
    def test_any_text_for_any_variable_is_a_value_or_one_line(self, text: str) -> None:
        for variable in VARIABLES:
            try:
                resolve({variable.env: text})
            except LettaConfigurationError as error:
                assert variable.env in str(error)
                assert str(error).isprintable()


class TestGoodValues:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("board_interval", "0", 0.0),
            ("board_interval", " 2.5 ", 2.5),
            ("board_interval", 3, 3.0),
            ("poll_interval", 0.01, 0.01),
            ("poll_interval", "6e1", 60.0),
            ("content_cap", 100, 100),
            ("content_cap", "+10000", 10_000),
            ("max_steps", "1", 1),
            ("delivery", "BOARD", Delivery.BOARD),
            ("delivery", Delivery.MESSAGES, Delivery.MESSAGES),
            ("board_label", " a-B_9 ", "a-B_9"),
            ("agent_id", " agent/ü 7 ", "agent/ü 7"),
            ("agent_id", "x" * 200, "x" * 200),
            ("agent_allow_list", " a, b,,a ,", ("a", "b")),
            ("agent_allow_list", ["a", "b"], ("a", "b")),
            ("agent_allow_list", (), ()),
            ("trace_link", "https://j.example/t/{trace_id}?s={span_id}", "https://j.example/t/{trace_id}?s={span_id}"),
            ("password", f"  {PASSWORD}\n", Secret(PASSWORD)),
            ("password", "пароль with spaces", Secret("пароль with spaces")),
            ("api_key", Secret("key"), Secret("key")),
        ],
    )
    def test_is_accepted(self, name: str, value: object, expected: object) -> None:
        found = getattr(resolve(**{name: value}), name)
        assert found == expected
        assert type(found) is type(expected)

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            resolve().agent_id = "other"  # type: ignore[misc]


class TestServer:
    @pytest.mark.parametrize("kind", list(ServerKind))
    def test_its_kind_can_be_named(self, kind: ServerKind) -> None:
        assert resolve(server=kind, base_url="http://localhost").server is kind
        assert resolve({"OTEL_LETTA_SERVER": f" {str(kind).upper()} "}).server is kind

    def test_it_is_asked_unless_its_kind_is_named(self) -> None:
        assert resolve().server is ServerKind.AUTO

    def test_another_kind_is_refused(self) -> None:
        assert complaint(server="cloud").endswith(
            "cannot be 'cloud' - allowed: auto, rest, app-server, app-server-http"
        )

    @pytest.mark.parametrize("url", ["ws://localhost:4500", "wss://letta.example/ws"])
    def test_a_rest_server_has_no_websocket(self, url: str) -> None:
        for message in (complaint(server="rest", base_url=url), complaint({"OTEL_LETTA_SERVER": "rest"}, base_url=url)):
            assert message.startswith("OTEL_LETTA_SERVER")
            assert "cannot be 'rest': LETTA_BASE_URL is the address of a WebSocket" in message
        for kind in ("auto", "app-server", "app-server-http"):
            assert resolve(server=kind, base_url=url).base_url.startswith("ws")

    def test_a_conversation_for_reports_has_a_title(self) -> None:
        assert resolve().conversation is None
        assert resolve(conversation=" Task progress – Köln ").conversation == "Task progress – Köln"
        assert resolve(conversation="conv-deploy").conversation == "conv-deploy"

    @pytest.mark.parametrize("bad", ["x" * 101, "two\nlines", "\x1b[31m", "a\u2028b", "a\ud800b", 7])
    def test_a_title_is_one_short_line(self, bad: Any) -> None:
        assert complaint(conversation=bad).startswith("OTEL_LETTA_CONVERSATION")

    @pytest.mark.parametrize("bad", ["local-conv-12", "conv-11111111-1111-4111-8111-111111111111"])
    def test_an_id_is_not_taken_for_a_title(self, bad: str) -> None:
        assert "looks like an id" in complaint(conversation=bad)
