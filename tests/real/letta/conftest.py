"""All tests in this folder talk to a real Letta server: see `tests.support.letta_harness`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.app_server_harness import app_server, app_server_process, app_server_with_token  # noqa: F401
from tests.support.letta_harness import LettaHarness

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lives in this folder; pytest hands over the items of the whole run."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.letta)


@pytest.fixture
def letta(real_letta: LettaHarness) -> LettaHarness:
    """In this folder, the real one."""
    return real_letta
