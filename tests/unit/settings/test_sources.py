"""Sources of values, and complaints about values that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from otel_letta.errors import LettaError
from otel_letta.settings import DEFAULT_BASE_URL, Delivery, Secret, Settings
from tests.support.settings import AGENT, BY_NAME, PASSWORD, complaint, resolve, write_dotenv


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

    def test_an_empty_password_keyword_means_that_there_is_none(self) -> None:
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


class TestComplaints:
    def test_the_line_names_variable_value_source_and_what_is_allowed(self) -> None:
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
