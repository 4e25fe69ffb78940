"""What agents may ask of a receiver: to see their tasks, and to instruct them. The same by HTTP, as by MCP."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from otel_letta.answer import Answer
from otel_letta.delivery.envelope import link_to
from otel_letta.instruction import INSTRUCT_TASK, LONGEST_TEXT, Instruction, instruction_from
from otel_letta.report import ProgressReport
from otel_letta.serve.answers import Refusal
from otel_letta.serve.doors import EVERY_AGENT, Grant
from otel_letta.serve.http import Doors, refuse_unless_known
from otel_letta.serve.instructions import WAITING, FullError, Instructions, Kept
from otel_letta.serve.tasks import COMPLETED, FAILED, Known, Task, TaskList, Tasks
from otel_letta.settings import Settings
from otel_letta.text import clean_block, clean_line

_logger = logging.getLogger(__name__)

AGENT_HEADER = b"x-agent-id"
"""Names the agent that asks. Letta's MCP client sends it."""

_CAP = 300
SEVERAL = "Several processes receive here, and each knows its own tasks only: ask again, or run it with one."
_ENDED = COMPLETED, FAILED
_MOST_CALLS = 1_000
_MOST_ANSWERS = 200


class Asker(NamedTuple):
    """Who asks, and what that one may."""

    agents: frozenset[str] | None
    """Whose tasks are seen; None for all."""
    instructs: bool
    """It is an agent, or nobody needs a token."""
    does_tasks: bool
    """It is the program that does them, or nobody needs a token."""


def asker_of(doors: Doors, headers: Mapping[bytes, bytes]) -> Asker:
    """Return who asks.

    ==================  ==========================================  ===========  ==================
    token               sees the tasks of                           instructs    takes instructions
    ==================  ==========================================  ===========  ==================
    none is needed      the agent of `AGENT_HEADER`, or all         those        yes
    a sender's          the agent of `AGENT_HEADER`, or all         no           yes
    ``agent=agent-1``   that agent; another header is refused       those        no
    ``agent=*``         the agent of `AGENT_HEADER`, or all         those        no
    ==================  ==========================================  ===========  ==================

    Raises:
        Refusal: nobody who may ask anything.
    """
    grant = Grant(sends=True, agents=frozenset({EVERY_AGENT}))
    if doors.tokens:
        verdict, grant = doors.tokens.look_up(headers.get(b"authorization", b"").decode("latin-1"))
        refuse_unless_known(verdict)
    else:
        doors.check_host(headers)
    named = headers.get(AGENT_HEADER, b"").decode("latin-1").strip()
    if EVERY_AGENT in grant.agents or (not grant.agents and grant.sends):
        agents = frozenset({named}) if named else None
    elif not named:
        agents = grant.agents
    elif named in grant.agents:
        agents = frozenset({named})
    else:
        raise Refusal(403, "this token is another agent's than the one that x-agent-id names")
    return Asker(agents, bool(grant.agents), grant.sends)


