"""Tasks that wait: they have not ended, and go on in another span, trace or process when somebody has acted."""

from __future__ import annotations

from collections.abc import Iterator

from otel_letta.report import ProgressReport
from otel_letta.tracking.tasks import InferredTask, Place, Task

_MOST = 10_000


class Parked:
    """The tasks that wait, from the oldest on."""

    def __init__(self) -> None:
        self._tasks: dict[Place, Task] = {}

    @property
    def oldest(self) -> int | None:
        """The time since which the oldest waits."""
        if not self._tasks:
            return None
        return next(iter(self._tasks.values())).parked_at

    def put(self, task: Task) -> Task | None:
        """Add a task. Return the one that has to be given up for it, since too many wait."""
        place = task.known_as
        self._tasks.pop(place, None)
        self._tasks[place] = task
        return self._tasks.pop(next(iter(self._tasks))) if len(self._tasks) > _MOST else None

    def older_than(self, time: int) -> Iterator[Task]:
        """Take out those that wait since then, or longer."""
        while self._tasks:
            place, task = next(iter(self._tasks.items()))
            if task.parked_at > time:
                break
            del self._tasks[place]
            yield task

    def has_of(self, service: str | None) -> bool:
        return any(isinstance(task, InferredTask) and task.service == service for task in self._tasks.values())

    def take_declared(self, task: Task, chat: str | None) -> Task | None:
        """Take out the one with the same id, or the one in the chat of a task that was given none."""
        found = self._tasks.get(task.known_as)
        is_anonymous = _is_anonymous(task)
        if found is None and is_anonymous and chat is not None:
            wanted = (task.agent_id, chat)
            found = next(
                (t for t in self._tasks.values() if _is_anonymous(t) and (t.agent_id, t.chat_id) == wanted), None
            )
        if found is None and is_anonymous:
            wanted_again = (task.agent_id, task.name, task.key and task.key[0])
            again = (t for t in self._tasks.values() if t.retries)
            found = next((t for t in again if (t.agent_id, t.name, t.key and t.key[0]) == wanted_again), None)
        return self._take(found)

    def take_inferred(self, task: InferredTask, first_tool: str) -> InferredTask | None:
        """Take out the one of the same conversation, or of the same trace.

        Args:
            first_tool: the tool that a task began with, before it asked a model. If one waits for that tool, and no
                other, it is what was allowed: some frameworks resume in a new trace without any id of the old one
                (measured with Genkit 1.4 for Go). Where nothing shows which tool one waits for, it has to be of the
                same agent (measured with Agent Framework 1.23).
        """
        for other in self._tasks.values():
            if not isinstance(other, InferredTask) or other.agent_id != task.agent_id:
                continue
            same_trace = other.key[0] == task.key[0]
            same_chat = task.chat is not None and other.chat is not None and task.chat[2] == other.chat[2]
            if other.service == task.service and (same_trace or same_chat):
                self._take(other)
                return other
        found = [t for t in self._of_tools(task) if first_tool and t.waiting_tool in ("", first_tool)]
        if len(found) == 1 and _may_be_same(task, found[0]):
            self._take(found[0])
            return found[0]
        return None

    def has_of_tool(self, task: InferredTask) -> bool:
        """Return True if one waits that a task may go on with, should it begin with a tool."""
        return any(_may_be_same(task, other) for other in self._of_tools(task))

    def _of_tools(self, task: InferredTask) -> Iterator[InferredTask]:
        """Yield those of a task's service that wait for a tool: for one that is known, or for any of the same agent."""
        for other in self._tasks.values():
            if not isinstance(other, InferredTask) or other.agent_id != task.agent_id or other.service != task.service:
                continue
            if other.waiting_tool or other.name == task.name:
                yield other

    def _take(self, task: Task | None) -> Task | None:
        if task is not None:
            self._tasks.pop(task.known_as, None)
        return task


def _may_be_same(task: InferredTask, other: InferredTask) -> bool:
    """Return False for tasks of two conversations."""
    return task.chat is None or other.chat is None


def restored(report: ProgressReport) -> Task | None:
    """Make the task that waits of the last report about it. Return None for one that no span made."""
    if report.trace_id is None or report.span_id is None or not report.waiting:
        return None
    key = int(report.trace_id, 16), int(report.span_id, 16)
    started = 0 if report.started is None else int(report.started.timestamp() * 1e9)
    task = InferredTask(key, started) if report.inferred else Task(report.task_id, report.agent_id, key, started)
    task.given_id, task.agent_id = report.task_id, report.agent_id
    task.name, task.service = report.name, report.service
    task.chat_id, task.message_id = report.chat_id, report.message_id
    if isinstance(task, InferredTask) and report.chat_id not in (None, report.trace_id):
        task.chat = 0, 0, report.chat_id
    task.progress = report.progress or None
    task.sequence, task.run = report.sequence, report.run
    task.parked_at = task.reported_at = 0 if report.timestamp is None else int(report.timestamp.timestamp() * 1e9)
    task.end()
    return task


def _is_anonymous(task: Task) -> bool:
    return task.given_id in (None, task.automatic_id) and not isinstance(task, InferredTask)


def go_on(task: Task, parked: Task) -> None:
    """Let a task take the place of one that waited: its id, its reports' order, and how far it was."""
    task.given_id, task.key, task.run = parked.given_id or task.given_id, parked.key, parked.run
    task.sequence, task.reported_at = max(task.sequence, parked.sequence), parked.reported_at
    task.started = min(task.started, parked.started) if task.started and parked.started else parked.started
    task.reach(parked.progress)
    task.chat_id, task.message_id = task.chat_id or parked.chat_id, task.message_id or parked.message_id
    task.name = task.name or parked.name
    task.failed_steps += parked.failed_steps
    if isinstance(task, InferredTask) and isinstance(parked, InferredTask):
        task.forgotten = (task.forgotten[0] + parked.tools, task.forgotten[1] + parked.problems)
        task.tools, task.problems = task.tools + parked.tools, task.problems + parked.problems
        task.chat = task.chat or parked.chat
        task.resumed, task.resumed_span = True, parked.span_id
