"""What agents have asked tasks to do, until the programs that do these tasks come for it."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from otel_letta.instruction import Action, Instruction

WAITING, TAKEN, OUTDATED = "waiting", "taken", "outdated"
"""What has become of an instruction. Outdated: it said yes or no to something that is no longer asked."""

_MOST_WAITING = 20
"""Of one task."""
_MOST_TASKS = 2_000
_KEPT = 40
"""Of one task, taken ones too."""
_ASKED_LATELY = 300.0
"""Seconds. A program that asks again and again does so more often."""


class Kept(NamedTuple):
    """An instruction, and what has become of it."""

    id: str
    at: float
    """When it was given, Unix seconds."""
    action: Action
    text: str
    question: int
    """What was asked when a yes or no was given; see `otel_letta.serve.tasks.Known`."""
    state: str = WAITING


class FullError(Exception):
    """The task has not taken what it was told before."""


class _Box:
    __slots__ = ("asked", "asking", "kept")

    def __init__(self) -> None:
        self.kept: deque[Kept] = deque(maxlen=_KEPT)
        self.asking = 0
        """Programs that wait for an instruction now."""
        self.asked = 0.0
        """When one asked last, by the clock."""


class Instructions:
    """Instructions by task. Safe to use from several threads.

    Args:
        now: a clock, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._boxes: OrderedDict[str, _Box] = OrderedDict()

    def put(self, number: str, instruction: Instruction, question: int) -> Kept:
        """Keep an instruction until it is taken.

        Args:
            number: the task's own id.
            question: what the task waits for now; 0 for nothing.

        Raises:
            FullError: too many wait already.
        """
        kept = Kept(uuid.uuid4().hex, time.time(), instruction.action, instruction.text, question)
        with self._lock:
            box = self._box(number)
            if sum(each.state == WAITING for each in box.kept) >= _MOST_WAITING:
                raise FullError
            box.kept.append(kept)
        return kept

    def take(self, number: str, question: int) -> list[Kept]:
        """Take what waits for a task, each instruction once, in order.

        Args:
            question: what the task waits for now. A yes or no to anything else is left out.
        """
        with self._lock:
            box = self._boxes.get(number)
            if box is None:
                return []
            found = []
            for place, each in enumerate(box.kept):
                if each.state != WAITING:
                    continue
                stale = each.action != "continue" and each.question != question
                box.kept[place] = each._replace(state=OUTDATED if stale else TAKEN)
                if not stale:
                    found.append(each)
            return found

    def of(self, number: str) -> list[Kept]:
        """Return a task's last instructions, the oldest first."""
        with self._lock:
            box = self._boxes.get(number)
            return [] if box is None else list(box.kept)

    def begin_asking(self, number: str) -> None:
        """Note that a program waits for an instruction from now on."""
        with self._lock:
            self._box(number).asking += 1

    def end_asking(self, number: str) -> None:
        """Note that it does not any more."""
        with self._lock:
            box = self._box(number)
            box.asking = max(box.asking - 1, 0)
            box.asked = self._now()

    def is_asked_for(self, number: str) -> bool:
        """Return whether a program waits for a task's instructions now, or did lately."""
        with self._lock:
            box = self._boxes.get(number)
            return box is not None and (bool(box.asking) or 0 < box.asked > self._now() - _ASKED_LATELY)

    def _box(self, number: str) -> _Box:
        box = self._boxes.get(number)
        if box is None:
            box = self._boxes[number] = _Box()
            if len(self._boxes) > _MOST_TASKS:
                self._forget_one()
        self._boxes.move_to_end(number)
        return box

    def _forget_one(self) -> None:
        """Forget the task that nothing was said of for longest, if possible one for which nothing waits."""
        idle = (
            number
            for number, box in self._boxes.items()
            if not box.asking and not any(each.state == WAITING for each in box.kept)
        )
        del self._boxes[next(idle, next(iter(self._boxes)))]
