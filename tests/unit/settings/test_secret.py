"""No secret is ever shown."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import Secret, Settings
from tests.support.settings import AGENT, PASSWORD, resolve, write_dotenv


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
        logging.getLogger("otel_letta.test").warning("%s %r %s", found, found, found.token)
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
        shown = "".join(traceback.TracebackException.from_exception(library, capture_locals=True).format())
        assert "resolve" in shown
        assert PASSWORD not in shown
        assert raised.value.__context__ is None

    def test_no_error_about_the_environment_or_a_file_shows_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_dotenv(tmp_path, f'LETTA_API_KEY="{PASSWORD}\\a{PASSWORD}"\n')
        monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
        with pytest.raises(LettaConfigurationError, match="LETTA_API_KEY from") as raised:
            Settings.resolve(agent_id=AGENT)
        shown = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
        assert PASSWORD not in shown

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
