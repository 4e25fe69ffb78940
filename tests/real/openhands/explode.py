"""A tool that raises, for an agent and for an agent-server (``--import-modules``)."""

from collections.abc import Sequence
from typing import Any

from openhands.sdk.tool import Action, Observation, ToolDefinition, ToolExecutor, register_tool


class ExplodeAction(Action):
    """What the model gives."""

    reason: str = ""


class ExplodeObservation(Observation):
    """Never made."""


class ExplodeExecutor(ToolExecutor[ExplodeAction, ExplodeObservation]):
    def __call__(self, action: ExplodeAction, conversation: Any = None) -> ExplodeObservation:
        raise RuntimeError("the tool refused")


class ExplodeTool(ToolDefinition[ExplodeAction, ExplodeObservation]):
    @classmethod
    def create(cls, conv_state: Any = None, **params: Any) -> Sequence["ExplodeTool"]:
        return [
            cls(
                description="Fails.",
                action_type=ExplodeAction,
                observation_type=ExplodeObservation,
                executor=ExplodeExecutor(),
            )
        ]


register_tool("explode", ExplodeTool)
