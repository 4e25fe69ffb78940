"""Where the outbox is: a path that stays where it is, or a database whose password nothing shows."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from otel_letta.settings.outbox import OutboxAddress, without_password
from tests.support.settings import complaint, resolve


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://letta:hunter2@db/letta", "postgresql://letta:***@db/letta"),
        ("postgresql://letta:hunter2@db", "postgresql://letta:***@db"),
        (
            "postgres://letta:hun%2Fter2@[::1]:5432/letta?sslmode=require",
            "postgres://letta:***@[::1]:5432/letta?sslmode=require",
        ),
        ("postgresql://db/letta?user=u&password=hunter2&x=1", "postgresql://db/letta?user=u&password=***&x=1"),
        ("postgresql://db/letta?sslpassword=hunter2", "postgresql://db/letta?sslpassword=***"),
        ("postgresql://letta:hunt@er2@db/letta", "postgresql://letta:***@db/letta"),
        ("postgresql://letta@db/letta", "postgresql://letta@db/letta"),
        ("/var/lib/letta:hunter2@x", "/var/lib/letta:hunter2@x"),
    ],
)
def test_a_password_in_the_address_is_masked(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_settings_show_no_password() -> None:
    settings = resolve({"OTEL_LETTA_OUTBOX": "postgresql://letta:hunter2@db/letta"})
    assert settings.outbox is not None
    assert "hunter2" not in repr(settings) + str(settings.outbox) + repr(settings.identity())
    assert settings.outbox.reveal() == "postgresql://letta:hunter2@db/letta"
    with pytest.raises(TypeError):
        pickle.dumps(settings.outbox)


def test_two_passwords_are_two_outboxes() -> None:
    one, two = (OutboxAddress(f"postgresql://letta:{password}@db/letta") for password in ("a", "b"))
    assert one != two
    assert one == OutboxAddress("postgresql://letta:a@db/letta")


def test_a_path_is_absolute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = resolve(outbox="outbox.db")
    monkeypatch.chdir("/")
    assert str(settings.outbox) == str(tmp_path / "outbox.db")
    assert resolve(outbox=Path("/x/outbox.db")).outbox == OutboxAddress("/x/outbox.db")


@pytest.mark.parametrize(
    "address", ["mysql://letta:hunter2@db/letta", "postgresql://letta:hunter2@db/\x00", "x" * 5_000]
)
def test_what_is_no_address_is_refused_without_being_quoted(address: str) -> None:
    said = complaint(outbox=address)
    assert "OTEL_LETTA_OUTBOX" in said or "outbox" in said
    assert "hunter2" not in said
