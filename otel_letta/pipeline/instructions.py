"""What agents ask for, kept for the tasks that wait for it.

A task waits by an `Expected`. What counts is an instruction for it in the turn that answered its question: the report
that it waits, or that it has ended. What an agent said before that, or another agent says, is none of its business. So
no instruction can be older than its question, and none is given twice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from otel_letta.answer import Answer
from otel_letta.instruction import Instruction, shown_id
from otel_letta.report import ProgressReport

if TYPE_CHECKING:
    from concurrent.futures import Future

_logger = logging.getLogger(__name__)

_MOST = 1_000
"""Tasks that have waited, and may again, at once."""
_MOST_KEPT = 20
"""Instructions for one task that nobody has taken yet."""
_KEPT = 3_600.0
"""Seconds for which what came too late for its wait is kept for the next one that asks the same."""

Task = tuple[str | None, str]
"""The agent that a task is reported to, None for the configured one, and the task's id."""
Standing = tuple[int, int]
"""Run and sequence of a task's last report: what comes later is larger."""


class Expected:
    """One task's wait. Made by `Instructions.expect`; safe to use from several threads."""

    def __init__(self, task: Task, question: str, after: Standing, *, first_answer: bool) -> None:
        self.task = task
        self.question = question
        self.used_at = 0.0
        self.waits = True
        self.first_answer = first_answer
        self._shown_id = shown_id(task[1])
        self._agent_id: str | None = None
        """The agent that the question has reached."""
        self._after = after
        """The task's standing when it asked: what answers an earlier report is no answer."""
        self._changed = threading.Condition()
        self._kept: deque[Instruction] = deque(maxlen=_MOST_KEPT)
        self._read: deque[Answer] = deque(maxlen=50)
        self._fetched: deque[Instruction] = deque(maxlen=_MOST_KEPT)
        """What was put for a report whose answer may bring it as well."""
        self._fetched_for: Standing = after
        """That report: what answers a later one is said anew, even in the same words."""
        self._answered = False
        self._closed = False
        self._listeners: list[Callable[[], None]] = []

    def ask(self, question: str, after: Standing) -> None:
        """Ask a question, or the same one again: what came for that meanwhile still counts."""
        with self._changed:
            if question != self.question or self.first_answer:
                self._kept.clear()
                self.question, self._agent_id, self._after = question, None, after
            self._answered = False

    # -- for who waits -------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> Instruction | None:
        """Return the next instruction; None if the time is over, or none can come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled, min(max(seconds, 0.0), threading.TIMEOUT_MAX))
            return self._next()

    async def wait_async(self, seconds: float) -> Instruction | None:
        """`wait` for an event loop."""
        import asyncio  # whoever awaits this has done so already

        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(ready.set)

        until = loop.time() + max(seconds, 0.0)
        with self._listening(notify):
            while True:
                with self._changed:
                    left = until - loop.time()
                    if self._settled or left <= 0:
                        return self._next()
                    ready.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ready.wait(), min(left, threading.TIMEOUT_MAX))

    @contextlib.contextmanager
    def _listening(self, notify: Callable[[], None]) -> Iterator[None]:
        with self._changed:
            self._listeners.append(notify)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(notify)

    @property
    def _settled(self) -> bool:
        return bool(self._kept) or self._closed or (self.first_answer and self._answered)

    def _next(self) -> Instruction | None:
        return self._kept.popleft() if self._kept else None

    # -- for who answers -----------------------------------------------------------------------------------------------

    def take(self, report: ProgressReport | None, answer: Answer) -> bool:
        """Take what an answer has for the task, each answer once. Return whether it may have anything.

        Args:
            report: the one that was answered, if it is the task's: it may have brought the question.
        """
        with self._changed:
            brought = report is not None and self.is_question(report)
            if report is not None and brought:
                self._after, self._agent_id, self._answered = (report.run, report.sequence), answer.agent_id, True
                if self._after > self._fetched_for:
                    self._fetched.clear()
            if answer.agent_id != self._agent_id or (self.first_answer and not brought):
                return False
            if not any(answer is each for each in self._read):
                self._read.append(answer)
                self._kept.extend(each for each in answer.instructions if self.is_meant_by(each) and self._is_new(each))
            self._notify()
            return True

    def put(self, instructions: Iterable[Instruction], report: ProgressReport | None = None) -> None:
        """Take what came for this task in another way, where somebody has seen to it that it answers the question.

        Args:
            report: the one that brought the question, if the answer to it may still come.
        """
        with self._changed:
            found = list(instructions)
            self._kept.extend(found)
            if report is not None:
                self._fetched_for = report.run, report.sequence
                self._fetched.extend(found)
            self._notify()

    def _is_new(self, instruction: Instruction) -> bool:
        if instruction not in self._fetched:
            return True
        self._fetched.remove(instruction)
        return False

    def _notify(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def is_question(self, report: ProgressReport) -> bool:
        """Return whether a report brought the question, and no earlier one."""
        if (report.run, report.sequence) <= self._after:
            return False
        return report.waiting or (self.first_answer and report.status.is_terminal)

    @property
    def closed(self) -> bool:
        """True if nobody waits any longer."""
        return self._closed

    def is_meant_by(self, instruction: Instruction) -> bool:
        """Return whether an instruction names this task."""
        return instruction.task_id == self._shown_id

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._notify()


def fulfil(future: Future[Expected | None], expect: Callable[[], Expected | None]) -> None:
    """Give a future what begins to be expected, on the pipeline's thread, unless nobody waits any more."""
    if not future.set_running_or_notify_cancel():
        return
    expected = None
    try:
        expected = expect()
    finally:
        future.set_result(expected)


