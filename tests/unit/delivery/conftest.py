"""In this folder `letta` is a server without HTTP: what stands before a transport is tested."""

from __future__ import annotations

import pytest

from tests.support.fake_transport import FakeTransport


@pytest.fixture
def letta() -> FakeTransport:
    return FakeTransport()
