"""What agents have asked tasks to do, until the programs that do these tasks come for it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from otel_letta.instruction import Action, Instruction
from otel_letta.text import clean_line

WAITING, TAKEN, OUTDATED = "waiting", "taken", "outdated"
"""What has become of an instruction. Outdated: it said yes or no to something that is no longer asked."""

KIND = "instruction"
"""Of the spool's items that are such, not bodies."""
_KEPT_FOR = 7 * 86_400.0
"""Seconds for which one outlives the process that took it."""
_MOST_WAITING = 20
"""Of one task."""
_MOST_CHARACTERS = 4_000_000
"""Of all that wait."""
_MOST_TASKS = 2_000
_KEPT = 40
"""Of one task, taken ones too; these are cut to one line."""
_LINE = 300
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
    item: int | None = None
    """Its number in the spool."""


class FullError(Exception):
    """Programs have not come for what was kept before."""


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
        keep: makes a body outlive the process, and returns its number; may block, and raise.
        forget: is given the numbers of bodies that nobody needs any more; must not block.
        now: a clock, seconds.
    """

    def __init__(
        self,
        keep: Callable[[bytes], int | None] = lambda body: None,
        forget: Callable[[Sequence[int]], object] = lambda numbers: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._forget = forget
        self._now = now
        self._lock = threading.Lock()
        self._boxes: OrderedDict[str, _Box] = OrderedDict()
        self._waiting = 0
        """Characters."""

    def put(self, number: str, instruction: Instruction, question: int) -> Kept:
        """Keep an instruction until it is taken. May block for the disk.

        Args:
            number: the task's own id.
            question: what the task waits for now; 0 for nothing.

        Raises:
            FullError: too many wait already.
            Refusal: it cannot be kept.
        """
        kept = Kept(uuid.uuid4().hex, time.time(), instruction.action, instruction.text, question)
        with self._lock:
            box = self._boxes.get(number)
            waiting = 0 if box is None else sum(each.state == WAITING for each in box.kept)
            if waiting >= _MOST_WAITING or self._waiting + len(kept.text) > _MOST_CHARACTERS:
                raise FullError
        if kept.action == "continue":  # a yes or no is for the moment
            kept = kept._replace(item=self._keep(json.dumps([number, kept.id, kept.at, kept.text]).encode()))
        self._add(number, kept)
        return kept

    def restore(self, body: bytes, item: int) -> None:
        """Take up what an earlier process kept. What is too old, or of another version, is forgotten."""
        try:
            number, name, at, text = json.loads(body)
            kept = Kept(str(name), float(at), "continue", str(text), 0, item=item)
        except (ValueError, TypeError):
            kept = None
        if kept is None or kept.at < time.time() - _KEPT_FOR:
            self._forget([item])
        else:
            self._add(str(number), kept)

    def take(self, number: str, question: int) -> list[Kept]:
        """Take what waits for a task, each instruction once, in order.

        Args:
            question: what the task waits for now. A yes or no to anything else is left out.
        """
        with self._lock:
            box = self._boxes.get(number)
            if box is None:
                return []
            found, gone = [], []
            for place, each in enumerate(box.kept):
                if each.state != WAITING:
                    continue
                stale = each.action != "continue" and each.question != question
                state = OUTDATED if stale else TAKEN
                box.kept[place] = each._replace(state=state, text=clean_line(each.text, _LINE), item=None)
                gone.append(each)
                if not stale:
                    found.append(each)
            self._let_go(gone)
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

    def _add(self, number: str, kept: Kept) -> None:
        with self._lock:
            self._box(number).kept.append(kept)
            self._waiting += len(kept.text)

    def _box(self, number: str) -> _Box:
        box = self._boxes.get(number)
        if box is None:
            if len(self._boxes) >= _MOST_TASKS:
                self._drop_one()  # before it is there: nothing waits in it yet, and it would be the one
            box = self._boxes[number] = _Box()
        self._boxes.move_to_end(number)
        return box

    def _drop_one(self) -> None:
        """Drop the task that nothing was said of for longest, if possible one for which nothing waits."""
        idle = (
            number
            for number, box in self._boxes.items()
            if not box.asking and not any(each.state == WAITING for each in box.kept)
        )
        box = self._boxes.pop(next(idle, next(iter(self._boxes))))
        self._let_go([each for each in box.kept if each.state == WAITING])

    def _let_go(self, gone: Sequence[Kept]) -> None:
        self._waiting -= sum(len(each.text) for each in gone)
        items = [each.item for each in gone if each.item is not None]
        if items:
            self._forget(items)
