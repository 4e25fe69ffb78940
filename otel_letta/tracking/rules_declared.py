"""Rules for declared tasks: spans that carry attributes of ours.

A span that declares something is a task of its own, or a step of the task above it, or speaks for the agent's task that
it runs in. A live span knows what is above it. One that is seen only when it has ended waits until that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import takewhile

from otel_letta.report import TaskStatus
from otel_letta.text import clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.agents import AgentTracker
from otel_letta.tracking.conventions.facts import AgentFacts
from otel_letta.tracking.declared import Declaration, event_declaration
from otel_letta.tracking.ledger import Ledger
from otel_letta.tracking.merging import left_behind, merge, merge_agents_step, stands_alone, wait_or_go_on
from otel_letta.tracking.nodes import Doubt, Fate, Followed, Place
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tasks import NO_IDS, Inbound, Task
from otel_letta.tracking.tree import REMEMBERED, Tree
from otel_letta.tracking.verdicts import judge_declared


class DeclaredRules:
    """Turns declarations into tasks, and steps of tasks.

    Args:
        steered: see `Tracker`.
        patience: seconds that an ended child with a chat of its own waits for its parent, which may have the same
            one, before it counts as a task.
        step_patience: the same for a child without any id. It is a step if any span above it is a task, and only the
            end of those can show that: an hour of doubt is better than steps that are reported as tasks.
    """

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        agents: AgentTracker,
        now: Callable[[], int],
        steered: Callable[[str], tuple[str, bool] | None],
        *,
        patience: float = 30.0,
        step_patience: float = 3_600.0,
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._agents = agents
        self._now = now
        self._steered = steered
        self._patience = int(patience * 1e9)
        self._step_patience = int(step_patience * 1e9)

    # -- open spans --------------------------------------------------------------------------------------------------

    def observe(
        self, reading: Reading, around: Task | None, agent: SpanKey | None, inbound: Inbound, *, report: bool
    ) -> bool:
        """Take over the statements of an open span, or one that ends now; True if they are news about its task.

        Args:
            around: the nearest declared task above it.
            agent: the nearest span with a role above it, if no declared task is nearer.
            report: report that news.
        """
        declaration, fresh = reading.declaration, False
        span = self._tree.open.get(reading.key)
        if span is None or span.task is None:
            if declaration is None:
                return False
            if agent is not None and declaration.task_id is None and self._agents.declare_below(agent, declaration):
                return False
            span = self._tree.follow(reading.key)
            fresh = self._join(span, reading, declaration, around, inbound)
        task = span.task
        assert task is not None
        if task.ended:
            return False
        changed, said = self._merge_events(span, task, reading)
        changed |= fresh
        if declaration is not None:
            self._ledger.warn(reading, declaration)
            content = declaration.content if declaration.content != span.content else None
            span.content = declaration.content
            changed |= merge(task, declaration, content, own=span.owner)
            said = said if content is None else content
            changed |= wait_or_go_on(task, span, declaration.waits_now, said)
            if span.owner:
                changed |= self._describe(task, declaration, reading)
        if changed and report:
            self._ledger.progress(task, fresh=fresh)
        return changed

    def _merge_events(self, span: Followed, task: Task, reading: Reading) -> tuple[bool, str | None]:
        """Take over new progress events. Return whether they are news, and the content that was given last."""
        changed, said, seen = False, None, span.event_time
        for time, attributes in reading.events:
            if time > seen:
                span.event_time = max(span.event_time, time)
                declaration = event_declaration(attributes)
                self._ledger.warn(reading, declaration)
                changed |= merge(task, declaration, declaration.content, own=span.owner)
                said = said if declaration.content is None else declaration.content
        return changed, said

    def _join(
        self, span: Followed, reading: Reading, declaration: Declaration, around: Task | None, inbound: Inbound
    ) -> bool:
        """Find the task of a span that declares one; True if that makes a new task."""
        if (
            around is not None
            and not stands_alone(declaration, around)
            and not left_behind(reading, declaration, around)
        ):
            span.task, span.owner = around, around.id == declaration.task_id
            around.owners += span.owner
            return False
        agent = self._ledger.agent_of(reading, declaration, around)
        task = self._ledger.find(agent, declaration.task_id)
        fresh = task is None
        if task is None:
            task = self._ledger.open(reading, declaration, agent, around, inbound)
        task.owners += 1
        span.task, span.owner = task, True
        return fresh

    def _describe(self, task: Task, declaration: Declaration, reading: Reading) -> bool:
        """Take over what only the task's own spans may say: its name, ids and status."""
        before = (task.name, task.chat_id, task.message_id)
        task.name = declaration.name or (
            task.name if task.key != reading.key and task.name else clean_line(reading.name, 200)
        )
        task.chat_id = declaration.chat_id or task.chat_id
        task.message_id = declaration.message_id or task.message_id
        if declaration.status is not None:
            task.status = declaration.status
        if task.waits != declaration.waiting:
            task.waits = declaration.waiting
        if (
            declaration.task_id is not None
            and task.given_id in (None, task.automatic_id)
            and self._ledger.find(task.agent_id, declaration.task_id) is None
        ):
            self._ledger.rename(task, declaration.task_id)  # it was set after the start
            return True
        return before != (task.name, task.chat_id, task.message_id)

    def end(self, reading: Reading, aborted: str | None, *, news: bool) -> bool:
        """End an open span that is part of a declared task; False for one that is not. ``news``: it said something."""
        span = self._tree.open.get(reading.key)
        task = span.task if span is not None else None
        if span is None or task is None:
            return False
        self._tree.end(reading.key, Fate.DECLARED, task)
        news |= wait_or_go_on(task, span, False)
        if span.owner:
            task.owners -= 1
            if task.owners == 0:
                self._finish(task, reading, aborted)
                return True
        task.failed_steps += self._has_failed(reading) or aborted is not None
        if news:
            self._ledger.progress(task)
        return True

    def lose(self, key: SpanKey) -> None:
        """Give up an open span that nobody can end any more."""
        span = self._tree.open.get(key)
        task = span.task if span is not None else None
        if span is None or task is None:
            return
        self._tree.end(key, Fate.DECLARED, task)
        goes_on = wait_or_go_on(task, span, False)
        if span.owner:
            task.owners -= 1
            if task.owners == 0:
                self._ledger.abandon(task, wording.NEVER_ENDED)
                return
        if goes_on:
            self._ledger.progress(task)

    def shut_down(self, goes_on: Callable[[], bool]) -> None:
        """Fail all tasks that are open, while there is time: the program ends."""
        for key, span in takewhile(lambda _: goes_on(), self._tree.open.items()):
            if span.task is not None:
                self._tree.end(key, Fate.DECLARED, span.task)
                if not span.task.ended:
                    self._ledger.abandon(span.task, wording.SHUT_DOWN)
        for task in takewhile(lambda _: goes_on(), list(self._ledger.tasks.values())):
            self._ledger.abandon(task, wording.SHUT_DOWN)

    # -- an agent's work inside a declared task ----------------------------------------------------------------------

    def observe_agents_step(
        self, task: Task, reading: Reading, facts: AgentFacts, declaration: Declaration | None, aborted: str | None
    ) -> None:
        """Take over a span with a role that runs in a declared task: agents' work there is made of steps."""
        span = self._tree.follow(reading.key)
        if span.task is None:
            span.task = task  # everything below belongs there too
        if task.ended:
            return
        news = False
        if declaration is not None:
            news = merge(
                task, declaration, declaration.content if declaration.content != span.content else None, own=False
            )
        span.content = declaration.content if declaration is not None else None
        if reading.end is not None and not self._tree.has_declared(reading.key):
            self._tree.end(reading.key, Fate.DECLARED, task)
            news |= merge_agents_step(task, reading, facts, aborted)
        if news:
            self._ledger.progress(task)

    # -- ended spans alone: all that an exporter sees ----------------------------------------------------------------

    def observe_ended(
        self, reading: Reading, declaration: Declaration, waiting: Collection[Doubt], around: Task | None
    ) -> None:
        """Place an ended span that declares something.

        Args:
            waiting: declarations that waited for it.
            around: the declared task that it runs in, if that is open here.
        """
        self._tree.end(reading.key, Fate.DOUBT)
        self._ledger.warn(reading, declaration)
        self._merge_own_events(reading, declaration)
        doubt = Doubt(
            reading, declaration, self._now() + (self._step_patience if declaration.is_anonymous else self._patience)
        )
        others = []
        for child in waiting:
            place = child.place_below(doubt)
            if place is Place.STEP:
                doubt.steps += child.parts
                doubt.below = child.reported or child.below or doubt.below
            elif place is Place.ABOVE:
                others.append(child)
            elif child.reported is None:
                self._tell(child)
        if around is None:
            self._tree.remind(doubt, doubt.deadline)
            self.place(doubt, reading.parent)
        elif stands_alone(declaration, around) or around.had_ended(reading.start):
            self._tell(doubt, around)
        else:
            self._take_in(doubt, around)
        for child in others:
            self.place(child, reading.key)

    def _merge_own_events(self, reading: Reading, declaration: Declaration) -> None:
        content = None
        for _, attributes in reading.events:
            event = event_declaration(attributes)
            self._ledger.warn(reading, event)
            if event.progress is not None:
                declaration.progress = max(declaration.progress or 0.0, event.progress)
            content = event.content if event.content is not None else content
        declaration.content = declaration.content if declaration.content is not None else content

    def place(self, doubt: Doubt, above: SpanKey | None) -> None:
        """Decide whether an ended declaration is a task or a step: ask the spans above it, from the one given on, as
        far as they have ended."""
        for _ in range(REMEMBERED):  # a bound, since made-up parents can go in circles
            if above is None:
                break
            waiting = self._tree.doubts.get(above)
            if waiting is not None and waiting is not doubt:
                place = doubt.place_below(waiting)
                if place is Place.STEP:
                    if doubt.reported is None and waiting.reported is None:
                        waiting.steps += doubt.parts
                    return
                if place is Place.OWN:
                    break
            task = self._tree.tasks.get(above)
            if task is not None:
                if not stands_alone(doubt.declaration, task) and not task.had_ended(doubt.reading.start):
                    self._take_in(doubt, task)
                    return
                break
            if self._speaks_for_agent(doubt, above):
                return
            arrived, parent = self._tree.parent_of(above)
            if not arrived:
                self._wait(doubt, above)
                return
            above = parent
        if doubt.reported is None:
            self._tell(doubt)

    def _speaks_for_agent(self, doubt: Doubt, above: SpanKey) -> bool:
        if doubt.declaration.task_id is not None or doubt.reported is not None:
            return False
        if not self._agents.declare_below(above, doubt.declaration):
            return False
        for part in doubt.parts:
            self._tree.end(part.key, Fate.STEP)
            self._agents.passed(part.key, part.reading.above)
        return True

    def _wait(self, doubt: Doubt, above: SpanKey) -> None:
        if doubt.declaration.task_id is not None and doubt.reported is None:
            # A task with an id of its own is reported at once: its parent may go on for hours.
            self._tell(doubt)
        self._tree.wait(doubt, above)
        self._agents.expect(doubt.key, doubt.deadline)

    def release(self, doubt: Doubt) -> None:
        """Wait no longer for the parent of a declaration: it is a task."""
        self._tree.take_doubt(doubt)
        if doubt.reported is None:
            self._tell(doubt)

    def release_all(self, *, anonymous: bool) -> None:
        """Wait no longer for any; without ``anonymous`` only those that name a chat."""
        for doubt in list(self._tree.doubts.values()):
            if anonymous or doubt.declaration.chat_id is not None:
                self.release(doubt)

    def _take_in(self, doubt: Doubt, task: Task) -> None:
        """Make an ended span a step of a task that is open, or over."""
        if task.ended or doubt.reported is not None:
            return
        news = False
        for step in (*doubt.steps, doubt):
            task.failed_steps += self._has_failed(step.reading)
            news |= merge(task, step.declaration, step.declaration.content, own=False)
        if news:
            self._ledger.progress(task)

    def _tell(self, doubt: Doubt, around: Task | None = None) -> None:
        """Report the end of a task that was seen only when it was over."""
        reading, declaration = doubt.reading, doubt.declaration
        agent = self._ledger.agent_of(reading, declaration, around)
        task = self._ledger.find(agent, declaration.task_id)
        if task is not None:
            # A live processor tracks the same task through another span: that one will end it.
            self._tree.assign(doubt.key, task)
            self._take_in(doubt, task)
            doubt.reported = TaskStatus.IN_PROGRESS
            return
        task = self._ledger.open(reading, declaration, agent, around, NO_IDS)
        for part in doubt.parts:
            inferred = self._agents.absorb(part.key)
            if inferred is not None:
                self._ledger.succeed(task, inferred, keep_id=declaration.task_id is None)
        for step in doubt.steps:
            merge(task, step.declaration, step.declaration.content, own=False)
            task.failed_steps += self._has_failed(step.reading)
        merge(task, declaration, declaration.content, own=True)
        self._describe(task, declaration, reading)
        self._tree.assign(doubt.key, task)
        status, _ = judge_declared(task.status, reading, None)
        doubt.reported = status
        if doubt.below is status:
            # The same task ended with the same verdict in a span below this one: its end was reported.
            self._ledger.drop(task)
        else:
            self._finish(task, reading, None)

    def _finish(self, task: Task, reading: Reading, aborted: str | None) -> None:
        status, error = judge_declared(task.status, reading, aborted)
        steered = self._steer_of(reading) if aborted is None else None
        if steered is not None and (task.status is None or not task.status.is_terminal):
            content, goes_on = steered
            if goes_on:
                task.retries, task.ended_at = True, reading.end
                self._ledger.park(task, content, reading.end, waiting=False)
                return
            task.root_content, status, error = task.root_content or content, TaskStatus.COMPLETED, None
        if task.waits and status is TaskStatus.COMPLETED:
            self._ledger.park(task, task.root_content or wording.waits_for(wording.A_PERSON), reading.end)
        elif status is TaskStatus.FAILED and error is not None and error is aborted:
            self._ledger.fail(task, error, reading.end)
        else:
            self._ledger.close(task, status, reading.end, error)

    def _steer_of(self, reading: Reading) -> tuple[str, bool] | None:
        """Return what a framework did with a task instead of ending it well or failing it, and whether it goes on."""
        declaration = reading.declaration
        if declaration is not None and declaration.steered is not None:
            return declaration.steered
        kind, _ = reading.exception
        return self._steered(kind) if reading.failed and kind else None

    def _has_failed(self, reading: Reading) -> bool:
        return reading.failed and self._steer_of(reading) is None
