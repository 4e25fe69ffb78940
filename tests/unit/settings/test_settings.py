"""Settings: agent, server, token and warnings; reading them again; when two are the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import DEFAULT_BASE_URL, Secret, Settings
from tests.support.settings import AGENT, BY_NAME, PASSWORD, resolve, write_dotenv

LOGGER = logging.getLogger("otel_letta.test")


class TestAgent:
    def test_a_missing_agent_is_an_error_that_names_what_to_set(self) -> None:
        with pytest.raises(LettaConfigurationError, match="set LETTA_AGENT_ID"):
            Settings.resolve(environ={})

    def test_it_can_be_allowed_to_be_missing(self) -> None:
        assert Settings.resolve(environ={}, require_agent=False).refresh().agent_id == ""


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
        keywords = {name: PASSWORD} if by_keyword else {}
        found = resolve({} if by_keyword else {env: PASSWORD}, trust_dotenv=True, **keywords)
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