class Instructions:
    """The waits of one pipeline's tasks. Safe to use from several threads.

    Args:
        subscribe: has a function called with each report that an agent answers, and its answer.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        subscribe: Callable[[Callable[[ProgressReport, Answer], None]], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subscribe = subscribe
        self._subscribed = False
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Begin with nobody who waits: also in a forked child, where no thread of the parent's is."""
        self._lock = threading.RLock()
        self._expected: OrderedDict[Task, Expected] = OrderedDict()
        self._closed = False

    def prepare(self) -> None:
        """Have the answers of the agents come, since somebody is about to wait."""
        with self._lock:
            if not self._subscribed:
                self._subscribed = True
                self._subscribe(self.given)

    def expect(
        self, agent_id: str | None, task_id: str, question: str, after: Standing, *, first_answer: bool = False
    ) -> Expected:
        """Let a task wait, from before its question is reported.

        Args:
            agent_id: the one that the task is reported to; None is the configured one.
            task_id: the task's.
            question: what it asks; another one than before makes what is left of that void.
            after: how far the task's reports have come; a later one brings the question.
            first_answer: the answer to the report of its end, or that it waits, decides, and no other counts. Else it
                waits on until an instruction comes, in that turn or a later one of the same agent.
        """
        with self._lock:
            key = agent_id, task_id
            expected = self._expected.get(key)
            if expected is None or expected.first_answer is not first_answer:
                expected = self._expected[key] = Expected(key, question, after, first_answer=first_answer)
            else:
                expected.ask(question, after)
            expected.waits = True
            self._expected.move_to_end(key)
            self._forget_old()
            if self._closed:
                expected.close()
            return expected

    def leave(self, expected: Expected, *, forget: bool = False) -> None:
        """Wait no longer. What comes later is kept for a while, unless ``forget``."""
        with self._lock:
            expected.used_at, expected.waits = self._clock(), False
            for key in [key for key, each in self._expected.items() if forget and each is expected]:
                del self._expected[key]

    def given(self, report: ProgressReport, answer: Answer) -> None:
        """Take what an agent answered to a report; called for each report of the turn that it answers."""
        with self._lock:
            own = self._expected.get((report.agent_id, report.task_id))
            others = [each for each in self._expected.values() if any(map(each.is_meant_by, answer.instructions))]
        asked = others if own is None or own in others else [own, *others]
        taken = [each for each in asked if each.take(report if each is own else None, answer)]
        for instruction in answer.instructions:
            if not any(each.is_meant_by(instruction) for each in taken):
                _logger.debug("an instruction for the task %s is ignored: it waits for none", instruction.task_id)

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._lock:
            self._closed = True
            expected = list(self._expected.values())
        for each in expected:
            each.close()

    def _forget_old(self) -> None:
        now = self._clock()
        for key in [key for key, each in self._expected.items() if not each.waits]:
            if len(self._expected) > _MOST or now - self._expected[key].used_at > _KEPT:
                del self._expected[key]
