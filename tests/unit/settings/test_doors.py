"""Where a secret may go: never where only a file sends it that nobody named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from otel_letta.settings import Secret, Settings
from otel_letta.settings.urls import CLOUD_BASE_URL, DEFAULT_BASE_URL
from tests.support.settings import BY_NAME, PASSWORD, complaint, resolve, write_dotenv

EVIL = "https://evil.example"
OWN = "https://own.example"


class TestAFileFoundBySearching:
    @pytest.mark.parametrize("name", ["password", "api_key"])
    @pytest.mark.parametrize("by_keyword", [True, False])
    def test_it_gets_no_secret_from_elsewhere(self, tmp_path: Path, name: str, by_keyword: bool) -> None:
        path = write_dotenv(tmp_path, f"LETTA_BASE_URL={EVIL}\n")
        env = BY_NAME[name].env
        text = complaint(**{name: PASSWORD}) if by_keyword else complaint({env: PASSWORD})
        assert env in text
        assert "evil.example" in text
        assert str(path) in text
        assert "OTEL_LETTA_TRUST_DOTENV" in text
        assert PASSWORD not in text

    def test_one_further_up_is_none_the_better(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={EVIL}\n")
        (tmp_path / "deep").mkdir()
        monkeypatch.chdir(tmp_path / "deep")
        assert "evil.example" in complaint({"LETTA_PASSWORD": PASSWORD})

    @pytest.mark.parametrize("trusted", ["true", "TRUE"])
    def test_it_may_be_trusted_in_the_environment(self, tmp_path: Path, trusted: str) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\n")
        found = resolve({"LETTA_PASSWORD": PASSWORD, "OTEL_LETTA_TRUST_DOTENV": trusted})
        assert (found.base_url, found.token) == (OWN, Secret(PASSWORD))
        assert resolve({"LETTA_PASSWORD": PASSWORD}, trust_dotenv=True).base_url == OWN

    def test_it_cannot_vouch_for_itself(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={EVIL}\nOTEL_LETTA_TRUST_DOTENV=true\n")
        assert "evil.example" in complaint({"LETTA_PASSWORD": PASSWORD})
        assert "OTEL_LETTA_TRUST_DOTENV in" in caplog.text

    def test_url_and_password_side_by_side_work(self, tmp_path: Path) -> None:
        """As the original integration was set up."""
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\nLETTA_PASSWORD=p\nLETTA_AGENT_ID=agent-7\n")
        found = Settings.resolve(environ={})
        assert (found.base_url, found.token, found.agent_id) == (OWN, Secret("p"), "agent-7")
        assert found.security_warnings() == ()

    def test_what_is_not_sent_is_in_nobody_s_way(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\nLETTA_PASSWORD=p\n")
        assert resolve({"LETTA_API_KEY": PASSWORD}).token == Secret("p")

    def test_a_url_without_any_secret_works(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\n")
        assert resolve().base_url == OWN

    def test_letta_cloud_s_key_belongs_to_letta_cloud(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={CLOUD_BASE_URL}\n")
        assert resolve({"LETTA_API_KEY": PASSWORD}).is_cloud
        assert "api.letta.com" in complaint({"LETTA_PASSWORD": PASSWORD})

    def test_a_file_that_was_named_is_trusted(self, tmp_path: Path) -> None:
        path = tmp_path / "my.env"
        path.write_text(f"LETTA_BASE_URL={OWN}\n")
        assert resolve({"LETTA_PASSWORD": PASSWORD}, dotenv_path=path).base_url == OWN

    @pytest.mark.parametrize(
        "text",
        [
            "LETTA_BASE_URL=https://evil.example/${PRIVATE}\n",
            "LETTA_BASE_URL='https://evil.example/${PRIVATE}'\n",
            "X=${PRIVATE}\nLETTA_BASE_URL=https://evil.example/${X}\n",
            "LETTA_BASE_URL=https://evil.example/${PRIVATE:-nothing}\n",
        ],
    )
    def test_it_takes_nothing_of_the_environment_along(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("PRIVATE", PASSWORD)
        write_dotenv(tmp_path, text)
        message = complaint()
        assert "LETTA_BASE_URL" in message
        assert "takes a variable of the environment" in message
        assert PASSWORD not in message
        assert PASSWORD in resolve(trust_dotenv=True).base_url

    def test_nor_does_it_pass_on_a_password_as_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PRIVATE", PASSWORD)
        write_dotenv(tmp_path, f"LETTA_BASE_URL={EVIL}\nLETTA_PASSWORD=${{PRIVATE}}\n")
        assert "takes a variable of the environment" in complaint()

    def test_its_own_names_it_may_use(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, "HOST=own.example\nLETTA_BASE_URL=https://${HOST}\nLETTA_AGENT_ID=${NOBODY:-agent-9}\n")
        found = Settings.resolve(environ={})
        assert (found.base_url, found.agent_id) == (OWN, "agent-9")

    def test_it_brings_no_certificate_for_somebody_else_s_server(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_dotenv(tmp_path, f"OTEL_LETTA_CERTIFICATE=evil.pem\nLETTA_BASE_URL={EVIL}\n")
        assert resolve({"LETTA_BASE_URL": OWN}).certificate is None
        assert "OTEL_LETTA_CERTIFICATE in" in caplog.text
        assert resolve().certificate == "evil.pem"


class TestReload:
    def test_a_file_that_appears_later_diverts_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        before = resolve({"LETTA_BASE_URL": OWN, "LETTA_PASSWORD": PASSWORD})
        default = resolve({"LETTA_AGENT_ID": "agent-8"})
        write_dotenv(tmp_path, f"LETTA_BASE_URL={EVIL}\nLETTA_PASSWORD=theirs\nOTEL_LETTA_CONTENT_CAP=500\n")
        assert before.refresh().base_url == OWN
        after = default.refresh()
        assert (after.base_url, after.password, after.sources["base_url"]) == (DEFAULT_BASE_URL, None, "default")
        assert after.refresh().base_url == DEFAULT_BASE_URL
        assert caplog.text.count("is not used before a restart") == 1

    def test_a_file_that_goes_away_diverts_nothing(self, tmp_path: Path) -> None:
        path = write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\nLETTA_PASSWORD=p\n")
        before = resolve()
        path.unlink()
        after = before.refresh()
        assert (after.base_url, after.password) == (OWN, Secret("p"))

    def test_a_nearer_file_diverts_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "deep").mkdir()
        monkeypatch.chdir(tmp_path / "deep")
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\nLETTA_PASSWORD=p\n")
        before = resolve()
        write_dotenv(tmp_path / "deep", f"LETTA_BASE_URL={EVIL}\nLETTA_PASSWORD=theirs\n")
        after = before.refresh()
        assert (after.base_url, after.password) == (OWN, Secret("p"))

    def test_the_same_source_may_name_a_new_address(self, tmp_path: Path) -> None:
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\nLETTA_PASSWORD=p\n")
        before = resolve()
        write_dotenv(tmp_path, "LETTA_BASE_URL=https://moved.example\nLETTA_PASSWORD=q\n")
        after = before.refresh()
        assert (after.base_url, after.password) == ("https://moved.example", Secret("q"))

    def test_but_not_take_a_secret_there_that_it_did_not_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LETTA_AGENT_ID", "agent-1")
        write_dotenv(tmp_path, f"LETTA_BASE_URL={OWN}\n")
        before = Settings.resolve()
        monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
        assert before.refresh() is before

    def test_a_transport_warns_again_when_the_address_changes(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        from otel_letta.letta.rest import RestTransport

        caplog.set_level(logging.WARNING)
        path = tmp_path / "my.env"
        path.write_text("LETTA_BASE_URL=http://one.example\n")
        letta = RestTransport(resolve(dotenv_path=path, password=PASSWORD))
        path.write_text("LETTA_BASE_URL=http://two.example\n")
        letta.reload()
        letta.close()
        assert "readable to two.example" in caplog.text
        assert "goes to two.example" in caplog.text
