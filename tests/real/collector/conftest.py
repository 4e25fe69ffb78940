"""All tests in this folder run a real Collector: see `tests.support.collector`."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lives in this folder; pytest hands over the items of the whole run."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.collector)
