"""In this folder `letta` is a server without HTTP: what stands before a transport is tested. `server` has HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_letta.delivery import retry
from otel_letta.testing import InMemoryLetta
from tests.support.fake_transport import FakeTransport


@pytest.fixture
def letta() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def server() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try after a failure comes at once."""
    monkeypatch.setattr(retry, "_FIRST_BACKOFF", 0.02)
