"""Letta in memory, one agent in it, and the settings that lead there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.runtime import locks
from otel_letta.testing import InMemoryLetta


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server
        openhands.shutdown()


@pytest.fixture
def agent(letta: InMemoryLetta) -> str:
    return letta.create_agent()


@pytest.fixture
def settings(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages", "message_interval": 0}


@pytest.fixture
def private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks and sessions of this test alone."""
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"otel_letta-{os.getuid()}"
