"""What a test makes go wrong: scripted answers, refusals, failures of the model, turns that are held."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

from otel_letta.testing.bodies import Answer
from otel_letta.testing.world import World

ModelFailure: TypeAlias = Literal["500", "429", "401", "400", "context", "402", "504"]
"""How the server's LLM can fail: by the HTTP status that Letta then answers with, or a full context window.

The first five were measured, 402 (no credits) and 504 (time-out) are read from Letta's source.
"""

HOLD_LIMIT = 60.0
"""Seconds after which a held turn fails by itself: a test that forgets to release shall fail, not hang."""


def scripted_answer(status: int, body: Any, headers: Mapping[str, str] | None) -> Answer:
    """Make the answer that a test asked for: JSON for anything but text and bytes, a plausible detail for None."""
    if body is None:
        known = status in set(HTTPStatus)
        body = {"detail": HTTPStatus(status).phrase if known else "scripted failure"}
    if isinstance(body, (str, bytes)):
        payload, content_type = (body.encode() if isinstance(body, str) else body), "text/plain; charset=utf-8"
    else:
        payload, content_type = json.dumps(body).encode("ascii"), "application/json"
    return Answer(status, payload, dict(headers or {}), content_type)


def _llm_error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "detail": "scripted by InMemoryLetta.model_failure"}}


MODEL_FAILURES: dict[str, tuple[int, dict[str, Any]]] = {
    "500": (500, _llm_error("llm_error", "An error occurred with the LLM request.")),
    "429": (429, _llm_error("llm_rate_limit", "Rate limit exceeded for LLM model provider.")),
    "401": (401, _llm_error("llm_authentication", "Authentication failed with the LLM model provider.")),
    "400": (400, _llm_error("llm_bad_request", "The request to the LLM model provider was invalid.")),
    "context": (400, {"detail": "CONTEXT_WINDOW_EXCEEDED: scripted by InMemoryLetta.model_failure"}),
    "402": (402, _llm_error("llm_insufficient_credits", "Insufficient credits for the LLM request.")),
    "504": (504, _llm_error("llm_timeout", "The LLM request timed out.")),
}


@dataclass(slots=True)
class Fault:
    """An answer scripted for the next ``left`` requests that match (None: for all of them)."""

    answer: Answer
    left: int | None
    method: str | None
    path: re.Pattern[str] | None
    after_processing: bool = False

    def matches(self, method: str, path: str) -> bool:
        return (self.method is None or self.method == method) and (self.path is None or bool(self.path.search(path)))


@dataclass(slots=True)
class Hold:
    """The next ``left`` turns (None: all) of one agent, or of any, are held."""

    agent_id: str | None
    left: int | None

    def takes(self, agent_id: str) -> bool:
        """Return True if a turn that begins is held; it counts."""
        if self.agent_id not in (None, agent_id) or self.left == 0:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Faults:
    """The scripted mishaps. Guarded by the world's condition, like everything else."""

    def __init__(self) -> None:
        self.scripted: list[Fault] = []
        self.refusals: list[tuple[Callable[[str], bool], Answer]] = []
        self.model: str | None = None
        self.model_left: int | None = None
        self.holds: dict[object, Hold] = {}

    def clear(self) -> None:
        """Forget every failure; holds stay, they belong to a ``with`` block."""
        self.scripted.clear()
        self.refusals.clear()
        self.model = self.model_left = None

    def take(self, method: str, path: str) -> Fault | None:
        """Return the first fault that matches this request; it counts as used."""
        fault = next((fault for fault in self.scripted if fault.matches(method, path)), None)
        if fault is not None and fault.left is not None:
            fault.left -= 1
            if fault.left <= 0:
                self.scripted.remove(fault)
        return fault

    def refusal_of(self, contents: Iterable[str]) -> Answer | None:
        for content in contents:
            for predicate, answer in self.refusals:
                if predicate(content):
                    return answer
        return None

    def take_model_failure(self) -> str | None:
        failure = self.model
        if self.model_left is not None:
            self.model_left -= 1
            if self.model_left <= 0:
                self.model = self.model_left = None
        return failure

    def wait_while_held(self, world: World, agent_id: str) -> bool:
        """Wait until a turn that begins may go on or the server closes; False after `HOLD_LIMIT` seconds."""
        mine = [token for token, hold in self.holds.items() if hold.takes(agent_id)]
        return world.changed.wait_for(
            lambda: world.closed or not any(token in self.holds for token in mine), HOLD_LIMIT
        )
