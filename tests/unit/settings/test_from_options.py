"""The keywords of a component: finished settings, or those that `Settings.resolve` reads."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import Settings

PASSWORD = "hunter2-correct-horse"
OWN = "https://own.example"


def test_keywords_are_resolved() -> None:
    settings, complaints = Settings.from_options({"agent_id": "a", "base_url": OWN, "password": PASSWORD})
    assert settings == Settings.resolve(agent_id="a", base_url=OWN, password=PASSWORD)
    assert complaints == ()


def test_finished_settings_are_taken_as_they_are() -> None:
    finished = Settings.resolve(agent_id="a")
    assert Settings.from_options({"settings": finished})[0] is finished


def test_no_settings_are_read_where_the_keyword_is_none() -> None:
    assert Settings.from_options({"settings": None, "agent_id": "a"})[0].agent_id == "a"


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize("more", [{"read_timeout": 1.0}, {"dotenv_path": "x", "delivery": "board"}])
def test_finished_settings_and_others_exclude_each_other(more: dict[str, Any], lenient: bool) -> None:
    options = {"settings": Settings.resolve(agent_id="a"), **more}
    with pytest.raises(LettaConfigurationError, match=f"settings and {', '.join(sorted(more))} exclude each other"):
        Settings.from_options(options, lenient=lenient)


def test_something_else_is_no_finished_settings() -> None:
    with pytest.raises(LettaConfigurationError, match=r"what Settings\.resolve\(\) gives"):
        Settings.from_options({"settings": {"agent_id": "a"}})


@pytest.mark.parametrize("name", ["agentid", "environ", "require_agent"])
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(LettaConfigurationError, match=f"Unknown setting '{name}'"):
        Settings.from_options({"agent_id": "a", "base_url": OWN, name: "x"})


def test_a_lenient_component_gets_a_complaint_about_each_unknown_option() -> None:
    options = {"agent_id": "a", "base_url": OWN, "boardlabel": "x", "pasword": PASSWORD}
    settings, complaints = Settings.from_options(options, lenient=True)
    assert settings.agent_id == "a"
    assert [str(each).partition(" - ")[0] for each in complaints] == [
        "Unknown setting 'boardlabel'",
        "Unknown setting 'pasword'",
    ]
    assert PASSWORD not in "".join(str(each) for each in complaints)


def test_an_unknown_option_that_may_have_named_the_server_is_refused_all_the_same() -> None:
    with pytest.raises(LettaConfigurationError, match="Unknown setting 'baseurl'"):
        Settings.from_options({"agent_id": "a", "baseurl": OWN}, lenient=True)


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize("bad", [{"password": f"{PASSWORD}\n"}, {"pasword": PASSWORD}, {"password": [PASSWORD]}])
def test_no_frame_holds_a_secret(bad: dict[str, Any], lenient: bool) -> None:
    options = {"content_cap": 1, **bad}
    with pytest.raises(LettaConfigurationError) as raised:
        Settings.from_options(options, lenient=lenient)
    assert PASSWORD not in repr(options)
    frames = raised.value.with_traceback(raised.value.__traceback__.tb_next if raised.value.__traceback__ else None)
    shown = "".join(traceback.TracebackException.from_exception(frames, capture_locals=True).format())
    assert "from_options" in shown and PASSWORD not in shown
