"""Task trees: which spans belong to which task, how far it is, and how it ended.

Declared tasks are here; what has a role in an agent's work goes on to `otel_letta.tracking.agents`.

Two kinds of news come in. A live processor tells of starts, changes and ends of spans whose parents are known
(`OpenSpan`). An exporter tells only of ended spans, children before their parents. Both end in the same reports.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, TypedDict

from opentelemetry.trace import SpanKind

from otel_letta import semconv
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.text import as_text, clean_block, clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.agents import AgentTask, AgentTracker
from otel_letta.tracking.conventions import AgentFacts, Role, name_for_logs, pending_of, reason_of
from otel_letta.tracking.open_spans import OpenSpan
from otel_letta.tracking.roles import Declaration, SpanFacts, SpanKey, _id, declaration, event_declaration, scope_of
from otel_letta.tracking.state import REMEMBERED, Recent, Task, automatic_id, seconds_between, utc

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AgentOptions", "Task", "TaskTracker"]

_logger = logging.getLogger(__name__)

_LAST_WORD_CAP = 120
_DECLARED = semconv.DECLARING | {semconv.OPTED_IN}
_SHUT_DOWN = "the program shut down while the task was still open"


class AgentOptions(TypedDict, total=False):
    """Settings of `AgentTracker` that a `TaskTracker` hands on."""

    grace: float
    idle_timeout: float
    chat_attributes: Sequence[str]
    content: Collection[str]
    claimed: Callable[[str], bool]
    most_tasks: int


class _Place(Enum):
    """What an ended span is to one above it."""

    STEP = "a step of it"
    OWN = "a task of its own"
    ABOVE = "known only when the task of the one above is"


class _Held:
    """An ended span whose parent is still to come: a task of its own, or a step of the parent's task?"""

    __slots__ = ("awaits", "below", "deadline", "facts", "said", "steps", "told")

    def __init__(self, facts: SpanFacts, said: Declaration, deadline: int) -> None:
        # It may wait for long, and all that is needed of its attributes and events has been read.
        self.facts = replace(facts, attributes={}, events=[])
        self.said = said
        self.deadline = deadline
        self.awaits: SpanKey | None = None
        self.steps: list[_Held] = []
        self.told: TaskStatus | None = None
        """How its end was told already: it has an id of its own, and waits only lest its parent has the same."""
        self.below: TaskStatus | None = None
        """How a step of it was told that has the same id."""

    def place_below(self, above: _Held) -> _Place:
        mine, its = self.said, above.said
        if mine.task_id is not None:
            return _Place.ABOVE if its.task_id is None else _Place.STEP if mine.task_id == its.task_id else _Place.OWN
        if mine.chat_id is None:
            return _Place.STEP
        if its.chat_id is None and its.task_id is None:
            return _Place.ABOVE
        chat = its.chat_id or above.facts.default(semconv.CHAT_ID)
        return _Place.STEP if mine.chat_id == chat else _Place.OWN


