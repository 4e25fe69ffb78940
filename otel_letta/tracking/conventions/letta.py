"""This project's own attributes on spans of agents."""

from __future__ import annotations

from otel_letta import semconv
from otel_letta.tracking.conventions.convention import Convention

LETTA = Convention(
    name="letta",
    repeated_names=frozenset({semconv.TASK_NAME}),
    chosen_chats=(semconv.CHAT_ID,),
)
