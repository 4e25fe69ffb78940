"""What holds for every test: nothing of the developer's own machine takes part."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_ROOT = str(Path(__file__).parent.parent)
if _ROOT not in sys.path:  # `tests.support` is importable wherever pytest was started
    sys.path.insert(0, _ROOT)

from tests.support.app_server_harness import (  # noqa: E402 - fixtures
    app_server,  # noqa: F401
    app_server_process,  # noqa: F401
    app_server_with_token,  # noqa: F401
)
from tests.support.letta_harness import letta, letta_server, llm  # noqa: E402, F401 - fixtures

_OURS = ("LETTA_", "OTEL_")
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting or proxy in the environment, and a working directory without a `.env` above it."""
    for name in list(os.environ):
        if name.startswith(_OURS) or name.upper() in _PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