class Asking:
    """The three functions, and the way back to the programs that do the tasks. Safe to use from several threads.

    Args:
        tasks: the tasks, by their reports.
        instructions: those that wait for them.
        settings: how much of a report is shown, and where a trace is found.
        note: what is said beside the tasks, if others are not known here.
    """

    may_wait = False
    """True if an answer may take its time."""

    def __init__(self, tasks: TaskList, instructions: Instructions, settings: Settings, *, note: str = "") -> None:
        self._tasks = tasks
        self.instructions = instructions
        self._settings = settings
        self._note = note
        self._lock = threading.Lock()
        self._calls: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        """Instructions that agents gave by a call: the same comes once more, in the agent's answer."""
        self._answers: deque[Answer] = deque(maxlen=_MOST_ANSWERS)
        self.elsewhere: Callable[[Instruction, str, bool], None] = lambda instruction, agent_id, called: None
        """Gets an instruction in an agent's answer for a task that is not known here, see `take_instruction`."""

    # -- what agents may ask -------------------------------------------------------------------------------------------

    def list_tasks(self, asker: Asker) -> dict[str, Any]:
        """Return the asker's tasks: those that wait first, then those under way, then the last that ended."""
        return listed(self.shown(asker), self._note)

    def shown(self, asker: Asker) -> Tasks:
        """Return the asker's tasks in this process."""
        return self._tasks.show(agents=asker.agents)

    def get_task(self, asker: Asker, task_id: str) -> dict[str, Any]:
        """Return one of the asker's tasks, with its steps.

        Raises:
            Refusal: there is none with that id.
        """
        known = self._tasks.find(task_id, asker.agents)
        if known is None:
            raise self._unknown()
        steps = self._tasks.steps(known.task.id)
        return {
            **_summary(known.task),
            **self._details(known.report),
            "steps": [
                {"at": _utc(step.at), "state": step.state, "progress": step.progress, "line": step.line}
                for step in steps
            ],
            "instructions": [_shown(kept) for kept in self.instructions.of(known.task.id)],
        }

    def instruct_task(self, asker: Asker, task_id: object, action: object, text: object = "") -> dict[str, Any]:
        """Keep an instruction for the program that does the task. May block for the disk.

        Raises:
            Refusal: it is none of the bounded forms, or not for this task, or not now.
        """
        instruction = instruction_from({"task_id": task_id, "action": action, "text": text})
        known = None if instruction is None else self._tasks.find(instruction.task_id, asker.agents)
        if known is not None and instruction is not None:
            self._note_call(known, instruction)  # before all else: what is refused here must not come in by the answer
        if not asker.instructs:
            raise Refusal(
                403, "this token is a sender's: to instruct tasks takes one with agent=..., see docs/serve.md"
            )
        if instruction is None:
            raise Refusal(
                400, "action has to be continue, accept or reject; task_id and text are texts; continue needs a text"
            )
        if isinstance(text, str) and len(text) > LONGEST_TEXT:
            raise Refusal(413, f"the text has {len(text)} characters, and may have {LONGEST_TEXT}")
        if known is None:
            raise self._unknown()
        kept = self._put(known, instruction)
        return {
            "id": kept.id,
            "task_id": known.task.task_id,
            "action": kept.action,
            "to": known.task.line,
            "message": self._prospect(known),
        }

    # -- the program that does the task --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def asked_for(self, asker: Asker, task_id: str) -> Iterator[Callable[[], list[dict[str, Any]] | None]]:
        """Enter while a program waits for a task's instructions.

        Gives a function that takes what waits for the task, each instruction once. It returns None as long as no such
        task is known.

        Raises:
            Refusal: the asker does no tasks.
        """
        if not asker.does_tasks:
            raise Refusal(403, "this token is an agent's: instructions are for the program that does the task")
        numbers: set[str] = set()

        def take() -> list[dict[str, Any]] | None:
            known = self._tasks.find(task_id, asker.agents)
            if known is None:
                return None
            if known.task.id not in numbers:
                numbers.add(known.task.id)
                self.instructions.begin_asking(known.task.id)
            taken = self.instructions.take(known.task.id, known.question)
            return [{"id": each.id, "action": each.action, "text": each.text} for each in taken]

        try:
            yield take
        finally:
            for number in numbers:
                self.instructions.end_asking(number)

    # -- answers -------------------------------------------------------------------------------------------------------

    def take_answer(self, report: ProgressReport, answer: Answer) -> None:
        """Keep what an agent asks for in its answer to a report. What is not for a task of its own is left out.

        It is called for each report of a turn, with one answer. An instruction that the agent gave by a call of
        `instruct_task`, which came here then, stands in its answer as well and is not kept twice.
        """
        with self._lock:
            if any(answer is each for each in self._answers):
                return
            self._answers.append(answer)
        called = INSTRUCT_TASK in answer.tools
        for instruction in answer.instructions:
            if not self.take_instruction(instruction, answer.agent_id, called=called, report=report):
                self.elsewhere(instruction, answer.agent_id, called)

    def take_instruction(
        self, instruction: Instruction, agent_id: str, *, called: bool, report: ProgressReport | None = None
    ) -> bool:
        """Keep an instruction that stood in an agent's answer. Return False if no such task of its is known here.

        Args:
            called: the agent has called `instruct_task` in that turn.
            report: the one that was answered, if it came from here.
        """
        known = self._tasks.find(instruction.task_id, (agent_id,))
        if known is None:
            return False
        if called and self._was_called(known, instruction):
            return True
        if report is None or instruction.action == "continue" or not _asks_otherwise(known, report):
            try:
                self._put(known, instruction)
            except Refusal as refusal:  # the agent's turn is over, and nobody is left to be told
                _logger.info("an instruction in an agent's answer was left out: %s", refusal.text)
        return True

    # -- how -----------------------------------------------------------------------------------------------------------

    def _unknown(self) -> Refusal:
        return Refusal(404, f"no task of yours with this id has been reported here. {self._note or _DIRECT}")

    def _put(self, known: Known, instruction: Instruction) -> Kept:
        task = known.task
        if task.state in _ENDED and not self.instructions.is_asked_for(task.id):
            raise Refusal(409, "this task has ended, and no program asks for instructions of it")
        if instruction.action != "continue" and not known.question:
            raise Refusal(409, f"this task does not wait for a yes or no: there is nothing to {instruction.action}")
        try:
            return self.instructions.put(task.id, instruction, known.question)
        except FullError:
            raise Refusal(409, "too many instructions wait: programs do not come for them") from None

    def _prospect(self, known: Known) -> str:
        """Say what will become of an instruction, no more than is known."""
        if self.instructions.is_asked_for(known.task.id):
            return "It is kept for the program that does the task, which asks for instructions."
        return (
            "It is kept until the program that does the task asks for it. None has asked lately, and one that never "
            "does will not get it: get_task shows what becomes of it."
        )

    def _note_call(self, known: Known, instruction: Instruction) -> None:
        key = known.task.id, instruction.action, instruction.text
        with self._lock:
            self._calls[key] = self._calls.get(key, 0) + 1
            self._calls.move_to_end(key)
            if len(self._calls) > _MOST_CALLS:
                self._calls.popitem(last=False)

    def _was_called(self, known: Known, instruction: Instruction) -> bool:
        key = known.task.id, instruction.action, instruction.text
        with self._lock:
            times = self._calls.pop(key, 0)
            if times > 1:
                self._calls[key] = times - 1
            return times > 0

    def _details(self, report: ProgressReport) -> dict[str, Any]:
        cap = self._settings.content_cap
        found = {
            "message_id": clean_line(report.message_id or "", _CAP),
            "host": clean_line(report.host or "", _CAP),
            "content": clean_block(report.content, cap),
            "result": clean_block(report.result or "", cap),
            "error": clean_line(report.error or "", _CAP),
            "trace_id": report.trace_id or "",
            "trace": link_to(report, self._settings.trace_link),
        }
        return {name: value for name, value in found.items() if value}


