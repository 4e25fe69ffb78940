"""Letta in memory, one agent in it, and the settings that lead there; a private folder of the test's own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.conversations import letta, settings  # noqa: F401 - fixtures


@pytest.fixture
def private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks and sessions of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"otel_letta-{os.getuid()}"
