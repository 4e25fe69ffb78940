"""All tests in this folder run the real OpenHands SDK and agent-server with a scripted model.

They need the extra ``test-openhands`` on Python 3.12 or newer; `python -m tests.support.openhands_env` makes such an
environment once and prints the path of its Python.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.openhands_llm import ScriptedModel

_HERE = Path(__file__).parent

# Before anything of OpenHands is imported. LiteLLM would fetch its prices from the internet, on a thread that races
# the rest of its own import.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["OPENHANDS_SUPPRESS_BANNER"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lives in this folder; pytest hands over the items of the whole run."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.openhands)
            item.add_marker(pytest.mark.filterwarnings("default"))  # OpenHands' own, and there are many


@pytest.fixture(autouse=True, scope="session")
def leftovers() -> Iterator[None]:
    """An interrupted run of OpenHands leaves an open event loop: it is collected here, where that is no error."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server