_DIRECT = (
    "A program that reports to Letta directly is not known here: if it listens for your answers, it reads this call, "
    "or a task-instruction block, in them."
)


def _asks_otherwise(known: Known, report: ProgressReport) -> bool:
    """Return whether a task waits for something else now than in the report that was answered."""
    return known.report.key == report.key and clean_line(report.content, _CAP) != known.task.line


def listed(shown: Tasks, note: str = "") -> dict[str, Any]:
    """Return tasks as they are told to an agent."""
    tasks = [_summary(task) for task in (*shown.waiting, *shown.working, *shown.ended)]
    return {"tasks": tasks, "more": shown.more, **({"note": note} if note else {})}


def _summary(task: Task) -> dict[str, Any]:
    found = {
        "task_id": task.task_id,
        "name": task.name,
        "state": task.state,
        "progress": task.progress,
        "line": task.line,
        "agent_id": task.agent,
        "chat_id": task.chat,
        "service": task.service,
        "started": _utc(task.started),
        "changed": _utc(task.changed),
        "seconds": task.seconds,
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _shown(kept: Kept) -> dict[str, Any]:
    return {
        "id": kept.id,
        "at": _utc(kept.at),
        "action": kept.action,
        "text": kept.text,
        "state": "not taken yet" if kept.state == WAITING else kept.state,
    }


def _utc(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
