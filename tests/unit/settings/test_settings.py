"""Where settings come from, what they may be, and what they never show."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_letta.errors import LettaConfigurationError, LettaError
from otel_letta.settings import (
    CLOUD_BASE_URL,
    DEFAULT_BASE_URL,
    VARIABLES,
    Delivery,
    Secret,
    ServerKind,
    Settings,
    Variable,
    http_url,
    websocket_url,
)
from otel_letta.settings import settings as settings_module

AGENT = "agent-1"
PASSWORD = "hunter2-correct-horse"
BY_NAME = {variable.name: variable for variable in VARIABLES}
NUMBERS = [variable for variable in VARIABLES if variable.unit]
LOGGER = logging.getLogger("otel_letta.test")


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "_said", {})


def resolve(environ: Mapping[str, str] | None = None, /, **keywords: Any) -> Settings:
    """Settings of an agent, from nothing but what the test gives."""
    return Settings.resolve(environ={"LETTA_AGENT_ID": AGENT, **(environ or {})}, **keywords)


def complaint(environ: Mapping[str, str] | None = None, /, **keywords: Any) -> str:
    """What the user is told about settings that cannot be used."""
    with pytest.raises(LettaConfigurationError) as raised:
        resolve(environ, **keywords)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


def write_dotenv(folder: Path, text: str) -> Path:
    path = folder / ".env"
    path.write_text(text, encoding="utf-8")
    return path


class TestPrecedence:
    @pytest.mark.parametrize("highest", ["keyword", "environment", ".env", "default"])
    @pytest.mark.parametrize(
        ("name", "raw", "expected"),
        [
            ("agent_id", ("k", "e", "f"), ("k", "e", "f", "")),
            (
                "base_url",
                ("https://k.x", "https://e.x", "https://f.x"),
                ("https://k.x", "https://e.x", "https://f.x", DEFAULT_BASE_URL),
            ),
            ("password", ("k", "e", "f"), (Secret("k"), Secret("e"), Secret("f"), None)),
            (
                "delivery",
                ("board", "messages", "board"),
                (Delivery.BOARD, Delivery.MESSAGES, Delivery.BOARD, Delivery.AUTO),
            ),
            ("board_interval", (1, "2", "3"), (1.0, 2.0, 3.0, 15.0)),
            ("wake_budget", (1, "2", "3"), (1, 2, 3, 60)),
            ("agent_allow_list", (["k"], "e", "f"), (("k",), ("e",), ("f",), ())),
        ],
    )
    def test_the_highest_layer_that_has_a_value_wins(
        self, tmp_path: Path, name: str, raw: tuple[Any, str, str], expected: tuple[object, ...], highest: str
    ) -> None:
        rank = ["keyword", "environment", ".env", "default"].index(highest)
        keyword, env, in_file = raw
        variable = BY_NAME[name].env
        path = write_dotenv(tmp_path, f"{variable}={in_file}\n" if rank <= 2 else "")
        found = Settings.resolve(
            environ={variable: env} if rank <= 1 else {},
            require_agent=False,
            **({name: keyword} if rank == 0 else {}),
        )
        assert getattr(found, name) == expected[rank]
        assert found.sources[name] == (str(path) if highest == ".env" else highest)

    @pytest.mark.parametrize("blank", ["", " ", "\t\n"])
    def test_blank_text_counts_as_not_set(self, tmp_path: Path, blank: str) -> None:
        write_dotenv(tmp_path, "OTEL_LETTA_BOARD_LABEL=from_file\nOTEL_LETTA_DELIVERY=\nLETTA_PASSWORD\n")
        found = resolve({"OTEL_LETTA_BOARD_LABEL": blank, "LETTA_PASSWORD": blank})
        assert (found.board_label, found.delivery, found.password) == ("from_file", Delivery.AUTO, None)

    def test_a_keyword_of_none_counts_as_not_set(self) -> None:
        assert resolve({"OTEL_LETTA_MAX_STEPS": "3"}, max_steps=None).max_steps == 3

    def test_an_empty_password_keyword_says_that_there_is_none(self) -> None:
        found = resolve({"LETTA_PASSWORD": PASSWORD}, password="")
        assert (found.password, found.token, found.sources["password"]) == (None, None, "keyword")

    def test_every_setting_has_a_source(self) -> None:
        assert set(resolve().sources) == set(BY_NAME)

    def test_sources_cannot_be_changed(self) -> None:
        with pytest.raises(TypeError):
            resolve().sources["agent_id"] = "x"  # type: ignore[index]


class TestDotenv:
    def test_the_nearest_one_upward_is_read_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deep = tmp_path / "project" / "src" / "deep"
        deep.mkdir(parents=True)
        write_dotenv(tmp_path, "LETTA_AGENT_ID=outer\nOTEL_LETTA_BOARD_LABEL=outer\n")
        near = write_dotenv(tmp_path / "project", "LETTA_AGENT_ID=inner\n")
        monkeypatch.chdir(deep)
        found = Settings.resolve(environ={})
        assert (found.agent_id, found.board_label) == ("inner", "task_progress")
        assert found.sources["agent_id"] == str(near)

    def test_a_folder_of_that_name_is_passed_by(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "inner" / ".env").mkdir(parents=True)
        write_dotenv(tmp_path, "LETTA_AGENT_ID=outer\n")
        monkeypatch.chdir(tmp_path / "inner")
        assert Settings.resolve(environ={}).agent_id == "outer"

    def test_an_explicit_path_replaces_the_search(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, "OTEL_LETTA_BOARD_LABEL=nearest\n")
        other = tmp_path / "staging.env"
        other.write_text("LETTA_AGENT_ID=staging\n")
        for path in (other, str(other), "staging.env"):
            found = Settings.resolve(environ={}, dotenv_path=path)
            assert (found.agent_id, found.board_label) == ("staging", "task_progress")
            assert found.sources["agent_id"] == str(other)

    @pytest.mark.parametrize("path", ["missing.env", ".", "a\0b", "", "new\nline.env", 3, object()])
    def test_an_explicit_path_that_cannot_be_read_is_an_error(self, path: Any) -> None:
        assert "dotenv_path" in complaint(dotenv_path=path)

    def test_nothing_reaches_the_process_environment(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, f"LETTA_AGENT_ID=a\nLETTA_PASSWORD={PASSWORD}\nHTTPS_PROXY=http://evil.example\n")
        before = dict(os.environ)
        Settings.resolve().refresh()
        assert dict(os.environ) == before

    @pytest.mark.parametrize(
        "raw",
        [
            b"\xef\xbb\xbfLETTA_AGENT_ID=agent-1\nOTEL_LETTA_CONTENT_CAP=500\n",
            b"LETTA_AGENT_ID=agent-1\r\nOTEL_LETTA_CONTENT_CAP=500\r\n",
            b"\xef\xbb\xbfLETTA_AGENT_ID='agent-1'\r\n# a comment\r\nexport OTEL_LETTA_CONTENT_CAP = '500'  # why\r\n",
        ],
        ids=["byte order mark", "CRLF", "both"],
    )
    def test_files_of_windows_editors_are_read(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / ".env").write_bytes(raw)
        found = Settings.resolve(environ={})
        assert (found.agent_id, found.content_cap) == (AGENT, 500)

    def test_one_that_was_found_but_is_not_utf8_is_one_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / ".env").write_bytes(b"LETTA_PASSWORD=" + PASSWORD.encode() + b"\xff\n")
        for _ in range(3):
            assert resolve().refresh().password is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(tmp_path / ".env") in caplog.text
        assert PASSWORD not in caplog.text

    def test_one_that_was_found_but_cannot_be_opened_is_one_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_dotenv(tmp_path, "OTEL_LETTA_BOARD_LABEL=x\n")

        def refuse(*args: object, **options: object) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_text", refuse)
        assert resolve().board_label == "task_progress"
        assert resolve().board_label == "task_progress"
        (record,) = caplog.records
        assert "Permission denied" in record.message

    def test_an_explicit_one_that_is_not_utf8_is_an_error_without_its_content(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.env"
        path.write_bytes(b"LETTA_PASSWORD=" + PASSWORD.encode() + b"\xff\n")
        assert "UTF-8" in complaint(dotenv_path=path)

    def test_a_deleted_working_directory_is_no_crash(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        assert resolve().agent_id == AGENT


class TestRefresh:
    def test_a_rotated_password_is_read_from_the_file(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, "LETTA_PASSWORD=old\n")
        before = resolve()
        write_dotenv(tmp_path, "LETTA_PASSWORD=new\n")
        after = before.refresh()
        assert after.password == Secret("new")
        assert before.password == Secret("old")
        assert after != before

    def test_a_rotated_password_is_read_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = Settings.resolve(agent_id=AGENT)
        monkeypatch.setenv("LETTA_PASSWORD", "new")
        assert before.refresh().password == Secret("new")

    def test_keywords_stay(self) -> None:
        found = resolve(password=PASSWORD, content_cap=500).refresh().refresh()
        assert (found.content_cap, found.password, found.sources["password"]) == (500, Secret(PASSWORD), "keyword")

    def test_a_file_made_later_is_found(self, tmp_path: Path) -> None:
        before = resolve()
        write_dotenv(tmp_path, "LETTA_PASSWORD=new\n")
        assert before.refresh().password == Secret("new")

    def test_a_program_that_moved_into_a_foreign_folder_does_not_read_its_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine").mkdir()
        workspace = tmp_path / "workspace"
        workspace.mkdir()
        write_dotenv(workspace, "LETTA_BASE_URL=https://evil.example\n")
        monkeypatch.chdir(tmp_path / "mine")
        before = resolve({"LETTA_PASSWORD": PASSWORD})
        monkeypatch.chdir(workspace)
        assert before.refresh().base_url == DEFAULT_BASE_URL

    def test_a_relative_explicit_path_stays_the_same_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "my.env").write_text("OTEL_LETTA_BOARD_LABEL=mine\n")
        before = resolve(dotenv_path="my.env")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert before.refresh().board_label == "mine"

    def test_settings_that_went_bad_leave_the_old_ones_and_one_debug_line(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        path = tmp_path / "my.env"
        path.write_text("OTEL_LETTA_BOARD_LABEL=mine\n")
        before = resolve(dotenv_path=path)
        path.write_text("OTEL_LETTA_BOARD_LABEL=not/allowed\n")
        assert before.refresh() is before
        assert before.refresh() is before
        assert [(record.levelname, "not/allowed" in record.message) for record in caplog.records] == [("DEBUG", True)]

    def test_a_file_that_went_away_leaves_the_old_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "my.env"
        path.write_text("")
        before = resolve(dotenv_path=path)
        path.unlink()
        assert before.refresh() is before


class TestTable:
    def test_it_names_the_fields_of_settings_in_their_order(self) -> None:
        public = [field.name for field in dataclasses.fields(Settings) if not field.name.startswith("_")]
        assert public == list(BY_NAME)

    def test_names_are_unique_and_ours_carry_the_prefix(self) -> None:
        assert len({variable.env for variable in VARIABLES}) == len(VARIABLES)
        assert {v.env for v in VARIABLES if not v.env.startswith("OTEL_LETTA_")} == {
            "LETTA_BASE_URL",
            "LETTA_AGENT_ID",
            "LETTA_PASSWORD",
            "LETTA_API_KEY",
        }

    @pytest.mark.parametrize("variable", [v for v in VARIABLES if v.default_text], ids=lambda v: v.env)
    def test_a_default_written_into_the_environment_means_the_same(self, variable: Variable) -> None:
        assert variable.parse(variable.default_text) == variable.default

    @pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.env)
    def test_each_line_can_be_printed(self, variable: Variable) -> None:
        for text in (variable.help, variable.allowed, variable.unit, variable.default_text):
            assert text.isprintable()
        assert variable.help.endswith((".", "}"))

    def test_only_the_two_secrets_are_secret(self) -> None:
        assert [variable.name for variable in VARIABLES if variable.secret] == ["password", "api_key"]


class TestBadValues:
    def test_the_line_says_variable_value_source_and_what_is_allowed(self) -> None:
        assert complaint({"OTEL_LETTA_POLL_INTERVAL": "fast"}) == (
            "OTEL_LETTA_POLL_INTERVAL from the environment cannot be 'fast'"
            " - allowed: a number of seconds from 0.01 to 60"
        )

    def test_the_line_names_the_keyword_too(self) -> None:
        assert complaint(read_timeout=0) == (
            "OTEL_LETTA_READ_TIMEOUT (keyword read_timeout) cannot be 0"
            " - allowed: a number of seconds above 0, at most 2592000"
        )

    def test_the_line_names_the_file(self, tmp_path: Path) -> None:
        path = write_dotenv(tmp_path, "OTEL_LETTA_DELIVERY=pigeon\n")
        assert complaint() == (f"OTEL_LETTA_DELIVERY from {path} cannot be 'pigeon' - allowed: auto, messages, board")

    def test_the_error_is_a_letta_error_and_a_value_error(self) -> None:
        with pytest.raises(LettaError):
            resolve(content_cap=1)
        with pytest.raises(ValueError, match="OTEL_LETTA_CONTENT_CAP"):
            resolve(content_cap=1)

    def test_a_long_value_is_cut(self) -> None:
        message = complaint({"OTEL_LETTA_CONTENT_CAP": "x" * 10_000_000})
        assert len(message) < 250
        assert "…" in message

    @pytest.mark.parametrize("hostile", ["a\nb", "a\x1b[31mb", "a\u2028b", "a\u202eb", "a\ud800b"])
    def test_control_characters_are_escaped(self, hostile: str) -> None:
        assert "\\" in complaint({"OTEL_LETTA_CONTENT_CAP": hostile})

    def test_a_value_that_cannot_even_be_shown_is_named_by_its_type(self) -> None:
        class Broken:
            def __repr__(self) -> str:
                raise RuntimeError

        assert "<Broken>" in complaint(content_cap=Broken())

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


class TestUnknownKeywords:
    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("bord_label", "board_label"),
            ("LETTA_PASSWORD", "password"),
            ("timeout", "read_timeout"),
            ("url", "base_url"),
        ],
    )
    def test_the_error_names_what_may_have_been_meant(self, wrong: str, right: str) -> None:
        message = complaint(**{wrong: PASSWORD})
        assert repr(wrong) in message
        assert right in message
        assert PASSWORD not in message

    def test_without_a_similar_one_all_are_listed(self) -> None:
        message = complaint(zzz=1)
        assert all(name in message for name in BY_NAME)


class TestAgent:
    def test_a_missing_agent_is_an_error_that_says_what_to_set(self) -> None:
        with pytest.raises(LettaConfigurationError, match="set LETTA_AGENT_ID"):
            Settings.resolve(environ={})

    def test_it_can_be_allowed_to_be_missing(self) -> None:
        assert Settings.resolve(environ={}, require_agent=False).refresh().agent_id == ""


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
    def test_loopback_is_told_by_the_form_of_the_address(self, host: str, loopback: bool) -> None:
        assert resolve(base_url=f"http://{host}:8283").is_loopback is loopback


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


class TestToken:
    @pytest.mark.parametrize(
        ("url", "secrets", "expected"),
        [
            ("https://own.example", {"password": "p", "api_key": "k"}, "p"),
            ("https://own.example", {"api_key": "k"}, "k"),
            ("https://api.letta.com", {"password": "p", "api_key": "k"}, "k"),
            ("https://API.letta.com/v1", {"password": "p"}, "p"),
            ("https://api.letta.com.evil.example", {"password": "p", "api_key": "k"}, "p"),
            ("ws://localhost:4500", {"password": "p", "api_key": "k"}, "p"),
            ("ws://localhost:4500", {"api_key": "k"}, "k"),
        ],
    )
    def test_each_server_gets_the_secret_it_knows(self, url: str, secrets: dict[str, str], expected: str) -> None:
        found = resolve(base_url=url, **secrets)
        assert found.token == Secret(expected)
        assert found.token_name == {"p": "password", "k": "api_key"}[expected]

    def test_there_may_be_none(self) -> None:
        found = resolve(base_url="http://localhost:8283")
        assert (found.token, found.token_name) == (None, None)

    @pytest.mark.parametrize(
        ("url", "cloud"),
        [("https://API.letta.com/v1", True), ("wss://api.letta.com", True), ("https://api.letta.com.evil.x", False)],
    )
    def test_letta_cloud_is_known_by_its_name(self, url: str, cloud: bool) -> None:
        assert resolve(base_url=url).is_cloud is cloud


class TestSecurityWarnings:
    def test_an_own_https_server_gives_none(self) -> None:
        assert resolve({"LETTA_BASE_URL": "https://own.example", "LETTA_PASSWORD": "p"}).security_warnings() == ()

    def test_a_password_without_a_url_names_the_default_host(self) -> None:
        (text,) = resolve(password=PASSWORD).security_warnings()
        assert "letta2.oculair.ca" in text
        assert "LETTA_BASE_URL" in text
        assert "LETTA_PASSWORD" in text

    def test_the_default_host_is_named_without_a_password_too(self) -> None:
        (text,) = resolve().security_warnings()
        assert "letta2.oculair.ca" in text

    def test_the_default_host_asked_for_by_name_gives_none(self) -> None:
        assert resolve(base_url=DEFAULT_BASE_URL, password=PASSWORD).security_warnings() == ()

    def test_an_api_key_without_a_url_goes_where_it_belongs(self) -> None:
        assert resolve(api_key="key").security_warnings() == ()

    @pytest.mark.parametrize("name", ["password", "api_key"])
    @pytest.mark.parametrize("by_keyword", [True, False])
    def test_a_url_from_a_file_with_a_secret_from_elsewhere_names_both(
        self, tmp_path: Path, name: str, by_keyword: bool
    ) -> None:
        path = write_dotenv(tmp_path, "LETTA_BASE_URL=https://other.example\n")
        env = BY_NAME[name].env
        found = resolve(**{name: PASSWORD}) if by_keyword else resolve({env: PASSWORD})
        (text,) = found.security_warnings()
        assert env in text
        assert "LETTA_BASE_URL" in text
        assert str(path) in text
        assert PASSWORD not in text

    def test_both_from_one_file_give_none(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, "LETTA_BASE_URL=https://other.example\nLETTA_PASSWORD=p\n")
        assert resolve().security_warnings() == ()

    def test_a_secret_that_is_not_sent_gives_none(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, "LETTA_BASE_URL=https://other.example\nLETTA_PASSWORD=p\n")
        assert resolve({"LETTA_API_KEY": "stays here"}).security_warnings() == ()

    def test_plain_http_to_another_machine(self) -> None:
        (text,) = resolve(base_url="http://10.0.0.7:8283", password=PASSWORD).security_warnings()
        assert "10.0.0.7" in text
        assert "https" in text

    def test_a_plain_websocket_to_another_machine(self) -> None:
        (text,) = resolve(base_url="ws://10.0.0.7:4500/ws", password=PASSWORD).security_warnings()
        assert "is plain ws: reports and LETTA_PASSWORD travel readable to 10.0.0.7. Use wss" in text
        assert resolve(base_url="wss://10.0.0.7:4500", password=PASSWORD).security_warnings() == ()

    @pytest.mark.parametrize(
        "url", ["http://localhost:8283", "http://127.0.0.1", "http://[::1]:8283", "ws://127.0.0.1:4500"]
    )
    def test_plain_http_on_this_machine_gives_none(self, url: str) -> None:
        assert resolve(base_url=url, password=PASSWORD).security_warnings() == ()

    def test_each_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        resolve(password=PASSWORD).warn_once(LOGGER)
        resolve(password=PASSWORD).refresh().warn_once(LOGGER)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        resolve(base_url="http://10.0.0.7").warn_once(LOGGER)
        assert len(caplog.records) == 2


class TestDisabled:
    @pytest.mark.parametrize(
        ("value", "disabled"),
        [("true", True), ("TRUE", True), ("True", True), ("false", False), ("1", False), ("", False)],
    )
    def test_the_sdk_s_own_switch_counts(self, value: str, disabled: bool) -> None:
        assert resolve({"OTEL_SDK_DISABLED": value}).disabled is disabled

    def test_it_is_read_from_the_process_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        assert Settings.resolve(agent_id=AGENT).disabled

    def test_a_file_cannot_say_it(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, "OTEL_SDK_DISABLED=true\n")
        assert not resolve().disabled


class TestIdentity:
    def test_settings_are_equal_when_all_they_say_is_equal(self) -> None:
        one = resolve({"LETTA_PASSWORD": PASSWORD, "LETTA_BASE_URL": "https://X.example/v1"})
        other = resolve(password=PASSWORD, base_url="https://x.example")
        assert one == other
        assert one.identity() == other.identity()
        assert len({one, other}) == 1

    @pytest.mark.parametrize(
        "keywords",
        [
            {"password": "other"},
            {"api_key": "k"},
            {"agent_id": "b"},
            {"base_url": "http://localhost"},
            {"max_steps": 2},
        ],
    )
    def test_any_difference_makes_them_differ(self, keywords: dict[str, Any]) -> None:
        assert resolve(password=PASSWORD).identity() != resolve(**{"password": PASSWORD, **keywords}).identity()

    def test_a_password_is_no_api_key(self) -> None:
        url = "https://own.example"
        assert resolve(base_url=url, password="x").identity() != resolve(base_url=url, api_key="x").identity()

    def test_they_equal_nothing_else(self) -> None:
        assert resolve() != "settings"


def _pickled(value: object) -> str:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(value)
    return ""


class TestSecrets:
    SHOWN: tuple[tuple[str, Callable[[Any], object]], ...] = (
        ("repr", repr),
        ("str", str),
        ("format", format),
        ("f-string", lambda value: f"{value} {value!r} {value!s:>20}"),
        ("percent", lambda value: "%s %r" % (value, value)),  # noqa: UP031
        ("copy", copy.copy),
        ("deepcopy", copy.deepcopy),
        ("pickle", _pickled),
        ("json", lambda value: json.dumps(value, default=str)),
        ("attributes", lambda v: [getattr(v, name, None) for name in dir(v) if name != "__weakref__"]),
        ("vars", lambda value: vars(value) if hasattr(value, "__dict__") else ""),
    )

    @pytest.mark.parametrize(
        "make", [Secret, lambda text: resolve(password=text, api_key=text)], ids=["alone", "within"]
    )
    @pytest.mark.parametrize(("how", "show"), SHOWN, ids=[how for how, _ in SHOWN])
    def test_nothing_shows_it(self, make: Callable[[str], object], how: str, show: Callable[[Any], object]) -> None:
        assert PASSWORD not in repr(show(make(PASSWORD)))

    @pytest.mark.parametrize("dump", [dataclasses.asdict, dataclasses.astuple], ids=["asdict", "astuple"])
    def test_dumps_of_settings_do_not_show_it(self, dump: Callable[[Settings], object]) -> None:
        for found in (resolve(password=PASSWORD, api_key=PASSWORD), resolve({"LETTA_PASSWORD": PASSWORD})):
            assert PASSWORD not in repr(dump(found))
            assert PASSWORD not in str(dump(found))

    def test_the_identity_does_not_show_it(self) -> None:
        assert PASSWORD not in repr(resolve(password=PASSWORD).identity())

    def test_a_log_line_does_not_show_it(self, caplog: pytest.LogCaptureFixture) -> None:
        found = resolve(password=PASSWORD)
        LOGGER.warning("%s %r %s", found, found, found.token)
        assert "***" in caplog.text
        assert PASSWORD not in caplog.text

    @pytest.mark.parametrize(
        "keywords",
        [
            {"password": f"{PASSWORD}\n{PASSWORD}"},
            {"password": PASSWORD.encode()},
            {"password": [PASSWORD]},
            {"pasword": PASSWORD},
            {"pasword": [PASSWORD]},
            {"password": PASSWORD, "content_cap": 1},
            {"password": PASSWORD, "dotenv_path": "missing"},
        ],
    )
    def test_no_error_or_traceback_shows_it_even_with_variables(self, keywords: dict[str, Any]) -> None:
        with pytest.raises(LettaConfigurationError) as raised:
            Settings.resolve(agent_id=AGENT, **keywords)
        # The first frame is this test's own.
        library = raised.value.with_traceback(
            raised.value.__traceback__.tb_next if raised.value.__traceback__ else None
        )
        told = "".join(traceback.TracebackException.from_exception(library, capture_locals=True).format())
        assert "resolve" in told
        assert PASSWORD not in told
        assert raised.value.__context__ is None

    def test_no_error_about_the_environment_or_a_file_shows_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_dotenv(tmp_path, f'LETTA_API_KEY="{PASSWORD}\\a{PASSWORD}"\n')
        monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
        with pytest.raises(LettaConfigurationError, match="LETTA_API_KEY from") as raised:
            Settings.resolve(agent_id=AGENT)
        told = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
        assert PASSWORD not in told

    def test_only_reveal_gives_it(self) -> None:
        assert Secret(PASSWORD).reveal() == PASSWORD

    def test_secrets_compare_by_their_text(self) -> None:
        assert Secret("ä") == Secret("ä")
        assert Secret("a") != Secret("b")
        assert Secret("a") != "a"

    def test_secrets_have_no_hash(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(Secret("a"))

    def test_only_text_can_be_one(self) -> None:
        with pytest.raises(TypeError) as raised:
            Secret(PASSWORD.encode())  # type: ignore[arg-type]
        assert PASSWORD not in str(raised.value)
