"""The fate of one ``input`` to an App Server, read off the frames of its socket. Pure.

An accepted input is a promise, not a delivery: the server accepts what it later refuses (an unknown agent), and
accepts again, without a turn, what it knows already. What the comments call measured was measured on 0.34.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DEFAULT_CONVERSATION = "default"
"""The server's name for an agent's conversation that has no id of its own."""

_IDLE = "WAITING_ON_INPUT"
_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens")


class Turn:
    """One input, followed until a turn that held it has finished.

    Args:
        agent_id: of the runtime.
        conversation_id: of the runtime; `DEFAULT_CONVERSATION` for the agent's own.
        consumer: the ``terminal_consumer_id`` of the input: a turn's end names those of all inputs that it held.
        ids: the ``client_message_id`` of its messages.
    """

    def __init__(self, agent_id: str, conversation_id: str, consumer: str, ids: Sequence[str]) -> None:
        self.agent_id = agent_id
        self.conversation_id = conversation_id
        self.consumer = consumer
        self.ids = frozenset(ids)
        self.request_id = ""
        self.accepted: bool | None = None
        """None until the server has answered."""
        self.refusal = ""
        """Why it was not accepted."""
        self.queued = False
        """It waits behind another turn."""
        self.loop_idle: bool | None = None
        """Whether the conversation's loop waits for input; None if unknown."""
        self.over = False
        self.stop_reason = ""
        self.error = ""
        """Why the turn failed; empty if it did not."""
        self.turn_id = ""
        self.run_id = ""
        self.usage: dict[str, int] = {}
        self.with_others = False
        """Somebody else's message is in the same turn, or waits with ours."""
        self._runs: set[str] = set()
        self._failed_early = False

    @property
    def runtime(self) -> dict[str, str]:
        """What frames about it name."""
        return {"agent_id": self.agent_id, "conversation_id": self.conversation_id}

    @property
    def began(self) -> bool:
        """Whether a run was seen that one of the messages started."""
        return bool(self._runs)

    @property
    def is_occupied(self) -> bool:
        """Whether it failed because another run occupies the conversation."""
        return "already has an active run" in self.error

    def see(self, frame: dict[str, Any]) -> bool:
        """Take a frame in. Return True if it is about this input or its conversation; unknown ones are ignored."""
        kind = frame.get("type")
        if kind == "input_accepted":
            return self._see_acceptance(frame)
        if not self._concerns(frame):
            return False
        if kind == "update_loop_status":
            self._see_loop(_mapping(frame.get("loop_status")))
        elif kind == "update_queue":
            self._see_queue(frame.get("queue"))
        elif kind == "stream_delta":
            self._see_delta(_mapping(frame.get("delta")))
        elif kind == "turn_finished":
            self._see_end(frame)
        else:
            return False
        return True

    def _concerns(self, frame: dict[str, Any]) -> bool:
        # Other agents' default conversations have the same name, and a socket may get frames about several.
        runtime = _mapping(frame.get("runtime"))
        return runtime.get("conversation_id") == self.conversation_id and runtime.get("agent_id") == self.agent_id

    def _see_acceptance(self, frame: dict[str, Any]) -> bool:
        if frame.get("request_id") != self.request_id:
            return False
        self.accepted = frame.get("accepted") is True
        self.queued = frame.get("disposition") == "queued"
        if not self.accepted:
            self.refusal = _text(frame.get("error")) or "not accepted"
        return True

    def _see_loop(self, loop: dict[str, Any]) -> None:
        self.loop_idle = loop.get("status") == _IDLE
        # Which message started which run. It grows with the conversation, so only runs of ours are kept.
        for run, ids in _mapping(loop.get("client_message_ids_by_run_id")).items():
            held = _texts(ids)
            if held & self.ids:
                self._runs.add(run)
                self.with_others = self.with_others or bool(held - self.ids)

    def _see_queue(self, queue: object) -> None:
        waiting = (
            {_text(_mapping(item).get("client_message_id")) for item in queue} if isinstance(queue, list) else set()
        )
        self.queued = bool(waiting & self.ids)
        if self.queued and waiting - self.ids:
            self.with_others = True

    def _see_delta(self, delta: dict[str, Any]) -> None:
        kind = delta.get("message_type")
        if kind == "loop_error" and delta.get("is_terminal") is True:
            ids = _texts(delta.get("client_message_ids"))
            # An input that fails before it has a run is named here, and not in the turn's end (measured).
            self._failed_early = self._failed_early or bool(ids & self.ids)
        elif kind == "usage_statistics" and _text(delta.get("run_id")) in self._runs:
            for name in _TOKENS:
                number = delta.get(name)
                if isinstance(number, int) and not isinstance(number, bool):
                    self.usage[name] = self.usage.get(name, 0) + number
            self.usage["step_count"] = self.usage.get("step_count", 0) + 1

    def _see_end(self, frame: dict[str, Any]) -> None:
        consumers = frame.get("terminal_consumer_ids")
        named = isinstance(consumers, list) and self.consumer in consumers
        # By its run where a server names no consumers.
        run_id = _text(frame.get("run_id"))
        if not (named or run_id in self._runs or (self._failed_early and not run_id)):
            return
        self.over = True
        self.stop_reason = _text(frame.get("stop_reason"))
        self.error = _text(frame.get("error"))
        self.turn_id = _text(frame.get("turn_id"))
        self.run_id = run_id


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> set[str]:
    return {text for text in value if isinstance(text, str)} if isinstance(value, list) else set()
