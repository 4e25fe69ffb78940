"""The ledger: tasks that are under way, and the only place where progress reports are made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from otel_letta import semconv
from otel_letta.recent import Recent
from otel_letta.report import Draft, ProgressReport, TaskStatus
from otel_letta.text import clean_block, clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.conventions.names import name_for_logs, program_of, service_of
from otel_letta.tracking.declared import Declaration
from otel_letta.tracking.parked import Parked, go_on, restored
from otel_letta.tracking.reading import Reading
from otel_letta.tracking.tasks import Inbound, InferredTask, Place, Task, place_of, span_id_of, trace_id_of
from otel_letta.tracking.tree import REMEMBERED
from otel_letta.tracking.values import time_of

_logger = logging.getLogger(__name__)

_LAST_CONTENT_CAP = 120
_NAMELESS = "unnamed agent"


class Ledger:
    """Keeps tasks that are under way, and reports about them.

    Args:
        emit: takes each report, in order.
        now: the wall clock, Unix nanoseconds.
        host: this machine's name.
        allowed_agents: values of ``letta.agent.id`` that are followed.
        default_agent: the configured agent; naming it is the same as naming none.
        content_cap: most characters of content and of the result that a report keeps.
        wake_after: seconds from which on an inferred task is worth waking an agent for its success.
        wake_on_wait: a task that waits for a person is worth waking an agent.
        wait_timeout: seconds after which one that waits is lost.
        claimed: True for an OpenHands conversation, by its id, that somebody else reports.
    """

    def __init__(
        self,
        *,
        emit: Callable[[ProgressReport], None],
        now: Callable[[], int],
        host: str | None = None,
        allowed_agents: Collection[str] = (),
        default_agent: str | None = None,
        content_cap: int = 2_000,
        wake_after: float = 60.0,
        wake_on_wait: bool = True,
        wait_timeout: float = 86_400.0,
        claimed: Callable[[str], bool] = lambda session: False,
    ) -> None:
        self._emit = emit
        self._now = now
        self._host = host
        self._allowed_agents = frozenset(allowed_agents)
        self._default_agent = default_agent
        self._content_cap = content_cap
        self._wake_after = wake_after
        self._wake_on_wait = wake_on_wait
        self._wait = int(wait_timeout * 1e9)
        self._claimed = claimed
        self.tasks: dict[Place, Task] = {}
        """Declared tasks under way, by id, and by agent where that is not the configured one."""
        self._past: Recent[Place, tuple[int, int]] = Recent(REMEMBERED)
        """Run and sequence of tasks that are over: another one with the same id counts on from there."""
        self._parked = Parked()
        self._warned: Recent[tuple[object, str], None] = Recent()

    # -- a task's life -----------------------------------------------------------------------------------------------

    def open(
        self, reading: Reading, declaration: Declaration, agent: str | None, around: Task | None, inbound: Inbound
    ) -> Task:
        """Open a declared task. ``around``: the task that it runs in."""
        task = Task(declaration.task_id, agent, reading.key, reading.start)
        if declaration.inferred:
            task.inferred = True
        # Later ones fill in what earlier ones leave open.
        if around is not None:
            task.chat_id, task.message_id = around.chat_id, around.message_id
        own_chat = declaration.chat_id or task.chat_id
        chat, message = inbound
        if chat is None or own_chat in (None, chat):  # a message of another chat is not the one that asked
            task.chat_id, task.message_id = task.chat_id or chat, task.message_id or message
        if around is None:
            if chat is None:
                task.message_id = task.message_id or reading.default(semconv.MESSAGE_ID)
            task.chat_id = task.chat_id or reading.default(semconv.CHAT_ID)
        task.service = service_of(reading)
        task.name = declaration.name or clean_line(reading.name, 200)
        self._enter(task, declaration.chat_id)
        return task

    def address(self, task: InferredTask, reading: Reading, declaration: Declaration | None, inbound: Inbound) -> None:
        """Fill in the recipient of an inferred task."""
        task.agent_id = self.agent_of(reading, declaration or Declaration(), None)
        task.inbound_chat, message = inbound
        task.default_chat = reading.default(semconv.CHAT_ID)
        task.message_id = message
        task.default_message = reading.default(semconv.MESSAGE_ID) if task.inbound_chat is None else None
        task.service, task.program = service_of(reading), program_of(reading)

    def find(self, agent: str | None, task_id: str | None) -> Task | None:
        """Return the task under way with an id; None for none."""
        return self.tasks.get(place_of(agent, task_id)) if task_id is not None else None

    def rename(self, task: Task, task_id: str) -> None:
        """Let a task go by an id that was set after its start."""
        del self.tasks[task.known_as]
        task.given_id = task_id
        self._enter(task)

    def succeed(self, task: Task, inferred: InferredTask, *, keep_id: bool) -> None:
        """Let a declared task take the place of an inferred one: only now somebody gives it a name."""
        if keep_id:
            del self.tasks[task.known_as]
            task.given_id = inferred.given_id
        task.key, task.started = inferred.key, min(task.started, inferred.started)
        self.tasks[task.known_as] = task
        task.sequence, task.progress = max(task.sequence, inferred.sequence), inferred.progress
        task.failed_steps += inferred.problems

    def _enter(self, task: Task, chat: str | None = None) -> None:
        self.count_run(task)
        parked = self._parked.take_declared(task, chat)
        if parked is not None:
            go_on(task, parked)
        self.tasks[task.known_as] = task

    def drop(self, task: Task) -> None:
        """Forget a task without a report."""
        self.tasks.pop(task.known_as, None)
        # The memory of ended spans keeps the object; its texts can be long.
        task.end()
        task.content = None
        # Only if they are there: to set one, or to look into `__dict__`, can make a dictionary.
        if task.root_content is not None:
            task.root_content = None
        if task.result is not None:
            task.result = None

    def was(self, task: Task) -> bool:
        """Return True if a task with its id has ended."""
        return task.known_as in self._past

    def count_run(self, task: Task) -> None:
        """Let a task be another run of its id, if one with that has ended."""
        past = self._past.get(task.known_as)
        if past is not None:
            task.run, task.sequence = past[0] + 1, max(past[1], task.sequence)

    def remember(self, task: Task) -> None:
        """Remember a task that ended: the next one with its id is another run of it."""
        self._past.put(task.known_as, (task.run, task.sequence))

    # -- tasks that wait ---------------------------------------------------------------------------------------------

    def park(self, task: Task, content: str, at: int | None, *, waiting: bool = True) -> None:
        """Report that a task cannot go on now, and keep its place for when it does. ``waiting``: it needs somebody."""
        task.parked_at = self._now()
        if isinstance(task, InferredTask):
            self.report_inferred(task, TaskStatus.IN_PROGRESS, content, at or self._now(), waiting=True)
        else:
            self.report(task, TaskStatus.IN_PROGRESS, content, at or self._now(), waiting=waiting)
            self.tasks.pop(task.known_as, None)
        task.end()
        self._keep_parked(task)

    def _keep_parked(self, task: Task) -> None:
        crowded_out = self._parked.put(task)
        if crowded_out is not None:
            self._give_up_waiting(crowded_out, wording.TOO_MANY_WAIT)

    def resume(self, task: InferredTask, first_tool: str) -> bool:
        """Let a task go on with one that waited in its conversation or trace, or for its first tool."""
        parked = self._parked.take_inferred(task, first_tool)
        if parked is None:
            return False
        go_on(task, parked)
        return True

    def restore(self, report: ProgressReport) -> None:
        """Let a task wait on that waited in a process which is gone; ``report`` is its last one."""
        task = restored(report)
        if task is not None:
            self._keep_parked(task)

    def may_resume(self, task: InferredTask) -> bool:
        """Return True if a task of the same service waits, so that this may turn out to be the same."""
        return self._parked.has_of(task.service)

    def may_be_allowed(self, task: InferredTask) -> bool:
        """Return True if a task would go on with one that waits, should it begin with a tool."""
        return self._parked.has_of_tool(task)

    def expire(self, now: int) -> int | None:
        """Give up what has waited for too long. Returns when the next one will have."""
        oldest, limit = self._parked.oldest, now - self._wait
        if oldest is not None and oldest <= limit:
            for task in self._parked.older_than(limit):
                why = wording.never_tried_again if task.retries else wording.nobody_came
                self._give_up_waiting(task, why(self._wait / 1e9))
            oldest = self._parked.oldest
        return None if oldest is None else oldest + self._wait

    def _give_up_waiting(self, task: Task, reason: str) -> None:
        if isinstance(task, InferredTask):
            content = wording.agent_failed(self.name_of(task), reason)
            self.report_inferred(task, TaskStatus.FAILED, content, self._now(), error=reason)
        else:
            self.report(task, TaskStatus.FAILED, wording.failed(reason), self._now(), error=reason)
        self.remember(task)

    # -- reports of declared tasks -----------------------------------------------------------------------------------

    def progress(self, task: Task, *, fresh: bool = False) -> None:
        """Report where a declared task stands. ``fresh``: it has just started."""
        # A step may outlive its task; a task's end is the last report of it.
        if task.ended:
            return
        if task.questions:
            *_, question = task.questions.values()
            self.report(task, TaskStatus.IN_PROGRESS, question, self._now(), waiting=True)
            return
        started = wording.started() if fresh and not task.progress else ""
        self.report(task, TaskStatus.IN_PROGRESS, task.content or started or standing(task), self._now())

    def close(self, task: Task, status: TaskStatus, at: int | None, error: str | None) -> None:
        """Report the end of a declared task. What a step said last says nothing about that."""
        content, at = task.root_content, at or self._now()
        if status is TaskStatus.COMPLETED:
            task.progress = 1.0
            content = content or wording.completed(seconds_between(task.started, at), task.failed_steps)
        content = content or wording.failed(error or "", _last_content(task))
        self.report(task, status, content, at, error=error)
        task.ended_at = at
        self.drop(task)
        self.remember(task)

    def fail(self, task: Task, reason: str, at: int | None = None) -> None:
        """Report that a task failed that did not get to say so itself: the content has to say why."""
        task.root_content = wording.failed(reason, _last_content(task))
        self.close(task, TaskStatus.FAILED, at, reason)

    def abandon(self, task: Task, reason: str) -> None:
        """Report that nobody will end a task. It failed, unless it has said itself how it ended."""
        if task.status is not None and task.status.is_terminal:
            self.close(task, task.status, None, None)
        else:
            self.fail(task, reason)

    # -- reports of inferred tasks -----------------------------------------------------------------------------------

    def name_of(self, task: InferredTask) -> str:
        return task.declared_name or task.name or clean_line(task.service or "", 80) or task.program or _NAMELESS

    def ask_for_claim(self, task: InferredTask) -> None:
        """Notice that somebody else reports the task. For good: half a story is worse than none."""
        if not task.claimed and task.session is not None:
            task.claimed = self._claimed(task.session)

    def report_inferred(
        self,
        task: InferredTask,
        status: TaskStatus,
        content: str,
        at: int,
        *,
        error: str | None = None,
        waiting: bool = False,
    ) -> None:
        """Report about an inferred task. One that somebody else reports is followed in silence; if it was reported
        before that, its end wakes nobody."""
        if task.session is not None:
            self.ask_for_claim(task)
        if task.claimed:
            if not status.is_terminal or not task.sequence:
                return
            task.mirrored, task.result, content = True, None, wording.reported_elsewhere(self.name_of(task))
        rank, _, chat = task.chat or (0, 0, None)
        if task.inbound_chat is not None and (chat is None or rank > 0):
            chat = task.inbound_chat  # whoever called said it in our own words, only a span's are nearer
        elif task.default_chat is not None and rank > 0:
            chat = task.default_chat  # so did whoever started the program
        task.chat_id = chat or task.default_chat or trace_id_of(task.key[0])
        if task.message_id in (None, task.default_message):
            # The resource's message asked in the resource's chat, and in no other.
            task.message_id = task.default_message if task.default_chat in (None, task.chat_id) else None
        self.report(task, status, content, at, error=error, name=self.name_of(task), waiting=waiting)

    # -- reports -----------------------------------------------------------------------------------------------------

    def report(
        self,
        task: Task,
        status: TaskStatus,
        content: str,
        at: int,
        *,
        error: str | None = None,
        name: str | None = None,
        waiting: bool = False,
    ) -> None:
        """Make a report and emit it.

        Args:
            at: the time that it speaks of, Unix nanoseconds.
            error: why the task failed.
            name: the task's name for this report, if it is not ``task.name``.
            waiting: the task cannot go on without somebody.
        """
        task.sequence += 1
        # An exporter's spans are reported when they come, and may have ended before: readers expect the reports' order.
        task.reported_at = max(at, task.reported_at)
        duration = seconds_between(task.started, at) if task.started else None
        report = Draft()
        report.chat_id, report.message_id = task.chat_id, task.message_id
        report.content, report.status = clean_block(content, self._content_cap), status
        report.progress = task.progress or 0.0
        report.task_id, report.name = task.id, task.name if name is None else name
        report.agent_id = task.agent_id
        report.result = None if task.result is None else clean_block(task.result, self._content_cap)
        report.error = error
        report.sequence, report.run = task.sequence, task.run
        report.timestamp = time_of(task.reported_at)
        report.started = time_of(task.started) if task.started else None
        report.duration = duration
        report.trace_id = None if task.key is None else trace_id_of(task.key[0])
        span_id = task.span_id
        report.span_id = span_id_of(span_id) if span_id else None
        report.service, report.host = task.service, self._host
        report.wakes = self._is_worth_it(task, status, duration, content if waiting else None)
        report.waiting, report.inferred = waiting, isinstance(task, InferredTask)
        self._emit(report.sealed())

    def _is_worth_it(self, task: Task, status: TaskStatus, duration: float | None, asks: str | None) -> bool:
        """Return True for a report that is worth waking an agent. ``asks``: what the task waits for, if it does."""
        worth_it = not task.inferred or status is TaskStatus.FAILED or (duration or 0.0) >= self._wake_after
        if asks is not None:
            worth_it = self._wake_on_wait and asks not in task.asked
            task.asked = frozenset((asks, *task.asked.intersection(task.questions.values())))
        elif task.asked:
            task.asked = frozenset()
        return worth_it and not task.mirrored

    # -- recipients and warnings -------------------------------------------------------------------------------------

    def agent_of(self, reading: Reading, declaration: Declaration, around: Task | None) -> str | None:
        """Return the agent that a task is reported to; None for the configured one."""
        wanted = declaration.agent_id
        if wanted is None:
            if around is not None:
                return around.agent_id
            wanted = reading.default(semconv.AGENT_ID)
        if wanted is None or wanted == self._default_agent:
            return None
        if wanted in self._allowed_agents:
            return wanted
        self._warn_once(
            (wanted, semconv.AGENT_ID),
            "span %r wants to report to agent %r, which OTEL_LETTA_AGENT_ALLOW_LIST does not name: "
            "reporting to the configured agent",
            reading,
            wanted,
        )
        return None

    def warn(self, reading: Reading, declaration: Declaration) -> None:
        """Log what a span said that cannot be used, once."""
        for name, reason in declaration.ignored:
            # The bare word is on many a span that means something else by it ("status": "200").
            about = (reason if name == semconv.BARE_STATUS else reading.key, name)
            self._warn_once(about, "span %r: attribute %s is ignored: %s", reading, name, reason)

    def _warn_once(self, about: tuple[object, str], message: str, reading: Reading, *arguments: object) -> None:
        if about not in self._warned:
            self._warned.put(about, None)
            _logger.warning(message, name_for_logs(reading), *arguments)


def standing(task: Task) -> str:
    """Return the sentence that says how far a task is whose author left none."""
    return wording.in_progress(task.progress)


def seconds_between(start: int, end: int) -> float:
    """Return the seconds between two times in Unix nanoseconds; 0 if the first is unknown or the later one."""
    return (end - start) / 1e9 if start and start < end else 0.0


def _last_content(task: Task) -> str | None:
    return clean_line(task.content, _LAST_CONTENT_CAP) if task.content else None
