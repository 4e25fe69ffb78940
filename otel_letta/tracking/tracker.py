"""The doorway of tracking: spans in, reports out.

    reading -> tree (where does it stand?) -> rules (what does that mean?) -> ledger (tasks under way) -> report

Two kinds of callers bring spans. A live watcher calls `started`, `changed`, `ended` (and `ended_plain`, `lost`) for the
spans of this process, each with the chain of spans above it (`Ancestor`). An exporter calls `ended_alone` and `passed`
for ended spans, children before their parents. Both end in the same reports. The watcher's contract:

- ``above`` are the spans above that are or were open here, nearest first, ended ones included; ``outside`` is the
  parent of the last of them (of the span itself, if there are none) where that is known.
- What may have become a task above a span is brought first, by `changed`: the nearest ancestor last.
- `started`, `changed` and `ended` return True for a span that is followed: one that is part of a declared task, or has
  a role in an agent's work. Its further changes and its end must be brought, whatever it carries then. An open span
  that is not followed is brought again when its attributes changed, and may end unnoticed, unless its `await_end`
  was called: then `ended_plain` has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind

from otel_letta import semconv
from otel_letta.report import ProgressReport
from otel_letta.text import as_text
from otel_letta.tracking import wording
from otel_letta.tracking.above import Ancestor, await_ends, nearest, next_above, task_around
from otel_letta.tracking.agents import AgentTracker
from otel_letta.tracking.conventions import LLM, TOOL
from otel_letta.tracking.conventions.logfire import pending_of
from otel_letta.tracking.ledger import Ledger
from otel_letta.tracking.log_turns import LogTurns
from otel_letta.tracking.nodes import Trace, WithRole
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.rules_declared import DeclaredRules
from otel_letta.tracking.tasks import NO_IDS, Inbound
from otel_letta.tracking.tree import Tree

if TYPE_CHECKING:
    from typing import TypedDict

    from typing_extensions import Unpack

    class AgentOptions(TypedDict, total=False):
        """Settings of `AgentTracker` that a `Tracker` hands on."""

        grace: float
        idle_timeout: float
        chat_attributes: Sequence[str]
        content: Collection[str]


_LETTAS_OWN = frozenset({semconv.LETTA_SERVER_SCOPE, semconv.ANSWER_SCOPE})


class Tracker:
    """Turns spans into reports. Not thread-safe: whoever owns it calls it from one thread at a time.

    Args:
        emit: takes each report, in order.
        now: the wall clock, Unix nanoseconds.
        host: this machine's name, for spans whose resource does not say.
        allowed_agents: values of ``letta.agent.id`` that are followed.
        default_agent: the configured agent; naming it is the same as naming none.
        content_cap: most characters of content and of the result that a report keeps.
        patience, step_patience: see `DeclaredRules`.
        wake_after: seconds from which on a task that nobody declared is worth waking an agent for its success.
        wake_on_wait, wait_timeout: see `Ledger`.
        claimed: True for an OpenHands conversation, by its id, that somebody else reports.
        steered: returns, for the full name of an exception's type by which a framework steers its tasks, what that
            means in words, and whether the task goes on; None for any other.
        answer_timeout, opted: see `LogTurns`.
        most_tasks: traces of agents that are tracked at once; of more, the ones with the oldest news are given up.
        agent_options: see `AgentTracker`.
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
        wake_on_wait: bool = True,
        wait_timeout: float = 86_400.0,
        claimed: Callable[[str], bool] = lambda session: False,
        steered: Callable[[str], tuple[str, bool] | None] = lambda kind: None,
        answer_timeout: float = 60.0,
        opted: Callable[[str], bool] = lambda service: False,
        most_tasks: int = 10_000,
        **agent_options: Unpack[AgentOptions],
    ) -> None:
        self._now = now
        self.tree = Tree(now, int(agent_options.get("grace", 2.0) * 1e9), most_tasks)
        self._ledger = Ledger(
            emit=emit,
            now=now,
            host=host,
            allowed_agents=allowed_agents,
            default_agent=default_agent,
            content_cap=content_cap,
            wake_after=wake_after,
            wake_on_wait=wake_on_wait,
            wait_timeout=wait_timeout,
            claimed=claimed,
        )
        self._agents = AgentTracker(self.tree, self._ledger, now, **agent_options)
        self._declared = DeclaredRules(
            self.tree, self._ledger, self._agents, now, steered, patience=patience, step_patience=step_patience
        )
        self._turns = LogTurns(self.tree, self._ledger, self._agents, now, answer_timeout, opted, **agent_options)
        self.event = self._turns.take  # takes in a log event
        self._resource: object = None
        self._is_letta_server = False

    @property
    def open_tasks(self) -> int:
        return len(self._ledger.tasks) + self._agents.open_tasks

    @property
    def evicted(self) -> int:
        """The number of times that something was given up because too much is open."""
        return self._agents.evicted

    def under_way(self) -> tuple[set[int], set[tuple[str, str]]]:
        """Return the traces, and the conversations by service, that something under way or undecided depends on."""
        traces, conversations = self._turns.under_way()
        traces.update(self.tree.traces)
        traces.update(key[0] for keys in (self.tree.open, self.tree.doubts) for key in keys)
        traces.update(task.key[0] for task in self._ledger.tasks.values() if task.key is not None)
        return traces, conversations

    # -- live: spans with a start ------------------------------------------------------------------------------------

    def started(
        self,
        reading: Reading,
        above: Sequence[Ancestor],
        outside: SpanKey | None = None,
        inbound: tuple[object, object] = NO_IDS,
    ) -> bool:
        """Take in a span that started. ``inbound``: chat and message id in the context that it started in."""
        return self._observe(reading, above, outside, inbound, late=False)

    def changed(
        self,
        reading: Reading,
        above: Sequence[Ancestor],
        outside: SpanKey | None = None,
        inbound: tuple[object, object] = NO_IDS,
    ) -> bool:
        """Take in a started span that was read again: it may have become a task."""
        return self._observe(reading, above, outside, inbound, late=reading.end is not None)

    def _observe(
        self,
        reading: Reading,
        above: Sequence[Ancestor],
        outside: SpanKey | None,
        inbound: tuple[object, object],
        *,
        late: bool,
    ) -> bool:
        reading.end = None  # it may have ended since; `ended` is called for that, after all that comes before
        ids = Inbound.of(inbound)
        if not self._observe_agent(reading, above, outside, ids, late=late):
            self._declared.observe(
                reading, task_around(self.tree, above), nearest(self.tree, above, reading.start)[1], ids, report=True
            )
        return reading.key in self.tree.open

    def ended(
        self,
        reading: Reading,
        above: Sequence[Ancestor],
        outside: SpanKey | None = None,
        inbound: tuple[object, object] = NO_IDS,
        aborted: str | None = None,
    ) -> bool:
        """Take in an open span that ended. ``aborted``: why, if an exception stopped it that OpenTelemetry does not
        record."""
        self._give_an_end(reading)
        key, ids = reading.key, Inbound.of(inbound)
        ours = self.tree.has_declared(key) or self._observe_agent(reading, above, outside, ids, aborted, late=True)
        if not ours:
            if key in self.tree.awaited:
                self._pass_awaited(key, above, outside, reading.copy(), aborted)
            around, (_, agent) = task_around(self.tree, above), nearest(self.tree, above, reading.start)
            news = self._declared.observe(reading, around, agent, ids, report=False)
            ours = self._declared.end(reading, aborted, news=news)
        self.tree.close(key)
        return ours

    def ended_plain(
        self, reading: Reading, above: Sequence[Ancestor], outside: SpanKey | None = None, aborted: str | None = None
    ) -> None:
        """Take in the end of an awaited span that got no role."""
        self._give_an_end(reading)
        self._pass_awaited(reading.key, above, outside, reading, aborted)
        self.tree.close(reading.key)

    def lost(self, key: SpanKey, above: Sequence[Ancestor], outside: SpanKey | None = None) -> None:
        """Take in that an open span was garbage-collected: nobody can end it any more."""
        span, scope = self.tree.open.get(key), self.tree.awaited.get(key)
        if span is not None and span.has_role:
            self._agents.lost(key)
        elif scope is not None:
            parent, under = next_above(self.tree, above, outside, scope)
            self._agents.lost_plain(key, parent, awaits=under is not None)
        self._declared.lose(key)
        self.tree.close(key)

    def _observe_agent(
        self,
        reading: Reading,
        above: Sequence[Ancestor],
        outside: SpanKey | None,
        inbound: Inbound,
        aborted: str | None = None,
        *,
        late: bool = False,
    ) -> bool:
        """Take in a live span that has a role in an agent's work; False for one that has none.

        Args:
            late: the span has ended; if it has shown no role until now, its instrumentation gives roles at the end,
                so open spans of the same instrumentation may get theirs yet.
        """
        if self._is_lettas_own(reading):
            return True
        key, role, declaration = reading.key, reading.role, reading.declaration
        span = self.tree.open.get(key)
        has_role = span is not None and span.has_role
        if role is None or (span is not None and span.task is not None and not has_role):
            return False
        if declaration is not None:
            if declaration.task_id is not None and not has_role:
                return False
            self._ledger.warn(reading, declaration)
        if not has_role:
            self.tree.open[key] = WithRole()
        facts = self._agents.read(reading, role)
        task, _ = nearest(self.tree, above, reading.start)
        if task is not None and key not in self.tree.awaited:
            self._declared.observe_agents_step(task, reading, facts, declaration, aborted)
            return True
        if role in (TOOL, LLM) and await_ends(self.tree, above, anew=has_role or not late):
            self._agents.observe(
                reading, facts, declaration, parent=reading.parent, inbound=inbound, aborted=aborted, guessed=True
            )
            return True
        parent, under = next_above(self.tree, above, outside, reading.scope if late and not has_role else None)
        parent = parent or self._turns.root_above(key)
        self._agents.observe(
            reading, facts, declaration, parent=parent, live=True, inbound=inbound, aborted=aborted, under=under
        )
        return True

    def _pass_awaited(
        self,
        key: SpanKey,
        above: Sequence[Ancestor],
        outside: SpanKey | None,
        reading: Reading | None = None,
        aborted: str | None = None,
    ) -> None:
        scope = self.tree.awaited.get(key)
        if scope == "" and reading is not None:
            parent = above[0].key if above else outside
            self._agents.passed(key, parent, not above and outside is not None, reading=reading, aborted=aborted)
        elif scope is not None:
            parent, under = next_above(self.tree, above, outside, scope)
            self._agents.passed(key, parent, awaits=under is not None, reading=reading, aborted=aborted)

    # -- ended spans alone: all that an exporter sees ----------------------------------------------------------------

    def ended_alone(self, reading: Reading, above: Sequence[Ancestor] = ()) -> None:
        """Take in an ended span whose start nobody saw; its reading may lose its content. ``above``: the spans above it
        that are open here."""
        if self._is_lettas_own(reading):
            return
        turn, tree = self._turns.turn_of(reading), self.tree
        if turn is not None and self._turns.join(reading, turn):
            return
        key = reading.key
        if key in tree.ended and tree.has_declared(key):
            return
        if semconv.LOGFIRE_SPAN_TYPE in reading.attributes and self._is_pending(reading):
            return
        if reading.end is None:
            self._give_an_end(reading)
        declaration, role, remote = reading.declaration, reading.role, reading.remote is not None
        parent = reading.parent or reading.remote
        waiting = tree.take_doubts(key) if tree.doubts_below else ()
        if declaration is not None and (role is None or declaration.task_id is not None):
            tree.links.put(key, (parent, remote))
            self._declared.observe_ended(reading, declaration, waiting, task_around(self.tree, above))
            return
        if role is None:
            for child in waiting:
                self._declared.place(child, reading.parent)
            if reading.failed and reading.kind is SpanKind.INTERNAL and parent is not None:
                self._agents.part_failed(parent, reading)
            self._agents.passed(key, parent, remote, reading=reading)
            return
        tree.links.put(key, (parent, remote))
        if declaration is not None:
            self._ledger.warn(reading, declaration)
        facts = self._agents.read(reading, role)
        self._agents.observe(reading, facts, declaration, parent, remote)
        for child in waiting:
            self._declared.place(child, key)

    def passed(
        self, key: SpanKey, parent: SpanKey | None, remote: bool = False, read: Callable[[], Reading] | None = None
    ) -> None:
        """Take in an ended span that says nothing by itself: those below it hang below its parent.

        Args:
            remote: the parent is in another process.
            read: reads the span, if it may bound a run: work of an agent hangs below it.
        """
        if self.tree.has_declared(key):
            return
        for child in self.tree.take_doubts(key) if self.tree.doubts_below else ():
            self._declared.place(child, None if remote else parent)
        reading = read() if read is not None and key[0] in self.tree.traces else None
        if reading is not None:
            self._give_an_end(reading)
        self._agents.passed(key, parent, remote, reading=reading)

    def _is_pending(self, reading: Reading) -> bool:
        pending = pending_of(reading)
        if pending is None:
            return False
        self._agents.pending(reading, pending.key, pending.parent)
        return True

    def _is_lettas_own(self, reading: Reading) -> bool:
        """Return True for a span of the Letta server itself, or of a report to it: reporting those to the agent would
        make more of them, for ever."""
        if reading.resource is not self._resource:  # one process has one, and asking it costs as much as all the rest
            self._resource = reading.resource
            self._is_letta_server = as_text(reading.resource.get(semconv.SERVICE_NAME)) == semconv.LETTA_SERVER_SERVICE
        return self._is_letta_server or reading.scope in _LETTAS_OWN

    def _give_an_end(self, reading: Reading) -> None:
        """Let a span whose end has no time, or an impossible one, end now."""
        if reading.end is None:
            reading.end = max(self._now(), reading.start, 1)

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self) -> int | None:
        """Do what is due. Returns when to come again (Unix ns), None for never."""
        now = self._now()
        next_turn = self._turns.tick(now)
        for waiting in self.tree.due(now):
            if isinstance(waiting, Trace):
                self._agents.due(waiting)
            else:
                self._declared.release(waiting)
        alarms = (self.tree.next_alarm, self._ledger.expire(now), next_turn)
        return min([alarm for alarm in alarms if alarm is not None], default=None)

    def restore(self, report: ProgressReport) -> None:
        """Let a task wait on that waited in a process which is gone; ``report`` is its last one."""
        self._ledger.restore(report)

    def release(self, *, anonymous: bool = True) -> None:
        """Report what waits for its parent, as tasks of their own; without ``anonymous`` only what names a chat. Agents
        that have ended are judged."""
        self._turns.settle()
        self._agents.judge_ended()
        self._declared.release_all(anonymous=anonymous)

    def shutdown(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """End everything, because the program ends: what is open fails, what waits for a parent is reported.

        ``goes_on`` returns False when the time is over; then the rest stays open, see `open_tasks`.
        """
        self._declared.shut_down(goes_on)
        self._agents.release_held()
        self._turns.conclude_answered()
        self.release()  # first, since agents may be steps of what waits
        self._agents.end_all(wording.SHUT_DOWN, goes_on)

    def finish(self) -> None:
        """End everything, because no more will come: as if all times of waiting had passed."""
        self._agents.release_held()
        self._turns.conclude_all()
        self.release()
        self._agents.end_all()
