"""The outbox in `check`: it is opened as a program would, and what is wrong with it is a problem with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_letta.cli.check import probe
from otel_letta.store.choose import open_store
from otel_letta.store.model import Changes, NewEntry
from tests.support.checking import check


@pytest.fixture(autouse=True)
def no_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_examine_server", lambda *examined: None)
    monkeypatch.setenv("LETTA_AGENT_ID", "agent-1")


def test_what_earlier_processes_left_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "outbox.db"
    store = open_store(str(path))
    store.open()
    store.apply(Changes(entries=[NewEntry("server", "lane", "{}", 1.0)]))
    store.close()
    monkeypatch.setenv("OTEL_LETTA_OUTBOX", str(path))
    facts = json.loads(check("--json").output)["outbox"]
    assert (facts["place"], facts["usable"], facts["waiting"], facts["left_behind"]) == (str(path), True, 1, 1)
    assert "otel-letta outbox retry" in " ".join(check().output.split())


def test_one_that_cannot_be_used_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LETTA_OUTBOX", str(tmp_path / "missing" / "outbox.db"))
    said = check("--json")
    assert said.exit_code == 1
    assert json.loads(said.output)["outbox"]["usable"] is False
    assert "does not exist" in said.output


def test_without_one_nothing_is_said_of_it() -> None:
    assert json.loads(check("--json").output)["outbox"] is None
    assert "Outbox" not in check().output.splitlines()