class TaskTracker:
    """Turns news of spans into reports. Not thread-safe: whoever owns it calls it from one thread at a time.

    Args:
        emit: takes each report, in order.
        now: the wall clock, Unix nanoseconds.
        host: this machine's name, for spans whose resource does not say.
        allowed_agents: values of ``letta.agent.id`` that are followed.
        default_agent: the configured agent; naming it is the same as naming none.
        content_cap: most characters of content and of the result that a report keeps.
        patience: seconds that an ended child with a chat of its own waits for its parent, which may have the same
            one, before it counts as a task.
        step_patience: the same for a child without any id. It is a step if any span above it is a task, and only
            the end of those can tell: an hour of doubt is better than steps that are told as tasks.
        wake_after: seconds from which on a task that nobody declared is worth waking an agent for its success.
        agent_options: further ones of `AgentTracker`.
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
        patience: float = 30.0,
        step_patience: float = 3_600.0,
        wake_after: float = 60.0,
        **agent_options: Unpack[AgentOptions],
    ) -> None:
        self._emit = emit
        self._now = now
        self._host = host
        self._allowed_agents = frozenset(allowed_agents)
        self._default_agent = default_agent
        self._content_cap = content_cap
        self._patience = int(patience * 1e9)
        self._step_patience = int(step_patience * 1e9)
        self._tasks: dict[tuple[str | None, str], Task] = {}
        self._past: Recent[tuple[str | None, str], tuple[int, int]] = Recent(REMEMBERED)
        self._ended_spans: Recent[SpanKey, Task | None] = Recent(REMEMBERED)
        """Ended spans of tasks, and of which one if that is over or live."""
        self._parents: Recent[SpanKey, SpanKey | None] = Recent(REMEMBERED)
        """Of ended spans whose start nobody saw."""
        self._warned: Recent[tuple[object, str], None] = Recent(1_000)
        self._awaiting: dict[SpanKey, list[_Held]] = {}
        self._held: dict[SpanKey, _Held] = {}
        self._deadlines: list[tuple[int, int, _Held]] = []
        self._count = itertools.count()
        self._wake_after = wake_after
        self._agents = AgentTracker(
            report=self._report, address=self._address_agent, remember=self._remember, now=now, **agent_options
        )
        self.spans_ignored = 0
        """Ended spans without a task, counted for statistics."""

    @property
    def open_tasks(self) -> int:
        return len(self._tasks) + self._agents.open_tasks

    @property
    def evicted(self) -> int:
        """How often something was given up because too much is open."""
        return self._agents.evicted

    # -- live: spans with a start ----------------------------------------------------------------------------------

    def started(self, span: OpenSpan, facts: SpanFacts) -> None:
        """A span started."""
        self._look(span, facts, late=False)

    def observed(self, span: OpenSpan, facts: SpanFacts) -> None:
        """A started span was looked at again: it may have become a task."""
        self._look(span, facts, late=facts.end is not None)

    def _look(self, span: OpenSpan, facts: SpanFacts, *, late: bool) -> None:
        facts.end = None  # it may have ended since, of which `ended` will tell, after all that comes before that
        if not self._observe_agent(span, facts, late=late):
            self._observe(span, facts, tell=True)

    def ended(self, span: OpenSpan, facts: SpanFacts, aborted: str | None = None) -> None:
        """An open span ended. ``aborted``: why, if an exception stopped it that OpenTelemetry does not record."""
        self._give_an_end(facts)
        if facts.key in self._ended_spans or self._observe_agent(span, facts, aborted, late=True):
            return
        self.ended_plain(span)
        news = self._observe(span, facts, tell=False)
        task = span.task
        if task is None:
            self.spans_ignored += 1
            return
        self._ended_spans.put(facts.key, task)
        if span.owner:
            task.owners -= 1
            if task.owners == 0:
                self._finish(task, facts, aborted)
                return
        if facts.failed or aborted is not None:
            task.failed_steps += 1
        if news:
            self._tell_progress(task)

    def ended_plain(self, span: OpenSpan) -> None:
        """A span ended without a role in an agent's work."""
        span.over = span.task is None
        if span.awaited is not None:
            above, under = self._above(span, span.awaited)
            self._agents.passed(span.key, above, awaits=under is not None)

    def lost(self, span: OpenSpan) -> None:
        """An open span was garbage-collected: nobody can end it any more."""
        if span.has_role:
            self._agents.lost(span.key)
        elif span.awaited is not None:
            span.over = span.task is None
            above, under = self._above(span, span.awaited)
            self._agents.lost_plain(span.key, above, awaits=under is not None)
        task = span.task
        if task is None:
            return
        self._ended_spans.put(span.key, task)
        if span.owner:
            task.owners -= 1
            if task.owners == 0:
                self._abandon(task, "its span was never ended (lost)")

    def shutdown(self, spans: Collection[OpenSpan]) -> None:
        """The program ends: what is open fails, what waits for a parent is told."""
        for span in spans:
            if span.task is not None:
                self._ended_spans.put(span.key, span.task)
        for task in list(self._tasks.values()):
            self._abandon(task, _SHUT_DOWN)
        self.release()  # first, since agents may be steps of what waits
        self._agents.shutdown()

    def finish(self) -> None:
        """No more spans will come: tell of everything that waits, as if all times of waiting had passed."""
        self.release()
        self._agents.finish()

    def _observe_agent(
        self, span: OpenSpan, facts: SpanFacts, aborted: str | None = None, *, late: bool = False
    ) -> bool:
        """Tell of a live span that has a role in an agent's work; False for one that has none.

        Args:
            late: the span has ended; if it has shown no role until now, its instrumentation gives roles at the end,
                so open spans of the same instrumentation may get theirs yet.
        """
        if facts.is_lettas_own:
            return True
        if span.task is not None and not span.has_role:
            return False
        seen = self._agents.read(facts)
        said = declaration(facts) if seen is None or not _DECLARED.isdisjoint(facts.attributes) else None
        if seen is None or (said is not None and said.task_id is not None and not span.has_role):
            return False
        late = late and not span.has_role
        span.has_role = True
        if said is not None:
            self._warn(facts, said)
        parent = span.parent
        while parent is not None and parent.task is None and not parent.has_role:
            parent = parent.parent
        if parent is not None and parent.task is not None and span.awaited is None:
            self._observe_step(span, parent.task, facts, seen, said, aborted)
            return True
        above, under = self._above(span, facts.scope if late else None)
        ours = self._agents.observe(
            facts, seen, parent=above, live=True, said=said, inbound=span.inbound, aborted=aborted, under=under
        )
        if facts.end is not None and not ours:
            self.spans_ignored += 1
        return True

    def _above(self, span: OpenSpan, scope: str | None) -> tuple[SpanKey | None, SpanFacts | None]:
        """The next span above a live one that has a role, or may get one yet.

        Args:
            scope: open spans of this instrumentation scope may; None for none.

        Returns:
            Its key, and the topmost span that may get a role, if the key is of such a one.
        """
        top, parent = span, span.parent
        candidates = []
        while parent is not None and parent.task is None and not parent.has_role:
            source = parent()
            if scope is not None and source is not None and not parent.ignored and scope_of(source) == scope:
                candidates.append((parent, source))
            top, parent = parent, parent.parent
        if parent is not None and parent.has_role:
            return parent.key, None
        for entry, _ in candidates:
            entry.awaited = scope  # before asking whether it is over, so that the one thread or the other notices
        candidates = [(entry, source) for entry, source in candidates if not getattr(entry, "over", False)]
        if candidates:
            return candidates[0][0].key, SpanFacts.read(candidates[-1][1])
        return (top.outside if parent is None else None), None

    def _observe_step(
        self,
        span: OpenSpan,
        task: Task,
        facts: SpanFacts,
        seen: AgentFacts,
        said: Declaration | None,
        aborted: str | None,
    ) -> None:
        """Agents' work inside a declared task is made of steps."""
        if span.task is None:
            span.task = task  # what is below belongs there too
        if task.ended:
            return
        news = said is not None and self._hear(
            task, said, said.content if said.content != span.said else None, own=False
        )
        span.said = said.content if said is not None else None
        if facts.end is not None and facts.key not in self._ended_spans:
            self._ended_spans.put(facts.key, task)
            news |= self._hear_step(task, facts, seen, aborted)
        if news:
            self._tell_progress(task)

    def _hear_step(self, task: Task, facts: SpanFacts, seen: AgentFacts, aborted: str | None) -> bool:
        failed = seen.failed or aborted is not None
        reason = (str(seen.reason) or aborted or "") if failed else None
        if seen.role in (Role.TOOL, Role.LLM):
            task.failed_steps += failed
        if seen.plan is not None:
            task.progress = max(task.progress, min(seen.plan, 0.99))
            task.stated = True
        if seen.role is Role.TOOL and seen.name:
            took = seconds_between(facts.start, facts.end or 0)
            task.content = wording.tool_used(seen.name, took, reason)
        elif seen.role is Role.AGENT and seen.name:
            task.content = wording.sub_agent(seen.name, reason)
        else:
            return False
        return True

    def _observe(self, span: OpenSpan, facts: SpanFacts, *, tell: bool) -> bool:
        """Take over what a span says; True if that is news about its task."""
        said = declaration(facts)
        fresh = False
        if span.task is None:
            if said is None or self._hear_agents_step(span, said):
                return False
            fresh = self._join(span, facts, said)
        task = span.task
        assert task is not None
        if task.ended:
            return False
        changed = fresh
        heard = span.event_time
        for event in facts.events:
            if event.time > heard:
                span.event_time = max(span.event_time, event.time)
                words = event_declaration(event)
                self._warn(facts, words)
                changed |= self._hear(task, words, words.content, own=span.owner)
        if said is not None:
            self._warn(facts, said)
            news = said.content if said.content != span.said else None
            span.said = said.content
            changed |= self._hear(task, said, news, own=span.owner)
            if span.owner:
                changed |= self._describe(task, said, facts)
        if changed and tell:
            self._tell_progress(task, fresh)
        return changed

    def _hear_agents_step(self, span: OpenSpan, said: Declaration) -> bool:
        """True if what a span declares is about the agent's task that it runs in."""
        parent = span.parent
        while parent is not None and parent.task is None and not parent.has_role:
            parent = parent.parent
        if parent is None or parent.task is not None or said.task_id is not None:
            return False
        return self._agents.hear_step(parent.key, said)

    def _tell_progress(self, task: Task, fresh: bool = False) -> None:
        # A step may outlive its task; a task's end is the last that is told of it.
        if not task.ended:
            self._report(task, TaskStatus.IN_PROGRESS, self._standing(task, fresh), self._now())

    def _join(self, span: OpenSpan, facts: SpanFacts, said: Declaration) -> bool:
        """Find the task of a span that declares one; True if that makes a new task."""
        around = _around(span)
        if around is not None and not _stands_alone(said, around) and not (around.ended and said.task_id is not None):
            span.task, span.owner = around, around.named == said.task_id
            around.owners += span.owner
            return False
        agent = self._agent(facts, said, around)
        task = self._tasks.get((agent, said.task_id)) if said.task_id is not None else None
        fresh = task is None
        if task is None:
            task = self._open(facts, said, agent, around, span.inbound)
        task.owners += 1
        span.task, span.owner = task, True
        return fresh

    # -- ended spans alone: what an exporter sees --------------------------------------------------------------------

    def ended_alone(self, facts: SpanFacts, parent: OpenSpan | None = None) -> None:
        """A span ended whose start nobody saw. ``parent``: its parent, if that is open and known."""
        if facts.key in self._ended_spans or facts.is_lettas_own or self._is_pending(facts):
            return
        self._give_an_end(facts)
        said = declaration(facts)
        seen = self._agents.read(facts)
        waiting = self._take_waiting(facts.key)
        self._parents.put(facts.key, facts.parent)
        if said is None or (seen is not None and said.task_id is None):
            above = facts.parent or facts.remote
            if seen is None:
                for child in waiting:
                    self._find_place(child, facts.parent)
                self.spans_ignored += 1
                if facts.failed and facts.kind is SpanKind.INTERNAL and above is not None:
                    self._agents.part_failed(above, reason_of(facts))
                self._agents.passed(facts.key, above, facts.remote is not None)
                return
            if said is not None:
                self._warn(facts, said)
            if not self._agents.observe(facts, seen, parent=above, remote=facts.remote is not None, said=said):
                self.spans_ignored += 1
            for child in waiting:
                self._find_place(child, facts.key)
            return
        self._ended_spans.put(facts.key, None)
        self._warn(facts, said)
        spoken = None
        for event in facts.events:
            words = event_declaration(event)
            self._warn(facts, words)
            if words.progress is not None:
                said.progress = max(said.progress or 0.0, words.progress)
            spoken = words.content if words.content is not None else spoken
        said.content = said.content if said.content is not None else spoken
        anonymous = said.task_id is None and said.chat_id is None
        held = _Held(facts, said, self._now() + (self._step_patience if anonymous else self._patience))
        others = []
        for child in waiting:
            place = child.place_below(held)
            if place is _Place.STEP:
                held.steps += [child, *child.steps]
                held.below = child.told or child.below or held.below
            elif place is _Place.ABOVE:
                others.append(child)
            elif child.told is None:
                self._tell(child)
        around = None if parent is None else parent.task or _around(parent)
        if around is None:
            heapq.heappush(self._deadlines, (held.deadline, next(self._count), held))
            self._find_place(held, facts.parent)
        elif _stands_alone(said, around):
            self._tell(held, around)
        else:
            self._take_in(held, around)
        for child in others:
            self._find_place(child, facts.key)

    def _give_an_end(self, facts: SpanFacts) -> None:
        """A span whose end has no time, or an impossible one, ended all the same."""
        if facts.end is None:
            facts.end = max(self._now(), facts.start, 1)

    def _is_pending(self, facts: SpanFacts) -> bool:
        pending = pending_of(facts)
        if pending is None:
            return False
        self._agents.pending(facts, self._agents.read(facts), pending.key, pending.parent)
        return True

    def passed(self, key: SpanKey, parent: SpanKey | None, remote: bool = False) -> None:
        """A span that says nothing by itself ended: those below it hang below its parent."""
        if key in self._ended_spans:
            return
        above = None if remote else parent
        self._parents.put(key, above)
        for child in self._take_waiting(key):
            self._find_place(child, above)
        self._agents.passed(key, parent, remote)

    def tick(self) -> int | None:
        """Release what has waited long enough for its parent. Returns when to come again (Unix ns), None for never."""
        now = self._now()
        while self._deadlines:
            deadline, _, held = self._deadlines[0]
            waits = self._held.get(held.facts.key) is held
            if waits and deadline > now and len(self._held) <= REMEMBERED:
                break
            heapq.heappop(self._deadlines)
            if waits:
                self._release(held)
        if len(self._deadlines) > 2 * len(self._held) + 1_000:  # most of them need not wait any more
            self._deadlines = [entry for entry in self._deadlines if self._held.get(entry[2].facts.key) is entry[2]]
            heapq.heapify(self._deadlines)
        due = [at for at in (self._deadlines[0][0] if self._deadlines else None, self._agents.tick()) if at is not None]
        return min(due, default=None)

    def release(self, *, anonymous: bool = True) -> None:
        """Tell what waits for its parent, as tasks of their own; without ``anonymous`` only what names a chat. Agents
        that have ended are judged."""
        self._agents.settle()
        for held in list(self._held.values()):
            if anonymous or held.said.chat_id is not None:
                self._release(held)

    def _find_place(self, held: _Held, above: SpanKey | None) -> None:
        """Is an ended span a task or a step? Asks the spans above it, from the one given on, as far as they ended."""
        for _ in range(REMEMBERED):  # a bound, since made-up parents can go in circles
            if above is None:
                break
            waiting = self._held.get(above)
            if waiting is not None and waiting is not held:
                place = held.place_below(waiting)
                if place is _Place.STEP:
                    if held.told is None and waiting.told is None:
                        waiting.steps += [held, *held.steps]
                    return
                if place is _Place.OWN:
                    break
            task = self._ended_spans.get(above)
            if task is not None:
                if not _stands_alone(held.said, task):
                    self._take_in(held, task)
                    return
                break
            if held.said.task_id is None and held.told is None and self._agents.hear_step(above, held.said):
                for part in (held, *held.steps):
                    self._agents.passed(part.facts.key, part.facts.parent or part.facts.remote)
                return
            if above not in self._parents:
                if held.said.task_id is not None and held.told is None:
                    # A task with an id of its own is told at once: its parent may go on for hours.
                    self._tell(held)
                held.awaits = above
                self._agents.expect(held.facts.key, held.deadline)
                self._awaiting.setdefault(above, []).append(held)
                self._held[held.facts.key] = held
                return
            above = self._parents.get(above)
        if held.told is None:
            self._tell(held)

    def _take_in(self, held: _Held, task: Task) -> None:
        """Make an ended span a step of a task that is open, or over."""
        if task.ended or held.told is not None:
            return
        news = False
        for step in (*held.steps, held):
            task.failed_steps += step.facts.failed
            news |= self._hear(task, step.said, step.said.content, own=False)
        if news:
            self._tell_progress(task)

    def _take_waiting(self, key: SpanKey) -> list[_Held]:
        waiting = self._awaiting.pop(key, [])
        for held in waiting:
            self._held.pop(held.facts.key, None)
        return waiting

    def _release(self, held: _Held) -> None:
        self._held.pop(held.facts.key, None)
        if held.awaits is not None and held.awaits in self._awaiting:
            siblings = self._awaiting[held.awaits]
            siblings.remove(held)
            if not siblings:
                del self._awaiting[held.awaits]
        if held.told is None:
            self._tell(held)

    def _tell(self, held: _Held, around: Task | None = None) -> None:
        """Tell the end of a task that was seen only when it was over."""
        facts, said = held.facts, held.said
        agent = self._agent(facts, said, around)
        task = self._tasks.get((agent, said.task_id)) if said.task_id is not None else None
        if task is not None:
            # A live processor tracks the same task through another span: that one will end it.
            self._ended_spans.put(facts.key, task)
            self._take_in(held, task)
            held.told = TaskStatus.IN_PROGRESS
            return
        task = self._open(facts, said, agent, around)
        for part in (held, *held.steps):
            inferred = self._agents.absorb(part.facts.key)
            if inferred is not None:
                # Its place, and what was told of it so far, stay the same; only now somebody gives it a name.
                task.key, task.started = inferred.key, min(task.started, inferred.started)
                if said.task_id is None:
                    del self._tasks[(agent, task.named)]
                    task.named = inferred.named
                    self._tasks[(agent, task.named)] = task
                task.sequence, task.progress = max(task.sequence, inferred.sequence), inferred.progress
                task.failed_steps += inferred.problems
        for step in held.steps:
            self._hear(task, step.said, step.said.content, own=False)
            task.failed_steps += step.facts.failed
        self._hear(task, said, said.content, own=True)
        self._describe(task, said, facts)
        self._ended_spans.put(facts.key, task)
        status = self._verdict(task, facts, None)[0]
        held.told = status
        if held.below is status:
            # The same task ended with the same verdict in a span below this one: its end is told.
            self._drop(task)
        else:
            self._finish(task, facts, None)

    # -- a task's life -----------------------------------------------------------------------------------------------

    def _open(
        self,
        facts: SpanFacts,
        said: Declaration,
        agent: str | None,
        around: Task | None,
        inbound: tuple[object, object] = (None, None),
    ) -> Task:
        task = Task(said.task_id or automatic_id(facts.key), agent, facts.key, facts.start)
        task.quiet = said.quiet
        self._continue(task)
        # Later ones fill in what earlier ones leave open.
        task.chat_id, task.message_id = (None, None) if around is None else (around.chat_id, around.message_id)
        own_chat = said.chat_id or task.chat_id
        chat, message = _id(inbound[0]), _id(inbound[1])
        if chat is None or own_chat in (None, chat):  # a message of another chat is not the one that asked
            task.chat_id, task.message_id = task.chat_id or chat, task.message_id or message
        if around is None:
            if chat is None:
                task.message_id = task.message_id or facts.default(semconv.MESSAGE_ID)
            task.chat_id = task.chat_id or facts.default(semconv.CHAT_ID)
        task.service = _service(facts)
        self._tasks[(agent, task.named)] = task
        return task

    def _address_agent(
        self, task: AgentTask, facts: SpanFacts, said: Declaration | None, inbound: tuple[object, object]
    ) -> None:
        """Whom a task is for that was inferred."""
        task.agent_id = self._agent(facts, said or Declaration(), None)
        task.inbound_chat, message = _id(inbound[0]), _id(inbound[1])
        task.default_chat = facts.default(semconv.CHAT_ID)
        task.message_id = message or (facts.default(semconv.MESSAGE_ID) if task.inbound_chat is None else None)
        task.service = _service(facts)

    def _continue(self, task: Task) -> None:
        """Count on from where an earlier task of the same id ended, if there was one."""
        past = self._past.get((task.agent_id, task.named))
        if past is not None:
            task.run, task.sequence = past[0] + 1, max(past[1], task.sequence)

    def _drop(self, task: Task) -> None:
        self._tasks.pop((task.agent_id, task.named), None)
        # Spans and the memory of ended spans keep the object; its texts can be long.
        task.ended = True
        task.content = task.own_content = task.result = None

    def _hear(self, task: Task, said: Declaration, content: str | None, *, own: bool) -> bool:
        """Take over what a span or event says about its task; True if that is news."""
        changed = False
        if said.progress is not None:
            changed = not task.stated or said.progress > task.progress
            task.stated = True
            task.progress = max(task.progress, said.progress)  # it never goes backwards
        if content is not None:
            changed |= content != task.content
            task.content = content
            if own:
                task.own_content = content
        # A step's result counts as its task's only until the task gives one itself.
        if said.result is not None and (own or not task.own_result):
            changed |= said.result != task.result
            task.result, task.own_result = said.result, own
        return changed

    def _describe(self, task: Task, said: Declaration, facts: SpanFacts) -> bool:
        """Take over what only the task's own spans may say: its name, ids and status."""
        before = (task.name, task.chat_id, task.message_id)
        task.name = said.name or (task.name if task.key != facts.key and task.name else clean_line(facts.name, 200))
        task.chat_id = said.chat_id or task.chat_id
        task.message_id = said.message_id or task.message_id
        if said.status is not None:
            task.said = said.status
        if (
            said.task_id is not None
            and task.named == automatic_id(task.key)
            and (task.agent_id, said.task_id) not in self._tasks
        ):
            # The id was set after the start: from here on the task goes by it.
            del self._tasks[(task.agent_id, task.named)]
            task.named = said.task_id
            self._continue(task)
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
        task.own_content = wording.failed(reason, _last_word(task))
        self._close(task, TaskStatus.FAILED, at or self._now(), error=reason)

    def _abandon(self, task: Task, reason: str) -> None:
        """Nobody will end this task. It failed, unless it has said itself how it ended."""
        if task.said is not None and task.said.is_terminal:
            self._close(task, task.said, self._now(), error=None)
        else:
            self._fail(task, reason)

    def _standing(self, task: Task, fresh: bool = False) -> str:
        if task.content:
            return task.content
        if fresh and not task.progress:
            return wording.started()
        return wording.in_progress(task.progress if task.stated else None)

    def _close(self, task: Task, status: TaskStatus, at: int, *, error: str | None) -> None:
        # What a step said last says nothing about how the task ended.
        content = task.own_content
        if status is TaskStatus.COMPLETED:
            task.progress = 1.0
            content = content or wording.completed(seconds_between(task.started, at), task.failed_steps)
        self._report(task, status, content or wording.failed(error or "", _last_word(task)), at, error=error)
        self._drop(task)
        self._remember(task)

    def _remember(self, task: Task) -> None:
        self._past.put((task.agent_id, task.named), (task.run, task.sequence))

    def _report(
        self,
        task: Task,
        status: TaskStatus,
        content: str,
        at: int,
        *,
        error: str | None = None,
        name: str | None = None,
    ) -> None:
        task.sequence += 1
        # What an exporter brings is told when it comes, and may have ended before: a reader's order is that of telling.
        task.told_at = max(at, task.told_at)
        trace_id, span_id = task.key
        duration = seconds_between(task.started, at) if task.started else None
        self._emit(
            ProgressReport(
                chat_id=task.chat_id,
                message_id=task.message_id,
                content=clean_block(content, self._content_cap),
                progress=task.progress,
                status=status,
                task_id=task.named,
                name=task.name if name is None else name,
                agent_id=task.agent_id,
                result=None if task.result is None else clean_block(task.result, self._content_cap),
                error=error,
                sequence=task.sequence,
                run=task.run,
                timestamp=utc(task.told_at),
                started=utc(task.started) if task.started else None,
                duration=duration,
                wakes=not task.echoes
                and (not task.quiet or status is TaskStatus.FAILED or (duration or 0.0) >= self._wake_after),
                trace_id=f"{trace_id:032x}",
                span_id=f"{span_id:016x}",
                service=task.service,
                host=self._host,
            )
        )

    def _agent(self, facts: SpanFacts, said: Declaration, around: Task | None) -> str | None:
        wanted = said.agent_id
        if wanted is None:
            if around is not None:
                return around.agent_id
            wanted = facts.default(semconv.AGENT_ID)
            if wanted is None:
                return None
        if wanted == self._default_agent:
            return None
        if wanted in self._allowed_agents:
            return wanted
        self._warn_once(
            (wanted, semconv.AGENT_ID),
            "span %r wants to report to agent %r, which OTEL_LETTA_AGENT_ALLOW_LIST does not name: "
            "reporting to the configured agent",
            name_for_logs(facts),
            wanted,
        )
        return None

    def _warn(self, facts: SpanFacts, said: Declaration) -> None:
        for name, reason in said.ignored:
            # The bare word is on many a span that means something else by it ("status": "200").
            about = (reason if name == semconv.BARE_STATUS else facts.key, name)
            self._warn_once(about, "span %r: attribute %s is ignored: %s", name_for_logs(facts), name, reason)

    def _warn_once(self, about: tuple[object, str], message: str, *arguments: object) -> None:
        if about not in self._warned:
            self._warned.put(about, None)
            _logger.warning(message, *arguments)


def _service(facts: SpanFacts) -> str | None:
    service = as_text(facts.resource.get(semconv.SERVICE_NAME)) or ""
    return None if service.startswith("unknown_service") else clean_line(service, 200) or None


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


def _last_word(task: Task) -> str | None:
    return clean_line(task.content, _LAST_WORD_CAP) if task.content else None
