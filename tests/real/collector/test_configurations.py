"""Every configuration is one that the real Collector takes, with no environment but the bridge's token."""

from __future__ import annotations

import pytest

from tests.support.collector import validate
from tests.support.collector_keys import FOLDER

_SETS = {
    "gateway": ("gateway.yaml", "privacy.yaml"),
    "agent": ("agent.yaml",),
    "scale-out": ("scale-out.yaml", "privacy.yaml"),
}


@pytest.mark.parametrize("name", _SETS)
def test_it_is_valid(name: str) -> None:
    done = validate([FOLDER / file for file in _SETS[name]], {"LETTA_BRIDGE_TOKEN": "token"})
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_without_the_privacy_step_there_is_no_gateway() -> None:
    done = validate([FOLDER / "gateway.yaml"], {"LETTA_BRIDGE_TOKEN": "token"})
    assert done.returncode != 0
    assert '/letta" which is not configured' in done.stderr


def test_without_a_token_there_is_no_gateway() -> None:
    assert validate([FOLDER / file for file in _SETS["gateway"]], {}).returncode != 0
