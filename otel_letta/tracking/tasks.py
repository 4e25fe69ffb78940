"""Task trees: which spans belong to which task, how far it is, and how it ended.

Two kinds of news come in. A live processor tells of starts, changes and ends of spans whose parents are known
(`OpenSpan`). An exporter tells only of ended spans, children before their parents. Both end in the same reports.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from typing import Generic, TypeVar

from otel_letta import semconv
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.text import as_text, clean_block, clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.open_spans import OpenSpan
from otel_letta.tracking.roles import Declaration, SpanFacts, SpanKey, declaration, event_declaration

__all__ = ["Task", "TaskTracker"]

_logger = logging.getLogger(__name__)

_LAST_WORD_CAP = 120
_REMEMBERED = 10_000
"""How many ended spans and tasks are remembered, so that nothing is told twice."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Recent(Generic[_K, _V]):
    """The newest entries of a mapping."""

    def __init__(self, most: int) -> None:
        self._entries: OrderedDict[_K, _V] = OrderedDict()
        self._most = most

    def __contains__(self, key: _K) -> bool:
        return key in self._entries

    def get(self, key: _K) -> _V | None:
        return self._entries.get(key)

    def put(self, key: _K, value: _V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)


class Task:
    """A task that is under way. Spans hold it; the tracker holds it by its id."""

    __slots__ = (
        "agent_id",
        "chat_id",
        "content",
        "failed_steps",
        "key",
        "message_id",
        "name",
        "named",
        "owners",
        "progress",
        "result",
        "run",
        "said",
        "sequence",
        "service",
        "started",
        "stated",
    )

    def __init__(self, task_id: str, agent_id: str | None, key: SpanKey, started: int) -> None:
        self.agent_id = agent_id
        self.named = task_id
        self.key = key
        self.started = started
        self.name = ""
        self.chat_id: str | None = None
        self.message_id: str | None = None
        self.content: str | None = None
        self.result: str | None = None
        self.progress = 0.0
        self.stated = False  # somebody said a number
        self.said: TaskStatus | None = None  # an explicit status
        self.owners = 0
        self.failed_steps = 0
        self.sequence = 0
        self.run = 1
        self.service: str | None = None


class _Held:
    """An ended span whose parent is still to come: a task of its own, or a step of the parent's task?"""

    __slots__ = ("awaits", "deadline", "facts", "said", "steps", "told")

    def __init__(self, facts: SpanFacts, said: Declaration, deadline: int) -> None:
        self.facts = facts
        self.said = said
        self.deadline = deadline
        self.awaits = facts.parent
        self.steps: list[tuple[SpanFacts, Declaration]] = []
        self.told: TaskStatus | None = None
        """How its end was told already: it has an id of its own, and waits only lest its parent has the same."""

    def is_step_of(self, parent: Declaration) -> bool:
        return self.said.task_id in (None, parent.task_id) and self.said.chat_id in (None, parent.chat_id)


