"""A server, an agent, and an environment in which everything is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.checking import PASSWORD


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trust") / "one.pem"
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----")
    path.write_text(first + end, encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def quick_clients(monkeypatch: pytest.MonkeyPatch, one_certificate: str) -> None:
    """httpx reads every certificate that it trusts for each client, which takes longer than everything else here."""
    monkeypatch.setenv("SSL_CERT_FILE", one_certificate)


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta(password=PASSWORD) as server:
        yield server


@pytest.fixture
def agent_id(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> str:
    """An agent, and an environment in which everything is right."""
    agent_id = letta.create_agent("assistant")
    monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
    monkeypatch.setenv("LETTA_AGENT_ID", agent_id)
    monkeypatch.setenv("LETTA_PASSWORD", PASSWORD)
    return agent_id
