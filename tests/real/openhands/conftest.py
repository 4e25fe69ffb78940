"""All tests in this folder run the real OpenHands SDK and agent-server with a scripted model.

They need the extra ``test-openhands`` on Python 3.12 or newer; `python -m tests.support.openhands_env` makes such an
environment once and prints the path of its Python.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.conversations import letta, settings  # noqa: F401 - fixtures
from tests.support.openhands_llm import ScriptedModel

_HERE = Path(__file__).parent

Make = Callable[..., Any]

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


@pytest.fixture
def make(model: ScriptedModel, tmp_path: Path) -> Iterator[Make]:
    """Makes conversations with real tools; closes them afterwards."""
    from openhands.sdk import LLM, Agent, Conversation, Tool
    from openhands.tools.file_editor import FileEditorTool
    from openhands.tools.task_tracker import TaskTrackerTool
    from openhands.tools.terminal import TerminalTool
    from pydantic import SecretStr

    import tests.real.openhands.explode  # noqa: F401 - registers the tool

    made = []

    def conversation(model_name: str, *callbacks: Any, **options: Any) -> Any:
        llm = LLM(model=model_name, base_url=model.base_url, api_key=SecretStr("x"), usage_id="agent", num_retries=0)
        names = (TerminalTool.name, FileEditorTool.name, TaskTrackerTool.name, "explode")
        coder = Agent(llm=llm, tools=[Tool(name=name) for name in names])
        options.setdefault("workspace", str(tmp_path))
        made.append(Conversation(agent=coder, callbacks=list(callbacks), visualizer=None, **options))
        return made[-1]

    yield conversation
    for each in made:
        each.close()