class TaskTracker:
    """Turns news of spans into reports. Not thread-safe: whoever owns it calls it from one thread at a time.

    Args:
        emit: takes each report, in order.
        now: the wall clock, Unix nanoseconds.
        host: this machine's name, for spans whose resource does not say.
        allowed_agents: values of ``letta.agent.id`` that are followed.
        content_cap: most characters of content and of the result that a report keeps.
        patience: seconds that an ended child waits for its parent before it counts as a task of its own.
    """

    def __init__(
        self,
        *,
        emit: Callable[[ProgressReport], None],
        now: Callable[[], int],
        host: str | None = None,
        allowed_agents: Collection[str] = (),
        content_cap: int = 2_000,
        patience: float = 30.0,
    ) -> None:
        self._emit = emit
        self._now = now
        self._host = host
        self._allowed_agents = frozenset(allowed_agents)
        self._content_cap = content_cap
        self._patience = int(patience * 1e9)
        self._tasks: dict[tuple[str | None, str], Task] = {}
        self._past: _Recent[tuple[str | None, str], tuple[int, int]] = _Recent(_REMEMBERED)
        self._ended_spans: _Recent[SpanKey, None] = _Recent(_REMEMBERED)
        self._warned: _Recent[tuple[object, str], None] = _Recent(1_000)
        self._awaiting: dict[SpanKey, list[_Held]] = {}
        self._held: OrderedDict[SpanKey, _Held] = OrderedDict()
        self.spans_ignored = 0
        """Ended spans without a task, counted for statistics."""

    @property
    def open_tasks(self) -> int:
        return len(self._tasks)

    # -- live: spans with a start ----------------------------------------------------------------------------------

    def started(self, span: OpenSpan, facts: SpanFacts) -> None:
        """A span started, or an open span was found to have become a task."""
        self._observe(span, facts, tell=True)

    observed = started

    def ended(self, span: OpenSpan, facts: SpanFacts, aborted: str | None = None) -> None:
        """An open span ended. ``aborted``: why, if an exception stopped it that OpenTelemetry does not record."""
        if facts.key in self._ended_spans:
            return
        self._observe(span, facts, tell=False)
        task = span.task
        if task is None:
            self.spans_ignored += 1
            return
        self._ended_spans.put(facts.key, None)
        if not span.owner:
            if facts.failed:
                task.failed_steps += 1
            return
        task.owners -= 1
        if task.owners == 0:
            self._finish(task, facts, aborted)

    def lost(self, span: OpenSpan) -> None:
        """An open span was garbage-collected: nobody can end it any more."""
        task = span.task
        if task is None:
            return
        self._ended_spans.put(span.key, None)
        if span.owner:
            task.owners -= 1
            if task.owners == 0:
                self._fail(task, "its span was never ended (lost)")

    def shutdown(self, spans: Collection[OpenSpan]) -> None:
        """The program ends: what is open fails, what waits for a parent is told."""
        for span in spans:
            if span.task is not None:
                self._ended_spans.put(span.key, None)
        for task in list(self._tasks.values()):
            if task.said is not None and task.said.is_terminal:
                self._close(task, task.said, self._now(), error=None)
            else:
                self._fail(task, "the program shut down while the task was still open")
        for held in list(self._held.values()):
            self._release(held)

    def _observe(self, span: OpenSpan, facts: SpanFacts, *, tell: bool) -> None:
        said = declaration(facts)
        fresh = False
        if span.task is None:
            if said is None:
                return
            fresh = self._join(span, facts, said)
        task = span.task
        assert task is not None
        changed = fresh
        for event in facts.events:
            if event.time > span.event_time:
                span.event_time = event.time
                words = event_declaration(event)
                self._warn(facts, words)
                changed |= self._hear(task, words, words.content)
        if said is not None:
            self._warn(facts, said)
            news = said.content if said.content != span.said else None
            span.said = said.content
            changed |= self._hear(task, said, news)
            if span.owner:
                changed |= self._describe(task, said, facts)
        if changed and tell:
            self._report(task, TaskStatus.IN_PROGRESS, self._standing(task, fresh), self._now())

    def _join(self, span: OpenSpan, facts: SpanFacts, said: Declaration) -> bool:
        """Find the task of a span that declares one; True if that makes a new task."""
        around = _around(span)
        if around is not None and not _stands_alone(said, around):
            span.task, span.owner = around, around.named == said.task_id
            around.owners += span.owner
            return False
        agent = self._agent(facts, said, around)
        task = self._tasks.get((agent, said.task_id)) if said.task_id is not None else None
        fresh = task is None
        if task is None:
            task = self._open(facts, said, agent)
            if around is not None:
                task.chat_id, task.message_id = around.chat_id, around.message_id
        task.owners += 1
        span.task, span.owner = task, True
        return fresh

    # -- ended spans alone: what an exporter sees --------------------------------------------------------------------

    def ended_alone(self, facts: SpanFacts, parent: OpenSpan | None = None) -> None:
        """A span ended whose start nobody saw. ``parent``: its parent, if that is open and known."""
        if facts.key in self._ended_spans:
            return
        said = declaration(facts)
        waiting = self._take_waiting(facts.key)
        if said is None:
            self.spans_ignored += 1
            for held in waiting:
                self._await(held, facts.parent)
            return
        self._ended_spans.put(facts.key, None)
        self._warn(facts, said)
        for event in facts.events:
            words = event_declaration(event)
            self._warn(facts, words)
            if words.progress is not None:
                said.progress = max(said.progress or 0.0, words.progress)
            if semconv.TASK_CONTENT not in facts.attributes and words.content is not None:
                said.content = words.content
        around = None if parent is None else parent.task or _around(parent)
        if around is not None and not _stands_alone(said, around):
            around.failed_steps += facts.failed
            if self._hear(around, said, said.content):
                self._report(around, TaskStatus.IN_PROGRESS, self._standing(around), self._now())
            return
        held = _Held(facts, said, self._now() + self._patience)
        for child in waiting:
            if child.is_step_of(said):
                held.steps += [(child.facts, child.said), *child.steps]
                held.told = child.told or held.told
            elif child.told is None:
                self._tell(child)
        if said.task_id is not None or facts.parent is None or around is not None:
            # A task with an id of its own is told at once: its parent may go on for hours.
            self._tell(held)
        if facts.parent is not None and around is None:
            self._await(held, facts.parent)

    def tick(self) -> int | None:
        """Release what has waited long enough for its parent. Returns when to come again (Unix ns), None for never."""
        now = self._now()
        while self._held:
            held = next(iter(self._held.values()))
            if held.deadline > now and len(self._held) <= _REMEMBERED:
                return held.deadline
            self._release(held)
        return None

    def _take_waiting(self, key: SpanKey) -> list[_Held]:
        waiting = self._awaiting.pop(key, [])
        for held in waiting:
            self._held.pop(held.facts.key, None)
        return waiting

    def _await(self, held: _Held, parent: SpanKey | None) -> None:
        if parent is None:
            if held.told is None:
                self._tell(held)
            return
        held.awaits = parent
        self._awaiting.setdefault(parent, []).append(held)
        self._held[held.facts.key] = held

    def _release(self, held: _Held) -> None:
        self._held.pop(held.facts.key, None)
        if held.awaits is not None and held.awaits in self._awaiting:
            siblings = self._awaiting[held.awaits]
            siblings.remove(held)
            if not siblings:
                del self._awaiting[held.awaits]
        if held.told is None:
            self._tell(held)

    def _tell(self, held: _Held) -> None:
        """Tell the end of a task that was seen only when it was over."""
        facts, said = held.facts, held.said
        agent = self._agent(facts, said, None)
        task = self._tasks.get((agent, said.task_id)) if said.task_id is not None else None
        if task is not None and task.owners:
            # A live processor tracks the same task through another span: that one will end it.
            self._hear(task, said, said.content)
            return
        task = self._open(facts, said, agent)
        for step, words in held.steps:
            self._hear(task, words, None)
            task.failed_steps += step.failed
            task.content = task.content or words.content
        self._hear(task, said, said.content)
        self._describe(task, said, facts)
        status = self._verdict(task, facts, None)[0]
        if held.told is status:
            # The same task ended with the same verdict in a span below this one: its end is told.
            self._drop(task)
            return
        self._finish(task, facts, None)
        held.told = status

    # -- a task's life -----------------------------------------------------------------------------------------------

    def _open(self, facts: SpanFacts, said: Declaration, agent: str | None) -> Task:
        trace_id, span_id = facts.key
        task = Task(said.task_id or f"{trace_id:032x}-{span_id:016x}", agent, facts.key, facts.start)
        past = self._past.get((agent, task.named))
        if past is not None:
            task.run, task.sequence = past[0] + 1, past[1]
        service = as_text(facts.resource.get(semconv.SERVICE_NAME)) or ""
        task.service = None if service.startswith("unknown_service") else clean_line(service, 200) or None
        self._tasks[(agent, task.named)] = task
        return task

    def _drop(self, task: Task) -> None:
        self._tasks.pop((task.agent_id, task.named), None)

    def _hear(self, task: Task, said: Declaration, content: str | None) -> bool:
        """Take over what a span or event says about its task; True if that is news."""
        changed = False
        if said.progress is not None:
            changed = not task.stated or said.progress > task.progress
            task.stated = True
            task.progress = max(task.progress, said.progress)  # it never goes backwards
        if content is not None and content != task.content:
            task.content, changed = content, True
        if said.result is not None and said.result != task.result:
            task.result, changed = said.result, True
        return changed

    def _describe(self, task: Task, said: Declaration, facts: SpanFacts) -> bool:
        """Take over what only the task's own spans may say: its name, ids and status."""
        before = (task.name, task.chat_id, task.message_id)
        task.name = said.name or (task.name if task.key != facts.key and task.name else clean_line(facts.name, 200))
        task.chat_id = said.chat_id or task.chat_id
        task.message_id = said.message_id or task.message_id
        if said.status is not None:
            task.said = said.status
        if said.task_id is not None and said.task_id != task.named and (task.agent_id, said.task_id) not in self._tasks:
            # The id was set after the start: from here on the task goes by it.
            self._drop(task)
            task.named = said.task_id
            self._tasks[(task.agent_id, task.named)] = task
            return True
        return before != (task.name, task.chat_id, task.message_id)

    def _verdict(self, task: Task, facts: SpanFacts, aborted: str | None) -> tuple[TaskStatus, str | None]:
        """How a task ended, and why it failed. An explicit terminal status wins; UNSET alone is success only when
        nothing aborted the span."""
        if task.said is not None and task.said.is_terminal:
            return task.said, (facts.error or None) if task.said is TaskStatus.FAILED else None
        if aborted is not None:
            return TaskStatus.FAILED, aborted
        if facts.failed:
            return TaskStatus.FAILED, facts.error or None
        return TaskStatus.COMPLETED, None

    def _finish(self, task: Task, facts: SpanFacts, aborted: str | None) -> None:
        status, error = self._verdict(task, facts, aborted)
        if status is TaskStatus.FAILED and error is not None and error is aborted:
            self._fail(task, error, facts.end)
        else:
            self._close(task, status, facts.end or self._now(), error=error)

    def _fail(self, task: Task, reason: str, at: int | None = None) -> None:
        """A task that did not get to say its own last word: the content has to say why."""
        last = clean_line(task.content, _LAST_WORD_CAP) if task.content else None
        task.content = wording.failed(reason, last)
        self._close(task, TaskStatus.FAILED, at or self._now(), error=reason)

    def _standing(self, task: Task, fresh: bool = False) -> str:
        if task.content is not None:
            return task.content
        if fresh and not task.stated:
            return wording.started()
        return wording.in_progress(task.progress if task.stated else None)

    def _close(self, task: Task, status: TaskStatus, at: int, *, error: str | None) -> None:
        content = task.content
        if status is TaskStatus.COMPLETED:
            task.progress = 1.0
            content = content or wording.completed(max(at - task.started, 0) / 1e9, task.failed_steps)
        self._report(task, status, content or wording.failed(error or ""), at, error=error)
        self._drop(task)
        self._past.put((task.agent_id, task.named), (task.run, task.sequence))

    def _report(self, task: Task, status: TaskStatus, content: str, at: int, *, error: str | None = None) -> None:
        task.sequence += 1
        trace_id, span_id = task.key
        self._emit(
            ProgressReport(
                chat_id=task.chat_id,
                message_id=task.message_id,
                content=clean_block(content, self._content_cap),
                progress=task.progress,
                status=status,
                task_id=task.named,
                name=task.name,
                agent_id=task.agent_id,
                result=None if task.result is None else clean_block(task.result, self._content_cap),
                error=error,
                sequence=task.sequence,
                run=task.run,
                timestamp=_utc(at),
                started=_utc(task.started),
                duration=max(at - task.started, 0) / 1e9,
                trace_id=f"{trace_id:032x}",
                span_id=f"{span_id:016x}",
                service=task.service,
                host=self._host,
            )
        )

    def _agent(self, facts: SpanFacts, said: Declaration, around: Task | None) -> str | None:
        wanted = said.agent_id
        if wanted is None:
            return around.agent_id if around is not None else None
        if wanted in self._allowed_agents:
            return wanted
        self._warn_once(
            (wanted, semconv.AGENT_ID),
            "span %r wants to report to agent %r, which OTEL_LETTA_AGENT_ALLOW_LIST does not name: "
            "reporting to the configured agent",
            clean_line(facts.name, 80),
            wanted,
        )
        return None

    def _warn(self, facts: SpanFacts, said: Declaration) -> None:
        for name, reason in said.ignored:
            self._warn_once(
                (facts.key, name), "span %r: attribute %s is ignored: %s", clean_line(facts.name, 80), name, reason
            )

    def _warn_once(self, about: tuple[object, str], message: str, *arguments: object) -> None:
        if about not in self._warned:
            self._warned.put(about, None)
            _logger.warning(message, *arguments)


def _around(span: OpenSpan) -> Task | None:
    """The task that a span runs in, looking through spans that have none."""
    parent = span.parent
    while parent is not None:
        if parent.task is not None:
            return parent.task
        parent = parent.parent
    return None


def _stands_alone(said: Declaration, around: Task) -> bool:
    """A task inside a task is one of its own only with an id or a chat of its own."""
    return (said.task_id is not None and said.task_id != around.named) or (
        said.chat_id is not None and said.chat_id != around.chat_id
    )


def _utc(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
