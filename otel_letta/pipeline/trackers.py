"""A tracker as the settings want it: tracking itself knows neither settings nor the process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from otel_letta.runtime.aborts import add_flows, flow_named
from otel_letta.tracking.opt_in import services_in
from otel_letta.tracking.tracker import Tracker

if TYPE_CHECKING:
    from otel_letta.report import ProgressReport
    from otel_letta.settings import Settings


def tracker_for(
    settings: Settings,
    emit: Callable[[ProgressReport], None],
    now: Callable[[], int],
    claimed: Callable[[str], bool] = lambda conversation_id: False,
) -> Tracker:
    """Make a tracker as the settings want it; see `Tracker` for ``emit``, ``now`` and ``claimed``."""
    add_flows(settings.control_flow)
    return Tracker(
        emit=emit,
        now=now,
        host=socket.gethostname(),
        allowed_agents=settings.agent_allow_list,
        default_agent=settings.agent_id,
        content_cap=settings.content_cap,
        wake_after=settings.wake_after,
        wake_on_wait=settings.wake_on_wait,
        wait_timeout=settings.wait_timeout,
        grace=settings.grace,
        idle_timeout=settings.idle_timeout,
        answer_timeout=settings.answer_timeout,
        chat_attributes=settings.chat_id_attributes,
        content=settings.content,
        claimed=claimed,
        steered=_steered,
        opted=services_in(settings.tasks),
        most_tasks=settings.max_pending_tasks,
    )


def _steered(kind: str) -> tuple[str, bool] | None:
    flow = flow_named(kind)
    return None if flow is None else (flow.value, flow.goes_on)
