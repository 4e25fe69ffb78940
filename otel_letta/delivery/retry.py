"""Patience with failures: of one lane or board, and of a server or agent that many of them need."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from typing import Protocol

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaConnectionError,
    LettaDependencyError,
    LettaError,
    LettaServerError,
    LettaTimeoutError,
)
from otel_letta.letta.transport import Lane

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0
_HEAD_START = 0.25
"""Part of the wait for a server or agent that is added for who tried it in vain. Beside two busy loops one lane whose
requests alone failed had each of the tries, six in a row, while another one's ends waited for a minute (measured)."""
_NOBODY_THERE = frozenset((502, 503, 521, 522, 523, 530))
"""What proxies answer when they do not reach the server. Others may mean that one turn took too long."""


class Retry:
    """Jittered exponential backoff after failures, or a probe now and then while parked."""

    def __init__(self, probe_interval: float) -> None:
        self._probe_interval = max(probe_interval, 0.01)
        self.not_before = -math.inf
        """Monotonic seconds."""
        self.failures = 0
        self.parked: LettaError | None = None
        """The error that only a person can help against; None while trying."""

    def failed(self, error: LettaError, now: float) -> float:
        """Note a failure. Return the seconds until the next try."""
        self.failures += 1
        if error.parks:
            self.parked = error
            delay = self._probe_interval
        else:
            ceiling = min(_FIRST_BACKOFF * 2 ** min(self.failures - 1, 10), _LONGEST_BACKOFF)
            delay = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads clients, hides nothing
        if error.retry_after is not None:
            delay = max(delay, error.retry_after)
        self.not_before = now + delay
        return delay

    def succeeded(self) -> None:
        """Forget all failures."""
        self.failures = 0
        self.parked = None
        self.not_before = -math.inf

    def bring_forward(self, at: float) -> None:
        """Try at that time (monotonic seconds) at the latest."""
        self.not_before = min(self.not_before, at)


class Circuit(Retry):
    """The patience with a server, or an agent, that all who need it share: while it is away, one of them tries."""

    def __init__(self, probe_interval: float, about: str) -> None:
        super().__init__(probe_interval)
        self.about = about
        """The server, or the agent and the server."""
        self.error: LettaError | None = None
        """What was wrong when it was last tried."""
        self._trying: object | None = None
        self.failed_by: set[object] = set()
        """Those who tried it in vain."""
        self._head_start = 0.0
        """Seconds that those leave to the others."""

    def failed(self, error: LettaError, now: float) -> float:
        self.error = error
        delay = super().failed(error, now)
        self._head_start = delay * _HEAD_START
        return delay

    def bring_forward(self, at: float) -> None:
        super().bring_forward(at)
        self._head_start = 0.0

    @property
    def is_open(self) -> bool:
        """True while it failed when it was last tried."""
        return self.failures > 0

    def try_at(self, who: object, waiting: Collection[object] = ()) -> float:
        """Return when this one may try it, in monotonic seconds: infinity while another one does.

        ``waiting``: all who wait for it. Those who did not try yet come first: what fails may be one's own requests.
        """
        if not self.is_open:
            return -math.inf
        if self._trying not in (None, who):
            return math.inf
        gives_way = who in self.failed_by and not self.failed_by.issuperset(waiting)
        return self.not_before + (self._head_start if gives_way else 0.0)

    def begin(self, who: object) -> None:
        """Note that this one tries it now."""
        if self.is_open:
            self._trying = who

    def end(self, who: object) -> None:
        """Note that this one does not try any more, whatever came of it."""
        if self._trying is who:
            self._trying = None


class Waiter(Protocol):
    """Who waits for a circuit."""

    def wake(self) -> None:
        """Have it ask again."""


class Circuits:
    """The circuits of all servers and agents that one desk knows. Lock held."""

    def __init__(self) -> None:
        self.probe_interval = 60.0
        self._circuits: dict[tuple[str, ...], Circuit] = {}
        self._waiting: set[Waiter] = set()

    def of(self, lane: Lane) -> list[Circuit]:
        """Return those that failed, of the lane's server and agent."""
        return [self._circuits[key] for key in _keys(lane) if key in self._circuits]

    def blamed(self, lane: Lane, error: LettaError, who: object) -> Circuit | None:
        """Return the circuit that the error of this one is about; None if it is about the lane or its reports."""
        server, agent = _keys(lane)
        if _is_about_server(error):
            circuit = self._circuits.setdefault(server, Circuit(self.probe_interval, lane.server))
        elif isinstance(error, LettaAgentNotFoundError):
            about = f"{lane.agent_id} at {lane.server}"
            circuit = self._circuits.setdefault(agent, Circuit(self.probe_interval, about))
        else:
            return None
        circuit.failed_by.add(who)
        return circuit

    def try_at(self, lane: Lane, who: Waiter) -> float:
        """Return when this one may try the lane's server and agent, in monotonic seconds; it is woken if that changes.

        Infinity while another one tries.
        """
        circuits = self.of(lane)
        if circuits:
            self._waiting.add(who)
        return max((circuit.try_at(who, self._waiting) for circuit in circuits), default=-math.inf)

    def leave(self, who: Waiter) -> None:
        """Wait for none any more."""
        self._waiting.discard(who)

    def begin(self, lane: Lane, who: object) -> None:
        """Note that this one tries them now."""
        for circuit in self.of(lane):
            circuit.begin(who)

    def end(self, who: object) -> None:
        """Note that this one does not try any more."""
        for circuit in self._circuits.values():
            circuit.end(who)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            waiter.wake()

    def parked(self, lane: Lane) -> LettaError | None:
        """Return the error that only a person can help against, if there is one."""
        return next((circuit.parked for circuit in self.of(lane) if circuit.parked is not None), None)

    def error(self, lane: Lane) -> LettaError | None:
        """Return what is wrong with the lane's server or agent, if anything is."""
        return next((circuit.error for circuit in self.of(lane) if circuit.is_open), None)

    def succeeded(self, lane: Lane, *, agent: bool = True) -> bool:
        """Note that the server answered, and that the agent is there. Return True if that is news."""
        keys = _keys(lane) if agent else _keys(lane)[:1]
        known = [key for key in keys if self._circuits.pop(key, None) is not None]
        self._wake()
        return bool(known)

    def bring_forward(self, at: float) -> None:
        """Try all at that time (monotonic seconds) at the latest."""
        for circuit in self._circuits.values():
            circuit.bring_forward(at)


def _is_about_server(error: LettaError) -> bool:
    if isinstance(error, (LettaAuthenticationError, LettaDependencyError)):
        return error.status != 403  # that may be about one agent, or about what one report says
    if isinstance(error, LettaConnectionError) and not isinstance(error, LettaTimeoutError):
        return not error.may_have_landed
    if error.foreign and error.status in _NOBODY_THERE:
        return True
    return type(error) is LettaServerError and error.parks and (error.foreign or error.status == 404)


def _keys(lane: Lane) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (lane.server,), (lane.server, lane.agent_id)
