"""What is logged once in a process is logged once in a test."""

from __future__ import annotations

import pytest

from otel_letta.settings import sources


@pytest.fixture(autouse=True)
def nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_logged", {})
