"""Delivery is tested against a server without HTTP."""

from __future__ import annotations

import pytest

from tests.support.fake_transport import FakeTransport


@pytest.fixture
def fake_transport() -> FakeTransport:
    return FakeTransport()
